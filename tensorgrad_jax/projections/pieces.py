"""Matrix products with a large tensor, a piece of it at a time.

Products want complex numbers in float32, contiguous; a gradient comes as a pair of real arrays,
perhaps in bfloat16. Converted as a whole it would be there twice. Here it is converted by pieces:
beside the result there is one piece. A small tensor is one piece.

A tensor of shape (d, ...) stands for the matrix X of shape (d, N), N the product of the other
sizes: its unfolding along axis 0.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from tensorgrad_jax.bfloat16 import from_bits, to_bits
from tensorgrad_jax.projections.leading import PRECISION, gram
from tensorgrad_jax.projections.pairs import Pair, Tensor

PIECE_BYTES = 2**26


def largest_magnitude(tensor: Tensor) -> Array:
    """Return max |x| over real numbers, max of |real| and |imaginary part| over a pair."""
    values = tensor.parts if isinstance(tensor, Pair) else tensor
    return jnp.max(jnp.abs(values)).astype(jnp.finfo(tensor.dtype).dtype)


def gram_of(tensor: Tensor, factor: Array | None = None) -> Inexact[Array, "d d"]:
    """Return (f X)(f X)^H with a real factor f."""
    d, n = tensor.shape[0], math.prod(tensor.shape[1:])
    width = _piece_width(n, d * tensor.dtype.itemsize)

    def add(start, width, total):
        piece = _columns(tensor, start, width)
        return total + gram(piece if factor is None else piece * factor)

    return _over_pieces(add, n, width, jnp.zeros((d, d), tensor.dtype))


def multiply_first(
    tensor: Tensor, matrix: Inexact[Array, "d r"], factor: Array | None = None
) -> Inexact[Array, "... r"]:
    """Return (f X)^T matrix: axis 0 contracted, the new axis at the end."""
    rest, r = tensor.shape[1:], matrix.shape[1]
    n = math.prod(rest)
    width = _piece_width(n, tensor.shape[0] * tensor.dtype.itemsize)
    matrix = matrix if factor is None else matrix * factor

    def put(start, width, out):
        product = jnp.matmul(_columns(tensor, start, width).T, matrix, precision=PRECISION)
        return jax.lax.dynamic_update_slice_in_dim(out, product, start, axis=0)

    dtype = jnp.result_type(tensor.dtype, matrix.dtype)
    out = _over_pieces(put, n, width, _blank((n, r), dtype, tensor))
    return out.reshape(*rest, r)


def multiply_first_into_pair(
    tensor: Inexact[Array, "d ..."], matrix: Inexact[Array, "d r"], factor: float
) -> Pair:
    """Return f X^T matrix, axes as in `multiply_first`, as a pair of real arrays."""
    d, r, rest = tensor.shape[0], matrix.shape[1], tensor.shape[1:]
    n = math.prod(rest)
    width = _piece_width(n, max(d, r) * tensor.dtype.itemsize)
    matrix = matrix if factor == 1.0 else matrix * factor

    def put(start, width, out):
        product = jnp.matmul(_columns(tensor, start, width).T, matrix, precision=PRECISION)
        parts = jnp.stack([product.real, product.imag])
        return jax.lax.dynamic_update_slice_in_dim(out, parts, start, axis=1)

    blank = _blank((2, n, r), jnp.finfo(tensor.dtype).dtype, tensor)
    return Pair(_over_pieces(put, n, width, blank).reshape(2, *rest, r))


def _piece_width(n, column_bytes):
    """Return how many of n columns make a piece."""
    return min(n, max(1, PIECE_BYTES // column_bytes))


def _columns(tensor, start, width):
    """Return columns of X, contiguous, in float32 or wider."""
    n = math.prod(tensor.shape[1:])
    parts = tensor.parts if isinstance(tensor, Pair) else tensor
    matrix = parts.reshape(*parts.shape[: parts.ndim - len(tensor.shape)], tensor.shape[0], n)
    if width < n:
        bits = jax.lax.dynamic_slice_in_dim(to_bits(matrix), start, width, axis=-1)
        matrix = from_bits(bits, parts.dtype)
    return Pair(matrix).array() if isinstance(tensor, Pair) else matrix


def _over_pieces(step, n, width, start):
    """Apply step(first column, number of columns, result so far) to all pieces of n columns."""
    if width == n:
        return step(0, n, start)
    whole, rest = divmod(n, width)
    done = jax.lax.fori_loop(0, whole, lambda i, done: step(i * width, width, done), start)
    return done if rest == 0 else step(whole * width, rest, done)


def _blank(shape, dtype, some):
    """Return an array that will be overwritten, not to be there before the tensor `some` is."""
    some = some.parts if isinstance(some, Pair) else some.real
    return jnp.broadcast_to(some.ravel()[0].astype(dtype), shape)
