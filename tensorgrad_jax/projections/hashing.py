"""Random bits as a function of a counter and a seed: nothing is stored, everything fuses.

Where millions of independent numbers are needed in passing (one per kept entry, one per rounded
weight), a hash of the counter costs a few integer operations inside the loop that uses it; the
bits of `jax.random` are written to memory first.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, UInt32


def hashed(counter: UInt32[Array, "*shape"], seed: UInt32[Array, ""]) -> UInt32[Array, "*shape"]:
    """Return 32 well-mixed bits per counter (two rounds of a multiply-xorshift finalizer).

    Constants: C. Wellons, Hash Function Prospector (lowbias32), public domain.
    """
    x = counter
    for salt in (seed, seed ^ jnp.uint32(0x9E3779B9)):
        x = x ^ salt
        x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
        x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
        x = x ^ (x >> 16)
    return x
