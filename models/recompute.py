"""Activation checkpointing: of a layer only its input is kept for the backward pass.

What `jax.checkpoint` does, for modules whose call changes them, and on CPUs too, where XLA drops
the barriers that `jax.checkpoint` relies on and evaluates twice at once.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PyTree

from tensorgrad_jax.backend.ordering import not_merged

from .linear_maps import linear_map


def apply_recomputed(
    module: nnx.Module, x: Float[Array, "batch *grid in_channels"]
) -> Float[Array, "batch *grid out_channels"]:
    """`module(x)`, of which only `x` is kept: the backward pass evaluates it again.

    Values, derivatives and what the call changes in the module are those of `module(x)`.

    Args:
        module: a module whose call may change its variables, but adds none.
        x: its input.

    Raises:
        ValueError: if the call adds variables.
    """
    graph, state = nnx.split(module)
    variables, with_arrays = _arrays(state)
    inexact = [i for i, v in enumerate(variables) if jnp.issubdtype(v.dtype, jnp.inexact)]

    def apply(variables, x):
        """Return the output and, by their numbers, the variables that the call has changed."""
        copy = nnx.merge(graph, with_arrays(variables))
        y, after = copy(x), nnx.split(copy)[1]
        if jax.tree.structure(after) != jax.tree.structure(state):
            raise ValueError(
                f"activation_checkpoint: a call of {type(module).__name__} adds variables, "
                "expected a layer that only changes those that it has"
            )
        pairs = enumerate(zip(variables, _arrays(after)[0], strict=True))
        return y, {i: new for i, (old, new) in pairs if new is not old}

    def differentiable(kept):
        """Return the part of `apply` that has derivatives, and where they are taken."""
        moving = [*inexact, len(variables)]

        def function(*values):
            moved = dict(zip(moving, values, strict=True))
            *variables, x = (moved.get(i, a) for i, a in enumerate(kept))
            y, changed = apply(variables, x)
            return y, *(v for i, v in changed.items() if i in inexact)

        return function, tuple(kept[i] for i in moving)

    def tangent(kept, tangents):
        function, at = differentiable(kept)
        return jax.jvp(function, at, tuple(tangents))[1]

    def gradient(kept, cotangents):
        *variables, x = kept
        function, at = differentiable([*variables, not_merged(x, cotangents[0])])
        return jax.vjp(function, *at)[1](tuple(cotangents))

    recomputed = jax.custom_jvp(apply)

    @recomputed.defjvp
    def _(primals, tangents):
        (variables, x), (dvariables, dx) = primals, tangents
        y, changed = recomputed(variables, x)
        moved = [*(dvariables[i] for i in inexact), dx]
        dy, *rest = linear_map(tangent, gradient, [*variables, x], moved)
        # The tangent of what has none, an integer or a key, is of the type float0.
        none = {i: np.zeros(v.shape, jax.dtypes.float0) for i, v in changed.items()}
        dchanged: Any = none | dict(zip((i for i in changed if i in inexact), rest, strict=True))
        return (y, changed), (dy, dchanged)

    y, changed = recomputed(variables, x)
    if changed:
        nnx.update(module, with_arrays([changed.get(i, v) for i, v in enumerate(variables)]))
    return y


def _arrays(tree: PyTree) -> tuple[list[jax.Array], Callable[[Sequence[jax.Array]], PyTree]]:
    """The arrays of a tree, and what puts others in their places."""
    leaves, treedef = jax.tree.flatten(tree)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)]

    def with_arrays(arrays):
        changed = dict(zip(places, arrays, strict=True))
        return treedef.unflatten([changed.get(i, leaf) for i, leaf in enumerate(leaves)])

    return [leaves[i] for i in places], with_arrays
