"""Validated parameters: YAML and JSON files whose faults are reported by file, field and allowed values."""

import inspect
import json
import os
import re
import reprlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from math import inf
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated, Any, Self, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, PlainSerializer, ValidationError, create_model

from driftsched_lib.errors import ParamsError

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


def file_name(value: Any) -> str:
    """Return the text of a value with only such characters as file names may have everywhere."""
    return re.sub(r"[^\w.=-]+", "-", str(value))


def _distinct(values: list[T]) -> list[T]:
    names = [file_name(value).casefold() for value in values]
    if twice := [str(value) for value, name in zip(values, names, strict=True) if names.count(name) > 1]:
        raise ValueError(f"the same value is given twice, or two that name one folder: {', '.join(twice)}")
    return values


OneOrMore = Annotated[list[T], Field(min_length=1), BeforeValidator(_as_list), AfterValidator(_distinct)]


def in_range(name: str, value: float, low: float, high: float = inf, above: bool = True) -> float:
    """Return a constructor's argument; ValueError unless it is finite, above `low` or at it, and at most `high`."""
    if not (low < value <= high or (value == low and not above)) or value == inf:
        bounds = f"{'above' if above else 'at least'} {low:g}{f' and at most {high:g}' if high < inf else ''}"
        raise ValueError(f"{name} is {value}, it must be {bounds}")
    return value


positive = partial(in_range, low=0)
"""Return a constructor's argument; ValueError unless it is finite and above 0."""


def not_negative(name: str, value: float, high: float = inf) -> float:
    """Return a constructor's argument; ValueError unless it is at least 0, finite, and at most `high`."""
    return in_range(name, value, 0, high, above=False)


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
        strict = {"extra": "forbid", "allow_inf_nan": False, "arbitrary_types_allowed": True}
        arguments = create_model(kind.__name__, __config__=strict, **allowed)  # type: ignore[call-overload]
        try:
            checked = arguments.model_validate(options).model_dump(mode="json", include=set(options))
        except ValidationError as error:
            raise ValueError("; ".join(faults(error, arguments))) from None
        if not any(p.name in shared and p.default is p.empty for p in parameters):
            kind(**checked)
        return Component(name, kind, checked)

    return Annotated[Component, BeforeValidator(parse), PlainSerializer(Component.as_yaml)]


def _imported(name: str) -> type:
    try:
        kind = resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{name!r} cannot be imported: {error}") from None
    if not isinstance(kind, type):
        raise ValueError(f"{name!r} cannot be imported: it is no class")
    return kind


class Validated(BaseModel):
    """A model of a YAML file or of a part of one."""

    model_config = {"extra": "forbid", "frozen": True, "strict": True, "validate_default": True}

    def model_dump(self, **how: Any) -> dict[str, Any]:
        """Return pydantic's dump; Ctrl-C in its midst stays a KeyboardInterrupt, which pydantic turns into an error."""
        try:
            return super().model_dump(**how)
        except ValueError as error:
            raise (error.__cause__ if isinstance(error.__cause__, KeyboardInterrupt) else error) from None

    @classmethod
    def parse(cls, values: Mapping[str, Any], source: str, overrides: Mapping[str, Any] | None = None) -> Self:
        """Validate a mapping under `overrides`; ParamsError names `source` and every field that is wrong."""
        try:
            return cls.model_validate(overlaid(dict(values), overrides or {}, source))
        except ValidationError as error:
            raise ParamsError("\n".join(f"{source}: {line}" for line in faults(error, cls))) from None

    @classmethod
    def load(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> Self:
        """Read a YAML file and `parse` it."""
        return cls.parse(read_yaml(path), str(path), overrides)


def once(source: str | Path, pairs: Iterable[tuple[str, T]]) -> dict[str, T]:
    """Return a mapping of pairs; ParamsError names `source` and a key that is given twice."""
    values: dict[str, T] = {}
    for key, value in pairs:
        if key in values:
            raise ParamsError(f"{source}: {key} is given twice")
        values[key] = value
    return values


class YamlLoader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """PyYAML's safe loader, which refuses a key that is given twice instead of keeping the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        once(f"in the mapping at line {node.start_mark.line + 1}", ((key.value, key) for key in keys))
        return node


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return the mapping that a YAML file holds; ParamsError where it holds none or cannot be read."""
    try:
        values = yaml.load(Path(path).read_text(), YamlLoader)
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

    model_config = {"extra": "forbid", "frozen": True, "allow_inf_nan": False}

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file; ParamsError names the file and each field that is missing, wrong or given twice."""
        try:
            text = Path(path).read_text()
            model = cls.model_validate_json(text)
        except (OSError, UnicodeDecodeError) as error:
            raise ParamsError(f"{path}: cannot be read: {error}") from None
        except ValidationError as error:
            raise ParamsError("\n".join(f"{path}: {line}" for line in faults(error, cls))) from None
        json.loads(text, object_pairs_hook=partial(once, path))
        return model

    def save(self, path: str | Path) -> None:
        """Write the file in one move; ParamsError says why it cannot be written."""
        try:
            with in_one_move(Path(path)) as half:
                half.write_text(self.model_dump_json(indent=2) + "\n")
        except OSError as error:
            raise ParamsError(f"{path} cannot be written: {error}") from None


@contextmanager
def in_one_move(path: Path) -> Iterator[Path]:
    """Yield the file or folder to write to; it becomes `path` when it is whole, and nothing is left if that fails."""
    half = path.with_name(path.name + PARTIAL)
    try:
        yield half
        os.replace(half, path)
    finally:
        shutil.rmtree(half, ignore_errors=True)
        with suppress(OSError):
            half.unlink()


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
            inner = [t for t in _types(model.model_fields[part].annotation) if issubclass(t, BaseModel)]
            model = inner[0] if inner else model
    return model


def _types(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type):
        yield annotation
    for argument in get_args(annotation):
        yield from _types(argument)
