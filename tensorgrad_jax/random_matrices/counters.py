"""Random words as a function of a key, a row and a block of columns.

Threefry-2x32 enciphers two words, the counter, with two words, the key. The counter here *is* the
place in the matrix:

    first word    the lower 32 bits of the row
    second word   the row's upper 12 bits, then the 20 bits of the column block

so that two places of one matrix never share a counter. `jax.random.bits(key, (p, k))` counts the
entries of the whole array instead: what it draws for a place depends on the number of columns.

References:
    J. Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.random import threefry2x32_p
from jaxtyping import Array, Integer, PRNGKeyArray, UInt32

ROW_BITS, BLOCK_BITS = 44, 20
LARGEST_SLAB = 2**31 - 1


class Rows(NamedTuple):
    """Row numbers in two words each.

    Attributes:
        high: the bits from 2^32 up.
        low: the lower 32 bits.
    """

    high: Any
    low: Any

    def plus(self, steps: UInt32[Array, "*shape"]) -> Rows:
        """Return these row numbers plus `steps`."""
        low = self.low + steps
        return Rows(self.high + (low < steps).astype(jnp.uint32), low)

    def __getitem__(self, index: Any) -> Rows:  # type: ignore[override]
        return Rows(self.high[index], self.low[index])


def rows_at(offset: int | Integer[Array, ...]) -> Rows:
    """Return a row number in two words.

    Args:
        offset: an integer, an integer array of shape () below 2^32, or two uint32: the row's
            upper and its lower word.
    """
    if isinstance(offset, int):
        return Rows(jnp.uint32(offset >> 32), jnp.uint32(offset & 0xFFFFFFFF))
    if offset.shape == (2,):
        return Rows(offset[0].astype(jnp.uint32), offset[1].astype(jnp.uint32))
    return Rows(jnp.uint32(0), offset.astype(jnp.uint32))


def key_from(*numbers: int) -> PRNGKeyArray:
    """Return `jax.random.key(seed)` with further numbers folded in, one after the other.

    Unlike arithmetic on seeds, folding gives different (seed, number, ...) different keys. Seeds
    have 64 bits, whatever JAX is configured to; the generator is Threefry, whatever the default.
    """
    seed, *folded = numbers
    data = jnp.asarray([seed >> 32, seed & 0xFFFFFFFF], jnp.uint32)
    key = jax.random.wrap_key_data(data, impl="threefry2x32")
    for number in folded:
        key = jax.random.fold_in(key, number)
    return key


def words(
    key: PRNGKeyArray, rows: Rows, block: UInt32[Array, ...] | int
) -> tuple[UInt32[Array, ...], UInt32[Array, ...]]:
    """Return two random words per (row, column block), broadcast against each other.

    Raises:
        ValueError: if the key's generator is not Threefry, which alone takes counters.
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.shape != ():
        raise ValueError(
            f"key must be one key made by jax.random.key, got dtype {key.dtype} and shape "
            f"{key.shape}"
        )
    if (impl := str(jax.random.key_impl(key))) != "threefry2x32":
        raise ValueError(
            f"key must be one of the generator threefry2x32, which takes counters, got {impl}: "
            "make it by jax.random.key(seed, impl='threefry2x32')"
        )
    data = jax.random.key_data(key)
    second = (rows.high << BLOCK_BITS) | jnp.asarray(block, jnp.uint32)
    first, second = jnp.broadcast_arrays(rows.low, second)
    drawn = threefry2x32_p.bind(data[0], data[1], first, second)
    return drawn[0], drawn[1]


def high_half(a: UInt32[Array, ...], b: UInt32[Array, ...]) -> UInt32[Array, ...]:
    """Return the upper 32 of the 64 bits of a product.

    Of random bits and n it is floor(bits n / 2^32): a random integer of range(n).
    """
    a1, a0, b1, b0 = a >> 16, a & 0xFFFF, b >> 16, b & 0xFFFF
    cross = a1 * b0 + ((a0 * b0) >> 16)
    low_cross = (cross & 0xFFFF) + a0 * b1
    return a1 * b1 + (cross >> 16) + (low_cross >> 16)


def distinct(
    drawn: UInt32[Array, "rounds 2"], n: int, numbers: UInt32[Array, "*shape"]
) -> UInt32[Array, "*shape"]:
    """Return the images of `numbers` under a random permutation of range(n) that is never held.

    Every round (times an odd number, shifted onto itself, plus a number; modulo a power of two)
    is a bijection. Where it leads out of range(n) it is applied again until it leads back.

    Args:
        drawn: random words, two per round: a factor and a summand.
        n: the size of the permuted range, at most 2^31.
        numbers: elements of range(n).
    """
    bits = max(1, (n - 1).bit_length())
    mask, shift = jnp.uint32(2**bits - 1), (bits + 1) // 2

    def round_of(x, numbers):
        factor, summand = numbers
        x = (x * (factor | 1)) & mask
        x = x ^ (x >> shift)
        return (x + summand) & mask, None

    permuted = lambda x: jax.lax.scan(round_of, x, drawn)[0]

    inside = lambda x: jnp.where(x >= n, permuted(x), x)
    return jax.lax.while_loop(lambda x: jnp.any(x >= n), inside, permuted(numbers))
