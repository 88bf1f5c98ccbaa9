"""Choosing k of n entries.

Three ways, with different costs and different states:

- `topk`: the k entries of largest magnitude. Their indices depend on data and must be kept.
- `randk`: one entry of each of k consecutive blocks, block i being [floor(i n / k),
  floor((i+1) n / k)), drawn by hashing the block's number with a seed. The seed is all there is
  to keep, the indices are ascending, and drawing them costs O(k) time and memory. Every entry is
  kept with probability k / n (up to the remainder of the division), but two entries of one block
  never are: it is a stratified sample, not a uniformly random subset of size k.
- `probability`: k entries drawn one after the other without replacement, each time in proportion
  to the magnitudes of those that are left. Their indices must be kept.
"""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, PRNGKeyArray, UInt32

from tensorgrad_jax.backend.ordering import made_apart
from tensorgrad_jax.projections.hashing import hashed
from tensorgrad_jax.projections.threshold import largest
from tensorgrad_jax.random_matrices.counters import high_half

Selection = Literal["topk", "randk", "probability"]
SELECTIONS = ("topk", "randk", "probability")

# Indices are int32: half the bytes of int64, and all that gathers use on GPUs.
LARGEST_SIZE = 2**31 - 1
# From this size on sorting takes longer than searching for the threshold.
_LARGE = 2**14


def kept_count(ratio: float, size: int) -> int:
    """Return k = max(1, int(ratio * size)): how many of `size` entries a ratio keeps."""
    return max(1, int(ratio * size))


def top_k(magnitudes: Float[Array, " n"], k: int) -> Int32[Array, " k"]:
    """Return the ascending indices of the k largest entries; among equals the first ones win."""
    if magnitudes.size >= _LARGE and magnitudes.dtype == jnp.float32:
        return largest(magnitudes, k)
    return jnp.sort(jax.lax.top_k(magnitudes, k)[1]).astype(jnp.int32)


def weighted(key: PRNGKeyArray, magnitudes: Float[Array, " n"], k: int) -> Int32[Array, " k"]:
    """Return ascending indices of k entries drawn without replacement, weighted by magnitude.

    The k largest of log(magnitude) + Gumbel noise are such a sample. Entries of zero are drawn
    only when nothing else is left.

    References:
        T. Vieira, Gumbel-max trick and weighted reservoir sampling, 2014.
    """
    noise = jax.random.gumbel(key, magnitudes.shape, magnitudes.dtype)
    positive = magnitudes > 0
    scores = jnp.log(jnp.where(positive, magnitudes, 1)) + noise
    # Below every score, and distinct, so that zeros are as random among themselves.
    lowest = jnp.finfo(scores.dtype).min / 2
    return top_k(jnp.where(positive, scores, lowest * (1 + 0.1 * jax.nn.sigmoid(-noise))), k)


def select_of_few(
    select: Selection, key: PRNGKeyArray, magnitudes: Float[Array, " n"], k: int
) -> Int32[Array, " k"]:
    """Choose k of the few slices of a mode; "randk" is a uniformly random subset here."""
    if select == "topk":
        return top_k(magnitudes, k)
    if select == "probability":
        return weighted(key, magnitudes, k)
    chosen = jax.random.permutation(key, magnitudes.size)[:k]
    return jnp.sort(chosen).astype(jnp.int32)


def stratified(seed: UInt32[Array, ""], n: int, k: int) -> Int32[Array, " k"]:
    """Return ascending indices, one of each of k blocks of range(n), drawn from `seed`."""
    width = _row_width(n, k)
    rows = made_apart(lambda seed: _of_rows(seed, n, k, width, 0, k // width), seed).reshape(-1)
    if k % width == 0:
        return rows
    rest = _of_rows(seed, n, k, k % width, k - k % width, 1).reshape(-1)
    return jnp.concatenate([rows, rest])


def _row_width(n: int, k: int) -> int:
    """Return the length of rows: short enough for 32 bits, a divisor of k if there is one."""
    longest = min(k, 4096, max(1, (2**32 - k) // max(n % k, 1)))
    return next((w for w in range(longest, 31, -1) if k % w == 0), min(longest, 256))


def _of_rows(seed, n: int, k: int, width: int, start: int, rows: int):
    """Return the entries drawn from `rows` rows of `width` blocks each, from block `start` on."""
    quotient, remainder = divmod(n, k)
    # floor(i n / k) = i q + floor(i r / k) with n = q k + r. The second term is computed with 64
    # bits for the first block of every row; within a row 32 bits are enough.
    first = jnp.arange(rows, dtype=jnp.uint32) * jnp.uint32(width) + jnp.uint32(start)
    carried = _floor_times_fraction(first, remainder, k)
    left = first * jnp.uint32(remainder) - carried * jnp.uint32(k)  # below k, whatever wraps around
    within = jnp.arange(width, dtype=jnp.uint32)
    total = left[:, None] + within * jnp.uint32(remainder)
    steps = _divided(total, k)
    block = first[:, None] + within
    begin = block * jnp.uint32(quotient) + carried[:, None] + steps
    longer = total - steps * jnp.uint32(k) + jnp.uint32(remainder) >= k
    length = jnp.uint32(quotient) + longer.astype(jnp.uint32)
    return (begin + _scaled(hashed(block, seed), length, quotient + 1)).astype(jnp.int32)


def _divided(x, k: int):
    """Return x // k for x < 2^32 with x / k < 2^22: in floats, then put right by one at most."""
    quotient = (x.astype(jnp.float32) * jnp.float32(1 / k)).astype(jnp.uint32)
    rest = (x - quotient * jnp.uint32(k)).astype(jnp.int32)
    return quotient + (rest >= k) - (rest < 0)


def _scaled(bits, length, longest: int):
    """Return random bits as integers of range(length), without a division by a varying number."""
    if longest >= 2**24:
        return high_half(bits, length)
    fraction = (bits >> 8).astype(jnp.int32).astype(jnp.float32) * jnp.float32(2**-24)
    offset = (fraction * length.astype(jnp.int32).astype(jnp.float32)).astype(jnp.uint32)
    return jnp.minimum(offset, length - 1)


def _floor_times_fraction(i, r: int, k: int):
    """Return floor(i r / k) for uint32 i <= k and r < k, though i r may exceed 32 bits.

    r / k is rounded up to 64 fractional bits. The product's error is below i / 2^64 < 1 / k, and
    the exact product lies on a multiple of 1 / k, so that its floor is the same.
    """
    if k < 2**16:
        return i * jnp.uint32(r) // jnp.uint32(k)
    fraction = -(-(r << 64) // k)
    high, low = jnp.uint32(fraction >> 32), jnp.uint32(fraction & 0xFFFFFFFF)
    # i * fraction = (i * high) 2^32 + i * low; wanted are the bits from 2^64 up.
    middle = i * high
    carry_in = high_half(i, low)
    total = middle + carry_in
    return high_half(i, high) + (total < carry_in).astype(jnp.uint32)


def check_size(owner: str, shape: tuple[int, ...]) -> int:
    """Return the number of entries of a shape; ValueError where int32 cannot index them."""
    size = math.prod(shape)
    if size > LARGEST_SIZE:
        raise ValueError(f"{owner}: a tensor may have {LARGEST_SIZE} entries, {shape} has {size}")
    return size
