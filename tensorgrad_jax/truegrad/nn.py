"""The layers of `truegrad.nn`, as Flax NNX modules.

Squares come from the function that is differentiated and not from its layers, so every layer of
`flax.nnx` is one of these as it is, and layers of your own are, too. This module holds the
original's names, and the one layer that Flax has otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

try:
    from flax import nnx
except ImportError as error:
    raise ImportError(
        "tensorgrad_jax.truegrad.nn needs Flax: pip install 'tensorgrad-jax[train]'"
    ) from error

BatchNorm = nnx.BatchNorm
Conv = nnx.Conv
ConvTranspose = nnx.ConvTranspose
Einsum = nnx.Einsum
Embed = nnx.Embed
GroupNorm = nnx.GroupNorm
InstanceNorm = nnx.InstanceNorm
Linear = nnx.Linear
LinearGeneral = nnx.LinearGeneral
LoRA = nnx.LoRA
MultiHeadAttention = nnx.MultiHeadAttention
RMSNorm = nnx.RMSNorm


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axes, with a scale and a bias per entry of them.

        y = (x - mean) / sqrt(variance + epsilon) * scale + bias

    Args:
        num_features: size of the last axis, or the sizes of the last axes. Leading sizes of 1 are
            left out: (1, 10) is 10.
        epsilon: added to the variance.
        rngs: taken as every layer takes them; scale and bias start at 1 and 0.

    Raises:
        ValueError: if a size is below 1, or if an input has other last axes.
    """

    def __init__(
        self, num_features: int | Sequence[int], *, epsilon: float = 1e-5, rngs: Any = None
    ):
        del rngs
        shape = (num_features,) if isinstance(num_features, int) else tuple(num_features)
        if not shape or not all(isinstance(n, int) and n >= 1 for n in shape):
            raise ValueError(
                f"LayerNorm: num_features must be one or several sizes of at least 1, "
                f"got {num_features!r}"
            )
        while len(shape) > 1 and shape[0] == 1:
            shape = shape[1:]
        self.shape, self.epsilon = shape, epsilon
        self.scale = nnx.Param(jnp.ones(shape))
        self.bias = nnx.Param(jnp.zeros(shape))

    def __call__(self, x: Float[Array, ...]) -> Float[Array, ...]:
        """Normalise."""
        if x.shape[-len(self.shape) :] != self.shape:
            raise ValueError(
                f"LayerNorm: expected an input with last axes {self.shape}, got {x.shape}"
            )
        rows = x.reshape(*x.shape[: -len(self.shape)], math.prod(self.shape))
        rows = rows.astype(jnp.promote_types(x.dtype, jnp.float32))
        rows = rows - rows.mean(-1, keepdims=True)
        rows = rows / jnp.sqrt(jnp.mean(rows**2, -1, keepdims=True) + self.epsilon)
        y = rows.reshape(x.shape) * self.scale[...] + self.bias[...]
        return y.astype(jnp.promote_types(x.dtype, self.scale.dtype))
