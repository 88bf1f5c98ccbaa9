"""The k largest of n numbers without sorting them: a threshold search and a compaction.

`jax.lax.top_k` sorts: for k in proportion to n it costs n log n and, on CPUs, seconds for 2^24
numbers. Here the k-th largest value is found by counting how many numbers reach a guess, a pass
over memory each, and the places of the kept numbers are read off a bit mask of n / 8 bytes. The
result is exact and the same on every machine; among equals the first ones win.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

_SAMPLE = 2**14
_WORD = 32


def largest(x: Float[Array, " n"], k: int) -> Int32[Array, " k"]:
    """Return the ascending indices of the k largest of float32 numbers without NaN, k <= n."""
    threshold = _threshold(x, k)
    above, equal = _words(x, lambda x: x > threshold), _words(x, lambda x: x == threshold)
    count = lambda words: jax.lax.population_count(words).astype(jnp.int32)
    wanted, n_equal = k - count(above).sum(), count(equal)
    allowed = jnp.clip(wanted - (jnp.cumsum(n_equal) - n_equal), 0, n_equal)
    return _places(above | _lowest_bits(equal, allowed), k)


def _to_ordered(x):
    """Return unsigned integers in the order of the floats."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    # Negative numbers grow downwards.
    return bits ^ jnp.where(bits >> 31 == 1, jnp.uint32(0xFFFFFFFF), jnp.uint32(0x80000000))


def _from_ordered(integers):
    flip = jnp.where(integers >> 31 == 1, jnp.uint32(0x80000000), jnp.uint32(0xFFFFFFFF))
    return jax.lax.bitcast_convert_type(integers ^ flip, jnp.float32)


def _threshold(x: Float[Array, " n"], k: int) -> Float[Array, ""]:
    """Return the k-th largest number: the highest t that at least k numbers reach."""
    n = x.size

    def reaching(integer):
        # By way of a bit mask: a sum of truth values would write an integer for each number first.
        t = _from_ordered(integer)
        return jax.lax.population_count(_words(x, lambda x: x >= t)).astype(jnp.int32).sum()

    # A sample tells nearly where; that the numbers between two guesses are found there is checked.
    stride = max(1, n // _SAMPLE)
    sample = _to_ordered(jnp.sort(x[::stride]))
    m = sample.size
    slack = 4 * math.sqrt(m * k / n * (1 - k / n)) + 2
    guess = lambda rank: sample[min(max(int(m - rank), 0), m - 1)]
    low, high = guess(m * k / n + slack), guess(m * k / n - slack)
    n_low, n_high = reaching(low), reaching(high)
    # Invariant: at least k numbers reach low, fewer than k reach high.
    zero, top = _to_ordered(jnp.float32(-jnp.inf)), _to_ordered(jnp.float32(jnp.inf)) + 1
    low, n_low = jnp.where(n_low >= k, low, zero), jnp.where(n_low >= k, n_low, n)
    high, n_high = jnp.where(n_high < k, high, top), jnp.where(n_high < k, n_high, 0)

    def go_on(carry):
        low, high, *_ = carry
        return high - low > 1

    def narrow(carry):
        low, high, n_low, n_high, turn = carry
        gap = high - low
        # By turns where the k-th should be if the numbers were spread evenly, and the middle.
        share = (n_low - k).astype(jnp.float32) / jnp.maximum(n_low - n_high, 1)
        step = jnp.where(turn % 3 == 2, gap // 2, (share * gap).astype(jnp.uint32))
        t = low + jnp.clip(step, 1, gap - 1)
        reached = reaching(t)
        enough = reached >= k
        return (
            jnp.where(enough, t, low),
            jnp.where(enough, high, t),
            jnp.where(enough, reached, n_low),
            jnp.where(enough, n_high, reached),
            turn + 1,
        )

    start = (low, high, jnp.int32(n_low), jnp.int32(n_high), jnp.int32(0))
    return _from_ordered(jax.lax.while_loop(go_on, narrow, start)[0])


def _words(x, condition):
    """Return one bit per number: bit b of word w says whether number 32 w + b fulfils it."""
    cut = x.size // _WORD * _WORD
    rest = jnp.pad(condition(x[cut:]), (0, -x.size % _WORD))
    rows = (condition(x[:cut]).reshape(-1, _WORD), rest.reshape(-1, _WORD))
    places = jnp.uint32(1) << jnp.arange(_WORD, dtype=jnp.uint32)
    pack = lambda mask: jnp.sum(jnp.where(mask, places, 0), axis=1, dtype=jnp.uint32)
    return jnp.concatenate([pack(mask) for mask in rows])


def _place_of_bit(words, r):
    """Return the place of the r-th set bit (r = 0: the lowest) of each word, by halving."""
    place = jnp.zeros_like(words)
    for width in (16, 8, 4, 2, 1):
        lower = (words >> place) & jnp.uint32(2**width - 1)
        below = jax.lax.population_count(lower).astype(jnp.int32)
        place = jnp.where(r >= below, place + width, place)
        r = jnp.where(r >= below, r - below, r)
    return place


def _lowest_bits(words, counts):
    """Return each word with its lowest `counts` set bits alone."""
    all_set = jax.lax.population_count(words).astype(jnp.int32)
    next_bit = _place_of_bit(words, jnp.minimum(counts, jnp.maximum(all_set - 1, 0)))
    return jnp.where(counts >= all_set, words, words & ((jnp.uint32(1) << next_bit) - 1))


def _places(words, k):
    """Return the ascending places of the k set bits."""
    counts = jax.lax.population_count(words).astype(jnp.int32)
    first = jnp.cumsum(counts) - counts  # number of set bits in the words before
    # Every word with a bit writes its number where its first bit will be; the others follow it.
    target = jnp.where(counts > 0, first, k)
    numbers = jnp.arange(words.size, dtype=jnp.int32)
    word = jnp.zeros(k, jnp.int32).at[target].max(numbers, mode="drop")
    word = jax.lax.cummax(word)
    within = jnp.arange(k, dtype=jnp.int32) - first[word]
    return word * _WORD + _place_of_bit(words[word], within).astype(jnp.int32)
