"""Complex moments: packed in precisions that have no complex numbers, and scaled by real ones.

A complex moment is *packed* as one real array with real and imaginary part along a new axis 0.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array


def unpacked(stored: Array, like: Any) -> Array:
    """Return a stored moment as float32 or wider, complex if it is packed.

    Args:
        stored: the moment of a tensor, or that of a complex tensor packed.
        like: something with the tensor's shape and dtype.
    """
    stored = stored.astype(jnp.promote_types(stored.dtype, jnp.float32))
    is_complex = jnp.issubdtype(like.dtype, jnp.complexfloating)
    if is_complex and not jnp.iscomplexobj(stored) and stored.shape == (2, *like.shape):
        return jax.lax.complex(stored[0], stored[1])
    return stored


def times_real(z: Array, factor: Any) -> Array:
    """Return z times a real number or array; `z * factor` would make that complex first."""
    if not jnp.iscomplexobj(z):
        return z * factor
    return jax.lax.complex(z.real * factor, z.imag * factor)


def packed_like(moment: Array, stored: Array) -> Array:
    """Return `moment` in the form and dtype of `stored`: undoes `unpacked` up to rounding."""
    if jnp.iscomplexobj(moment) and not jnp.iscomplexobj(stored):
        moment = jnp.stack([moment.real, moment.imag])
    return moment.astype(stored.dtype)
