"""What an estimator has learnt, as one JSON file: written whole or not at all, read back exactly, or refused."""

import inspect
import json
import os
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError, create_model

from driftsched_lib.errors import ParamsError
from driftsched_lib.estimators import ESTIMATORS, Estimator
from driftsched_lib.validation import in_one_move

FORMAT, VERSION = "driftsched-estimator", 1


def save_estimator(estimator: Estimator, path: str | Path) -> None:
    """Write an estimator's parameters and what it has learnt.

    Raises:
        ValueError: it is none of `ESTIMATORS`, or holds a number that is not finite.
    """
    names = [name for name, kind in ESTIMATORS.items() if type(estimator) is kind]
    if not names:
        raise ValueError(f"{type(estimator).__name__} is none of the estimators {', '.join(ESTIMATORS)}")
    parameters = {name: getattr(estimator, name) for name in inspect.signature(type(estimator)).parameters}
    content = {
        "format": FORMAT,
        "version": VERSION,
        "estimator": names[0],
        "parameters": parameters,
        "state": None if estimator.state_ is None else asdict(estimator.state_),
    }
    text = json.dumps(content, allow_nan=False)
    with in_one_move(Path(path)) as partial, partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # or a power cut could leave the new name with nothing behind it


def load_estimator(path: str | Path) -> Estimator:
    """The estimator of a file: from here on it says and learns what the one that was saved would have.

    Raises:
        ParamsError: the file cannot be read, is not one of ours, is of another version, or a field of it is
            missing, unknown, of the wrong type or range, or not finite.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ParamsError(f"{path}: cannot be read: {error}") from None
    except (ValueError, RecursionError) as error:
        raise ParamsError(f"{path}: is not JSON: {error}") from None
    try:
        return _estimator(content)
    except _Fault as fault:
        raise ParamsError(f"{path}: {fault}") from None


class _Fault(Exception):
    """What is wrong with a file's content, the field first."""


def _estimator(content: Any) -> Estimator:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise _Fault(f"format: is not {FORMAT!r}, so this is no estimator of ours")
    if content.get("version") != VERSION:
        raise _Fault(f"version: is {content.get('version')!r}, this program reads {VERSION}")
    if set(content) != {"format", "version", "estimator", "parameters", "state"}:
        raise _Fault(f"{', '.join(sorted(content))}: must be format, version, estimator, parameters, state")
    if not isinstance(content["estimator"], str) or content["estimator"] not in ESTIMATORS:
        raise _Fault(f"estimator: is {content['estimator']!r}, it may be one of {', '.join(ESTIMATORS)}")
    _check_finite(content, "")
    estimator = _new(ESTIMATORS[content["estimator"]], content["parameters"])
    if estimator.state_ is None:
        if content["state"] is not None:
            raise _Fault("state: must be null, this estimator learns nothing")
        return estimator
    state = _validated(type(estimator.state_), content["state"], "state")
    _check_like_new(asdict(estimator.state_), asdict(state), "state")
    estimator.state_ = state
    return estimator


def _new(kind: type, parameters: Any) -> Estimator:
    """An estimator that has learnt nothing, of parameters of the types that its constructor names."""
    fields = {name: (parameter.annotation, ...) for name, parameter in inspect.signature(kind).parameters.items()}
    checked = _validated(create_model(kind.__name__, **fields), parameters, "parameters")  # type: ignore[call-overload]
    try:
        return kind(**{name: getattr(checked, name) for name in fields})
    except ValueError as error:
        raise _Fault(f"parameters: {error}") from None


def _validated(kind: type, values: Any, field: str) -> Any:
    try:
        return TypeAdapter(kind).validate_json(json.dumps(values), strict=True, extra="forbid")
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise _Fault(f"{'.'.join(map(str, (field, *fault['loc'])))}: {fault['msg']}") from None


def _check_finite(value: Any, field: str) -> None:
    if isinstance(value, float) and not isfinite(value):
        raise _Fault(f"{field}: is {value}, it must be a finite number")
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        _check_finite(part, f"{field}.{name}".lstrip("."))


def _check_like_new(new: Any, loaded: Any, field: str) -> None:
    """What a new estimator has, all categories and each slot, a loaded one must have, and no others beside them.

    What is empty in a new one, tenants and windows, may be anything.
    """
    if isinstance(new, dict) and new:
        if set(new) != set(loaded):
            raise _Fault(f"{field}: holds {', '.join(loaded) or 'nothing'}, it must hold {', '.join(new)}")
        for name in new:
            _check_like_new(new[name], loaded[name], f"{field}.{name}")
    elif isinstance(new, list) and new and len(new) != len(loaded):
        raise _Fault(f"{field}: holds {len(loaded)} numbers, it must hold {len(new)}")
