"""Moments in 8 bits: whole numbers from -127 to 127, and a scale per block."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float32, Int8

from tensorgrad_jax.projections.hashing import hashed
from tensorgrad_jax.transforms.precision import places

_SMALLEST_BLOCK = 128
_LEVELS = 127


class EightBits(NamedTuple):
    """An array x as codes times scales.

    A block are the last axes, as many as hold 128 numbers or more, at one index of the others: of a
    stack of matrices a matrix. Its scale is its largest magnitude over 127. Codes have the
    array's shape, so that they are sharded as it is.

    Attributes:
        codes: the array's shape.
        scales: likewise, with size 1 along the axes of a block.
    """

    codes: Int8[Array, "*shape"]
    scales: Float32[Array, "*scales"]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self.codes.shape

    @property
    def dtype(self) -> Any:
        """Dtype of the array that these are read as."""
        return jnp.dtype(jnp.float32)


def zeros(like: Any, shape: tuple[int, ...]) -> EightBits:
    """Return zeros of a shape, sharded as `like` is if that has the shape."""
    codes = jnp.zeros_like(like, jnp.int8) if like.shape == shape else jnp.zeros(shape, jnp.int8)
    return EightBits(codes, jnp.zeros(_shape_of_scales(shape), jnp.float32))


def decoded(stored: EightBits) -> Float32[Array, "*shape"]:
    """Return the array."""
    return stored.codes.astype(jnp.float32) * stored.scales


def encoded(x: Float32[Array, "*shape"], seed: Array) -> EightBits:
    """Return x, rounded stochastically: with mean x, so that what is small in its block adds up.

    The largest entry of a block, and zeros, are kept exactly.

    Args:
        x: real.
        seed: uint32 (), another for every array and step.
    """
    shape = _shape_of_scales(x.shape)
    axes = tuple(
        i for i, (n, of_scale) in enumerate(zip(x.shape, shape, strict=True)) if of_scale < n
    )
    largest = jnp.max(jnp.abs(x), axes, keepdims=True) if axes else jnp.abs(x)
    scales = (largest / _LEVELS).reshape(shape)
    level = x / jnp.where(scales > 0, scales, 1)
    uniform = (hashed(places(x.shape), seed) >> 8).astype(jnp.float32) * 2.0**-24
    # What is a whole number but for the rounding of the division stays one.
    near = jnp.round(level)
    rounded = jnp.where(jnp.abs(level - near) < 1e-4, near, jnp.floor(level + uniform))
    return EightBits(jnp.clip(rounded, -_LEVELS, _LEVELS).astype(jnp.int8), scales)


def _shape_of_scales(shape: tuple[int, ...]) -> tuple[int, ...]:
    for first in range(len(shape) - 1, -1, -1):
        if math.prod(shape[first:]) >= _SMALLEST_BLOCK or first == 0:
            return (*shape[:first], *(1 for _ in shape[first:]))
    return shape
