"""What an estimator has learnt, as one JSON file: written whole or not at all, read back exactly, or refused."""

import inspect
import json
import os
import sys
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, TypeAdapter, create_model

from driftsched_lib.errors import ParamsError
from driftsched_lib.estimators import ESTIMATORS, Estimator
from driftsched_lib.validation import JsonFile, choice, in_one_move

_ANY = TypeAdapter[Any](Any, config={"ser_json_inf_nan": "constants"})


def _class_of(name: Any) -> type:
    """Return the class of a name; it imports nothing, because a file may come from anywhere."""
    module, _, attribute = str(name).partition(":")
    kind = ESTIMATORS.get(str(name)) or getattr(sys.modules.get(module), attribute, None)
    if not (isinstance(kind, type) and hasattr(kind, "estimate") and hasattr(kind, "observe")):
        raise ValueError(f"{choice(name, ESTIMATORS)}, or module:Class of a module that has been imported")
    return kind


class _File(JsonFile):
    model_config = JsonFile.model_config | {"strict": True}
    format: Literal["driftsched-estimator"]
    version: Literal[2]
    estimator: Annotated[Any, BeforeValidator(_class_of)]
    parameters: Any
    state: Any


def save_estimator(estimator: Estimator, path: str | Path) -> None:
    """Write an estimator's parameters and what it has learnt; a user's class is named `module:Class`.

    Raises:
        ValueError: the estimator is not kept as `Estimator` says, or holds a number that is not finite.
    """
    kind = type(estimator)
    names = [name for name, known in ESTIMATORS.items() if known is kind] or [f"{kind.__module__}:{kind.__qualname__}"]
    parameters = {name: getattr(estimator, name, None) for name in inspect.signature(kind).parameters}
    if _class_of(names[0]) is not kind:
        raise ValueError(f"{names[0]} is another class than this estimator's")
    if wrong := {"state_", *vars(estimator)} ^ {"state_", *parameters}:
        raise ValueError(f"{names[0]}: {', '.join(sorted(wrong))} must be a parameter and an attribute, or in state_")
    content = {"format": "driftsched-estimator", "version": 2, "estimator": names[0]}
    content["parameters"] = _ANY.dump_python(parameters, mode="json", exclude_defaults=True)  # JSON has no infinity
    content["state"] = _ANY.dump_python(estimator.state_, mode="json")
    text = json.dumps(content, allow_nan=False)
    with in_one_move(Path(path)) as partial, partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # or a power cut could leave the new name with nothing behind it


def load_estimator(path: str | Path) -> Estimator:
    """Return the estimator of a file; it estimates and learns as the saved one would have.

    Raises:
        ParamsError: the file cannot be read, or a field is missing, unknown, of the wrong type, or out of range.
    """
    kind = _File.load(path).estimator
    try:
        estimator: Estimator = kind(**dict(_file_of("parameters", kind).load(path).parameters))
    except ValueError as error:
        raise ParamsError(f"{path}: parameters: {error}") from None
    state = _file_of("state", type(estimator.state_)).load(path).state  # type: ignore[arg-type]
    new, loaded = (_ANY.dump_python(part, mode="json") for part in (estimator.state_, state))
    _check_parts(new, loaded, f"{path}: state")
    estimator.state_ = state
    return estimator


@lru_cache  # a model takes milliseconds to build
def _file_of(part: str, kind: Any) -> type[_File]:
    """Return the model of files whose parameters are those of a class, or whose state is of it."""
    if part == "parameters":
        arguments = inspect.signature(kind, eval_str=True).parameters
        types = {name: (Any if a.annotation is a.empty else a.annotation, ...) for name, a in arguments.items()}
        kind = create_model("Parameters", __config__=_File.model_config, **types)  # type: ignore[call-overload]
    return create_model("File", __base__=_File, **{part: kind})


def _check_parts(new: Any, loaded: Any, where: str) -> None:
    """Raise ParamsError unless a loaded state has all parts of a new one; what is empty there may grow."""
    if isinstance(new, list) and new:
        new, loaded = dict(enumerate(new)), dict(enumerate(loaded))
    if isinstance(new, dict) and new:
        if wrong := sorted(new.keys() ^ loaded.keys()):
            raise ParamsError(f"{where}: {', '.join(map(str, wrong[:5]))} is missing or unknown")
        for name in new:
            _check_parts(new[name], loaded[name], f"{where}.{name}")
