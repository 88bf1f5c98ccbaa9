"""Moving the entries of bfloat16 arrays as the integers that they are stored as."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array


def moved(move: Callable[[Array], Array], x: Array) -> Array:
    """Return move(x), for a function that slices, gathers or clears entries and computes nothing.

    XLA for CPUs does that to bfloat16 by way of a float32 copy of the whole array; integers it
    leaves alone. So there `move` gets the bits of a bfloat16 array, as uint16. No derivative goes
    through integers.
    """
    if x.dtype != jnp.bfloat16:
        return move(x)
    by_bits = lambda x: from_bits(move(to_bits(x)), x.dtype)
    return jax.lax.platform_dependent(x, cpu=by_bits, default=move)


def to_bits(x: Array) -> Array:
    """Return a bfloat16 array as uint16, any other as it is."""
    return jax.lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x


def from_bits(bits: Array, dtype: Any) -> Array:
    """Undo `to_bits`, given the dtype that the array had."""
    return jax.lax.bitcast_convert_type(bits, jnp.bfloat16) if dtype == jnp.bfloat16 else bits
