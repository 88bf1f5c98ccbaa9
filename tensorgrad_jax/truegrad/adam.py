"""Adam whose second moment is that of the gradients of single examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int32, PyTree

from tensorgrad_jax.projections.pairs import Pair, is_pair
from tensorgrad_jax.truegrad.squares import (
    as_large_as,
    averaged,
    correction,
    first_zeros,
    floored,
    numbers,
    second_zeros,
    squares_of,
)

EpsMode = Literal["add", "clamp"]


class ScaleByTrueAdamState(NamedTuple):
    """State of `scale_by_true_adam`.

    Attributes:
        count: int32 (), number of updates so far.
        mu: first moments, shaped like the parameters, float32 or wider; complex for complex ones.
        nu: second moments of the squares of examples; real. Where S is missing it is g^2.
        nu_mean: second moments of the mean gradient, as Adam has them; real. None if neither
            `graft` nor `default_to_adam` asks for them.
    """

    count: Int32[Array, ""]
    mu: PyTree[Array]
    nu: PyTree[Array]
    nu_mean: PyTree[Array] | None


def scale_by_true_adam(
    betas: Sequence[float] = (0.9, 0.999, 0.999),
    eps: float = 1e-12,
    graft: bool = True,
    default_to_adam: bool = False,
    eps_mode: EpsMode = "add",
    floor: bool = True,
    default_to_baseline: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Rescale updates by Adam with per-example squares in the denominator.

    $$
    m \leftarrow b_1 m + (1 - b_1) g, \quad v \leftarrow b_3 v + (1 - b_3) S, \quad
    u = \frac{m}{\sqrt{v / (1 - b_3^t)} + \varepsilon},
    $$

    $$
    a \leftarrow b_2 a + (1 - b_2) g^2, \quad u_a = \frac{m}{\sqrt{a / (1 - b_2^t)} + \varepsilon},
    \quad \text{update} = \frac{u}{1 - b_1^t} \cdot
    \begin{cases} |u_a| / |u| & \text{graft} \\ 1 & \text{else} \end{cases}
    $$

    with g the mean gradient, S the mean of squared gradients of examples
    (`truegrad.value_and_grads`), and norms over a whole parameter. Noisy entries, whose S is
    much larger than g^2, take smaller steps than under Adam; grafting keeps the size of Adam's
    step of every parameter. With one example per batch S = g^2, and this is Adam.

    S is given to `update` as `sum_grad_squared=`, a tree like the parameters.

    Args:
        betas: (b1, b2, b3), each in [0, 1); of two, b3 = b2.
        eps: see eps_mode; not negative.
        graft: make every parameter's update as large as Adam's.
        default_to_adam: parameters whose S is None (or all, where none is given) get Adam's
            update; otherwise a missing S is an error.
        eps_mode: "add" eps to the roots, or "clamp" the roots to at least eps.
        floor: take max(S, g^2) for S. By Jensen's inequality an exact S is never smaller; sums of
            squared terms (granularity "token") can be, where an entry with S = 0 and g != 0 would
            otherwise take a step of 1/eps.
        default_to_baseline: the name of `default_to_adam` in later releases; either of them.

    Raises:
        ValueError: if an argument is not one of these; at an update, if S is missing or does not
            fit a parameter. The message names the parameter.

    Examples:
        >>> import jax.numpy as jnp
        >>> transform = scale_by_true_adam(graft=False)
        >>> g, S = jnp.array([1.0, 1.0]), jnp.array([1.0, 4.0])
        >>> update, state = transform.update(g, transform.init(g), sum_grad_squared=S)
        >>> [round(u, 4) for u in update.tolist()]
        [1.0, 0.5]

    References:
        L. Nestler, TrueGrad, release 2.0.0. L. Balles and P. Hennig, Dissecting Adam, ICML 2018,
        on the two meanings of the second moment. Grafting: N. Agarwal et al., arXiv 2002.11803.
    """
    b1, b2, b3 = _checked("scale_by_true_adam", betas, eps, eps_mode)
    may_miss = default_to_adam or default_to_baseline
    remedy = "default_to_adam=True gives it Adam"

    seconds = lambda params: jax.tree.map(second_zeros, params, is_leaf=is_pair)

    def init_fn(params: optax.Params) -> Any:
        return ScaleByTrueAdamState(
            count=jnp.zeros((), jnp.int32),
            mu=jax.tree.map(first_zeros, params),
            nu=seconds(params),
            nu_mean=seconds(params) if graft or may_miss else None,
        )

    def update_fn(updates, state, params=None, *, sum_grad_squared=None, **extra) -> Any:
        del params, extra
        squares = squares_of("scale_by_true_adam", updates, sum_grad_squared, may_miss, remedy)
        gradients, structure = jax.tree.flatten(updates, is_leaf=is_pair)
        count = cast(Array, optax.safe_increment(state.count))

        def over_root(m, v, b):
            root = jnp.sqrt(v / correction(b, count))
            return m / (root + eps if eps_mode == "add" else jnp.maximum(root, eps))

        def scaled(g, s, m, v, a):
            kind, m = (Pair if is_pair(g) else jnp.asarray), numbers(m)
            m = b1 * m + (1 - b1) * numbers(g).astype(m.dtype)
            if a is not None:
                a = averaged(a, floored(None, g, floor), b2)
            v = averaged(v, floored(s, g, floor), b3)
            u = over_root(m, a, b2) if s is None else over_root(m, v, b3)
            if graft and s is not None:
                u = as_large_as(over_root(m, a, b2), u)
            return kind(u / correction(b1, count)), kind(m), v, a

        columns = [structure.flatten_up_to(tree) for tree in (state.mu, state.nu)]
        means = [None] * len(gradients)
        if state.nu_mean is not None:
            means = structure.flatten_up_to(state.nu_mean)
        rows = [scaled(*row) for row in zip(gradients, squares, *columns, means, strict=True)]
        update, mu, nu, nu_mean = (
            structure.unflatten(column) for column in zip(*rows, strict=True)
        )
        return update, ScaleByTrueAdamState(
            count, mu, nu, None if state.nu_mean is None else nu_mean
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _checked(owner: str, betas: Sequence[float], eps: float, eps_mode: str) -> tuple[float, ...]:
    """Return (b1, b2, b3), or raise."""
    if len(betas) not in (2, 3) or not all(0 <= b < 1 for b in betas):
        raise ValueError(f"{owner}: betas must be 2 or 3 numbers in [0, 1), got {betas!r}")
    if not eps >= 0:
        raise ValueError(f"{owner}: eps must not be negative, got {eps!r}")
    if eps_mode not in ("add", "clamp"):
        raise ValueError(f"{owner}: eps_mode must be 'add' or 'clamp', got {eps_mode!r}")
    return (*betas, betas[-1])[:3]


class DecayToInitState(NamedTuple):
    """State of `add_decay_to_init`: the parameters at the start."""

    init: PyTree[Array]


def add_decay_to_init(weight_decay: float) -> optax.GradientTransformation:
    """Add weight_decay (w - w_0) to updates: decay towards the start instead of towards zero."""

    def init_fn(params):
        return DecayToInitState(jax.tree.map(lambda p: jnp.array(p, copy=True), params))

    def update_fn(updates, state, params=None):
        if params is None:
            raise ValueError("add_decay_to_init: update needs the parameters: update(..., params)")
        pull = lambda u, p, start: u + weight_decay * (p - start)
        return jax.tree.map(pull, updates, params, state.init), state

    return optax.GradientTransformation(init_fn, update_fn)


def tg_adamw(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    betas: Sequence[float] = (0.9, 0.999, 0.999),
    eps: float = 1e-12,
    weight_decay: float = 1e-2,
    graft: bool = True,
    decay_to_init: bool = False,
    default_to_adam: bool = False,
    eps_mode: EpsMode = "add",
    floor: bool = True,
    default_to_baseline: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """TrueGrad's AdamW: `scale_by_true_adam`, decoupled weight decay, a learning rate.

    One step is w <- (1 - lr wd) w - lr update, as in the original, which decays first.

    Args:
        learning_rate: a number or a schedule.
        betas: see `scale_by_true_adam`.
        eps: see `scale_by_true_adam`.
        weight_decay: decoupled weight decay, multiplied by the learning rate; not negative.
        graft: see `scale_by_true_adam`.
        decay_to_init: decay towards the parameters at the start instead of towards zero.
        default_to_adam: see `scale_by_true_adam`.
        eps_mode: see `scale_by_true_adam`.
        floor: see `scale_by_true_adam`.
        default_to_baseline: see `scale_by_true_adam`.

    Returns:
        A transformation whose `update` takes `sum_grad_squared=` and the parameters.

    Raises:
        ValueError: if an argument is not one of these.
    """
    scaled = scale_by_true_adam(
        betas, eps, graft, default_to_adam, eps_mode, floor, default_to_baseline
    )
    return with_decay_and_rate("tg_adamw", scaled, learning_rate, weight_decay, decay_to_init)


def with_decay_and_rate(
    owner: str,
    scaled: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: float,
    decay_to_init: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Return decoupled weight decay and a learning rate behind a transformation, or raise."""
    if not weight_decay >= 0:
        raise ValueError(f"{owner}: weight_decay must not be negative, got {weight_decay!r}")
    if not callable(learning_rate) and isinstance(learning_rate, int | float) and learning_rate < 0:
        raise ValueError(f"{owner}: learning_rate must not be negative, got {learning_rate!r}")
    decay = add_decay_to_init if decay_to_init else optax.add_decayed_weights
    chained = optax.chain(scaled, decay(weight_decay), optax.scale_by_learning_rate(learning_rate))
    return cast(optax.GradientTransformationExtraArgs, chained)
