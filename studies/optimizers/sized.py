"""Polar factors as large as Adam's update would be, frequency by frequency."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from tensorgrad_jax.models import tensor_specs

import tensorgrad_jax as tg
from tensorgrad_jax.projections.pairs import is_pair
from tensorgrad_jax.transforms.moments import momentum


def sized(
    projection: tg.Projection | None,
    gap: int,
    scale: float,
    b2: float = 0.999,
    power: float = 1.0,
) -> optax.GradientTransformation:
    """Return what makes polar factors of the momentum of tensors, small where gradients are noise.

    The root mean square of a frequency's update is that of its momentum over the root of the mean
    square of its gradients, to a power, times the scale.

    Args:
        projection: of which subspace momentum and polar factors are; None: of the tensors.
        gap: steps between refreshes.
        scale: of polar factors.
        b2: decay of the mean square.
        power: 0 would leave polar factors as they are.
    """
    averaged = momentum(0.95, jnp.bfloat16, nesterov=True)
    polar_factor = tg.orthogonalize(tensor_specs if projection is None else None, scale)

    def squares(x):
        parts = jax.tree.leaves(x)[0]
        if parts.ndim < 2:
            return parts**2
        # Real and imaginary part stand along axis 0, of compact forms and of pairs.
        return jnp.mean(parts.real**2 + parts.imag**2, (0, -2, -1), keepdims=True)

    def init(params):
        zeros = tuple(jnp.zeros_like(squares(x)) for x in jax.tree.leaves(params, is_leaf=is_pair))
        return {"count": jnp.zeros((), jnp.int32), "mean": averaged.init(params), "v": zeros}

    def update(updates, state, params=None):
        del params
        count = state["count"] + 1
        flat, treedef = jax.tree.flatten(updates, is_leaf=is_pair)
        v = tuple(b2 * o + (1 - b2) * squares(g) for o, g in zip(state["v"], flat, strict=True))
        means, mean = averaged.update(updates, state["mean"])
        factors, _ = polar_factor.update(means, optax.EmptyState())
        made = []
        of_leaves = map(treedef.flatten_up_to, (means, treedef.unflatten(v), factors))
        for m, s, f in zip(*of_leaves, strict=True):
            size = (squares(m) * (1 - b2**count) / jnp.where(s > 0, s, 1)) ** (power / 2)
            made.append(jax.tree.map(lambda x, size=size: x * size, f))
        return treedef.unflatten(made), {"count": count, "mean": mean, "v": v}

    inside = optax.GradientTransformation(init, update)
    if projection is None:
        return inside
    # Of the means of squares no rule for refreshes is known.
    return tg.in_subspace(inside, projection, gap, on_refresh="keep", specs=tensor_specs)
