r"""Mode products of a large tensor as real left multiplications: nothing is transposed.

A tensor whose modes before and behind the one in hand have A and B entries is a stack (A, d, B).
A mode product multiplies each of the A matrices from the left by the same small one: wide and
contiguous wherever the modes behind are, as channels are in spectral weights.

A complex tensor is two real ones, and the axis of its two parts stands directly before the mode in
hand: then a complex product is one real product, with rows of 2 d numbers,

    [ Re M  -Im M ]
    [ Im M   Re M ]  of shape (2 r, 2 d),

whose result can be ordered as (r, 2): the axis of the parts has moved behind the mode, that is
before the next. It starts in front of the first mode, where parameters have it, and ends behind the
last, where complex arrays have it; `lift_to_parts` goes the way back. With real factors the parts
stay in front, as two tensors of the stack.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

from tensorgrad_jax.backend.pieces import in_pieces
from tensorgrad_jax.backend.products import multiply_each
from tensorgrad_jax.projections.leading import complex_gram, gram, leading_of_gram
from tensorgrad_jax.projections.pairs import Pair, Tensor, as_array, as_pair

Factors = Sequence[Inexact[Array, "_ _"] | None]


def project(tensor: Tensor, factors: Factors) -> Inexact[Array, ...]:
    """Return the core: `tensor` times U^H in every mode that has a factor U."""
    if all(u is None for u in factors):
        return as_array(tensor)
    parts_move, sizes = any(map(_is_complex, factors)), list(tensor.shape)
    x = _start(tensor, parts_move)
    for mode, u in enumerate(factors):
        stack = _stack(x, sizes, mode, parts_move)
        if u is not None:
            x = _multiplied(stack, _matrix(u, parts_move).T)
            sizes[mode] = u.shape[1]
        elif parts_move and not jnp.iscomplexobj(x):
            x = _axes_exchanged(stack, 2, sizes[mode])
    if not jnp.issubdtype(tensor.dtype, jnp.complexfloating) and not parts_move:
        return x.reshape(sizes)
    real, imag = jnp.moveaxis(x.reshape(*sizes, 2), -1, 0) if parts_move else x.reshape(2, *sizes)
    return jax.lax.complex(real, imag)


def lift_to_parts(core: Inexact[Array, ...], factors: Factors) -> Float[Array, "parts ..."]:
    """Return real and imaginary part of the tensor of a core, or the one part of a real core."""
    parts_move, sizes = any(map(_is_complex, factors)), list(core.shape)
    x, n_parts = core, 1
    if jnp.iscomplexobj(core):
        x, n_parts = jnp.stack([core.real, core.imag], axis=-1 if parts_move else 0), 2
    for mode in reversed(range(len(factors))):
        stack, u = _stack(x, sizes, mode, parts_move), factors[mode]
        if u is not None:
            x = _multiplied(stack, _matrix(u, parts_move))
            sizes[mode] = u.shape[0]
        elif parts_move:
            x = _axes_exchanged(stack, sizes[mode], 2)
    return x.reshape(n_parts, *sizes)


def sequentially_truncated(
    tensor: Tensor,
    ranks: Sequence[int],
    real_factors: bool = False,
    leading: Callable[[int, Inexact[Array, "d _"]], Inexact[Array, "d r"]] | None = None,
) -> tuple[Array | None, ...]:
    """Return the factors of the sequentially truncated HOSVD.

    Every mode is truncated before the next is looked at.

    Args:
        tensor: the tensor.
        ranks: the rank of every mode.
        real_factors: whether real factors are wanted whatever the tensor; modes of full rank then
            are left without one (None).
        leading: makes the factor of a mode of its number and unfolding. None: the leading
            eigenvectors of the Gram matrix, which needs no unfolding.
    """
    is_complex = jnp.issubdtype(tensor.dtype, jnp.complexfloating)
    parts_move, sizes = is_complex and not real_factors, list(tensor.shape)
    truncated = [not real_factors or r < d for r, d in zip(ranks, tensor.shape, strict=True)]
    if not any(truncated):
        return (None,) * len(ranks)
    x, factors = _start(tensor, parts_move), []
    # Squares of gradients leave float32's range: what is squared is first divided by the largest.
    largest = _largest_magnitude(_stack(x, sizes, truncated.index(True), parts_move))
    scale = 1 / jnp.where(largest > 0, largest, 1)
    for mode, rank in enumerate(ranks):
        if not truncated[mode]:
            factors.append(None)
            continue
        stack = _stack(x, sizes, mode, parts_move)
        if leading is None:
            products = _gram(stack, scale)
            u = leading_of_gram(complex_gram(products) if parts_move else products, rank)
        else:
            unfolding = _unfolding(stack, sizes[mode], parts_move)
            u = leading(mode, unfolding if scale is None else unfolding * scale)
        factors.append(u)
        if any(truncated[mode + 1 :]):  # otherwise it would be the core, which nobody asked for
            matrix = _matrix(u, parts_move).T
            x = _multiplied(stack, matrix if scale is None else matrix * scale)
            sizes[mode], scale = rank, None
    return tuple(factors)


def grams(tensor: Tensor, like: Factors) -> tuple[Array | None, ...]:
    """Return the Gram matrix G_(i) G_(i)^H of every mode's unfolding.

    Args:
        tensor: the tensor.
        like: an array per mode, real where the sum over real and imaginary part is wanted; None
            where no matrix is.
    """
    parts_move, sizes = any(map(_is_complex, like)), list(tensor.shape)
    x, found = _start(tensor, parts_move), []
    for mode, wanted in enumerate(like):
        if wanted is None:
            found.append(None)
        else:
            products = _gram(_stack(x, sizes, mode, parts_move), jnp.float32(1))
            found.append(complex_gram(products) if parts_move else products)
        if parts_move and not jnp.iscomplexobj(x):
            x = _axes_exchanged(_stack(x, sizes, mode, parts_move), 2, sizes[mode])
    return tuple(found)


def _is_complex(u: Array | None) -> bool:
    return u is not None and jnp.iscomplexobj(u)


def _start(tensor: Tensor, parts_move: bool) -> Inexact[Array, ...]:
    """Return an array of which `_stack` makes stacks, the axis of the parts in its place."""
    if isinstance(tensor, Pair):
        return tensor.parts
    if jnp.iscomplexobj(tensor) and not parts_move:
        return as_pair(tensor).parts
    wide = jnp.complex64 if parts_move else tensor.dtype
    return tensor.astype(jnp.promote_types(tensor.dtype, wide))


def _stack(x: Array, sizes: Sequence[int], mode: int, parts_move: bool) -> Inexact[Array, "a d b"]:
    """Return x as a stack around a mode, the parts among its rows; a complex x as it is."""
    parts = 2 if parts_move and not jnp.iscomplexobj(x) else 1
    return x.reshape(-1, parts * sizes[mode], math.prod(sizes[mode + 1 :]))


def _axes_exchanged(stack: Array, rows: int, columns: int) -> Array:
    """Move the axis of the parts past a mode that no factor multiplies."""
    a, _, b = stack.shape
    return stack.reshape(a, rows, columns, b).swapaxes(1, 2)


def _matrix(u: Inexact[Array, "d r"], parts_move: bool) -> Float[Array, "_ _"]:
    """Return u, of a complex one the real matrix with rows as (2, d) and columns as (r, 2)."""
    if not parts_move:
        return u
    d, r = u.shape
    columns = jnp.stack([jnp.stack([u.real, u.imag]), jnp.stack([-u.imag, u.real])], axis=-1)
    return columns.reshape(2 * d, 2 * r)


def _real_rows(stack: Inexact[Array, "a _ b"]) -> Float[Array, "a rows b"]:
    """Return a stack in float32 or wider, of complex matrices the real parts above the others."""
    if jnp.iscomplexobj(stack):
        return jnp.concatenate([stack.real, stack.imag], axis=1)
    return stack.astype(jnp.promote_types(stack.dtype, jnp.float32))


def _longer_side(stack) -> int:
    return 0 if stack.shape[0] >= stack.shape[2] else 2


def _multiplied(stack: Inexact[Array, "a _ b"], matrix: Float[Array, "m d"]) -> Array:
    """Return the matrix times each matrix of a stack."""
    product = lambda x, m: multiply_each(m, _real_rows(x))
    if not jnp.iscomplexobj(stack) and stack.dtype == matrix.dtype:
        return product(stack, matrix)
    axis = _longer_side(stack)
    return in_pieces(product, (stack, matrix), (axis, None), axis)


def _gram(stack: Inexact[Array, "a _ b"], scale: Float[Array, ""] | None) -> Float[Array, "d d"]:
    """Return the sum of (s X)(s X)^T over the matrices of a stack; None: s = 1."""
    if scale is None:
        return gram(stack)
    scaled = lambda x, s: gram(_real_rows(x) * s)
    return in_pieces(scaled, (stack, scale), (_longer_side(stack), None), None)


def _largest_magnitude(stack: Inexact[Array, "a d b"]) -> Float[Array, ""]:
    """Return max |x| over real numbers, max of |real| and |imaginary part| over complex ones."""
    largest = lambda x: jnp.max(jnp.abs(_real_rows(x)))
    return in_pieces(largest, (stack,), (_longer_side(stack),), None, jnp.maximum)


def _unfolding(stack, d: int, parts_move: bool) -> Inexact[Array, "d _"]:
    """Return the matrix whose columns are the fibres of the mode in hand."""
    if jnp.iscomplexobj(stack) or not parts_move:
        x = stack
    else:
        parts = stack.reshape(len(stack), 2, d, -1)
        x = jax.lax.complex(parts[:, 0], parts[:, 1])
    return x.transpose(1, 2, 0).reshape(d, -1)
