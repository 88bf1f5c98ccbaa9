"""What values an option may take, said once: for the check, the error message and the help.

An option is a field of a frozen dataclass. Its annotation carries the rest:

    learning_rate: Annotated[float, POSITIVE, "step size of the optimizer"] = 1e-3
"""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from collections.abc import Callable
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple


class ConfigError(ValueError):
    """A wrong option or value. The message is one line: the option, the value, what is allowed."""


class Allowed(NamedTuple):
    """A set of values: how it reads in a sentence, and which values belong to it."""

    text: str
    holds: Callable[[Any], bool]


class Option(NamedTuple):
    """What the annotation of one field says; the help text is empty for a nested dataclass."""

    type: Any
    default: Any
    allowed: Allowed
    help: str


def integer(low: int) -> Allowed:
    """The integers from `low` on."""
    return Allowed(f"an integer >= {low}", lambda v: _is_integer(v) and v >= low)


def number(text: str, holds: Callable[[float], bool]) -> Allowed:
    """The finite numbers for which `holds` is true."""
    return Allowed(f"a number {text}", lambda v: _is_number(v) and holds(v))


def list_of(item: Allowed, example: str) -> Allowed:
    """Lists of one or more items."""
    return Allowed(
        f"a list such as {example}, each item {item.text}",
        lambda v: isinstance(v, tuple) and len(v) > 0 and all(item.holds(x) for x in v),
    )


POSITIVE = number("> 0", lambda v: v > 0)
NON_NEGATIVE = number(">= 0", lambda v: v >= 0)
FRACTION = number("in (0, 1]", lambda v: 0 < v <= 1)
DECAY_RATE = number("in [0, 1)", lambda v: 0 <= v < 1)
COUNT = integer(1)
COUNTS = list_of(COUNT, "[64,64]")
TEXT = Allowed("a text that is not empty", lambda v: isinstance(v, str) and v.strip() != "")
# The type of the numbers decides: 1 is a rank of one, 1.0 keeps everything.
RANK = Allowed(
    "a number in (0, 1], an integer >= 1, or a list of one of the two such as [8,8,4,4]",
    lambda v: any(
        item.holds(v) or list_of(item, "").holds(v)
        for item in (COUNT, Allowed("", lambda x: isinstance(x, float) and FRACTION.holds(x)))
    ),
)


@functools.cache
def options_of(cls: type) -> dict[str, Option]:
    """The options of a configuration dataclass by field name, in their order."""
    hints = typing.get_type_hints(cls, include_extras=True)
    options = {}
    for field in dataclasses.fields(cls):
        hint, extras = hints[field.name], ()
        if typing.get_origin(hint) is Annotated:
            hint, *extras = typing.get_args(hint)
        rules = [extra for extra in extras if isinstance(extra, Allowed)]
        helps = [extra for extra in extras if isinstance(extra, str)]
        rule = rules[0] if rules else _by_type(hint)
        if NoneType in typing.get_args(hint):
            rule = _or_null(rule)
        options[field.name] = Option(hint, field.default, rule, " ".join(helps))
    return options


def check_options(config: Any, prefix: str = "") -> None:
    """Checks every field of a configuration dataclass; turns lists into tuples first.

    Args:
        config: the dataclass, while it is being constructed.
        prefix: what precedes the field's name in the name of the option, for instance "opt.".

    Raises:
        ConfigError: a value is not allowed.
    """
    for name, option in options_of(type(config)).items():
        value = getattr(config, name)
        if isinstance(value, list):
            value = tuple(value)
            object.__setattr__(config, name, value)
        if not option.allowed.holds(value):
            raise not_allowed(prefix + name, value, option.allowed)


def not_allowed(name: str, value: Any, allowed: Allowed, source: str = "") -> ConfigError:
    """The error for a value that is not allowed; `source` is the file it came from, if any."""
    where = f" in {source}" if source else ""
    return ConfigError(f"{name}: got {show(value)}{where}, expected {allowed.text}")


def show(value: Any) -> str:
    """A value as it is written in a configuration file, on one line."""
    if value is None:
        return "null"
    if isinstance(value, tuple | list):
        return "[" + ",".join(show(item) for item in value) + "]"
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


def _by_type(hint: Any) -> Allowed:
    arms = [arm for arm in typing.get_args(hint) if arm is not NoneType]
    if typing.get_origin(hint) in (typing.Union, UnionType) and len(arms) == 1:
        return _by_type(arms[0])
    if typing.get_origin(hint) is Literal:
        choices = ", ".join(arms)
        return Allowed(choices if len(arms) == 1 else f"one of {choices}", lambda v: v in arms)
    if hint is bool:
        return Allowed("True or False", lambda v: isinstance(v, bool))
    return Allowed(f"a {hint.__name__}", lambda v: isinstance(v, hint))


def _or_null(allowed: Allowed) -> Allowed:
    return Allowed(f"{allowed.text} or null", lambda v: v is None or allowed.holds(v))


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
