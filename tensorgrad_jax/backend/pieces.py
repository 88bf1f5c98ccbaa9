"""Doing something to a large array piece by piece, so that no copy of the whole is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tensorgrad_jax.backend.bits import from_bits, to_bits
from tensorgrad_jax.backend.ordering import unknown_zero

Step = Callable[..., Array]

# A piece is that large in float32, or the 32nd part of an array for which that is more.
PIECE_BYTES = 2**21
_MOST_PIECES = 32


def in_pieces(
    function: Callable[..., Array],
    arrays: Sequence[Array],
    axes: Sequence[int | None],
    out_axis: int | None,
    combine: Callable[[Array, Array], Array] = jnp.add,
    used_again: bool = False,
) -> Array:
    """Return `function(*arrays)`; on CPUs it is applied to a piece of the arrays at a time.

    XLA for CPUs has no product of bfloat16 matrices, and none of complex matrices that is fast: it
    wants float32 copies of the factors. So the copies are made of pieces. These are cut out of
    bfloat16 arrays as integers (see `bits`), so that no derivative goes through the result.

    Args:
        function: of the arrays. What it returns is a concatenation over pieces, or what `combine`
            makes of their results.
        arrays: its arguments.
        axes: the axis that is cut, per argument; None for one that is not.
        out_axis: the axis along which the results are joined; None if they are combined.
        combine: the sum or the maximum of two results.
        used_again: whether a backward pass uses the arrays again: then the integers of one are made
            for each use, not kept from the first to the second.
    """
    struct = jax.eval_shape(function, *arrays)
    cut = [(x, axis) for x, axis in zip(arrays, axes, strict=True) if axis is not None]
    n = cut[0][0].shape[cut[0][1]]
    n_bytes = 4 * max(x.size for x in [x for x, _ in cut] + [struct] * (out_axis is not None))
    width = max(1, n * piece_bytes(n_bytes) // n_bytes)
    if width >= n:
        return function(*arrays)

    def by_pieces(*arrays):
        bits = [to_bits(x) for x in arrays]
        if used_again:
            # They wait for another argument, which is a different one in the backward pass.
            firsts = [jnp.ravel(x)[0] for x in (*arrays[1:], arrays[0])]
            bits = [x + unknown_zero(y, x.dtype) for x, y in zip(bits, firsts, strict=True)]
        # The result waits for `bits`: a gradient's would else be there from the forward pass on.

        def part(start, length):
            pieces = (
                x if axis is None else jax.lax.dynamic_slice_in_dim(x, start, length, axis)
                for x, axis in zip(bits, axes, strict=True)
            )
            return function(*(from_bits(x, y.dtype) for x, y in zip(pieces, arrays, strict=True)))

        if out_axis is None:
            add = lambda start, length, total: combine(total, part(start, length))
            return over_pieces(add, n, width, blank(struct.shape, struct.dtype, bits[0]))

        def put(start, length, out, axis=out_axis):
            new = to_bits(part(start, length))
            return jax.lax.dynamic_update_slice_in_dim(out, new, start, axis)

        dtype = jnp.uint16 if struct.dtype == jnp.bfloat16 else struct.dtype
        out = over_pieces(put, n, width, blank(struct.shape, dtype, bits[0]))
        return from_bits(out, struct.dtype)

    return jax.lax.platform_dependent(*arrays, cpu=by_pieces, default=function)


def piece_bytes(n_bytes: int) -> int:
    """Return the bytes of a piece of an array of `n_bytes`."""
    return max(PIECE_BYTES, n_bytes // _MOST_PIECES)


def blank(shape: tuple[int, ...], dtype: Any, some: Array) -> Array:
    """Return zeros; on CPUs they are not there before the array `some` is.

    Zeros that depend on nothing would be made early, and shared by the loops that start from them.
    """
    waits = lambda first: jnp.broadcast_to(unknown_zero(first, dtype), shape)
    zeros = lambda first: jax.lax.full_like(first, 0, dtype, shape)
    return jax.lax.platform_dependent(jnp.ravel(some)[0], cpu=waits, default=zeros)


def over_pieces(step: Step, n: int, width: int, result: Array) -> Array:
    """Apply step(first, number, result so far) to pieces of n slices, each of them once."""
    if width >= n:
        return step(0, n, result)
    whole, rest = divmod(n, width)
    body = lambda i, result: step(i * width, width, result)
    result = jax.lax.fori_loop(0, whole, body, result)
    return result if rest == 0 else step(whole * width, rest, result)
