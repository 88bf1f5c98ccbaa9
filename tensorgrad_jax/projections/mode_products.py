r"""Mode products and Gram matrices of a large tensor: real left multiplications, no transposition.

A tensor whose modes before and behind the one in hand have A and B entries is a stack (A, d, B).
A mode product multiplies each of the A matrices from the left by the same small one: wide and
contiguous wherever the modes behind are, as channels are in spectral weights.

Complex numbers are pairs of real ones, and the pair stands directly before the mode in hand: then
a complex product is one real product, with rows of 2 d numbers,

    [ Re M  -Im M ]
    [ Im M   Re M ]  of shape (2 r, 2 d),

whose result can be ordered as (r, 2): the pair has moved behind the mode, that is before the next.
It starts in front of the first mode, where parameters have it, and ends behind the last, where
complex arrays have it; `lift_to_parts` goes the way back. With real factors real and imaginary
part are two tensors of the stack.

Products want float32. What comes in bfloat16, or must be scaled, is converted by pieces: beside the
result there is one piece, not a converted copy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

from tensorgrad_jax.bfloat16 import from_bits, to_bits
from tensorgrad_jax.pieces import filled, reduced
from tensorgrad_jax.projections.leading import PRECISION, leading_of_gram
from tensorgrad_jax.projections.pairs import Pair, Tensor, as_pair

# A piece is that large, or the 32nd part of a tensor for which that is more.
PIECE_BYTES = 2**22

Factors = Sequence[Inexact[Array, "_ _"] | None]


def project(tensor: Tensor, factors: Factors) -> Inexact[Array, ...]:
    """Return the core: `tensor` times U^H in every mode that has a factor U."""
    shape, pair_travels = tensor.shape, _are_complex(factors)
    stack, is_raw = tensor, True
    sizes = list(shape)
    for mode, u in enumerate(factors):
        if u is None:
            continue
        matrix = _real(u).T if pair_travels else u.T
        if is_raw:
            stack, is_raw = _multiply_raw(_raw(stack, mode, pair_travels), matrix), False
        else:
            stack = _multiply(_stack(stack, sizes, mode, pair_travels), matrix)
        sizes[mode] = u.shape[1]
    if is_raw:
        return tensor.array() if isinstance(tensor, Pair) else tensor
    if pair_travels:
        parts = stack.reshape(*sizes, 2)
        return jax.lax.complex(parts[..., 0], parts[..., 1])
    if jnp.issubdtype(tensor.dtype, jnp.complexfloating):
        parts = stack.reshape(2, *sizes)
        return jax.lax.complex(parts[0], parts[1])
    return stack.reshape(sizes)


def lift_to_parts(core: Inexact[Array, ...], factors: Factors) -> Float[Array, "parts ..."]:
    """Return real and imaginary part of the tensor of a core, or the one part of a real core."""
    pair_travels = _are_complex(factors)
    sizes = list(core.shape)
    if not jnp.iscomplexobj(core):
        stack, n_parts = core, 1
    elif pair_travels:
        stack, n_parts = jnp.stack([core.real, core.imag], axis=-1), 2
    else:
        stack, n_parts = as_pair(core).parts, 2
    for mode in reversed(range(len(factors))):
        if (u := factors[mode]) is None:
            continue
        matrix = _real(u) if pair_travels else u
        stack = _multiply(_stack(stack, sizes, mode, pair_travels), matrix)
        sizes[mode] = u.shape[0]
    return stack.reshape(n_parts, *sizes)


def sequentially_truncated(
    tensor: Tensor, ranks: Sequence[int], real_factors: bool
) -> tuple[Array | None, ...]:
    """Return the factors of the sequentially truncated HOSVD, from Gram matrices.

    Args:
        tensor: the tensor.
        ranks: the rank of every mode.
        real_factors: whether real factors are wanted whatever the tensor; modes of full rank then
            are left without one (None).
    """
    pair_travels = jnp.issubdtype(tensor.dtype, jnp.complexfloating) and not real_factors
    factors, sizes = [], list(tensor.shape)
    stack, is_raw, factor = tensor, True, 1.0
    truncated = [not real_factors or r < d for r, d in zip(ranks, tensor.shape, strict=True)]
    for mode, rank in enumerate(ranks):
        if not truncated[mode]:
            factors.append(None)
            continue
        raw = _raw(stack, mode, pair_travels) if is_raw else None
        if raw is None:
            products = _gram(_stack(stack, sizes, mode, pair_travels))
        else:
            largest = _largest_magnitude(raw)
            factor = 1 / jnp.where(largest > 0, largest, 1)
            products = _gram_raw(raw, factor)
        u = leading_of_gram(_complex_gram(products) if pair_travels else products, rank)
        factors.append(u)
        if not any(truncated[mode + 1 :]):
            continue  # the last product would be the core, which nobody asked for
        matrix = _real(u).T if pair_travels else u.T
        if raw is None:
            stack = _multiply(_stack(stack, sizes, mode, pair_travels), matrix)
        else:
            stack, is_raw = _multiply_raw(raw, matrix * factor), False
        sizes[mode] = rank
    return tuple(factors)


def _are_complex(factors: Factors) -> bool:
    return any(u is not None and jnp.iscomplexobj(u) for u in factors)


def _real(u: Inexact[Array, "d r"]) -> Float[Array, "_ _"]:
    """Return the real matrix of a complex one, rows ordered as (2, d), columns as (r, 2)."""
    d, r = u.shape
    columns = jnp.stack([jnp.stack([u.real, u.imag]), jnp.stack([-u.imag, u.real])], axis=-1)
    return columns.reshape(2 * d, 2 * r)


def _complex_gram(products: Float[Array, "_ _"]) -> Inexact[Array, "d d"]:
    """Return X X^H, given the products of the rows (Re X, Im X)."""
    (rr, ri), (ir, ii) = (jnp.split(row, 2, axis=1) for row in jnp.split(products, 2))
    return jax.lax.complex(rr + ii, ir - ri)


def _stack(x: Array, sizes: Sequence[int], mode: int, pair_travels: bool) -> Float[Array, "a d b"]:
    """Return x as a stack around a mode, of which the travelling pair is a part."""
    pair = 2 if pair_travels else 1
    behind = math.prod(sizes[mode + 1 :])
    return x.reshape(-1, pair * sizes[mode], behind)


def _multiply(stack: Float[Array, "a d b"], matrix: Float[Array, "m d"]) -> Float[Array, "a m b"]:
    if stack.shape[2] == 1:
        return jnp.matmul(stack[:, :, 0], matrix.T, precision=PRECISION)[:, :, None]
    a, _, b = stack.shape
    width = max(1, max(PIECE_BYTES, stack.nbytes // 32) // matrix.nbytes)
    if width >= a:
        return _multiply_all(stack, matrix)

    def put(start, width, out):
        some = jax.lax.dynamic_slice_in_dim(stack, start, width)
        return jax.lax.dynamic_update_slice_in_dim(out, _multiply_all(some, matrix), start, axis=0)

    return filled(put, a, width, _blank((a, len(matrix), b), stack))


def _multiply_all(stack, matrix):
    # Batched explicitly: a product of the matrix alone would move the axes of the large factor.
    # So it is there once per matrix of the stack, which `_multiply` bounds.
    batched = jnp.broadcast_to(matrix, (len(stack), *matrix.shape))
    contracted = (((2,), (1,)), ((0,), (0,)))
    return jax.lax.dot_general(batched, stack, contracted, precision=PRECISION)


def _gram(stack: Float[Array, "a d b"]) -> Float[Array, "d d"]:
    """Return the sum of X X^T over the matrices of a stack."""
    if stack.shape[2] == 1:
        rows = stack[:, :, 0]
        return jnp.matmul(rows.T, rows, precision=PRECISION)

    contracted = (((2,), (2,)), ((0,), (0,)))
    return jax.lax.dot_general(stack, stack, contracted, precision=PRECISION).sum(0)


class _Raw:
    """A tensor as it came, seen as a stack of which float32 pieces can be had.

    Attributes:
        array: (a, d, b), real of any precision, or complex with a = 1.
        shape: (a, d, b) of the real stack; d is twice the array's if that is complex.
        axis: along which pieces are cut.
        width: of a piece.
    """

    def __init__(self, array: Array):
        self.array = array
        a, d, b = array.shape
        is_complex = jnp.iscomplexobj(array)
        self.dtype = jnp.promote_types(jnp.finfo(array.dtype).dtype, jnp.float32)
        self.shape = (a, 2 * d if is_complex else d, b)
        self.is_ready = array.dtype == self.dtype
        self.axis = 0 if a >= b else 2
        n_bytes = math.prod(self.shape) * self.dtype.itemsize
        length = self.shape[self.axis]
        pieces = min(length, max(1, n_bytes // max(PIECE_BYTES, n_bytes // 32)))
        self.width = -(-length // pieces)

    def piece(self, start, width) -> Float[Array, "a d b"]:
        """Return `width` slices from `start` on."""
        array = self.array
        if width < self.shape[self.axis]:
            if not jnp.iscomplexobj(array):  # bfloat16 is sliced by way of a float32 copy on CPUs
                array = to_bits(array)
            array = jax.lax.dynamic_slice_in_dim(array, start, width, axis=self.axis)
            if not jnp.iscomplexobj(array):
                array = from_bits(array, self.array.dtype)
        if jnp.iscomplexobj(array):
            return jnp.concatenate([array.real, array.imag], axis=1)
        return array.astype(self.dtype)


def _raw(tensor: Tensor, mode: int, pair_travels: bool) -> _Raw:
    if isinstance(tensor, Pair):
        array = tensor.parts
    elif jnp.iscomplexobj(tensor) and not pair_travels:
        array = as_pair(tensor).parts
    else:
        array = tensor
    d, behind = tensor.shape[mode], math.prod(tensor.shape[mode + 1 :])
    if pair_travels and isinstance(tensor, Pair):
        d = 2 * d
    return _Raw(array.reshape(-1, d, behind))


def _multiply_raw(raw: _Raw, matrix: Float[Array, "m d"]) -> Float[Array, "a m b"]:
    if raw.is_ready:
        return _multiply(raw.array, matrix)

    def put(start, width, out):
        product = _multiply(raw.piece(start, width), matrix)
        return jax.lax.dynamic_update_slice_in_dim(out, product, start, axis=raw.axis)

    a, _, b = raw.shape
    blank = _blank((a, len(matrix), b), raw.array)
    return filled(put, raw.shape[raw.axis], raw.width, blank)


def _gram_raw(raw: _Raw, factor: Array) -> Float[Array, "d d"]:
    """Return the sum of (f X)(f X)^T over the matrices of a stack, with a real factor f."""
    d = raw.shape[1]
    add = lambda start, width, total: total + _gram(raw.piece(start, width) * factor)
    return reduced(add, raw.shape[raw.axis], raw.width, _blank((d, d), raw.array))


def _largest_magnitude(raw: _Raw) -> Float[Array, ""]:
    """Return max |x| over real numbers, max of |real| and |imaginary part| over complex ones."""
    if raw.is_ready:
        return jnp.max(jnp.abs(raw.array))
    larger = lambda start, width, found: jnp.maximum(
        found, jnp.max(jnp.abs(raw.piece(start, width)))
    )
    return reduced(larger, raw.shape[raw.axis], raw.width, _blank((), raw.array))


def _blank(shape: tuple[int, ...], some: Array) -> Array:
    """Return zeros, not to be there before the array `some` is."""
    dtype = jnp.promote_types(jnp.finfo(some.dtype).dtype, jnp.float32)
    return jnp.broadcast_to(some.ravel()[0].real.astype(dtype) * 0, shape)
