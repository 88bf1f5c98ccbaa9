"""Examples a few at a time: what is added, and what has a row per example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tensorgrad_jax.backend.batches import numbers_at_once
from tensorgrad_jax.backend.pieces import blank

# Numbers that the gradients of one chunk of examples may hold in all.
CHUNK_NUMBERS = 2**22


def chunk_size(n: int, numbers: int, wanted: int | None, most: int | None = None) -> int:
    """Return how many of n examples to take at a time.

    Args:
        n: number of examples.
        numbers: how many numbers the gradient of one example holds.
        wanted: what the caller asked for; None: as many as hold at most `most` numbers.
        most: how many numbers the gradients taken at a time hold; None: about 4 million.
    """
    most = CHUNK_NUMBERS if most is None else most
    return max(1, min(n, most // max(1, numbers) if wanted is None else wanted))


def numbers_of(rows: bool) -> int:
    """Return how many numbers the gradients of one operation hold at a time.

    Args:
        rows: whether their reduction has a row per example. Then few large chunks are best, as what
            is made anew for each (a random matrix) costs most. Sums are made in the cache.
    """
    return CHUNK_NUMBERS if rows else numbers_at_once(CHUNK_NUMBERS)


def over_chunks(
    function: Callable[[Any], tuple[Any, Any]], arrays: Any, n: int, size: int
) -> tuple[Any, Any]:
    """Return what `function` returns for all examples, from `size` of them at a time.

    `optax.microbatching` would do for sizes that divide n; here the last chunk may be smaller.

    Args:
        function: maps arrays of some examples to (sums over them, rows along axis 0).
        arrays: a tree of arrays with n examples along axis 0.
        n: number of examples.
        size: number of examples at a time.
    """
    whole, rest = divmod(n, size)
    if whole == 1 and rest == 0:
        return function(arrays)
    first = jax.tree.map(lambda x: x[: whole * size].reshape(whole, size, *x.shape[1:]), arrays)

    def step(sums, chunk):
        more, rows = function(chunk)
        return jax.tree.map(jnp.add, sums, more), rows

    example = jax.tree.map(lambda x: x[0], first)
    # Sums wait for what is last among the arrays, in a backward pass a cotangent: otherwise those
    # of all parameters would be there from the forward pass on.
    last = jax.tree.leaves(arrays)[-1]
    zeros = jax.tree.map(
        lambda s: blank(s.shape, s.dtype, last), jax.eval_shape(function, example)[0]
    )
    sums, rows = jax.lax.scan(step, zeros, first)
    rows = jax.tree.map(lambda x: x.reshape(whole * size, *x.shape[2:]), rows)
    if rest:
        more, rest_rows = function(jax.tree.map(lambda x: x[whole * size :], arrays))
        sums = jax.tree.map(jnp.add, sums, more)
        rows = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), rows, rest_rows)
    return sums, rows
