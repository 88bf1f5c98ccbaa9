"""Complex tensors stored as pairs of real numbers, as they come from a parameter.

A complex copy of a gradient is as large as the gradient; of a bfloat16 gradient, twice as large.
What only picks entries does without it: `Pair` hands the stored numbers to a projection and
stands for the complex tensor.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact


class Pair(NamedTuple):
    """The complex tensor parts[0] + i parts[1].

    A named tuple, so that every checkpointer and serialiser knows it: moments of complex
    parameters that are stored as pairs are such ones too.

    Attributes:
        parts: real array of shape (2, *shape).
    """

    parts: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the complex tensor."""
        return self.parts.shape[1:]

    @property
    def size(self) -> int:
        """Number of complex entries."""
        return math.prod(self.shape)

    @property
    def dtype(self) -> Any:
        """Dtype of the complex tensor: complex64 or wider."""
        wide = jnp.promote_types(self.parts.dtype, jnp.float32)
        return jnp.promote_types(wide, jnp.complex64)

    def array(self) -> Inexact[Array, ...]:
        """Return the complex tensor as an array."""
        wide = self.parts.astype(jnp.promote_types(self.parts.dtype, jnp.float32))
        return jax.lax.complex(wide[0], wide[1])


Tensor = Any  # an array or a Pair


def as_array(tensor: Tensor) -> Inexact[Array, ...]:
    """Return a tensor as an array, complex if it is a pair."""
    return tensor.array() if isinstance(tensor, Pair) else tensor


def as_pair(tensor: Inexact[Array, ...]) -> Pair:
    """Return a complex array as a pair."""
    return Pair(jnp.stack([tensor.real, tensor.imag]))


def is_pair(node: Any) -> bool:
    """Whether a node of a tree is a pair of numbers; for `is_leaf`.

    Under `optax.masked` a pair may hold a placeholder instead, which is no leaf.
    """
    return isinstance(node, Pair) and hasattr(node.parts, "dtype")
