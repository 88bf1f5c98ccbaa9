"""Single entries of a large array."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact, Int32

from tensorgrad_jax.backend.pieces import blank


def cleared_entries(
    x: Inexact[Array, "rows n"], indices: Int32[Array, " k"]
) -> Inexact[Array, "rows n"]:
    """Return x with zeros at these columns of every row; they are ascending and distinct.

    XLA for CPUs copies the array with one thread before it scatters. There the entries are marked,
    one byte each, and a select, which all threads share, makes the result in one pass.
    """
    where = {"indices_are_sorted": True, "unique_indices": True, "mode": "promise_in_bounds"}

    def selected(x, indices):
        marks = blank(x.shape[1:], jnp.int8, indices).at[indices].set(jnp.int8(1), **where)
        return jnp.where(marks != 0, jnp.zeros((), x.dtype), x)

    scattered = lambda x, indices: x.at[:, indices].set(0, **where)
    return jax.lax.platform_dependent(x, indices, cpu=selected, default=scattered)
