"""Gap schedules: how many steps lie between two refreshes, as training goes on.

With p = step / total_steps at the step of a refresh, the gap that follows it is

    linear        start + (end - start) p
    exponential   start (end / start)^p
    exponential2  start (end / start)^(p^2)

rounded down, at least 1. From `total_steps` on p is 1 and the gap stays at `end`; the reference
lets p grow, and with it a linear gap that shrinks refreshes at every step in the end.

Source: S. Loeschcke et al., TensorGRaD, arXiv 2501.02379, and its implementation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from tensorgrad_jax.projections.plain import number

GapSchedule = Callable[[Any], Any]

# A gap that is a whole number must not be lost to float32's rounding before it is rounded down.
_ROUNDING = 1 + 2e-6


def linear_gap(start: int | float, end: int | float, total_steps: int) -> GapSchedule:
    """Return a gap that goes linearly from `start` at step 0 to `end` at `total_steps`.

    Examples:
        >>> gap = linear_gap(100, 20, total_steps=1000)
        >>> [int(gap(step)) for step in (0, 500, 1000, 2000)]
        [100, 60, 20, 20]
    """
    start, end, total_steps = _checked("linear_gap", start, end, total_steps)
    return lambda step: (start + (end - start) * _share(step, total_steps)) * _ROUNDING


def exponential_gap(start: int | float, end: int | float, total_steps: int) -> GapSchedule:
    """Return a gap that goes geometrically from `start` at step 0 to `end` at `total_steps`."""
    start, end, total_steps = _checked("exponential_gap", start, end, total_steps)
    return lambda step: start * (end / start) ** _share(step, total_steps) * _ROUNDING


def exponential2_gap(start: int | float, end: int | float, total_steps: int) -> GapSchedule:
    """Return a gap that goes from `start` to `end`, slowly first: p^2 in the exponent."""
    start, end, total_steps = _checked("exponential2_gap", start, end, total_steps)
    return lambda step: start * (end / start) ** _share(step, total_steps) ** 2 * _ROUNDING


def _share(step, total_steps):
    return jnp.minimum(jnp.asarray(step, jnp.float32) / total_steps, 1)


def _checked(owner, start, end, total_steps):
    given = (("start", start), ("end", end), ("total_steps", total_steps))
    allowed = "a number >= 1, below 2**31"
    return tuple(number(owner, *value, allowed, lambda x: 1 <= x < 2**31) for value in given)
