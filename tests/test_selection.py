"""Choosing k of n: exact counts, right blocks, uniform marginals, nothing of size n."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorgrad_jax as tg
from tensorgrad_jax.projections.selection import check_size, kept_count, stratified, top_k


@pytest.mark.parametrize(
    ("n", "k"),
    [(1, 1), (10, 3), (7, 7), (1_000_003, 70_001), (499_999_999, 66_000), (2**31 - 1, 9)],
)
def test_one_entry_of_every_block(n, k):
    indices = np.asarray(stratified(jnp.uint32(12345), n, k)).astype(object)
    borders = np.arange(k + 1, dtype=object) * n // k
    assert indices.shape == (k,)
    assert np.all(borders[:-1] <= indices)
    assert np.all(indices < borders[1:])


def test_block_borders_are_exact_beyond_32_bits():
    """i n / k with i and k near 2^25 needs 64-bit products, which float32 or int32 would round."""
    n, k = 500_000_000, 25_000_001
    indices = np.asarray(stratified(jnp.uint32(1), n, k)).astype(np.int64)
    borders = np.arange(k + 1, dtype=np.int64) * n // k
    assert np.all(borders[:-1] <= indices)
    assert np.all(indices < borders[1:])


def test_marginals_are_uniform():
    n, k, draws = 60, 12, 4000
    seeds = jax.random.bits(jax.random.key(0), (draws,), jnp.uint32)
    indices = jax.vmap(lambda s: stratified(s, n, k))(seeds)
    counts = np.bincount(np.asarray(indices).ravel(), minlength=n)
    expected = draws * k / n
    # chi-square with 60 - 12 degrees of freedom: mean 48, standard deviation 9.8.
    assert np.sum((counts - expected) ** 2 / expected) < 48 + 5 * 9.8


def test_neighbouring_blocks_are_drawn_independently():
    seeds = jnp.arange(4000, dtype=jnp.uint32)  # consecutive seeds must be as good as random ones
    offsets = jax.vmap(lambda s: stratified(s, 40, 2))(seeds) % 20
    table = np.zeros((20, 20))
    np.add.at(table, tuple(np.asarray(offsets).T), 1)
    # 400 cells of 10 expected: chi-square 399 +- 28.
    assert np.sum((table - 10) ** 2 / 10) < 399 + 5 * 28


def test_no_array_of_the_tensors_size_is_formed():
    n, k = 2**28, 2**10
    compiled = jax.jit(lambda s: stratified(s, n, k)).lower(jnp.uint32(0)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 100 * k


@pytest.mark.parametrize("k", [1, 5, 100])
def test_top_k_is_exact_and_prefers_the_first_of_equals(k):
    x = jax.random.randint(jax.random.key(k), (100,), 0, 20).astype(jnp.float32)
    expected = np.sort(np.argsort(-np.asarray(x), kind="stable")[:k])
    np.testing.assert_array_equal(top_k(x, k), expected)


@pytest.mark.parametrize("kind", ["normal", "positive", "ties", "signed ties", "zeros", "wide"])
def test_the_threshold_search_is_exact(kind):
    rng = np.random.default_rng(0)
    n = 20_011  # no multiple of a word of 32 bits, and large enough not to be sorted
    x = {
        "normal": rng.normal(size=n),
        "positive": np.abs(rng.normal(size=n)),
        "ties": rng.integers(0, 5, n),
        "signed ties": rng.integers(-2, 2, n),
        "zeros": np.zeros(n),
        "wide": np.clip(np.exp(20 * rng.normal(size=n)), 0, 3e38) * rng.choice([-1, 1], n),
    }[kind].astype(np.float32)
    for k in (1, 1000, n // 2, n - 1, n):
        expected = np.sort(np.argsort(-x, kind="stable")[:k])
        np.testing.assert_array_equal(jax.jit(top_k, static_argnums=1)(x, k), expected)


def test_the_threshold_search_sorts_nothing_large_and_copies_nothing():
    n, k = 2**20, 2**15
    x = jax.ShapeDtypeStruct((n,), jnp.float32)
    compiled = jax.jit(lambda x: top_k(x, k)).lower(x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.5 * 4 * n
    for line in compiled.as_text().splitlines():
        if " sort(" in line or "TopK" in line:
            assert f"[{n}" not in line


def test_counts():
    assert kept_count(0.05, 10) == 1
    assert kept_count(0.25, 10) == 2
    assert kept_count(1.0, 10) == 10


def test_tensors_that_int32_cannot_index_are_refused():
    with pytest.raises(ValueError, match="may have 2147483647 entries"):
        check_size("UnstructuredSparse", (2**16, 2**15))
    # Real and imaginary part of a complex tensor are indexed together.
    struct = jax.ShapeDtypeStruct((2**15, 2**15), jnp.complex64)
    with pytest.raises(ValueError, match=r"\(2, 32768, 32768\) has 2147483648"):
        jax.eval_shape(lambda: tg.UnstructuredSparse(1e-6).init(struct))
    assert tg.UnstructuredSparse(1e-6).init(jax.ShapeDtypeStruct((2**15, 2**15), jnp.float32))
