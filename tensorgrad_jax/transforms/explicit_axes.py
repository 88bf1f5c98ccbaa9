"""Meshes whose axes are Explicit: shardings are part of an array's type.

Reshaping, gathering and sorting then want the sharding of their result. What is computed in compact
spaces has none that a user could care for: inside, the compiler chooses, as with Auto axes. Updates
leave with the shardings of the gradients, states with those that they came with.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
from jax.sharding import AxisType, auto_axes


def compiler_chooses(update: Callable[..., Any]) -> Callable[..., Any]:
    """Make an `update` function of a transformation work on meshes with Explicit axes."""

    @functools.wraps(update)
    def wrapped(updates, state, params=None, **extra_args):
        if not any(_is_explicit(x) for x in jax.tree.leaves((updates, state))):
            return update(updates, state, params, **extra_args)
        shardings = jax.tree.map(lambda x: jax.typeof(x).sharding, (updates, state))
        by_compiler = auto_axes(lambda u, s, p, e: update(u, s, p, **e), out_sharding=shardings)
        inside = cast(Callable[..., Any], by_compiler)
        return inside(updates, state, params, extra_args)

    return wrapped


def _is_explicit(x) -> bool:
    mesh = getattr(getattr(jax.typeof(x), "sharding", None), "mesh", None)
    return mesh is not None and AxisType.Explicit in getattr(mesh, "axis_types", ())
