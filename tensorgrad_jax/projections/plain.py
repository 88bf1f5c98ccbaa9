"""Arguments as they come out of sweeps and configuration files: from NumPy, as lists; checked."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_LARGEST = float(np.finfo(np.float32).max)


def plain(value: Any) -> Any:
    """Return NumPy numbers as Python's, lists and NumPy arrays as tuples, all else as it is."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list) or type(value) is tuple:
        return tuple(plain(x) for x in value)
    return value


def make_plain(instance: Any) -> None:
    """Replace the fields of a frozen dataclass by what `plain` makes of them."""
    for field in dataclasses.fields(instance):
        object.__setattr__(instance, field.name, plain(getattr(instance, field.name)))


def shown(value: Any) -> str:
    """Return a value as a message quotes it: on one line, and not longer than one."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else text[:97] + "..."


def check_scale(owner: str, scale: float) -> None:
    """Raise ValueError unless `scale` is a finite number other than zero."""
    number = isinstance(scale, int | float) and not isinstance(scale, bool)
    if not number or not math.isfinite(scale) or scale == 0:
        raise ValueError(f"{owner}: scale must be a finite number, not zero, got {shown(scale)}")


def number(
    owner: str,
    name: str,
    value: Any,
    allowed: str = "a finite number",
    holds: Callable[[float], bool] = lambda x: True,
) -> Any:
    """Return an argument that is a real number of float32's range, or a scalar array of JAX.

    Of an array, traced perhaps, the value is not known: only its shape and dtype are checked.
    `optax.inject_hyperparams` gives numbers the dtype of the first parameter, be it complex: its
    real part is taken.

    Raises:
        ValueError: if it is none, or `holds` does not.
    """
    scalar = isinstance(value, jax.Array) and value.ndim == 0
    if scalar and jnp.issubdtype(value.dtype, jnp.number):
        return value.real if jnp.iscomplexobj(value) else value
    given = plain(value)
    real = isinstance(given, int | float) and not isinstance(given, bool)
    # A whole number of 400 digits is none of float32 either.
    if not real or not abs(given) <= _LARGEST or not holds(given):
        raise ValueError(f"{owner}: {name} must be {allowed}, got {shown(value)}")
    return float(given)


def rate(owner: str, name: str, value: Any) -> Any:
    """Return a learning rate or weight decay: a number or a schedule."""
    return value if callable(value) else number(owner, name, value, "a number or a schedule")


def decay(owner: str, name: str, value: Any) -> Any:
    """Return the decay of a moment, in [0, 1)."""
    return number(owner, name, value, "a number in [0, 1)", lambda x: 0 <= x < 1)


def not_negative(owner: str, name: str, value: Any) -> Any:
    """Return a number that is not negative."""
    return number(owner, name, value, "a number >= 0", lambda x: x >= 0)


def positive(owner: str, name: str, value: Any) -> Any:
    """Return a number larger than zero."""
    return number(owner, name, value, "a positive number", lambda x: x > 0)


def whole(owner: str, name: str, value: Any, least: int, below: int) -> int:
    """Return an integer in [least, below)."""
    given = plain(value)
    if isinstance(given, bool) or not isinstance(given, int) or not least <= given < below:
        allowed = f"an integer in [{least}, {below})".replace(str(2**31), "2**31")
        allowed = allowed.replace(str(2**32), "2**32")
        raise ValueError(f"{owner}: {name} must be {allowed}, got {shown(value)}")
    return given


def check_choice(owner: str, name: str, value: Any, choices: Sequence[Any]) -> None:
    """Raise ValueError unless the argument is one of the texts or truth values given."""
    if not isinstance(value, str | bool) or value not in choices:
        allowed = " or ".join(map(repr, choices)) if len(choices) == 2 else f"one of {choices}"
        raise ValueError(f"{owner}: {name} must be {allowed}, got {shown(value)}")


def check_dtype(owner: str, name: str, value: Any) -> None:
    """Raise ValueError unless the argument is a real floating-point dtype or None."""
    if value is None:
        return
    try:
        real = not isinstance(value, bool) and jnp.issubdtype(jnp.dtype(value), jnp.floating)
    except TypeError:
        real = False
    if not real:
        raise ValueError(f"{owner}: {name} must be a real float dtype, got {shown(value)}")
