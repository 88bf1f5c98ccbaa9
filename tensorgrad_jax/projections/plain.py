"""Arguments as they come out of sweeps and configuration files: from NumPy, as lists; checked."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np


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


def check_scale(owner: str, scale: float) -> None:
    """Raise ValueError unless `scale` is a finite number other than zero."""
    number = isinstance(scale, int | float) and not isinstance(scale, bool)
    if not number or not math.isfinite(scale) or scale == 0:
        raise ValueError(f"{owner}: scale must be a finite number, not zero, got {scale!r}")
