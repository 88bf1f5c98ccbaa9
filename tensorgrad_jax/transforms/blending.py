"""A weighted mean of an update and of what another transformation makes of it."""

from __future__ import annotations

from typing import NamedTuple

import jax
import optax
from jax.typing import ArrayLike


class BlendedState(NamedTuple):
    """State of `blended`.

    Attributes:
        first: the state of the transformation of gradients.
        second: the state of the transformation of its updates; empty where it has no weight.
    """

    first: optax.OptState
    second: optax.OptState


def blended(
    first: optax.GradientTransformation, second: optax.GradientTransformation, share: ArrayLike
) -> optax.GradientTransformationExtraArgs:
    """Return (1 - share) first(g) + share second(first(g)); with a share of 0, first alone."""
    # What a traced share is can not be known.
    alone = not isinstance(share, jax.Array) and share == 0
    first, second = (
        optax.with_extra_args_support(x) for x in (first, optax.identity() if alone else second)
    )

    def init_fn(params):
        return BlendedState(first.init(params), second.init(params))

    def update_fn(updates, state, params=None, **extra_args):
        one, of_first = first.update(updates, state.first, params, **extra_args)
        other, of_second = second.update(one, state.second, params, **extra_args)
        mean = jax.tree.map(lambda x, y: ((1 - share) * x + share * y).astype(x.dtype), one, other)
        return mean, BlendedState(of_first, of_second)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
