"""Properties that hold for every projection, dtype and number of dimensions."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorgrad_jax as tg
from tensorgrad_jax.backend import pieces
from tensorgrad_jax.projections import LeafProjection
from tensorgrad_jax.projections.pairs import Pair, as_array

# A new projection is tested the day it is listed here.
ORTHOGONAL = {
    "tucker": tg.Tucker(0.25),
    "tucker-hooi": tg.Tucker(0.25, n_iter=4),
    "tucker-svd": tg.Tucker(0.25, n_iter=2, method="svd"),
    "tucker-int": tg.Tucker(3),
    "tucker-averaged": tg.Tucker(0.25, gram_decay=0.9),
    "tucker-randomized": tg.Tucker(2, method="randomized"),
    "randk": tg.UnstructuredSparse(0.1),
    "topk": tg.UnstructuredSparse(0.1, "topk"),
    "probability": tg.UnstructuredSparse(0.1, "probability"),
    "slices": tg.StructuredSparse(0.25),
    "random-slices": tg.StructuredSparse(0.25, "randk"),
    "weighted-slices": tg.StructuredSparse(0.25, "probability"),
    "random": tg.RandomProjection(0.25),
}
# These view the tensor as a matrix, so that they need two modes.
MATRICES = {
    f"matrix-{side}": tg.MatrixLowRank(0.25, side)
    for side in ("std", "reverse_std", "left", "right", "full")
}
ORTHOGONAL |= MATRICES
COMPOSITE = {
    "residual": tg.Residual(tg.UnstructuredSparse(0.05), tg.Tucker(0.2)),
    "residual-swapped": tg.Residual(tg.Tucker(0.2), tg.UnstructuredSparse(0.05, "topk")),
    "residual-weights": tg.Residual(tg.UnstructuredSparse(0.05), tg.Tucker(0.2), (0.5, 2.0)),
    "sum": tg.Sum(tg.Tucker(0.2), tg.UnstructuredSparse(0.05)),
    "two-low-rank": tg.Residual(tg.MatrixLowRank(0.1, row_axes=2), tg.Tucker(0.1)),
    "two-sparse": tg.Residual(tg.StructuredSparse(0.1), tg.UnstructuredSparse(0.1, "topk")),
    "nested": tg.Residual(
        tg.UnstructuredSparse(0.05), tg.Sum(tg.Tucker(0.2), tg.UnstructuredSparse(0.05, "topk"))
    ),
}
# Linear, adjoint and right on average, but no orthogonal projections.
UNBIASED = {
    f"random-{kind}": tg.RandomProjection(0.25, kind) for kind in ("rademacher", "normal", "sjlt")
}
ALL = ORTHOGONAL | COMPOSITE | UNBIASED
SHAPES = [(40,), (8, 1, 6), (3, 4, 2, 3, 4)]
DTYPES = [jnp.float32, jnp.complex64]


def every(projections):
    return pytest.mark.parametrize("projection", projections.values(), ids=projections.keys())


over_shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
over_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: jnp.dtype(d).name)


def random(seed, shape, dtype):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=shape)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        x = x + 1j * generator.normal(size=shape)
    return np.asarray(x, jnp.dtype(dtype))


@functools.partial(jax.jit, static_argnums=0)
def refreshed(projection, tensor, seed=0):
    return projection.refresh(jax.random.key(seed), tensor, projection.init(tensor))


@functools.partial(jax.jit, static_argnums=0)
def restored(projection, tensor, seed=0):
    """Return lift(project(tensor)) in the subspace chosen from the tensor itself."""
    basis = refreshed(projection, tensor, seed)
    return projection.lift(projection.project(tensor, basis), basis)


def distance(a, b):
    a, b = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]) for t in (a, b))
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30))


def has_modes(projection, shape):
    """Whether a tensor of this shape can be viewed as the matrix that the projection needs."""
    parts = [projection, getattr(projection, "first", None), getattr(projection, "second", None)]
    needed = max(p.row_axes + 1 for p in [*parts, tg.MatrixLowRank()] if hasattr(p, "row_axes"))
    matrix = any(isinstance(p, tg.MatrixLowRank) for p in parts)
    return not matrix or len(shape) >= needed


@every(ALL)
@over_shapes
@over_dtypes
def test_structs_of_basis_and_compact_are_known_before_any_tensor(projection, shape, dtype):
    leaf = jax.ShapeDtypeStruct(shape, dtype)
    if not has_modes(projection, shape):
        with pytest.raises(ValueError, match=r"row_axes=\d leaves no columns"):
            projection.init(leaf)
        return
    basis = jax.eval_shape(projection.init, leaf)
    after = jax.eval_shape(projection.refresh, jax.random.key(0), leaf, basis)
    struct = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert struct(after) == struct(basis)
    compact = jax.eval_shape(projection.project, leaf, basis)
    assert struct(compact) == struct(projection.compact_struct(leaf))
    lifted = jax.eval_shape(projection.lift, compact, basis)
    assert (lifted.shape, lifted.dtype) == (shape, jnp.dtype(dtype))
    assert all(math.prod(x.shape) > 0 for x in jax.tree.leaves((basis, compact)))


@every(COMPOSITE)
def test_complement_is_what_the_lift_without_weights_leaves_over(projection):
    plain = dataclasses.replace(projection, weights=(1.0, 1.0))

    @jax.jit
    def run(x):
        basis = refreshed(projection, x)
        compact = projection.project(x, basis)
        return projection.complement(x, compact, basis), x - plain.lift(compact, basis)

    got, expected = run(random(1, (6, 5, 4, 3), jnp.complex64))
    assert distance(got, expected) < 5e-6


@every(ORTHOGONAL | UNBIASED)
def test_projections_commute_with_conjugation(projection):
    x = random(4, (6, 5, 4), jnp.complex64)
    assert distance(restored(projection, x.conj()), restored(projection, x).conj()) < 1e-4


@every(UNBIASED)
def test_lift_and_project_are_adjoint_and_right_on_average(projection):
    """<project(x), c> = <x, lift(c)>, and lift(project(x)) is x, over 300 keys, within noise."""
    x = jnp.asarray(random(5, (6, 5, 4), jnp.float32))

    def run(seed):
        basis = refreshed(projection, x, seed)
        compact = projection.project(x, basis)
        lifted = projection.lift(compact, basis)
        return lifted, (compact**2).sum(), (x * lifted).sum()

    lifted, norms, products = jax.jit(jax.vmap(run))(jnp.arange(300))
    np.testing.assert_allclose(norms, products, rtol=1e-4)
    # Every run is off by sqrt(n / k) = 2 norms of x, independently.
    assert distance(lifted.mean(0), x) < 1.5 * 2 / math.sqrt(300)
    assert distance(lifted[0], x) > 1


@every(UNBIASED)
def test_squares_are_transported_as_expected_variances(projection):
    x = jnp.asarray(random(5, (6, 5, 4), jnp.float32))
    nu = jnp.abs(jnp.asarray(random(9, projection.compact_struct(x).shape, jnp.float32)))

    def run(seed, same):
        old = refreshed(projection, x, 0)
        new = refreshed(projection, x, jnp.where(same, 0, seed))
        noise = jnp.sqrt(nu) * jax.random.normal(jax.random.key(seed), nu.shape)
        moved = projection.transport(noise, old, new)
        return moved**2, projection.transport_squares(nu, old, new)

    for same in (False, True):
        got, expected = jax.jit(jax.vmap(lambda seed: run(seed, same)))(jnp.arange(1, 400))  # noqa: B023
        assert abs(got.sum() / expected.sum() - 1) < 0.15
        assert distance(got.mean(0), expected[0]) < 0.35


def test_a_random_projection_does_not_see_the_tensor():
    """Nothing but 8 bytes are kept; orthonormal columns also beyond one block and at its rest."""
    projection = tg.RandomProjection(0.1)
    x, y = (jnp.asarray(random(i, (2500,), jnp.float32)) for i in (0, 1))
    basis = refreshed(projection, x)
    assert jnp.array_equal(basis.key, refreshed(projection, y).key)
    assert sum(a.nbytes for a in jax.tree.leaves(basis)) == 8
    columns = jax.jit(jax.vmap(lambda c: projection.lift(c, basis)))(jnp.eye(250))
    np.testing.assert_allclose(columns @ columns.T, np.eye(250), atol=1e-5)
    # One large entry is spread: any choice of a tenth of the coefficients gets about a tenth.
    spike = jnp.zeros(2500).at[7].set(1.0)
    kept = [
        float((projection.project(spike, refreshed(projection, x, i)) ** 2).sum()) for i in range(9)
    ]
    assert 0.05 < min(kept) <= max(kept) < 0.2


@every(ORTHOGONAL | UNBIASED)
def test_transport_is_projection_of_the_lifted_part(projection):
    @jax.jit
    def run(x, y):
        old, new = refreshed(projection, x, 0), refreshed(projection, y, 1)
        compact = projection.project(x, old)
        return (
            (
                projection.transport(compact, old, new),
                projection.project(projection.lift(compact, old), new),
            ),
            (projection.transport(compact, old, old), compact),
        )

    there, back = run(random(5, (6, 5, 4), jnp.complex64), random(6, (6, 5, 4), jnp.complex64))
    assert distance(*there) < 5e-6
    if projection not in UNBIASED.values():
        assert distance(*back) < 5e-6


@every(COMPOSITE)
def test_composites_transport_within_each_part(projection):
    x, y = random(5, (6, 5, 4), jnp.float32), random(6, (6, 5, 4), jnp.float32)
    old, new = refreshed(projection, x, 0), refreshed(projection, y, 1)
    compact = jax.jit(projection.project)(x, old)
    moved = projection.transport(compact, old, new)
    squares = projection.transport_squares(compact, old, new)
    for i, part in enumerate((projection.first, projection.second)):
        assert distance(moved[i], part.transport(compact[i], old[i], new[i])) < 1e-6
        assert distance(squares[i], part.transport_squares(compact[i], old[i], new[i])) < 1e-6


@every(ORTHOGONAL)
def test_squares_are_transported_as_variances(projection):
    """Independent entries of variance nu get, transported, the variances transport_squares says."""
    x, y = random(7, (5, 4, 6), jnp.float32), random(8, (5, 4, 6), jnp.float32)
    nu = np.abs(random(9, projection.compact_struct(x).shape, jnp.float32))
    unit = np.eye(nu.size, dtype=np.float32).reshape(nu.size, *nu.shape)

    @jax.jit
    def run(x, y):
        old, new = refreshed(projection, x, 0), refreshed(projection, y, 1)
        jacobian = jax.vmap(lambda e: projection.transport(e, old, new))(unit)
        return projection.transport_squares(jnp.asarray(nu), old, new), jacobian

    got, jacobian = run(x, y)
    expected = np.tensordot(nu.ravel(), np.asarray(jacobian) ** 2, axes=(0, 0))
    assert distance(got, expected) < 1e-5


@every(
    {
        n: ALL[n]
        for n in (
            "tucker",
            "tucker-svd",
            "randk",
            "topk",
            "slices",
            "random",
            "random-sjlt",
            "matrix-std",
            "nested",
        )
    }
)
def test_jit_and_vmap_change_nothing(projection):
    x = random(11, (3, 6, 5, 4), jnp.float32)
    one_by_one = jnp.stack([restored(projection, t, i) for i, t in enumerate(x)])
    stacked = jax.jit(jax.vmap(lambda t, seed: restored(projection, t, seed)))
    assert distance(stacked(x, jnp.arange(3)), one_by_one) < 1e-5
    with jax.disable_jit():
        assert distance(restored(projection, jnp.asarray(x[0]), 0), one_by_one[0]) < 1e-5


@every(ALL)
def test_projections_are_hashable_values(projection):
    assert hash(projection) == hash(dataclasses.replace(projection))
    assert projection == dataclasses.replace(projection)


@every(ALL)
def test_zero_tensor_gives_a_finite_basis(projection):
    basis = refreshed(projection, np.zeros((6, 5, 4), np.float32))
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(basis))


@pytest.mark.parametrize("method", ["gram", "svd"])
@over_dtypes
def test_exactly_low_rank_tensors_are_reproduced(method, dtype):
    core = random(12, (3, 2, 4, 2), dtype)
    x = core
    for i, d in enumerate((9, 8, 10, 7)):
        x = np.tensordot(x, random(13 + i, (core.shape[i], d), dtype), axes=(0, 0))
    assert distance(restored(tg.Tucker((3, 2, 4, 2), method=method), x), x) < 1e-5


@over_dtypes
def test_gram_is_as_good_as_an_exact_hosvd(dtype):
    """On a tensor with decaying spectra, as gradients have: within 1% of exact HOOI's error."""
    x = random(20, (12, 11, 10, 9), dtype)
    for axis, d in enumerate(x.shape):
        x = np.moveaxis(np.moveaxis(x, axis, -1) * 0.6 ** np.arange(d, dtype=np.float32), -1, axis)

    def error(projection):
        return distance(restored(projection, x), x)

    assert error(tg.Tucker(0.05)) < 1.01 * error(tg.Tucker(0.05, n_iter=10, method="svd"))


def test_more_rounds_and_a_warm_start_improve_the_randomized_method():
    x = random(40, (60, 50, 6), jnp.float32)
    for axis, d in enumerate(x.shape):
        x = np.moveaxis(np.moveaxis(x, axis, -1) * 0.9 ** np.arange(d, dtype=np.float32), -1, axis)

    def error(projection, start=None):
        basis = projection.init(jnp.asarray(x)) if start is None else start
        basis = jax.jit(projection.refresh)(jax.random.key(1), x, basis)
        return distance(projection.lift(projection.project(jnp.asarray(x), basis), basis), x)

    ranks = (10, 10, 4)
    exact = tg.Tucker(ranks, method="svd", n_iter=4)
    best = error(exact)
    cold = tg.Tucker(ranks, method="randomized", warm_restart=False)
    assert best < error(dataclasses.replace(cold, n_iter=3)) < error(cold)
    good = refreshed(exact, x)
    warm = dataclasses.replace(cold, warm_restart=True)
    assert error(warm, good) < error(cold, good)
    assert error(warm, good) < 1.02 * best


def test_tucker_survives_the_range_of_gradients():
    """Squares of 1e-25 are no float32: the Gram matrix must be formed of a scaled tensor."""
    x = random(30, (6, 5, 4), jnp.float32)
    big, small = (refreshed(tg.Tucker(2), x * np.float32(s)) for s in (1e25, 1e-25))
    for u, v in zip(big, small, strict=True):
        np.testing.assert_allclose(u @ u.T, v @ v.T, atol=1e-5)


@pytest.mark.parametrize("budget", [0.01, 0.05, 0.2, 0.25, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("shape", [(7,), (64, 64, 32, 17), (8, 1, 6), (10, 9), (5, 4, 3, 2, 6)])
def test_a_float_budget_is_kept(budget, shape):
    ranks = tg.Tucker(budget).ranks(shape)
    size, kept = math.prod(shape), math.prod(ranks)
    assert kept <= budget * size or set(ranks) == {1}
    # ... and used: no single rank could be added.
    grown = [kept // r * (r + 1) for r, d in zip(ranks, shape, strict=True) if r < d]
    assert all(g > budget * size for g in grown)


def test_rank_forms():
    shape = (10, 100, 1)
    assert tg.Tucker(20).ranks(shape) == (10, 20, 1)
    assert tg.Tucker((3, 200, 1)).ranks(shape) == (3, 100, 1)
    assert tg.Tucker((0.5, 0.57, 0.1)).ranks(shape) == (5, 57, 1)
    assert tg.Tucker(1.0).ranks(shape) == shape


@pytest.mark.parametrize("rank", [0, -1, 0.0, 1.5, True, "a", (), (1, 0.5), (2, -1), None, [3, -3]])
@pytest.mark.usefixtures("unchecked")
def test_bad_ranks_are_refused_at_construction(rank):
    with pytest.raises(ValueError, match="rank must be"):
        tg.Tucker(rank)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tg.Tucker(n_iter=0), "n_iter must be a positive integer, got 0"),
        (lambda: tg.Tucker(method="qr"), "method must be one of .*, got 'qr'"),
        (lambda: tg.RandomProjection(1.5), r"ratio must be a number in \(0, 1\], got 1.5"),
        (lambda: tg.RandomProjection(0.5, "hadamard"), "kind must be one of .*, got 'hadamard'"),
        (lambda: tg.RandomProjection(scale=0.0), "scale must be a finite number, not zero"),
        (lambda: tg.UnstructuredSparse(0.0), r"ratio must be a number in \(0, 1\], got 0.0"),
        (lambda: tg.UnstructuredSparse(0.1, "best"), "select must be one of .*, got 'best'"),
        (lambda: tg.Residual(tg.Tucker(), 3), "second must be a Projection, got 3"),
        (lambda: tg.Sum(tg.Tucker(), tg.Tucker(), (1,)), "weights must be"),
        (lambda: tg.TensorSpec("0"), "complex_axis must be"),
        (lambda: tg.TensorSpec(0, ["1"]), "batch_axes must be"),
        (
            lambda: tg.Tucker((2, 2)).ranks((3, 3, 3)),
            r"2 entries for a tensor of shape \(3, 3, 3\)",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_arguments_are_refused_at_construction(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("spec", "shape", "dtype", "message"),
    [
        (tg.TensorSpec(0), (3, 4), "float32", "complex_axis=0 must have size 2, has 3"),
        (tg.TensorSpec(5), (2, 4), "float32", "must be distinct axes"),
        (tg.TensorSpec(0, (0,)), (2, 4), "float32", "must be distinct axes"),
        (tg.TensorSpec(0), (2, 4), "complex64", "a complex leaf takes no complex_axis"),
        (tg.TensorSpec(), (2, 4), "int32", "only floating-point"),
        (tg.TensorSpec(), (2, 0), "float32", "without elements"),
    ],
)
def test_specs_that_do_not_fit_are_refused(spec, shape, dtype, message):
    with pytest.raises(ValueError, match=message) as caught:
        LeafProjection(tg.Tucker(), spec, shape, jnp.dtype(dtype), "layer.w")
    assert "layer.w" in str(caught.value)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "spec", [tg.TensorSpec(2), tg.TensorSpec(-4, (1, -1)), tg.TensorSpec(None, (3,))]
)
def test_a_leaf_is_turned_into_tensors_and_back(spec, dtype):
    shape = (3, 4, 2, 5, 6)
    if spec.complex_axis == -4:
        shape = (3, 2, 4, 5, 6)
        spec = tg.TensorSpec(-4, (0, -1))
    x = jnp.asarray(random(0, shape, jnp.float32), dtype)
    leaf = LeafProjection(tg.Tucker(), spec, shape, x.dtype)
    tensor = leaf.to_tensor(x)
    expected = leaf.tensor_struct
    assert tensor.shape[-len(expected.shape) :] == expected.shape
    assert tensor.dtype == expected.dtype
    np.testing.assert_array_equal(leaf.to_leaf(tensor), x)


def test_a_real_pair_is_projected_as_the_complex_tensor_it_is():
    z = random(0, (6, 5, 4), jnp.complex64)
    pair = jnp.stack([z.real, z.imag], axis=1)
    leaf = LeafProjection(tg.Tucker(0.3), tg.TensorSpec(1), pair.shape, pair.dtype)
    np.testing.assert_array_equal(as_array(leaf.to_tensor(pair)), z)
    basis = jax.jit(leaf.refresh)(jax.random.key(0), z, leaf.init())
    assert distance(basis, refreshed(tg.Tucker(0.3), z)) < 1e-6


def test_every_batch_slice_has_its_own_basis():
    x = random(0, (6, 3, 5, 4), jnp.float32)
    leaf = LeafProjection(tg.Tucker(0.3), tg.TensorSpec(None, (1,)), x.shape, x.dtype)

    @jax.jit
    def run(x):
        stack = leaf.to_tensor(x)
        basis = leaf.refresh(jax.random.key(0), stack, leaf.init())
        return leaf.to_leaf(leaf.lift(leaf.project(stack, basis), basis))

    lifted = run(x)
    for i in range(3):
        assert distance(lifted[:, i], restored(tg.Tucker(0.3), x[:, i])) < 1e-5


def test_real_factors_keep_what_real_subspaces_hold():
    """A complex tensor with real factors is restored exactly; modes of full rank have none."""
    rng = np.random.default_rng(0)
    core = rng.normal(size=(2, 3, 6, 2))
    u = [np.linalg.qr(rng.normal(size=(d, r)))[0] for d, r in ((7, 3), (5, 2))]
    parts = jnp.asarray(np.einsum("parb,ia,jb->pirj", core, *u), jnp.float32)
    pair, projection = Pair(parts), tg.Tucker((3, 6, 2), factors="real")
    for tensor in (pair, pair.array(), parts[0]):
        basis = jax.jit(projection.refresh)(jax.random.key(0), tensor, projection.init(tensor))
        assert [None if b is None else b.shape for b in basis] == [(7, 3), None, (5, 2)]
        assert all(b is None or b.dtype == jnp.float32 for b in basis)
        compact = projection.project(tensor, basis)
        assert compact.shape == (3, 6, 2)
        assert compact.dtype == tensor.dtype
        assert distance(projection.lift(compact, basis), as_array(tensor)) < 1e-5
    compact = projection.project(pair, basis)
    assert distance(projection.lift_pair(compact, basis).parts, parts) < 1e-5


def test_real_factors_are_the_complex_ones_of_a_real_tensor():
    x = random(0, (6, 5, 4), jnp.float32)
    for rank in (0.3, (3, 5, 2)):
        expected = restored(tg.Tucker(rank), x)
        assert distance(restored(tg.Tucker(rank, factors="real"), x), expected) < 1e-5


def test_real_factors_transport_as_lift_and_project():
    x, y = (random(i, (6, 5, 4), jnp.complex64) for i in (0, 1))
    projection = tg.Tucker((3, 5, 2), factors="real")
    old, new = (refreshed(projection, z) for z in (x, y))
    compact = projection.project(x, old)
    expected = projection.project(projection.lift(compact, old), new)
    assert distance(projection.transport(compact, old, new), expected) < 1e-5
    same = projection.transport_squares(jnp.abs(compact) ** 2, old, old)
    assert distance(same, jnp.abs(compact) ** 2) < 1e-5


@pytest.mark.parametrize("options", [{"method": "svd"}, {"n_iter": 2}, {"factors": "integer"}])
def test_real_factors_are_refused_where_they_are_not_offered(options, unchecked):
    with pytest.raises(ValueError, match="Tucker: factors"):
        tg.Tucker(0.2, **{"factors": "real", **options})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_large_tensors_are_handled_by_pieces_with_the_same_result(dtype, monkeypatch):
    parts = jnp.asarray(random(0, (2, 6, 5, 7), jnp.float32), dtype)
    pair, projection = Pair(parts), tg.Tucker((3, 2, 4), scale=1.5)

    def run(pair):
        basis = projection.refresh(jax.random.key(0), pair, projection.init(pair))
        compact = projection.project(pair, basis)
        return basis, compact, projection.lift_pair(compact, basis).parts

    whole = jax.jit(run)(pair)
    for columns in (1, 4, 16):  # of 35, 21 or 30: with and without a rest
        monkeypatch.setattr(pieces, "PIECE_BYTES", columns * 6 * 8)
        by_pieces = jax.jit(lambda pair: run(pair))(pair)
        for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(by_pieces), strict=True):
            assert a.dtype == b.dtype
            assert distance(b, a) < 1e-5


def test_axes_of_a_matrix_view(unchecked):
    for wrong in (0, (), (0.5,), (True,), [1.0]):
        with pytest.raises(ValueError, match="row_axes must be a positive integer or a tuple"):
            tg.MatrixLowRank(0.5, row_axes=wrong)
    leaf = jax.ShapeDtypeStruct((4, 3, 2), jnp.float32)
    for wrong in ((0, -3), (3,), (-4,), (0, 1, 2)):
        with pytest.raises(ValueError, match=r"row_axes=.* tensor of shape \(4, 3, 2\)"):
            tg.MatrixLowRank(0.5, row_axes=wrong).init(leaf)
    assert tg.MatrixLowRank(1, "left", row_axes=(-1, 0)).init(leaf).left.shape == (8, 1)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("method", ["refresh", "project"])
def test_temporaries_stay_below_one_and_a_half_tensors(method, channels_last):
    """Of the memory that the compiled program needs beside its input, refresh and projection."""
    shape = (32, 17, 64, 64) if channels_last else (64, 64, 32, 17)
    projection = tg.Tucker(0.20)
    pair = Pair(jax.ShapeDtypeStruct((2, *shape), jnp.float32))
    basis = jax.eval_shape(lambda: projection.init(jax.ShapeDtypeStruct(shape, jnp.complex64)))
    run = {
        "refresh": lambda pair, basis: projection.refresh(jax.random.key(0), pair, basis),
        "project": projection.project,
    }[method]
    compiled = jax.jit(run).lower(pair, basis).compile()
    n_bytes = 8 * math.prod(shape)
    assert compiled.memory_analysis().temp_size_in_bytes < 1.5 * n_bytes


def test_what_a_sparse_part_leaves_over_has_zeros_in_the_place_of_its_entries():
    """Exactly, and whatever the factors of the lift."""
    x = jnp.asarray(random(0, (6, 5, 4), jnp.complex64))
    for options in ({}, {"scale": 0.5}, {"select": "topk"}, {"scale_by_mask_ratio": True}):
        projection = tg.UnstructuredSparse(0.2, **options)
        basis = refreshed(projection, x)
        compact, rest = projection.split(x, basis)
        assert jnp.array_equal(compact, projection.project(x, basis))
        assert jnp.array_equal(rest, projection.complement(x, compact, basis))
        expected = x.ravel().at[projection.indices(basis)].set(0)
        assert jnp.array_equal(rest.ravel(), expected)
