"""Validated parameters: YAML and JSON files whose faults are reported by file, field and allowed values."""

import importlib
import inspect
import os
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from math import inf
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    create_model,
)

from driftsched_lib.errors import DriftSchedError, ParamsError

PROJECT = Path(__file__).resolve().parents[1]
PARTIAL = ".partial"
"""Suffix of a file or folder that is being written."""

Positive = Annotated[float, Field(ge=1e-9, le=1e9)]  # floats cannot tell moments apart beyond these bounds
NotNegative = Annotated[float, Field(ge=0, le=1e9)]
Count = Annotated[int, Field(ge=1, le=10**9)]
FileName = Annotated[str, Field(pattern=r"^[^\x00]+$")]
Name = Annotated[str, Field(min_length=1, max_length=128)]

T = TypeVar("T")


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _distinct(values: list[T]) -> list[T]:
    if len({str(value) for value in values}) < len(values):
        raise ValueError("the same value is given twice")
    return values


OneOrMore = Annotated[list[T], Field(min_length=1), BeforeValidator(_as_list), AfterValidator(_distinct)]


def in_range(name: str, value: float, low: float, high: float = inf) -> float:
    """Return a constructor's argument; ValueError unless it is above `low`, finite, and at most `high`."""
    if not low < value <= high or value == inf:
        raise ValueError(f"{name} is {value}, it must be above {low:g}{f' and at most {high:g}' if high < inf else ''}")
    return value


def positive(name: str, value: float) -> float:
    """Return a constructor's argument; ValueError unless it is finite and above 0."""
    return in_range(name, value, 0)


def not_negative(name: str, value: float, high: float = inf) -> float:
    """Return a constructor's argument; ValueError unless it is at least 0, finite, and at most `high`."""
    if not 0 <= value <= high or value == inf:
        raise ValueError(f"{name} is {value}, it must be at least 0{f' and at most {high:g}' if high < inf else ''}")
    return value


@dataclass(frozen=True)
class Component:
    """A policy or an estimator: a class, and the constructor arguments that differ from its defaults.

    In YAML: `sjf`, or `{aging: {rate: 0.02}}`.  A user's own is `module:Class`, or given as the class itself.
    """

    name: str
    kind: type
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join([self.name, *(f"{key}={value}" for key, value in self.options.items())])

    def as_yaml(self) -> str | dict[str, dict[str, Any]]:
        return {self.name: dict(self.options)} if self.options else self.name

    def accepts(self, argument: str) -> bool:
        """Return whether the constructor has an argument of this name."""
        return argument in inspect.signature(self.kind).parameters

    def build(self, **shared: Any) -> Any:
        """Return a new object; of the `shared` arguments it is given those that its constructor has."""
        return self.kind(**{name: value for name, value in shared.items() if self.accepts(name)} | dict(self.options))


def component(registry: Mapping[str, type], shared: tuple[str, ...] = ()) -> Any:
    """Return the type of a field that holds a `Component` of `registry`, or of a user's class.

    The `shared` constructor arguments are not given here, but to `Component.build`.
    """

    def parse(value: Any) -> Component:
        if isinstance(value, Component):
            return value
        [(given, options)] = value.items() if isinstance(value, dict) and len(value) == 1 else [(value, {})]
        kind: Any = given if isinstance(given, type) else None
        name = str(given) if kind is None else f"{kind.__module__}:{kind.__qualname__}"
        if kind is None and isinstance(given, str):
            kind = _imported(name) if ":" in name else registry.get(name)
        if kind is None:
            raise ValueError(f"{choice(given, registry)}, or module:Class")
        if not isinstance(options, dict):
            raise ValueError(f"the arguments of {name} must be a mapping of names to values")
        parameters = inspect.signature(kind).parameters.values()
        allowed = {
            p.name: (Any if p.annotation is p.empty else p.annotation, ... if p.default is p.empty else p.default)
            for p in parameters
            if p.name not in shared and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        }
        arguments = create_model(kind.__name__, __config__=_STRICT, **allowed)  # type: ignore[call-overload]
        try:
            checked = arguments.model_validate(options).model_dump(mode="json", include=set(options))
        except ValidationError as error:
            raise ValueError("; ".join(faults(error, arguments))) from None
        if not any(p.name in shared and p.default is p.empty for p in parameters):
            kind(**checked)
        return Component(name, kind, checked)

    return Annotated[Component, BeforeValidator(parse), PlainSerializer(Component.as_yaml)]


_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True)


def _imported(name: str) -> type:
    module, _, attribute = name.partition(":")
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{name!r} cannot be imported: {error}") from None
    if not isinstance(kind, type):
        raise ValueError(f"{name!r} is no class")
    return kind


class Validated(BaseModel):
    """A model of a YAML file or of a part of one."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True)

    def model_dump(self, **how: Any) -> dict[str, Any]:
        """Return pydantic's dump; Ctrl-C in its midst stays a KeyboardInterrupt, which pydantic turns into an error."""
        try:
            return super().model_dump(**how)
        except ValueError as error:
            if isinstance(error.__cause__, KeyboardInterrupt):
                raise error.__cause__ from None
            raise

    @classmethod
    def parse(cls, values: Mapping[str, Any], source: str) -> Self:
        """Validate a mapping; ParamsError names `source` and every field that is wrong."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            lines = faults(error, cls)
        raise ParamsError("\n".join(f"{source}: {line}" for line in lines))

    @classmethod
    def load(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> Self:
        """Read a YAML file, lay `overrides` over it (dotted keys reach into mappings), and validate."""
        return cls.parse(overlaid(read_yaml(path), overrides or {}, str(path)), str(path))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return the mapping that a YAML file holds; ParamsError where it holds none or cannot be read."""
    try:
        values = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ParamsError(f"{path}: cannot be read: {error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ParamsError(f"{path}: is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ParamsError(f"{path}: must be a mapping of parameters to values")
    return values


def overlaid(values: dict[str, Any], overrides: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return `values` with `overrides` laid over them; a dotted key reaches into mappings."""
    for key, value in overrides.items():
        *parents, last = key.split(".")
        target = values
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise ParamsError(f"{source}: {key} reaches into {parent}, which is not a mapping")
        target[last] = value
    return values


class JsonFile(BaseModel):
    """A model that is kept as a JSON file."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    refused: ClassVar[type[DriftSchedError]] = ParamsError
    """What is raised for a file that cannot be used."""

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file; the error otherwise names the file and each field that is missing or wrong."""
        try:
            return cls.model_validate_json(Path(path).read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise cls.refused(f"{path}: cannot be read: {error}") from None
        except ValidationError as error:
            raise cls.refused("\n".join(f"{path}: {line}" for line in faults(error, cls))) from None

    def save(self, path: str | Path) -> None:
        """Write the file in one move."""
        with in_one_move(Path(path)) as partial:
            partial.write_text(self.model_dump_json(indent=2) + "\n")


@contextmanager
def in_one_move(path: Path) -> Iterator[Path]:
    """Yield the file to write to; it becomes `path` when it is whole, and nothing is left of one that fails."""
    partial = path.with_name(path.name + PARTIAL)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        with suppress(OSError):
            partial.unlink()


def in_project(path: str) -> str:
    """Return the path of a file or folder, looked for in the project first."""
    there = PROJECT / path
    return str(there) if os.path.exists(there) else path  # `Path.exists` raises for a name that is too long


def choice(value: Any, allowed: Iterable[str]) -> str:
    """Return a message: the value is unknown, what may have been meant, and what is known."""
    close = get_close_matches(str(value), list(allowed), 1)
    meant = f" Did you mean {close[0]!r}?" if close else ""
    return f"{value!r} is unknown.{meant} Known: {', '.join(allowed)}"


def faults(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Return a line for each fault of validating `model`: where, what, and what is allowed."""
    lines = []
    for fault in error.errors(include_url=False):
        match fault["type"]:
            case "extra_forbidden" | "unexpected_keyword_argument":
                *path, last = fault["loc"]
                message = f"unknown key: {choice(last, _model_at(model, path).model_fields)}"
            case "missing":
                message = "is missing"
            case "value_error":  # raised by this project, and complete in itself
                message = str(fault["ctx"]["error"])
            case _:
                message = f"{fault['msg'][0].lower()}{fault['msg'][1:]}, not {reprlib.repr(fault['input'])}"
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"])
        lines.append(": ".join(filter(None, (where.removeprefix("."), message))))
    return lines


def _model_at(model: type[BaseModel], path: Iterable[str | int]) -> type[BaseModel]:
    """Return the model at a path of field names and list indices."""
    for part in path:
        if isinstance(part, str) and part in model.model_fields:
            annotation = model.model_fields[part].annotation
            inner = [t for t in _types(annotation) if issubclass(t, BaseModel)]
            model = inner[0] if inner else model
    return model


def _types(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type):
        yield annotation
    for argument in get_args(annotation):
        yield from _types(argument)
