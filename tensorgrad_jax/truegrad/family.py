"""The optimizers that later releases of TrueGrad added, as chains of a few parts.

All of them keep a *true* branch, whose second moment is that of examples, beside a *baseline*
branch, which has the mean gradient's. Grafting gives a parameter the true direction at the
baseline's size, and a parameter without S gets the baseline alone.

    tg_rmsprop    g / root(v)                          no momentum
    tg_laprop     average of g / root(v)               normalised first, averaged then
    graft         direction of one optimizer at the size of another
    sign          the sign of an optimizer's step
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int32, PyTree

from tensorgrad_jax.transforms.inner import check_transformation
from tensorgrad_jax.transforms.moments import momentum
from tensorgrad_jax.truegrad.adam import with_decay_and_rate
from tensorgrad_jax.truegrad.squares import (
    as_large_as,
    averaged,
    correction,
    floored,
    second_zeros,
    squares_of,
)

_REMEDY = "default_to_baseline=True gives it the plain second moment"


class ScaleByTrueRmsState(NamedTuple):
    """State of `scale_by_true_rms`.

    Attributes:
        count: int32 (), number of updates so far.
        nu: second moments of the squares of examples, shaped like the parameters; real.
    """

    count: Int32[Array, ""]
    nu: PyTree[Array]


def scale_by_true_rms(
    beta: float = 0.9, eps: float = 1e-12, default_to_baseline: bool = False, floor: bool = True
) -> optax.GradientTransformationExtraArgs:
    r"""Divide gradients by the root of the averaged squares of examples.

    $$
    v \leftarrow \beta v + (1 - \beta) S, \qquad
    u = \frac{g}{\max(\sqrt{v / (1 - \beta^t)},\, \varepsilon)} .
    $$

    Args:
        beta: in [0, 1).
        eps: the least root; not negative.
        default_to_baseline: take g^2 for an S that is missing; otherwise that is an error.
        floor: take max(S, g^2) for S, see `scale_by_true_adam`.

    Raises:
        ValueError: if an argument is not one of these; at an update, if S is missing or does not
            fit a parameter.

    Examples:
        >>> import jax.numpy as jnp
        >>> transform = scale_by_true_rms()
        >>> g, S = jnp.array([1.0, 1.0]), jnp.array([1.0, 4.0])
        >>> transform.update(g, transform.init(g), sum_grad_squared=S)[0].tolist()
        [1.0, 0.5]
    """
    _check_betas("scale_by_true_rms", (beta,), (1,))
    _check_eps("scale_by_true_rms", eps)

    def init_fn(params: optax.Params) -> Any:
        return ScaleByTrueRmsState(jnp.zeros((), jnp.int32), jax.tree.map(second_zeros, params))

    def update_fn(updates, state, params=None, *, sum_grad_squared=None, **extra) -> Any:
        del params, extra
        owner, may_miss = "scale_by_true_rms", default_to_baseline
        squares = squares_of(owner, updates, sum_grad_squared, may_miss, _REMEDY)
        gradients, structure = jax.tree.flatten(updates)
        count = cast(Array, optax.safe_increment(state.count))
        rows = zip(gradients, squares, structure.flatten_up_to(state.nu), strict=True)
        nu = [averaged(v, floored(s, g, floor), beta) for g, s, v in rows]
        root = lambda v: jnp.maximum(jnp.sqrt(v / correction(beta, count)), eps)
        scaled = [g / root(v) for g, v in zip(gradients, nu, strict=True)]
        state = ScaleByTrueRmsState(count, structure.unflatten(nu))
        return structure.unflatten(scaled), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def tg_rmsprop(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    betas: float | Sequence[float] = (0.9,),
    eps: float = 1e-12,
    weight_decay: float = 1e-2,
    graft: bool = True,
    default_to_baseline: bool = False,
    floor: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """RMSProp with the squares of examples, corrected for its start at zero.

    Args:
        learning_rate: a number or a schedule.
        betas: decay of the second moments: one for both, or (baseline's, true one's).
        eps: least root, see `scale_by_true_rms`.
        weight_decay: decoupled weight decay, multiplied by the learning rate; not negative.
        graft: make every parameter's update as large as with the mean gradient's second moment.
        default_to_baseline: parameters whose S is None get that second moment alone.
        floor: see `scale_by_true_rms`.

    Raises:
        ValueError: if an argument is not one of these.
    """
    betas = (betas,) if isinstance(betas, int | float) else tuple(betas)
    _check_betas("tg_rmsprop", betas, (1, 2))
    _check_eps("tg_rmsprop", eps)
    true = scale_by_true_rms(betas[-1], eps, True, floor)
    baseline = scale_by_true_rms(betas[0], eps, True)
    scaled = _beside("tg_rmsprop", true, baseline, graft, default_to_baseline)
    return with_decay_and_rate("tg_rmsprop", scaled, learning_rate, weight_decay)


def tg_laprop(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    betas: Sequence[float] = (0.9, 0.99),
    eps: float = 1e-12,
    weight_decay: float = 1e-2,
    graft: bool = True,
    default_to_baseline: bool = False,
    floor: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """LaProp with the squares of examples: gradients are normalised first and averaged then.

    Args:
        learning_rate: a number or a schedule.
        betas: decay of (averages, second moments), or four: the baseline's two, the true two.
        eps: least root, see `scale_by_true_rms`.
        weight_decay: decoupled weight decay, multiplied by the learning rate; not negative.
        graft: make every parameter's update as large as LaProp's.
        default_to_baseline: parameters whose S is None get LaProp.
        floor: see `scale_by_true_rms`.

    Raises:
        ValueError: if an argument is not one of these.

    References:
        L. Ziyin et al., LaProp, arXiv 2002.04839.
    """
    _check_betas("tg_laprop", betas, (2, 4))
    _check_eps("tg_laprop", eps)
    b1, b2, b3, b4 = (*betas, *betas)[:4]
    true = optax.chain(scale_by_true_rms(b4, eps, True, floor), momentum(b3))
    baseline = optax.chain(scale_by_true_rms(b2, eps, True), momentum(b1))
    scaled = _beside("tg_laprop", true, baseline, graft, default_to_baseline)
    return with_decay_and_rate("tg_laprop", scaled, learning_rate, weight_decay)


def graft(
    magnitude: optax.GradientTransformation, direction: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    """Return updates with the direction of one optimizer and the size of another, per parameter.

    Learning rates belong into `magnitude`; weight decay behind both, else it is grafted too.

    Args:
        magnitude: whose update's norm a parameter gets.
        direction: whose update it is but for its norm.

    Raises:
        ValueError: if an argument is no Optax transformation.

    References:
        N. Agarwal et al., arXiv 2002.11803.
    """
    for name, value in (("magnitude", magnitude), ("direction", direction)):
        check_transformation("graft", name, value)
    magnitude = optax.with_extra_args_support(magnitude)
    direction = optax.with_extra_args_support(direction)

    def init_fn(params) -> Any:
        return BranchesState(direction.init(params), magnitude.init(params))

    def update_fn(updates, state, params=None, **extra) -> Any:
        wanted, of_magnitude = magnitude.update(updates, state.baseline, params, **extra)
        update, of_direction = direction.update(updates, state.true, params, **extra)
        return jax.tree.map(as_large_as, wanted, update), BranchesState(of_direction, of_magnitude)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def sign(
    base: optax.GradientTransformation, graft_to_self: bool = True
) -> optax.GradientTransformationExtraArgs:
    """Return the sign of an optimizer's updates; z / |z| of complex ones.

    Args:
        base: the optimizer.
        graft_to_self: at the norm that its update of a parameter has; otherwise entries are 1.

    Raises:
        ValueError: if `base` is no Optax transformation.
    """
    check_transformation("sign", "base", base)
    base = optax.with_extra_args_support(base)
    signed = lambda u: as_large_as(u, jnp.sign(u)) if graft_to_self else jnp.sign(u)

    def update_fn(updates, state, params=None, **extra) -> Any:
        updates, state = base.update(updates, state, params, **extra)
        return jax.tree.map(signed, updates), state

    return optax.GradientTransformationExtraArgs(base.init, update_fn)


class BranchesState(NamedTuple):
    """State of two transformations side by side.

    Attributes:
        true: of the one that gives the direction.
        baseline: of the one that gives the size; None if there is none.
    """

    true: optax.OptState
    baseline: optax.OptState | None


def _beside(
    owner: str,
    true: optax.GradientTransformation,
    baseline: optax.GradientTransformation,
    graft: bool,
    default_to_baseline: bool,
) -> optax.GradientTransformationExtraArgs:
    """Run `true` on g and S beside `baseline` on g; say per parameter which of them it gets."""
    both = graft or default_to_baseline
    true, baseline = (optax.with_extra_args_support(t) for t in (true, baseline))

    def init_fn(params) -> Any:
        return BranchesState(true.init(params), baseline.init(params) if both else None)

    def update_fn(updates, state, params=None, *, sum_grad_squared=None, **extra) -> Any:
        found = squares_of(owner, updates, sum_grad_squared, default_to_baseline, _REMEDY)
        structure = jax.tree.structure(updates)
        squares = structure.unflatten(found)
        ours, of_true = true.update(updates, state.true, params, sum_grad_squared=squares, **extra)
        if not both:
            return ours, BranchesState(of_true, None)
        plain, of_baseline = baseline.update(updates, state.baseline, params, **extra)

        def chosen(s, u, wanted):
            return wanted if s is None else as_large_as(wanted, u) if graft else u

        flat = (structure.flatten_up_to(tree) for tree in (ours, plain))
        update = [chosen(*row) for row in zip(found, *flat, strict=True)]
        return structure.unflatten(update), BranchesState(of_true, of_baseline)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _check_betas(owner: str, betas: Sequence[float], lengths: tuple[int, ...]) -> None:
    if len(betas) not in lengths or not all(0 <= b < 1 for b in betas):
        wanted = " or ".join(map(str, lengths))
        raise ValueError(f"{owner}: betas must be {wanted} numbers in [0, 1), got {betas!r}")


def _check_eps(owner: str, eps: float) -> None:
    if not eps >= 0:
        raise ValueError(f"{owner}: eps must not be negative, got {eps!r}")
