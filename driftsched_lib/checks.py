"""What constructors ask of their parameters; each check names the parameter in its ValueError."""

from collections.abc import Mapping
from math import inf

from driftsched_lib.requests import TIERS


def for_each_tier(name: str, values: Mapping[str, float]) -> dict[str, float]:
    """A copy of a parameter that must have one value a tier."""
    if set(values) != set(TIERS):
        raise ValueError(f"{name} is {dict(values)}, it must name {', '.join(TIERS)}, each once")
    return dict(values)


def positive_for_each_tier(name: str, values: Mapping[str, float]) -> dict[str, float]:
    """A copy of a parameter that must have one number above 0 a tier."""
    values = for_each_tier(name, values)
    if not all(0 < value < inf for value in values.values()):
        raise ValueError(f"{name} is {values}, each must be a number above 0")
    return values


def positive(name: str, value: float) -> float:
    if not 0 < value < inf:
        raise ValueError(f"{name} is {value}, it must be a number above 0")
    return value


def not_negative(name: str, value: float) -> float:
    if not 0 <= value < inf:
        raise ValueError(f"{name} is {value}, it must be a number that is not negative")
    return value


def in_range(name: str, value: float, low: float, high: float) -> float:
    """A parameter that must be above `low` and at most `high`."""
    if not low < value <= high:
        raise ValueError(f"{name} is {value}, it must be above {low:g} and at most {high:g}")
    return value
