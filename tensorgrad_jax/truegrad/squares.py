"""What every transformation here does with the squares of examples: check them, divide by roots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tensorgrad_jax.projections.pairs import is_pair
from tensorgrad_jax.transforms.moments import abs_squared, mean_squares


def squares_of(
    owner: str, updates: Any, squares: Any, may_miss: bool, remedy: str
) -> Sequence[Array | None]:
    """Return S of every parameter, or raise an error that names the one that it does not fit.

    Args:
        owner: the transformation that asks.
        updates: the gradients; of a `Pair` S is that of both its numbers, their mean square.
        squares: a tree like them, in which single leaves may be None; or None.
        may_miss: whether a missing S is None in the result or an error.
        remedy: the option that allows it to miss.
    """
    paths, structure = jax.tree_util.tree_flatten_with_path(updates, is_leaf=is_pair)
    if squares is None:
        found = [None] * len(paths)
    else:
        try:
            found = structure.flatten_up_to(squares)
        except ValueError as error:
            raise ValueError(
                f"{owner}: sum_grad_squared must be a tree like the gradients: {error}"
            ) from None
    for (path, g), s in zip(paths, found, strict=True):
        name = jax.tree_util.keystr(path) or "the parameter"
        if s is None and not may_miss:
            raise ValueError(
                f"{owner}: parameter of shape {g.shape} has no sum_grad_squared: {name} ({remedy})"
            )
        if s is not None and (s.shape != g.shape or jnp.iscomplexobj(s)):
            raise ValueError(
                f"{owner}: sum_grad_squared of {name} must be real and of shape "
                f"{g.shape}, has shape {s.shape} and dtype {s.dtype}"
            )
    return found


def first_zeros(p: Array) -> Array:
    """Return the first moment of a parameter at its start, in float32 or wider."""
    # Not jnp.zeros: of a sharded parameter the moments are sharded alike.
    return jnp.zeros_like(p, jnp.promote_types(p.dtype, jnp.float32))


def second_zeros(p: Any) -> Array:
    """Return the second moment of a parameter or a pair at its start: real."""
    dtype = jnp.finfo(jnp.promote_types(p.dtype, jnp.float32)).dtype
    return jnp.zeros(p.shape, dtype) if is_pair(p) else jnp.zeros_like(p, dtype)


def numbers(x: Any) -> Array:
    """Return the array that a leaf is, of a pair that of both numbers along a new axis 0."""
    return x.parts if is_pair(x) else x


def averaged(moment: Array, squares: Array, beta: float) -> Array:
    """Return beta moment + (1 - beta) squares."""
    return beta * moment + (1 - beta) * squares.astype(moment.dtype)


def floored(squares: Array | None, gradient: Any, floor: bool) -> Array:
    """Return max(S, g^2), or S; g^2 where S is missing."""
    plain = mean_squares(gradient)
    if squares is None:
        return plain
    squares = squares.astype(plain.dtype)
    return jnp.maximum(squares, plain) if floor else squares


def correction(beta: float, count: Array) -> Array:
    """Return 1 - beta^count, of which beta^count in float32 would leave four digits."""
    steps = count.astype(jnp.result_type(float))
    return -jnp.expm1(steps * (math.log(beta) if beta > 0 else -math.inf))


def norm(x: Array) -> Array:
    """Return the root of the sum of |x|^2."""
    return jnp.sqrt(jnp.sum(abs_squared(x)))


def as_large_as(wanted: Array, x: Array) -> Array:
    """Return x at the norm of `wanted`; zeros stay zeros."""
    size = norm(x)
    return x * jnp.where(size > 0, norm(wanted) / jnp.where(size > 0, size, 1), 0)
