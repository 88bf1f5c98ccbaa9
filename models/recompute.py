"""Activation checkpointing that also saves memory on CPUs.

`jax.checkpoint` keeps the compiler from merging or moving the second evaluation with optimization
barriers. XLA drops them on CPUs before it schedules, and then runs the second evaluation right
beside the first: everything is kept after all, and computed twice. Here the second evaluation
really depends on the cotangent that it is for, so that no scheduler can begin it early.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


def apply_recomputed(
    module: nnx.Module, x: Float[Array, "batch *grid in_channels"]
) -> Float[Array, "batch *grid out_channels"]:
    """`module(x)`, of which only `x` is kept: the backward pass evaluates it again.

    Values and gradients are those of `module(x)`. Reverse mode only, as any `jax.custom_vjp`.

    Args:
        module: a module whose call changes none of its own variables.
        x: its input.
    """
    graph, variables = nnx.split(module)

    def apply(variables, x):
        return nnx.merge(graph, variables)(x)

    def forward(variables, x):
        return apply(variables, x), (variables, x)

    def backward(kept, cotangent):
        variables, x = kept
        _, pullback = jax.vjp(apply, variables, _after(x, cotangent))
        return pullback(cotangent)

    recomputed = jax.custom_vjp(apply)
    recomputed.defvjp(forward, backward)
    return recomputed(variables, x)


def _after(x: jax.Array, other: jax.Array) -> jax.Array:
    """`x`, but not before `other` is there; if its first entry is NaN, so is the result."""
    first = other.ravel()[0]
    # The compiler cannot know that this is zero. Gradients from a NaN are NaN anyway.
    return x + jnp.where(jnp.isnan(first), first, 0).astype(x.dtype)
