r"""Bases of single axes of a complex tensor: which have settled, and what has no factor yet.

A spectral weight, (2, d_1, ..., d_n) with real and imaginary part along its first axis, is no
matrix, and the polar factor of a matrix view would say nothing about its axes. What stands for the
basis of axis i are the k leading left singular vectors A (d_i, k) of its unfolding, whose columns
are the real and imaginary parts of its fibres; for two times

    overlap = |A^T B|_F^2 / k      in [0, 1],    by chance k / d_i,

the mean squared cosine of the angles between the two subspaces, whichever bases they are given by.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from tensorgrad_jax.projections.leading import PRECISION, gram


def first_ranks(shape: Sequence[int], shares: Sequence[float]) -> tuple[int, ...]:
    """Return the ranks that the axes behind the first begin with, each at least 1."""
    return tuple(max(1, int(s * d)) for s, d in zip(shares, shape[1:], strict=True))


def without_factor(
    shape: Sequence[int], shares: Sequence[float], factors: Sequence[Any] | None = None
) -> tuple[int | None, ...]:
    """Return the ranks of the axes that are to have a factor and have none; None for the others.

    Args:
        shape: of the weight.
        shares: for every axis behind the first what is kept of it; 1: it stays whole.
        factors: those that there are.
    """
    ranks = zip(first_ranks(shape, shares), shape[1:], factors or [None] * len(shares), strict=True)
    return tuple(r if r < d and u is None else None for r, d, u in ranks)


def unfolding(core: Float[Array, "2 ..."], axis: int) -> Float[Array, "d n"]:
    """Return the matrix of an axis' fibres, real and imaginary parts side by side.

    Args:
        core: of real and imaginary part.
        axis: counted behind that of the parts, from 0.
    """
    wide = core.astype(jnp.promote_types(core.dtype, jnp.float32))
    return jnp.moveaxis(wide, axis + 1, 0).reshape(core.shape[axis + 1], -1)


def leading_basis(core: Float[Array, "2 ..."], axis: int, rank: int) -> Float[Array, "d k"]:
    """Return the leading left singular vectors of an unfolding.

    Columns are zeros where a singular value is nothing but rounding: what they would be is chance.

    Args:
        core: of real and imaginary part.
        axis: counted behind that of the parts, from 0.
        rank: how many.

    Examples:
        >>> import jax.numpy as jnp
        >>> w = jnp.zeros((2, 3, 4)).at[0, 1, 2].set(5.0).at[1, 2, 2].set(1.0)
        >>> jnp.abs(leading_basis(w, 0, 2)).round(3).tolist()
        [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    """
    matrix = unfolding(core, axis)
    largest = jnp.max(jnp.abs(matrix))  # squares leave float32's range before weights do
    values, vectors = jnp.linalg.eigh(gram((matrix / jnp.where(largest > 0, largest, 1))[None]))
    values, vectors = (jnp.flip(x, -1)[..., :rank] for x in (values, vectors))
    noise = len(matrix) * jnp.finfo(values.dtype).eps * values[0]
    # Not "where(values > noise)": what is not finite is to stay so.
    return jnp.where(values <= noise, 0, vectors)


def axis_overlap(before: Float[Array, "d j"], after: Float[Array, "d k"]) -> Float[Array, ""]:
    """Return the overlap of two subspaces, |A^T B|_F^2 over the smaller of their dimensions.

    A subspace that has only lost dimensions has an overlap of 1 with what it was: cutting ranks is
    no turning.
    """
    shared = jnp.sum(jnp.matmul(before.T, after, precision=PRECISION) ** 2)
    smaller = jnp.minimum(jnp.sum(before**2), jnp.sum(after**2))
    return jnp.where(smaller == 0, 0, shared / jnp.where(smaller == 0, 1, smaller))
