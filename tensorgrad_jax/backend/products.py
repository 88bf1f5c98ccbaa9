"""Products of a small matrix with every matrix of a large stack."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tensorgrad_jax.backend.pieces import blank, over_pieces, piece_bytes

_HIGHEST = jax.lax.Precision.HIGHEST


def multiply_each(matrix: Float[Array, "m d"], stack: Float[Array, "a d b"]) -> Array:
    """Return M X for every matrix X of a stack, to float32's accuracy.

    XLA for CPUs moves the axes of the large factor so that the product becomes one of two matrices,
    and moves those of the result back. There the matrix is repeated instead, once for each matrix
    of the stack: a batch of products, and nothing is moved. The repeated matrices are made by
    pieces, too.
    """
    plain = lambda matrix, stack: jnp.einsum("md,adb->amb", matrix, stack, precision=_HIGHEST)
    return jax.lax.platform_dependent(matrix, stack, cpu=_batched, default=plain)


def _batched(matrix, stack):
    a, _, b = stack.shape
    if b == 1:
        return jnp.matmul(stack[:, :, 0], matrix.T, precision=_HIGHEST)[:, :, None]

    def product(stack):
        repeated = jnp.broadcast_to(matrix, (len(stack), *matrix.shape))
        contracted = (((2,), (1,)), ((0,), (0,)))
        return jax.lax.dot_general(repeated, stack, contracted, precision=_HIGHEST)

    width = max(1, piece_bytes(stack.nbytes) // matrix.nbytes)
    if width >= a:
        return product(stack)

    def put(start, width, out):
        some = jax.lax.dynamic_slice_in_dim(stack, start, width)
        return jax.lax.dynamic_update_slice_in_dim(out, product(some), start, axis=0)

    return over_pieces(put, a, width, blank((a, len(matrix), b), stack.dtype, stack))
