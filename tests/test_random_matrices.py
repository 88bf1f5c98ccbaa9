"""Random matrices: what an entry is depends on nothing but the key, the row and the column."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
import scipy.stats

from tensorgrad_jax.random_matrices import (
    SJLT,
    SRFT,
    Explicit,
    Kron,
    Normal,
    Rademacher,
    counters,
    dense,
    key_from,
    multiply_transposed_tree,
    sjlt,
    srft,
)

KEY = key_from(7)
P, K = 96, 24
# A new kind is tested the day it is listed here.
KINDS = {
    "rademacher": Rademacher(P, K),
    "normal": Normal(P, K),
    "sjlt": SJLT(P, K, entries=3),
    "srft": SRFT(P, K),
    "srft-blocks": SRFT(P, K, block=28),
    "kron": Kron(Rademacher(12, 6), Normal(8, 4)),
    "explicit": Explicit(P, K),
}
every = pytest.mark.parametrize("name", KINDS)


def key_of(name, key=KEY):
    if name != "explicit":
        return key
    return jnp.asarray(np.random.default_rng(0).normal(size=(P, K)), jnp.float32)


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def integers(seed, *shape):
    """Small integers: their sums are exact, so that equal means equal to the bit."""
    return jnp.asarray(np.random.default_rng(seed).integers(-8, 9, size=shape), jnp.float32)


def distance(a, b):
    a, b = np.asarray(a), np.asarray(b)
    return np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30)


def threefry(key, first, second):
    """Threefry-2x32 with 20 rounds, written down from the paper: the oracle."""
    key = [np.uint64(k) for k in key]
    x, y = np.asarray(first, np.uint64), np.asarray(second, np.uint64)
    x, y = np.broadcast_arrays(x, y)
    word = np.uint64(0xFFFFFFFF)
    keys = [key[0], key[1], key[0] ^ key[1] ^ np.uint64(0x1BD11BDA)]
    x, y = (x + keys[0]) & word, (y + keys[1]) & word
    rotations = [(13, 15, 26, 6), (17, 29, 16, 24)]
    for i in range(5):
        for r in rotations[i % 2]:
            x = (x + y) & word
            y = ((y << np.uint64(r)) | (y >> np.uint64(32 - r))) & word
            y = y ^ x
        x = (x + keys[(i + 1) % 3]) & word
        y = (y + keys[(i + 2) % 3] + np.uint64(i + 1)) & word
    return x.astype(np.uint32), y.astype(np.uint32)


def signs(key, row, column):
    """The sign of an entry, in whole numbers of Python and numpy."""
    data = np.asarray(jax.random.key_data(key))
    block, bit = divmod(column, 64)
    drawn = threefry(data, row & 0xFFFFFFFF, (row >> 32) << 20 | block)
    return 1 - 2 * (int(drawn[bit // 32]) >> (bit % 32) & 1)


def test_words_are_those_of_the_published_generator():
    """The known answer of Random123, and ours at counters (row, column block)."""
    known = threefry((0x13198A2E, 0x03707344), 0x243F6A88, 0x85A308D3)
    assert [int(w) for w in known] == [0xC4923A9C, 0x483DF7A0]
    rows = counters.rows_at(2**32 + 5)
    got = counters.words(KEY, rows, jnp.arange(3, dtype=jnp.uint32))
    expected = threefry(jax.random.key_data(KEY), 5, (1 << 20) + np.arange(3))
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("shape", [(1, 1), (5, 64), (40, 65), (3, 200)])
def test_signs_are_the_bits_of_the_words(shape):
    got = Rademacher(*shape).materialise(KEY)
    expected = [[signs(KEY, i, j) for j in range(shape[1])] for i in range(shape[0])]
    np.testing.assert_array_equal(got, expected)


@every
def test_products_are_those_with_the_matrix(name):
    matrix, key = KINDS[name], key_of(name)
    whole = matrix.materialise(key)
    assert whole.shape == (P, K)
    x, y = draw(1, 5, P), draw(2, 5, K)
    assert distance(matrix.multiply_transposed(key, x), x @ whole) < 2e-6
    assert distance(matrix.multiply(key, y), y @ whole.T) < 2e-6


@every
def test_the_transpose_is_the_adjoint(name):
    matrix, key = KINDS[name], key_of(name)
    x, y = draw(1, 3, 50), draw(2, 3, K)
    left = (matrix.multiply_transposed(key, x, 30) * y).sum()
    right = (x * matrix.multiply(key, y, 30, 50)).sum()
    assert abs(left - right) < 1e-5 * np.linalg.norm(x) * np.linalg.norm(y) * math.sqrt(K)


@every
def test_single_columns_are_those_of_the_matrix(name):
    numbers = jnp.array([K - 1, 0, 17, 3])
    expected = KINDS[name].materialise(key_of(name))[:, numbers]
    found = KINDS[name].columns_at(key_of(name), numbers)
    np.testing.assert_allclose(
        found, expected, atol=0 if name in ("rademacher", "sjlt", "explicit") else 1e-6
    )
    wide = Rademacher(P, 200)
    numbers = jnp.array([31, 32, 63, 64, 130, 199])
    np.testing.assert_array_equal(wide.columns_at(KEY, numbers), wide.materialise(KEY)[:, numbers])


@every
def test_slabs_of_rows_add_up(name):
    matrix, key, cuts = KINDS[name], key_of(name), (0, 1, 90, 96)
    x, y = draw(1, 2, P), draw(2, 2, K)
    slabs = list(itertools.pairwise(cuts))
    added = sum(matrix.multiply_transposed(key, x[:, a:b], a) for a, b in slabs)
    joined = np.concatenate([matrix.multiply(key, y, a, b - a) for a, b in slabs], axis=1)
    assert distance(added, matrix.multiply_transposed(key, x)) < 2e-6
    assert distance(joined, matrix.multiply(key, y)) < 2e-6


@pytest.mark.parametrize("matrix", [Rademacher(P, K), SJLT(P, K, entries=6)], ids=["dense", "sjlt"])
@pytest.mark.parametrize("rows", [1, 7, 50])
def test_tiles_change_no_bit(matrix, rows, monkeypatch):
    """Of integers: SJLT's values are +-sqrt(4), too."""
    x, y = integers(1, 3, P), integers(2, 3, K)

    def run():
        jax.clear_caches()
        return matrix.multiply_transposed(KEY, x), matrix.multiply(KEY, y)

    whole = run()
    monkeypatch.setattr(dense, "TILE_BYTES", dict.fromkeys(dense.TILE_BYTES, rows * 4 * K))
    monkeypatch.setattr(sjlt, "TILE_ENTRIES", rows * 6)
    for a, b in zip(run(), whole, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("entries", [1, 60])
def test_tiles_of_transforms_change_nothing(entries, monkeypatch):
    matrix, x, y = SRFT(P, 8, block=10), draw(1, 3, P), draw(2, 3, 8)

    def run():
        jax.clear_caches()
        return matrix.multiply_transposed(KEY, x), matrix.multiply(KEY, y)

    whole = run()
    monkeypatch.setattr(srft, "TILE_ENTRIES", entries)
    for a, b in zip(run(), whole, strict=True):
        assert distance(a, b) < 1e-6


@every
def test_batches_change_nothing(name):
    matrix, key, x = KINDS[name], key_of(name), integers(1, 6, P)
    whole = matrix.multiply_transposed(key, x)
    parts = [matrix.multiply_transposed(key, x[a:b]) for a, b in ((0, 1), (1, 3), (3, 6))]
    assert distance(np.concatenate(parts), whole) < 1e-6
    if name == "rademacher":
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    nothing = matrix.multiply_transposed(key, x[:0])
    assert nothing.shape == (0, K)


@pytest.mark.parametrize("over", ["rows", "examples"])
@pytest.mark.parametrize("offset", [0, 2**32 - 40])
def test_devices_change_no_bit(over, offset):
    """Eight devices hold parts of the rows, whose offset they alone know, or of the examples."""
    matrix, x = Rademacher(2**33, K), integers(1, 8, P)
    whole = matrix.multiply_transposed(KEY, x, offset)
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec

    def by_rows(key, x):
        low = jnp.uint32(offset % 2**32) + jax.lax.axis_index("d").astype(jnp.uint32) * P // 8
        high = jnp.uint32(offset >> 32) + (low < jnp.uint32(offset % 2**32))
        part = matrix.multiply_transposed(key, x, jnp.stack([high, low]))
        return jax.lax.psum(part, "d")

    if over == "rows":
        place = spec(None, "d")
        product = jax.shard_map(
            by_rows, mesh=mesh, in_specs=(spec(), place), out_specs=spec(), check_vma=False
        )
    else:
        place = spec("d")
        product = lambda key, x: matrix.multiply_transposed(key, x, offset)
    spread = jax.device_put(x, jax.sharding.NamedSharding(mesh, place))
    got = jax.jit(product)(KEY, spread)
    np.testing.assert_array_equal(got, whole)
    if over == "examples":
        assert got.sharding.spec[0] == "d"


@every
def test_precision_is_that_of_what_is_multiplied(name):
    """bfloat16 is float32's matrix; float64 numbers meet the same entries in float64."""
    matrix, key = KINDS[name], key_of(name)
    x = jnp.asarray(draw(1, 3, P), jnp.bfloat16)
    low = matrix.multiply_transposed(key, x)
    assert low.dtype == jnp.float32
    np.testing.assert_array_equal(low, matrix.multiply_transposed(key, x.astype(jnp.float32)))
    with jax.enable_x64(True):
        double = matrix.multiply_transposed(key, jnp.asarray(x, jnp.float64))
        assert double.dtype == jnp.float64
        assert distance(low, double) < 1e-6
        if not name.startswith("srft"):  # a transform has float64's own cosines
            exact = np.asarray(x, np.float64) @ np.asarray(matrix.materialise(key), np.float64)
            assert distance(double, exact) < (1e-7 if name in ("normal", "kron") else 1e-12)


@every
def test_both_parts_of_complex_numbers_are_multiplied(name):
    matrix, key = KINDS[name], key_of(name)
    x = draw(1, 3, P) + 1j * draw(2, 3, P)
    got = matrix.multiply_transposed(key, x)
    assert distance(got.real, matrix.multiply_transposed(key, x.real)) < 1e-6
    assert distance(got.imag, matrix.multiply_transposed(key, x.imag)) < 1e-6
    back = matrix.multiply(key, got)
    assert distance(back.imag, matrix.multiply(key, got.imag)) < 1e-6


@pytest.mark.parametrize("matrix", [Rademacher, Normal, SRFT], ids=lambda m: m.__name__)
@pytest.mark.parametrize("columns", [1, 64, 65])
def test_first_columns_are_the_matrix_of_fewer_columns(matrix, columns):
    whole, x = matrix(P, 90), integers(1, 2, P)
    few = dataclasses.replace(whole, columns=columns)
    if matrix is not SRFT:  # whose columns are transforms, equal to their rounding
        np.testing.assert_array_equal(few.materialise(KEY), whole.materialise(KEY)[:, :columns])
    a, b = (m.multiply_transposed(KEY, x) for m in (few, whole))
    assert distance(a, b[:, :columns]) < 1e-6


@pytest.mark.parametrize("name", ["rademacher", "normal", "sjlt", "srft", "kron"])
def test_keys_and_their_descendants_give_other_matrices(name):
    matrix = KINDS[name]
    drawn = [matrix.materialise(k) for k in (KEY, key_from(8), key_from(7, 0), key_from(7, 0, 0))]
    for i, a in enumerate(drawn):
        for b in drawn[:i]:
            correlation = abs((a * b).mean())
            assert correlation < 6 / math.sqrt(P * (1 if name == "sjlt" else K))
            assert not np.array_equal(a, b)


def test_no_two_models_and_blocks_share_random_numbers():
    """10^4 pairs (model, block of 64 columns): seeds that were added up would give the same."""
    matrix = Rademacher(1, 100 * 64)
    keys = jax.vmap(lambda model: jax.random.fold_in(KEY, model))(jnp.arange(100))
    drawn = jax.vmap(lambda key: matrix.materialise(key)[0])(keys)
    blocks = np.packbits(np.asarray(drawn).reshape(10**4, 64) > 0, axis=1)
    assert len(np.unique(blocks, axis=0)) == 10**4


def test_seeds_of_64_bits():
    assert np.array_equal(jax.random.key_data(key_from(5)), jax.random.key_data(jax.random.key(5)))
    assert not np.array_equal(
        jax.random.key_data(key_from(5)), jax.random.key_data(key_from(2**40 + 5))
    )


@pytest.mark.parametrize("kind", [Rademacher, Normal], ids=lambda m: m.__name__)
def test_entries_are_independent(kind):
    """Signs balance; columns, rows and words are uncorrelated: p-values above 1e-4."""
    n, k = 2000, 128
    drawn = np.asarray(kind(n, k).materialise(KEY), np.float64)
    other = np.asarray(kind(n, k).materialise(key_from(7, 1)), np.float64)
    positive = scipy.stats.binomtest(int((drawn > 0).sum()), drawn.size).pvalue
    assert positive > 1e-4
    for columns in (drawn, drawn.T, np.concatenate([drawn, other], axis=1)):
        # Cosines between n-vectors are nearly normal, of variance 1/n: squares are chi-squared.
        count, m = columns.shape
        unit = columns / np.linalg.norm(columns, axis=0)
        gram = unit.T @ unit * math.sqrt(count)
        squares = gram[np.triu_indices(m, 1)] ** 2
        assert 2 * min(scipy.stats.chi2.sf(squares.sum(), squares.size),
                       scipy.stats.chi2.cdf(squares.sum(), squares.size)) > 1e-4  # fmt: skip


def test_words_are_uniform():
    """Every byte of the words of consecutive counters takes every value equally often."""
    rows = counters.rows_at(0).plus(jnp.arange(2000, dtype=jnp.uint32)[:, None])
    drawn = np.stack(counters.words(KEY, rows, jnp.arange(16, dtype=jnp.uint32)))
    for byte in range(4):
        counts = np.bincount((drawn.ravel() >> (8 * byte)) & 0xFF, minlength=256)
        assert scipy.stats.chisquare(counts).pvalue > 1e-4


def test_normal_numbers_are_normal():
    drawn = np.asarray(Normal(4000, 50).materialise(KEY)).ravel()
    assert scipy.stats.kstest(drawn, "norm").pvalue > 1e-4
    pairs = drawn.reshape(-1, 2)
    angle = np.arctan2(pairs[:, 0], pairs[:, 1])
    assert scipy.stats.kstest(angle / (2 * math.pi) + 0.5, "uniform").pvalue > 1e-4


def test_sparse_rows_have_one_entry_per_block():
    matrix = SJLT(3000, 60, entries=4)
    drawn = np.asarray(matrix.materialise(KEY)).reshape(3000, 4, 15)
    assert np.all((drawn != 0).sum(2) == 1)
    np.testing.assert_allclose(np.abs(drawn[drawn != 0]), math.sqrt(15), rtol=1e-6)
    assert scipy.stats.chisquare((drawn != 0).sum(0).ravel()).pvalue > 1e-4
    assert scipy.stats.binomtest(int((drawn > 0).sum()), 3000 * 4).pvalue > 1e-4


def test_transforms_are_signs_cosines_and_a_selection():
    """Against SciPy's transform; the columns are orthogonal, the selection has no favourites."""
    matrix = SRFT(90, 20, block=30)
    drawn = np.asarray(matrix.materialise(KEY), np.float64)
    np.testing.assert_allclose(drawn.T @ drawn, 90 * np.eye(20), atol=1e-3)
    for block in range(3):
        flip = np.asarray(matrix.signs(KEY, (block, 0), 1))[0]
        kept = np.asarray(matrix.chosen(KEY, (block, 0), 1))[0]
        assert len(set(kept.tolist())) == 20
        basis = scipy.fft.idct(np.eye(30), norm="ortho", axis=0)[:, kept]
        expected = math.sqrt(30) * flip[:, None] * basis
        np.testing.assert_allclose(drawn[30 * block : 30 * block + 30], expected, atol=1e-5)
    many = SRFT(50 * 4000, 5, block=50)
    counts = np.bincount(np.asarray(many.chosen(KEY, (0, 0), 4000)).ravel(), minlength=50)
    assert scipy.stats.chisquare(counts).pvalue > 1e-4
    assert scipy.stats.binomtest(
        int((many.signs(KEY, (0, 0), 4000) > 0).sum()), 50 * 4000
    ).pvalue > 1e-4  # fmt: skip


@pytest.mark.parametrize("n", [1, 2, 3, 64, 100, 1000])
def test_permutations_meet_every_number_once(n):
    drawn = jax.random.bits(jax.random.key(3), (8, 2), jnp.uint32)
    got = counters.distinct(drawn, n, jnp.arange(n, dtype=jnp.uint32))
    assert sorted(np.asarray(got).tolist()) == list(range(n))


@pytest.mark.parametrize("name", ["rademacher", "normal", "sjlt", "srft-blocks", "kron"])
def test_inner_products_survive_on_average(name):
    """E <P^T x, P^T y> = k <x, y>, over keys, within four standard errors."""
    matrix, x = KINDS[name], draw(1, 2, P)
    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(200))
    y = jax.jit(jax.vmap(lambda key: matrix.multiply_transposed(key, x)))(keys)
    products = np.asarray((y[:, 0] * y[:, 1]).sum(1)) / K
    error = products.std() / math.sqrt(len(products))
    assert abs(products.mean() - x[0] @ x[1]) < 4 * error
    norms = np.asarray((y[:, 0] ** 2).sum(1)) / K / (x[0] @ x[0])
    assert abs(norms.mean() - 1) < 4 * norms.std() / math.sqrt(len(norms))


ROWS = (0, 2**32 + 7, 5 * 10**9 - 1)


def test_five_billion_rows_in_closed_form():
    """A gradient of 5e9 numbers of which three are not zero, given where they are."""
    matrix, values = Rademacher(5 * 10**9, 130), (2.0, -3.0, 5.0)
    got = sum(
        matrix.multiply_transposed(KEY, jnp.full((1, 1), v), r)
        for r, v in zip(ROWS, values, strict=True)
    )
    expected = [
        sum(v * signs(KEY, r, j) for r, v in zip(ROWS, values, strict=True)) for j in range(130)
    ]
    np.testing.assert_array_equal(got[0], expected)
    # Within a slab that crosses the border of the words, and 2^32 rows apart.
    border = matrix.materialise(KEY, 2**32 - 2, 4)
    for i in range(4):
        np.testing.assert_array_equal(border[i], [signs(KEY, 2**32 - 2 + i, j) for j in range(130)])
    assert not np.array_equal(matrix.materialise(KEY, 7, 1), matrix.materialise(KEY, ROWS[1], 1))


@pytest.mark.parametrize(
    "matrix",
    [Normal(5 * 10**9, 6), SJLT(5 * 10**9, 12), SRFT(5 * 10**9, 4, block=64)],
    ids=["normal", "sjlt", "srft"],
)
def test_rows_beyond_32_bits_of_every_kind(matrix):
    near, far = matrix.materialise(KEY, 64, 64), matrix.materialise(KEY, 2**32 + 64, 64)
    assert not np.allclose(near, far)
    last = matrix.multiply(KEY, draw(1, 1, matrix.columns), 5 * 10**9 - 3)
    assert last.shape == (1, 3)
    assert np.all(np.isfinite(last))


def test_trees_are_projected_leaf_by_leaf():
    """As if concatenated in the order of jax.tree.leaves; complex leaves as both their parts."""
    tree = {
        "b": draw(1, 3, 4, 5),
        "a": [
            draw(2, 3),
            draw(3, 3, 7) + 1j * draw(4, 3, 7),
            jnp.asarray(draw(5, 3, 2), "bfloat16"),
        ],
    }
    a0, a1, a2 = tree["a"]
    flat = jnp.concatenate(
        [a0[:, None], a1.real, a1.imag, a2.astype(jnp.float32), tree["b"].reshape(3, 20)],
        axis=1,
    )
    matrix = Rademacher(flat.shape[1], K)
    got = multiply_transposed_tree(matrix, KEY, tree)
    assert distance(got, matrix.multiply_transposed(KEY, flat)) < 1e-6
    with pytest.raises(ValueError, match="37 numbers per example for a matrix of 5 rows"):
        multiply_transposed_tree(Rademacher(5, 2), KEY, tree)
    with pytest.raises(ValueError, match="leaves must have one leading size"):
        multiply_transposed_tree(matrix, KEY, [draw(1, 3, 2), draw(1, 4, 2)])


def test_kronecker_features_of_a_layer_need_no_gradient():
    matrix, x, d = KINDS["kron"], draw(1, 4, 9, 12), draw(2, 4, 9, 8)
    gradient = jnp.einsum("btm,btn->bmn", x, d).reshape(4, -1)
    assert distance(
        matrix.multiply_outer(KEY, x, d), matrix.multiply_transposed(KEY, gradient)
    ) < 2e-6  # fmt: skip
    left, right = jax.random.fold_in(KEY, 0), jax.random.fold_in(KEY, 1)
    product = np.kron(matrix.left.materialise(left), matrix.right.materialise(right))
    assert distance(matrix.materialise(KEY), product) < 2e-6


def test_no_copy_of_the_matrix_is_made():
    """Temporaries of the compiled program: far below the matrix, and independent of its rows."""
    for matrix in (Rademacher(2**18, 256), Normal(2**18, 256), SJLT(2**18, 256)):
        x = jax.ShapeDtypeStruct((2, 2**18), jnp.float32)
        run = jax.jit(lambda x, m=matrix: m.multiply_transposed(KEY, x))
        temporary = run.lower(x).compile().memory_analysis().temp_size_in_bytes
        assert temporary < 4 * 2**18 * 256 / 10


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rademacher(0, 3), "Rademacher: rows must be an integer of at least 1, got 0"),
        (lambda: Normal(3, 2.0), "Normal: columns must be an integer of at least 1, got 2.0"),
        (lambda: Rademacher(2**44 + 1, 3), "rows may be 17592186044416 at most"),
        (lambda: Normal(3, 2**22), "columns may be 2097152 at most, got 4194304"),
        (lambda: SJLT(9, 10, entries=3), "entries must divide columns=10, got 3"),
        (lambda: SJLT(9, 10, entries=0), "entries must be an integer of at least 1"),
        (lambda: SRFT(9, 10), "block must be between columns=10 and"),
        (lambda: SRFT(90, 10, block=9), "block must be between columns=10 and .* got 9"),
        (lambda: Kron(Normal(2, 2), 3), "Kron: right must be a RandomMatrix, got 3"),
    ],
)
def test_bad_descriptions_are_refused_at_construction(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.multiply_transposed(KEY, draw(1, 5)), "x must have two dimensions"),
        (lambda m: m.multiply_transposed(KEY, jnp.ones((2, 3), int)), "floating-point.*int"),
        (lambda m: m.multiply_transposed(KEY, draw(1, 2, 4), 93), "rows 93 to 97 .* 96 rows"),
        (lambda m: m.multiply_transposed(KEY, draw(1, 2, 4), -1), "rows -1 to 3"),
        (lambda m: m.multiply(KEY, draw(1, 2, 4)), "y must have 24 columns"),
        (lambda m: m.multiply(KEY, draw(1, 2, K), jnp.uint32(1)), "rows must be given"),
        (lambda m: m.multiply_transposed(KEY, draw(1, 2, 4), jnp.ones(3, int)), r"\(\) or \(2,\)"),
        (lambda m: m.materialise(jax.random.key(0, impl="rbg")), "threefry2x32.*got rbg"),
        (lambda m: m.materialise(jax.random.PRNGKey(0)), "one key made by jax.random.key"),
        (
            lambda m: SRFT(P, 8).multiply_transposed(KEY, draw(1, 2, 4), jnp.uint32(1)),
            "row_offset must be an integer, not an array",
        ),
        (
            lambda m: Explicit(P, K).multiply_transposed(jnp.ones((3, K)), draw(1, 2, 4)),
            r"must have shape \(96, 24\), got \(3, 24\)",
        ),
        (
            lambda m: KINDS["kron"].multiply_outer(KEY, draw(1, 2, 3, 12), draw(1, 2, 3, 9)),
            "x and d must have shapes",
        ),
    ],
)
def test_bad_calls_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(Rademacher(P, K))
