"""How moments are stored: in another precision, complex ones packed, in 8 bits with scales.

A complex moment is *packed* as one real array with real and imaginary part along a new axis 0.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tensorgrad_jax.projections.pairs import is_pair
from tensorgrad_jax.transforms.eight_bits import EightBits, decoded, encoded


def is_stored(x: Any) -> bool:
    """Whether this is a moment of one array, however it is stored."""
    return is_pair(x) or isinstance(x, EightBits)


def plain(stored: Any) -> Array:
    """Return a stored moment as one array, in float32 or wider."""
    if isinstance(stored, EightBits):
        return decoded(stored)
    return stored.astype(jnp.promote_types(stored.dtype, jnp.float32))


def unpacked(stored: Any, like: Any) -> Array:
    """Return a stored moment as float32 or wider, complex if it is packed.

    Args:
        stored: the moment of a tensor, or that of a complex tensor packed.
        like: something with the tensor's shape and dtype.
    """
    stored = plain(stored)
    is_complex = jnp.issubdtype(like.dtype, jnp.complexfloating)
    if is_complex and not jnp.iscomplexobj(stored) and stored.shape == (2, *like.shape):
        return jax.lax.complex(stored[0], stored[1])
    return stored


def times_real(z: Array, factor: Any) -> Array:
    """Return z times a real number or array; `z * factor` would make that complex first."""
    if not jnp.iscomplexobj(z):
        return z * factor
    return jax.lax.complex(z.real * factor, z.imag * factor)


def packed_like(moment: Array, stored: Any, seed: Any = 0) -> Any:
    """Return `moment` in the form and dtype of `stored`: undoes `unpacked` up to rounding.

    Args:
        moment: real or complex.
        stored: what it is to be like.
        seed: an integer of the rounding to 8 bits, another for every array and step.
    """
    in_eight_bits = isinstance(stored, EightBits)
    if jnp.iscomplexobj(moment) and (in_eight_bits or not jnp.iscomplexobj(stored)):
        moment = jnp.stack([moment.real, moment.imag])
    if in_eight_bits:
        return encoded(moment.astype(jnp.float32), jnp.asarray(seed).astype(jnp.uint32))
    return moment.astype(stored.dtype)
