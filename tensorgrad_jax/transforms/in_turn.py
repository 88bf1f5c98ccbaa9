"""Large parameters one after the other, through all that is done to one of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from tensorgrad_jax.backend.ordering import LARGE_BYTES, after, last_array
from tensorgrad_jax.projections.leaf import TensorSpec

Specs = dict[str, TensorSpec | None]


class InTurnState(NamedTuple):
    """State of `in_turn`.

    Attributes:
        groups: the states of groups of parameters: the small ones together, then each large one.
    """

    groups: tuple[optax.OptState, ...]


def in_turn(
    transform: Callable[[Specs, int], optax.GradientTransformation],
) -> Callable[[Specs], optax.GradientTransformationExtraArgs]:
    """Return what makes a transformation of tensors by name that handles large ones one by one.

    A chain goes through all parameters before its next link does: between two links there is an
    update of every parameter, as large as all of them. Here a chain is finished with one large
    parameter before it begins with the next. Small ones stay together: what is done to all of
    them at once is faster.

    Args:
        transform: makes the transformation of a group, of the specs by name and the group's number.
    """
    transform({}, 0)  # wrong arguments are told here, not at init

    def make(specs):
        def groups_of(leaves):
            large = [n for n, x in leaves.items() if _bytes(x) >= LARGE_BYTES]
            small = [n for n in leaves if n not in large]
            return [*([small] if small else []), *([n] for n in large)]

        def made(leaves, number, names):
            own = optax.with_extra_args_support(transform({n: specs[n] for n in names}, number))
            return own, {n: leaves[n] for n in names}

        def init_fn(params):
            states = []
            for number, names in enumerate(groups_of(params)):
                own, leaves = made(params, number, names)
                states.append(own.init(leaves))
            return InTurnState(tuple(states))

        def update_fn(updates, state, params=None, **extra_args):
            del params
            changed, states, done = dict[str, Array](), list(state.groups), None
            # The last first, as its gradient comes first out of the backward pass.
            for number, names in reversed(list(enumerate(groups_of(updates)))):
                own, leaves = made(updates, number, names)
                waiting = _after(states[number], done, sum(map(_bytes, leaves.values())))
                one, states[number] = own.update(leaves, waiting, None, **extra_args)
                changed |= cast(dict[str, Array], one)
                done = last_array(one)
            return {n: changed[n] for n in updates}, InTurnState(tuple(states))

        return optax.GradientTransformationExtraArgs(init_fn, update_fn)

    return make


def _bytes(leaf: Any) -> int:
    return math.prod(leaf.shape) * leaf.dtype.itemsize


def _after(state, done, n_bytes):
    """Return a state that is there once `done` is: it is small, and nothing begins without it."""
    wait = lambda x: after(x, done, n_bytes) if jnp.issubdtype(x.dtype, jnp.floating) else x
    return jax.tree.map(wait, state)
