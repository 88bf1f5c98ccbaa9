"""Products of a small and a large factor."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tensorgrad_jax.backend.pieces import blank, over_pieces, piece_bytes

_HIGHEST = jax.lax.Precision.HIGHEST


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def constant_times_each(matrix: np.ndarray, stack: Float[Array, "a d b"]) -> Array:
    """Return M X for every matrix X of a stack, with derivatives in both modes.

    As `multiply_each`, without pieces. A gradient is the product with the transposed matrix as it
    is stored: JAX's own would contract the rows of M, for which XLA for CPUs has no fast product.
    """
    constant = jnp.asarray(matrix, stack.dtype)
    repeated = lambda stack: _repeated(constant, stack)
    plain = lambda stack: jnp.einsum("md,adb->amb", constant, stack, precision=_HIGHEST)
    return jax.lax.platform_dependent(stack, cpu=repeated, default=plain)


@constant_times_each.defjvp
def _constant_times_each_jvp(matrix, primals, tangents):
    y = constant_times_each(matrix, *primals)
    (dy,) = jax.linear_transpose(lambda g: constant_times_each(matrix.T, g), y)(*tangents)
    return y, dy


def multiply_each(matrix: Float[Array, "m d"], stack: Float[Array, "a d b"]) -> Array:
    """Return M X for every matrix X of a stack, to float32's accuracy.

    XLA for CPUs moves the axes of the large factor so that the product becomes one of two matrices,
    and moves those of the result back. There the matrix is repeated instead, once for each matrix
    of the stack: a batch of products, and nothing is moved. The repeated matrices are made by
    pieces, too.
    """
    plain = lambda matrix, stack: jnp.einsum("md,adb->amb", matrix, stack, precision=_HIGHEST)
    return jax.lax.platform_dependent(matrix, stack, cpu=_batched, default=plain)


def sum_of_products(x: Float[Array, "n i"], y: Float[Array, "n o"]) -> Float[Array, "i o"]:
    """Return x^T y.

    XLA for CPUs takes half the time for a sum over many rows if the narrow factor comes first. It
    would turn the factors around again, but for the barrier.
    """
    plain = lambda x, y: x.T @ y
    if x.shape[1] <= y.shape[1]:
        return plain(x, y)
    turned = lambda x, y: jax.lax.optimization_barrier(y.T @ x).T
    return jax.lax.platform_dependent(x, y, cpu=turned, default=plain)


def _batched(matrix, stack):
    a, _, b = stack.shape
    if b == 1:
        return jnp.matmul(stack[:, :, 0], matrix.T, precision=_HIGHEST)[:, :, None]

    width = max(1, piece_bytes(stack.nbytes) // matrix.nbytes)
    if width >= a:
        return _repeated(matrix, stack)

    def put(start, width, out):
        some = jax.lax.dynamic_slice_in_dim(stack, start, width)
        return jax.lax.dynamic_update_slice_in_dim(out, _repeated(matrix, some), start, axis=0)

    return over_pieces(put, a, width, blank((a, len(matrix), b), stack.dtype, stack))


def _repeated(matrix, stack):
    matrix = jnp.broadcast_to(matrix, (len(stack), *matrix.shape))
    return jax.lax.dot_general(matrix, stack, (((2,), (1,)), ((0,), (0,))), precision=_HIGHEST)
