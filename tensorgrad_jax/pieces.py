"""Doing something to a large array piece by piece, so that no copy of the whole is made."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

Step = Callable[..., Array]


def filled(put: Step, n: int, width: int, out: Array) -> Array:
    """Apply put(first, number, result so far) to pieces of at most `width` of n slices.

    A few slices are in two pieces.
    """
    if width >= n:
        return put(0, n, out)
    # Pieces of one length, the last begins early: a remainder behind the loop would be put into a
    # copy of `out`.
    pieces = -(-n // width)
    width = -(-n // pieces)
    start = lambda i: jnp.minimum(i * width, n - width)
    return jax.lax.fori_loop(0, pieces, lambda i, out: put(start(i), width, out), out)


def reduced(add: Step, n: int, width: int, total: Array) -> Array:
    """Apply add(first, number, result so far) to pieces of n slices, each of them once."""
    if width >= n:
        return add(0, n, total)
    whole, rest = divmod(n, width)
    total = jax.lax.fori_loop(0, whole, lambda i, total: add(i * width, width, total), total)
    return total if rest == 0 else add(whole * width, rest, total)
