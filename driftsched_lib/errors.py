"""The one base of what the package refuses."""


class DriftSchedError(Exception):
    """What whoever runs this can mend: the message names what is wrong and where, and says what to do."""
