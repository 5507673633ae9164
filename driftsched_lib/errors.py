"""Errors that the person who runs this can mend: each message names what is wrong, where, and what to do."""


class DriftSchedError(Exception):
    """Base of all errors that the package raises on purpose."""


class ParamsError(DriftSchedError, ValueError):
    """Parameters, or a file they name, cannot be used."""


class RunError(DriftSchedError, RuntimeError):
    """An engine failed during a run."""
