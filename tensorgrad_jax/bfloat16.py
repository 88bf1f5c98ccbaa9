"""bfloat16 arrays as the integers that they are stored as.

Slicing, gathering, scattering and comparing compute nothing. The compiler for CPUs does them for
bfloat16 by way of float32 copies of whole arrays all the same; integers it leaves alone. And what
all readers of an array take as integers is there once, not once in either type.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

_EXPONENT = 0x7F80  # the bits of the exponent; all are set where a number is not finite


def to_bits(x: Array) -> Array:
    """Return a bfloat16 array as uint16, any other as it is."""
    return jax.lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x


def from_bits(bits: Array, dtype: Any) -> Array:
    """Undo `to_bits`, given the dtype that the array had."""
    return jax.lax.bitcast_convert_type(bits, jnp.bfloat16) if dtype == jnp.bfloat16 else bits


def all_finite(x: Array) -> Bool[Array, ""]:
    """Return whether no entry is infinite or not a number."""
    if x.dtype != jnp.bfloat16:
        return jnp.all(jnp.isfinite(x))
    return jnp.all((to_bits(x) & _EXPONENT) != _EXPONENT)


def any_nonzero(x: Array) -> Bool[Array, ""]:
    """Return whether some entry is not zero."""
    if x.dtype != jnp.bfloat16:
        return jnp.any(x != 0)
    return jnp.any((to_bits(x) & 0x7FFF) != 0)  # all bits but the sign
