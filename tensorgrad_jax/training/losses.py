"""Relative and absolute Lp and H1 losses of fields on a regular grid, channels last.

For a prediction u and a target y on the unit cube, sampled with n_i points on axis i, every
sample and channel gives one number:

    relative   ||u - y|| / (||y|| + eps)
    absolute   ||u - y||

The relative form is free of units and of the resolution: the cell volume cancels. The absolute
form is the Riemann sum of the integral, with cell volume prod_i 1/n_i. The H1 norm adds the
first derivatives (Sobolev training), so that a prediction must be right in its fine structure
as well:

    ||u||_H1^2 = ||u||_2^2 + sum_i ||d_i u||_2^2
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

Reduction = Literal["sum", "mean", "none"]

_EPS = 1e-8
_STENCIL_POINTS = 4  # of the one-sided differences


def lp_loss(
    pred: Float[Array, "batch *grid channels"],
    target: Float[Array, "batch *grid channels"],
    *,
    p: int | float = 2,
    relative: bool = True,
    reduction: Reduction = "mean",
    eps: float = _EPS,
) -> Float[Array, "*values"]:
    """Lp distance of two fields, per sample and channel, then reduced.

    With h the cell volume (1 in the relative form, where it cancels),

        ||u||_p = (h sum_x |u(x)|^p)^(1/p).

    The gradient is zero where prediction and target agree. Sums are taken in float32 or wider.

    Args:
        pred: the prediction, (batch, *grid, channels), real.
        target: the target, of the same shape.
        p: the exponent, at least 1.
        relative: divide by the norm of the target plus `eps`.
        reduction: "sum" or "mean" over samples and channels; "none" returns all of them.
        eps: guards the division by the norm of a zero target.

    Returns:
        A scalar, or (batch, channels) with reduction "none".

    Raises:
        ValueError: the shapes differ or have no grid axis, a field is complex, p is below 1, or
            the reduction is unknown.

    Source: Li et al., Fourier Neural Operator for Parametric Partial Differential Equations
    (2021), section 5 (the relative L2 error).
    """
    if not 1 <= p < math.inf:
        raise ValueError(f"lp_loss: p must be a finite number >= 1, got {p!r}")
    pred, target = _prepared("lp_loss", pred, target, reduction)
    axes = _grid_axes(pred)

    def power_sum(u):
        return jnp.sum(jnp.square(u) if p == 2 else jnp.abs(u) ** p, axis=axes)

    return _assembled(
        power_sum(pred - target), power_sum(target), pred, p, relative, reduction, eps
    )


def h1_loss(
    pred: Float[Array, "batch *grid channels"],
    target: Float[Array, "batch *grid channels"],
    *,
    periodic: bool = True,
    relative: bool = True,
    reduction: Reduction = "mean",
    eps: float = _EPS,
) -> Float[Array, "*values"]:
    """H1 distance of two fields, per sample and channel, then reduced.

        ||u||_H1^2 = h sum_x (|u(x)|^2 + sum_i |d_i u(x)|^2)

    with h as in `lp_loss` and d_i the central difference with spacing 1/n_i. On an axis that is
    not periodic the first and the last point take one-sided differences of third order instead.

    Args:
        pred: the prediction, (batch, *grid, channels), real.
        target: the target, of the same shape.
        periodic: whether all grid axes are periodic, or none.
        relative: divide by the norm of the target plus `eps`.
        reduction: "sum" or "mean" over samples and channels; "none" returns all of them.
        eps: guards the division by the norm of a zero target.

    Returns:
        A scalar, or (batch, channels) with reduction "none".

    Raises:
        ValueError: the shapes differ or have no grid axis, a field is complex, a non-periodic axis
            has fewer than 4 points, or the reduction is unknown.

    Source: Czarnecki et al., Sobolev Training for Neural Networks (2017); for operators, Li et
    al., Learning Dissipative Dynamics in Chaotic Systems (2022).
    """
    pred, target = _prepared("h1_loss", pred, target, reduction)
    axes = _grid_axes(pred)
    shortest = min(pred.shape[axis] for axis in axes)
    if not periodic and shortest < _STENCIL_POINTS:
        raise ValueError(
            f"h1_loss: every non-periodic grid axis needs at least {_STENCIL_POINTS} points, "
            f"got shape {pred.shape}"
        )

    def square_sum(u):
        terms = [u] + [_derivative(u, axis, periodic) for axis in axes]
        return sum(jnp.sum(jnp.square(term), axis=axes) for term in terms)

    # Differences are linear: those of the error are the error of the differences.
    return _assembled(
        square_sum(pred - target), square_sum(target), pred, 2, relative, reduction, eps
    )


LOSSES: dict[str, Callable[..., Array]] = {
    "l2": functools.partial(lp_loss, p=2, relative=True),
    "h1": functools.partial(h1_loss, relative=True),
}
"""The training losses and test errors by their names."""


def _derivative(u, axis, periodic):
    n = u.shape[axis]
    central = (jnp.roll(u, -1, axis) - jnp.roll(u, 1, axis)) * (n / 2)
    if periodic:
        return central
    u = jnp.moveaxis(u, axis, 0)
    first = (-11 * u[0] + 18 * u[1] - 9 * u[2] + 2 * u[3]) * (n / 6)
    last = (11 * u[-1] - 18 * u[-2] + 9 * u[-3] - 2 * u[-4]) * (n / 6)
    inner = jnp.moveaxis(central, axis, 0)[1:-1]
    return jnp.moveaxis(jnp.concatenate([first[None], inner, last[None]]), 0, axis)


def _prepared(name, pred, target, reduction):
    if pred.shape != target.shape:
        raise ValueError(f"{name}: pred has shape {pred.shape}, target has shape {target.shape}")
    if pred.ndim < 3:
        raise ValueError(f"{name}: expected (batch, *grid, channels), got shape {pred.shape}")
    if reduction not in ("sum", "mean", "none"):
        raise ValueError(f"{name}: reduction must be sum, mean or none, got {reduction!r}")
    for argument, field in (("pred", pred), ("target", target)):
        if jnp.issubdtype(field.dtype, jnp.complexfloating):
            raise ValueError(
                f"{name}: {argument} must be real, got {field.dtype}; give real and imaginary part "
                "as channels of their own"
            )
    # A sum of thousands of squares has no correct digit left in bfloat16.
    dtype = jnp.promote_types(jnp.promote_types(pred.dtype, target.dtype), jnp.float32)
    return pred.astype(dtype), target.astype(dtype)


def _grid_axes(u):
    return tuple(range(1, u.ndim - 1))


def _assembled(error, size, field, p, relative, reduction, eps):
    if relative:
        values = _root(error, p) / (_root(size, p) + eps)
    else:
        cell_volume = 1 / math.prod(field.shape[1:-1])
        values = _root(error * cell_volume, p)
    if reduction == "none":
        return values
    return jnp.sum(values) if reduction == "sum" else jnp.mean(values)


def _root(x, p):
    # The slope of a root is infinite at zero, and 0 * inf is NaN in the chain rule. The condition
    # is written so that a NaN passes through: a diverged prediction must not look perfect.
    zero = x < jnp.finfo(x.dtype).tiny
    safe = jnp.where(zero, 1, x)
    return jnp.where(zero, 0, jnp.sqrt(safe) if p == 2 else safe ** (1 / p))
