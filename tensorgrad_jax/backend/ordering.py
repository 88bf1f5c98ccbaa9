"""Doing large things one after the other, so that their temporaries are not alive together.

XLA for CPUs drops `jax.lax.optimization_barrier` before it schedules, and then starts early
whatever it can. A data dependence it has to keep: what must wait is given one on what it waits for,
the sum with a zero that is computed from that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

# What is smaller may overlap: that is faster where one thing alone does not fill the machine.
LARGE_BYTES = 2**26


def after(tree: PyTree, done: Any, n_bytes: int) -> PyTree:
    """Return `tree`; on CPUs its arrays are there only once the array `done` is.

    Of two things that are to wait choose the smaller: on CPUs the result is a copy.

    Args:
        tree: what has to wait.
        done: what it waits for; None for nothing.
        n_bytes: size of what is done with it. Small things need not wait.
    """
    if done is None or n_bytes < LARGE_BYTES:
        return tree
    first = jnp.ravel(done)[0]
    add = lambda tree, first: jax.tree.map(lambda x: x + unknown_zero(first, x.dtype), tree)
    return jax.lax.platform_dependent(tree, first, cpu=add, default=lambda tree, _: tree)


def not_merged(x: Array, cotangent: Array) -> Array:
    """Return `x`, from which a backward pass evaluates again what its forward pass has.

    The compiler must not take both for the same computation, and keep the first result. A barrier
    prevents that, as in `jax.checkpoint`; on CPUs `x` waits for the cotangent.
    """
    first = jnp.ravel(cotangent)[0]
    wait = lambda x, first: x + unknown_zero(first, x.dtype)
    barrier = lambda x, first: jax.lax.optimization_barrier((x, first))[0]
    return jax.lax.platform_dependent(x, first, cpu=wait, default=barrier)


def made_apart(function: Callable[[Array], Array], x: Array) -> Array:
    """Return function(x); on CPUs it is not fused with what uses it.

    XLA for CPUs fuses a matrix into the loop that makes a vector of its rows, which runs on one
    thread, ten times as long. A branch is not fused. This one is always taken, and of the condition
    the compiler does not know that it holds.
    """

    def branch(x):
        first, struct = jnp.ravel(x)[0], jax.eval_shape(function, x)
        nothing = lambda _: jax.lax.full_like(first, 0, struct.dtype, struct.shape)
        return jax.lax.cond(unknown_zero(first, jnp.int32) == 0, function, nothing, x)

    return jax.lax.platform_dependent(x, cpu=branch, default=function)


def stored(x: Array) -> Array:
    """Return `x`; on CPUs as an array in memory, not as a way to read another one.

    XLA for CPUs makes of a product with a transposed array one that contracts rows, which is slow;
    it does not see through a barrier.
    """
    same = lambda x: x
    return jax.lax.platform_dependent(x, cpu=jax.lax.optimization_barrier, default=same)


def unknown_zero(number: Array, dtype: Any) -> Array:
    """Return zero, computed from a number in a way that no compiler evaluates in advance.

    The bit that the shift leaves is one that the mask has cleared.
    """
    bits = jax.lax.bitcast_convert_type(jnp.real(number).astype(jnp.float32), jnp.uint32)
    return ((bits & jnp.uint32(0x7FFFFFFF)) >> 31).astype(dtype)


def last_array(tree: PyTree) -> Array:
    """Return the last array of a tree: of a composite's compact form, what was computed last."""
    return jax.tree.leaves(tree)[-1]
