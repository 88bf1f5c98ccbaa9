"""Numbers and tuples as they come out of sweeps and configuration files: from NumPy, as lists."""

from __future__ import annotations

import dataclasses
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
