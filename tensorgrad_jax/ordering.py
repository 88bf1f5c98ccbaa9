"""Doing large things one after the other, so that their temporaries are not alive together.

Compilers order independent work freely. `jax.lax.optimization_barrier` does not hold them: XLA
drops barriers before it schedules. A real dependence does.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

# Small ones may overlap: that is faster where one alone does not fill the machine.
LARGE_BYTES = 2**26


def after(tree: PyTree, done: Any, n_bytes: int) -> PyTree:
    """Return the arrays of `tree`, computed after the array `done`.

    What is added to them is a zero that no compiler knows to be one, whatever `done` holds. Of
    two things that are to wait choose the smaller: the sum is a copy.

    Args:
        tree: what has to wait.
        done: what it waits for; None for nothing.
        n_bytes: size of what is done with it. Small things need not wait.
    """
    if done is None or n_bytes < LARGE_BYTES:
        return tree
    first = jnp.real(done).ravel()[0].astype(jnp.float32)
    zero = (jax.lax.bitcast_convert_type(first, jnp.uint32) & jnp.uint32(0x7FFFFFFF)) >> 31
    return jax.tree.map(lambda x: x + zero.astype(x.dtype), tree)


def last_array(tree: PyTree) -> Array:
    """Return the last array of a tree: of a composite's compact form, what was computed last."""
    return jax.tree.leaves(tree)[-1]
