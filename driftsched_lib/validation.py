"""What a YAML file may say: a model's base, whose faults name the field and what it may be, and common types."""

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

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

from driftsched_lib.errors import DriftSchedError
from driftsched_lib.estimators import BASE_TOKENS, ESTIMATORS
from driftsched_lib.estimators.base import LONGEST
from driftsched_lib.policies import POLICIES

Category = Literal["short_qa", "summary", "technical", "report"]
Tier = Literal["premium", "standard", "batch"]
Positive = Annotated[float, Field(ge=1e-9, le=1e9)]  # beyond, floats can no longer tell moments apart
Count = Annotated[int, Field(ge=1, le=10**9)]
NotNegative = Annotated[float, Field(ge=0, le=1e9)]
FileName = Annotated[str, Field(pattern=r"^[^\x00]+$")]
GapVariation = Annotated[float, Field(ge=0.01, le=100)]


PROJECT = Path(__file__).resolve().parents[1]


class ParamsError(DriftSchedError, ValueError):
    """Parameters that cannot be used; the message names the file, each field and what it may be."""


@dataclass(frozen=True)
class Component:
    """A policy or an estimator by name, with the constructor arguments that differ from its defaults.

    In YAML it is a name, `sjf`, or a name with arguments, `{aging: {rate: 0.02}}`.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join([self.name, *(f"{key}={value}" for key, value in self.options.items())])

    def as_yaml(self) -> str | dict[str, dict[str, Any]]:
        return {self.name: dict(self.options)} if self.options else self.name


def _component(registry: Mapping[str, type], given_elsewhere: tuple[str, ...] = ()) -> Callable[[Any], Component]:
    """A parser of components whose name is in `registry` and whose arguments fit the constructor found there."""

    def parse(value: Any) -> Component:
        if isinstance(value, Component):
            return value
        if isinstance(value, dict) and len(value) == 1:
            [(name, options)] = value.items()
        else:
            name, options = value, {}
        if not isinstance(name, str) or name not in registry:
            raise ValueError(choice(name, registry))
        if not isinstance(options, dict):
            raise ValueError(f"the arguments of {name} must be a mapping of names to values")
        parameters = inspect.signature(registry[name]).parameters.values()
        allowed = {p.name: (p.annotation, p.default) for p in parameters if p.name not in given_elsewhere}
        config = ConfigDict(extra="forbid", allow_inf_nan=False)
        arguments = create_model(name, __config__=config, **allowed)  # type: ignore[call-overload]
        try:
            checked = arguments.model_validate(options).model_dump(mode="json", include=set(options))
        except ValidationError as error:
            raise ValueError("; ".join(_explain(error, arguments))) from None
        registry[name](**checked)
        return Component(name, checked)

    return parse


T = TypeVar("T")


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _distinct(values: list[T]) -> list[T]:
    if len({str(value) for value in values}) < len(values):
        raise ValueError("the same value is given twice")
    return values


OneOrMore = Annotated[list[T], Field(min_length=1), BeforeValidator(_as_list), AfterValidator(_distinct)]
_to_yaml = PlainSerializer(Component.as_yaml)
PolicyName = Annotated[Component, BeforeValidator(_component(POLICIES)), _to_yaml]
EstimatorName = Annotated[
    Component, BeforeValidator(_component(ESTIMATORS, given_elsewhere=("base_tokens", "calibrate"))), _to_yaml
]


def _all_categories(base_tokens: dict[str, int]) -> dict[str, int]:
    if missing := sorted(set(BASE_TOKENS) - set(base_tokens)):
        raise ValueError(f"a base for {', '.join(missing)} is missing")
    return base_tokens


BaseTokens = Annotated[dict[Category, Annotated[int, Field(ge=1, le=LONGEST)]], AfterValidator(_all_categories)]


class Validated(BaseModel):
    """A model of a YAML file or a part of one: a wrong key, type or range names the field and what it may be."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True)

    def model_dump(self, **how: Any) -> dict[str, Any]:
        """As pydantic's, but an interrupt (Ctrl-C) in its midst stays one: pydantic makes it an error."""
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
            lines = _explain(error, cls)
        raise ParamsError("\n".join(f"{source}: {line}" for line in lines))

    @classmethod
    def load(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> Self:
        """Read a YAML file, lay `overrides` over it (dotted keys reach into mappings), and validate."""
        path = Path(path)
        try:
            values = yaml.safe_load(path.read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise ParamsError(f"{path}: cannot be read: {error}") from None
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ParamsError(f"{path}: is not YAML: {error}") from None
        if not isinstance(values, dict):
            raise ParamsError(f"{path}: must be a mapping of parameters to values")
        for key, value in (overrides or {}).items():
            *parents, last = key.split(".")
            target = values
            for parent in parents:
                target = target.setdefault(parent, {})
                if not isinstance(target, dict):
                    raise ParamsError(f"{path}: {key} reaches into {parent}, which is not a mapping")
            target[last] = value
        return cls.parse(values, str(path))


def in_project(path: str) -> str:
    """A file's or folder's path, looked for in the project first."""
    there = PROJECT / path
    return str(there) if os.path.exists(there) else path  # of a name too long, `Path.exists` raises


def choice(value: Any, allowed: Mapping[str, Any]) -> str:
    close = get_close_matches(str(value), list(allowed), 1)
    return f"{value!r} is unknown{f', did you mean {close[0]!r}?' if close else ''} (it may be {', '.join(allowed)})"


def _explain(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """A line for each fault of validating `model`: where, what, and what it may be."""
    lines = []
    for fault in error.errors(include_url=False):
        *path, last = fault["loc"] or [""]  # a fault of the whole says itself where it is
        match fault["type"]:
            case "extra_forbidden":
                message = f"unknown key: {choice(last, _model_at(model, path).model_fields)}"
            case "missing":
                message = "is missing"
            case "value_error":  # raised here, and complete in itself
                message = str(fault["ctx"]["error"])
            case _:
                message = f"{fault['msg'][0].lower()}{fault['msg'][1:]}, not {fault['input']!r}"
        lines.append(": ".join(filter(None, (".".join(map(str, fault["loc"])), message))))
    return lines


def _model_at(model: type[BaseModel], path: Sequence[str | int]) -> type[BaseModel]:
    """The model that lies at a path of field names and list indices."""
    for part in path:
        if isinstance(part, str):
            annotation = model.model_fields[part].annotation
            models = [
                t for t in (annotation, *get_args(annotation)) if isinstance(t, type) and issubclass(t, BaseModel)
            ]
            model = models[0]
    return model
