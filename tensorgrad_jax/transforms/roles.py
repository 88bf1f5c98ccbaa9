"""What a moment is: linear in the gradients, or a mean or sum of their squares.

Names do not tell: `nu` of `optax.scale_by_adamax` is a maximum of magnitudes. So a transformation
is tried on three numbers for two steps. A moment is *linear* if that of a sum of gradients is the
sum, and *square* if it is the same for -g and four times as large for 2 g.

A moment m after t steps of a constant gradient 1 (for squares likewise) is its *weight*: what m is
to be divided by to become a mean. Decays are constant here, so that the first two weights give all
others: w(t) = w(1) (1 - b^t) / (1 - b) with b = w(2) / w(1) - 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Float, Int32

from tensorgrad_jax.transforms.eight_bits import EightBits, decoded
from tensorgrad_jax.transforms.moment_dicts import MomentDicts

Role = Literal["linear", "square"]

# What cannot be tried, because its numbers are traced, is known by the type of its state.
KNOWN: dict[tuple[str, str], Role] = {
    ("EmaState", "ema"): "linear",
    ("MomentumState", "mu"): "linear",
    ("MultiStepsState", "acc_grads"): "linear",
    ("ScaleByAdamState", "mu"): "linear",
    ("ScaleByAdamState", "nu"): "square",
    ("ScaleByAmsgradState", "mu"): "linear",
    ("ScaleByAmsgradState", "nu"): "square",
    ("ScaleByAmsgradState", "nu_max"): "square",
    ("ScaleByLionState", "mu"): "linear",
    ("ScaleByRmsState", "nu"): "square",
    ("ScaleByRssState", "sum_of_squares"): "square",
    ("TraceState", "trace"): "linear",
}
_NAME = "tried"  # of the one parameter that transformations are tried on


def roles(inner: optax.GradientTransformation) -> dict[str, Role | None]:
    """Return for every moment of a transformation its role, None where it has neither.

    Raises:
        Exception: whatever the transformation raises of a vector of three numbers.
    """
    gradients = np.array([[1.0, -2.0, 0.5], [0.3, 1.5, -0.7]], np.float32)
    others = np.array([[0.2, 0.9, -1.1], [-0.4, 0.6, 1.3]], np.float32)
    cases = {
        "zero": 0 * gradients, "g": gradients, "-g": -gradients, "2g": 2 * gradients,
        "h": others, "g+h": gradients + others,
    }  # fmt: skip
    with jax.ensure_compile_time_eval():
        found = {case: _moments_after(inner, steps) for case, steps in cases.items()}
        labels = list(found["zero"])
        moments = [x for m in found.values() for x in m.values()]
        # Rounded to 8 bits three numbers are too coarse to tell.
        if any(isinstance(x, Tracer | EightBits) for x in moments):
            return _by_type(inner)
        zero = {label: np.asarray(found["zero"][label], np.float64) for label in labels}
        change = lambda case, label: np.asarray(found[case][label], np.float64) - zero[label]
        found_roles: dict[str, Role | None] = {}
        for label in labels:
            found_roles[label] = role_of(lambda case, label=label: change(case, label))
        return found_roles


def role_of(change: Callable[[str], Any]) -> Role | None:
    """Return a moment's role by how gradients g, -g, 2g, h and g+h change it, by these names."""
    # As close as moments in bfloat16 can be.
    close = lambda a, b: np.allclose(a, b, rtol=2e-2, atol=1e-2 * np.abs(b).max())
    if not np.any(change("g")):
        return None
    if (
        close(change("-g"), -change("g"))
        and close(change("2g"), 2 * change("g"))
        and close(change("g+h"), change("g") + change("h"))
    ):
        return "linear"
    if close(change("-g"), change("g")) and close(change("2g"), 4 * change("g")):
        return "square"
    return None


def _moments_after(inner, steps):
    state = inner.init({_NAME: jnp.zeros(steps.shape[1:], jnp.float32)})
    for gradient in steps:
        _, state = inner.update({_NAME: jnp.asarray(gradient)}, state, None)
    return MomentDicts(state, [_NAME]).of(_NAME)


def _by_type(inner) -> dict[str, Role | None]:
    state = jax.eval_shape(lambda: inner.init({_NAME: jnp.zeros(3)}))
    moments = MomentDicts(state, [_NAME])
    field = lambda label: label.rsplit(".", 1)[-1]
    return {
        label: KNOWN.get((owner, field(label)))
        for label, owner in zip(moments.labels, moments.owners, strict=True)
    }


def weights(
    inner: optax.GradientTransformation, count: Int32[Array, ""]
) -> dict[str, Float[Array, ""]]:
    """Return the weight of every moment after `count` steps, as traced numbers."""
    one = np.ones((1, 1), np.float32)
    zero, first, second = (
        _moments_after(inner, s) for s in (0 * one, one, np.concatenate([one, one]))
    )

    def after(label):
        start = _number(zero[label])
        w1, w2 = (_number(m[label]) - start for m in (first, second))
        decay = jnp.where(w1 != 0, w2 / jnp.where(w1 != 0, w1, 1) - 1, 0)
        steps = jnp.maximum(count, 1).astype(jnp.float32)
        # A sum has no decay; its weight grows by the same number at every step.
        left = jnp.where(jnp.abs(1 - decay) < 1e-6, 1.0, 1 - decay)
        grown = jnp.where(jnp.abs(1 - decay) < 1e-6, steps, (1 - decay**steps) / left)
        return w1 * grown

    return {label: after(label) for label in zero}


def _number(moment: Any) -> Float[Array, ""]:
    moment = decoded(moment) if isinstance(moment, EightBits) else moment
    return jnp.asarray(moment, jnp.float32).ravel()[0]
