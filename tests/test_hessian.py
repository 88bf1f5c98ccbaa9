"""Products with Hessians, their decompositions and the errors of these."""

import pathlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from tensorgrad_jax import hessian
from tensorgrad_jax.hessian.checking import check_operator
from tensorgrad_jax.hessian.cores import core_of
from tensorgrad_jax.hessian.orthogonal import factored, orthonormal

GOLDEN = np.load(pathlib.Path(__file__).parent / "golden" / "hessian.npz")
KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


# The network of golden/make_hessian.py.
def outputs(params, batch):
    x = batch["x"]
    for i in (0, 2):
        x = jnp.tanh(x @ params[i].T + params[i + 1])
    return x @ params[4].T + params[5]


def cross_entropy(logits, batch):
    logarithms = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(logarithms, batch["y"][:, None], 1).mean()


def loss(params, batch):
    return cross_entropy(outputs(params, batch), batch)


def network():
    params = [jnp.asarray(GOLDEN[f"param{i}"]) for i in range(6)]
    return params, {"x": jnp.asarray(GOLDEN["x"]), "y": jnp.asarray(GOLDEN["y"])}


@pytest.mark.parametrize("block_size", [None, 16])
@pytest.mark.parametrize("chunk_size", [None, 4, 7, 1])
def test_products_are_those_of_curvlinops_and_of_the_explicit_hessian(chunk_size, block_size):
    params, data = network()
    flat, unravel = ravel_pytree(params)
    explicit = jax.hessian(lambda w: loss(unravel(w), data))(flat)
    sizes = {"chunk_size": chunk_size, "block_size": block_size}
    H = hessian.hvp_operator(loss, params, data, **sizes)
    np.testing.assert_allclose(H.mm(jnp.eye(flat.size)), explicit, atol=1e-14)
    np.testing.assert_allclose(explicit, GOLDEN["hessian"], atol=1e-14)
    G = hessian.gauss_newton_operator(outputs, cross_entropy, params, data, **sizes)
    np.testing.assert_allclose(G.mm(jnp.eye(flat.size)), GOLDEN["ggn"], atol=1e-14)
    np.testing.assert_allclose(G.mv(flat), GOLDEN["ggn"] @ flat, atol=1e-13)


def test_at_other_parameters_nothing_is_compiled_anew():
    params, data = network()
    compiled = []
    H = hessian.hvp_operator(lambda p, b: compiled.append(0) or loss(p, b), params, data)
    X = jnp.eye(H.shape[0])[:, :3]
    first, traced = H.mm(X), len(compiled)
    other = H.at(H.params * 2).mm(X)
    assert len(compiled) == traced
    doubled = hessian.hvp_operator(loss, [2 * p for p in params], data)
    np.testing.assert_allclose(other, doubled.mm(X), atol=1e-14)
    assert not np.allclose(other, first)


def test_precision_is_that_asked_for():
    params, data = network()
    single = hessian.hvp_operator(loss, params, data, dtype=jnp.float32)
    assert single.mm(jnp.eye(single.shape[0])).dtype == jnp.float32
    double = hessian.hvp_operator(
        loss, [p.astype(jnp.float32) for p in params], data, dtype="float64"
    )
    np.testing.assert_allclose(double.mm(jnp.eye(double.shape[0])), GOLDEN["hessian"], atol=1e-6)


def test_products_are_taken_in_full_precision():
    params, data = network()
    H = hessian.hvp_operator(loss, params, data)
    X = jnp.ones((H.shape[0], 2))
    text = str(jax.make_jaxpr(lambda X: H.product(H.params, X))(X))
    assert text.count("Precision.HIGHEST") >= 2 * text.count("dot_general[") > 0
    assert "precision=None" not in text


def test_forward_rules_of_the_operator_models_have_second_derivatives():
    with jax.enable_x64(False):
        check_fno()


def check_fno():
    from flax import nnx
    from tensorgrad_jax.models import FNO

    model = FNO((4, 4), 1, 1, 3, 2, rngs=nnx.Rngs(0))
    graph, state = nnx.split(model, nnx.Param)
    params = nnx.to_pure_dict(state)
    x = jax.random.normal(KEY, (3, 8, 8, 1), jnp.float32)
    of = lambda p, b: jnp.mean((nnx.merge(graph, nnx.State(p))(b) - 1) ** 2)
    H = hessian.hvp_operator(of, params, x, chunk_size=2)
    assert check_operator(H)["ok"]
    flat, unravel = ravel_pytree(params)
    v, step = jax.random.normal(KEY, flat.shape, flat.dtype), 1e-2
    gradient = jax.jit(jax.grad(lambda w: of(unravel(w), x)))
    numeric = (gradient(flat + step * v) - gradient(flat - step * v)) / (2 * step)
    product = H.mv(v)
    assert jnp.linalg.norm(product - numeric) < 2e-2 * jnp.linalg.norm(numeric)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"params": {}}, "params must hold arrays"),
        (
            {"params": {"w": jnp.ones(3, jnp.complex64)}},
            "must be real arrays, got dtypes complex64",
        ),
        ({"params": [np.ones(2), np.ones(2, np.float32)]}, "dtype must be given"),
        ({"data": {"x": jnp.ones((3, 2)), "y": jnp.ones(4)}}, "as many examples"),
        ({"data": jnp.ones((0, 2))}, "at least one"),
        ({"chunk_size": 0}, "chunk_size must be an integer"),
        ({"block_size": 1.5}, "block_size must be an integer"),
    ],
)
def test_wrong_arguments_of_the_operator_are_named(change, message, unchecked):
    params, data = network()
    arguments = {"params": params, "data": data} | change
    with pytest.raises(ValueError, match=message):
        hessian.hvp_operator(loss, **arguments)


def test_float64_needs_its_mode():
    with jax.enable_x64(False), pytest.raises(ValueError, match="jax_enable_x64"):
        hessian.hvp_operator(lambda p, _: p.sum(), jnp.ones(3), None, dtype=jnp.float64)


# Operators


def random(*shape, complex_=False, seed=0):
    rng = np.random.default_rng((seed, *shape))
    x = rng.standard_normal(shape)
    return x + 1j * rng.standard_normal(shape) if complex_ else x


@pytest.mark.parametrize("complex_", [False, True])
def test_operators_compose_like_their_matrices(complex_):
    A, B = random(6, 5, complex_=complex_), random(5, 6, complex_=complex_)
    d, U, s, V = random(6, complex_=complex_), random(6, 2), random(2), random(6, 2)
    a, b = hessian.Dense(A), hessian.Dense(B)
    operator = 2.5 * (a @ b) + hessian.Diagonal(d) - hessian.LowRank(*map(jnp.asarray, (U, s, V)))
    matrix = 2.5 * A @ B + np.diag(d) - U @ np.diag(s) @ V.T
    np.testing.assert_allclose(operator.mm(np.eye(6)), matrix, atol=1e-13)
    np.testing.assert_allclose(operator.rmm(np.eye(6)), matrix.conj().T, atol=1e-13)
    np.testing.assert_allclose(operator.adjoint @ np.eye(6), matrix.conj().T, atol=1e-13)
    np.testing.assert_allclose(operator @ np.arange(6.0), matrix @ np.arange(6.0), atol=1e-12)
    np.testing.assert_allclose((-operator).adjoint.adjoint.mm(np.eye(6)), -matrix, atol=1e-13)
    assert operator.shape == (6, 6)


def test_symmetry_is_kept_where_it_is_known():
    S = hessian.Dense(np.eye(3), symmetric=True)
    assert S.adjoint is S
    assert (S + 2.0 * S).symmetric
    assert not (S @ S).symmetric
    assert not (S + hessian.Dense(np.eye(3))).symmetric


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hessian.Dense(np.ones(3)), "expected a matrix"),
        (lambda: hessian.Dense(np.ones((3, 2)), symmetric=True), "must be square"),
        (lambda: hessian.Dense(np.ones((3, 2))).mm(np.ones((3, 1))), "matrix of 2 rows"),
        (lambda: hessian.Dense(np.ones((3, 2))).mv(np.ones((2, 1))), "vector of 2 numbers"),
        (lambda: hessian.Dense(np.ones((3, 2))) + hessian.Dense(np.eye(3)), "one shape"),
        (lambda: hessian.Dense(np.ones((3, 2))) @ hessian.Dense(np.eye(3)), "follow each other"),
        (lambda: hessian.Diagonal(np.eye(2)), "expected a vector"),
        (lambda: hessian.LowRank(np.eye(3), np.ones(2), np.eye(3)), "2 columns"),
    ],
)
def test_operators_that_do_not_fit_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_an_operator_without_its_adjoint_says_so():
    operator = hessian.Function(lambda X: X[:2], (2, 3), jnp.float64)
    with pytest.raises(NotImplementedError, match="no product with its adjoint"):
        operator.rmm(np.ones((2, 1)))


def test_operators_of_lineax_are_taken():
    import lineax

    A = random(4, 4)
    operator = hessian.from_lineax(lineax.MatrixLinearOperator(jnp.asarray(A)))
    np.testing.assert_allclose(operator.mm(np.eye(4)), A, atol=1e-14)
    np.testing.assert_allclose(operator.rmm(np.eye(4)), A.T, atol=1e-14)
    assert not operator.symmetric
    of_tree = lambda p: {"a": 2 * p["a"], "b": p["b"] + p["a"].sum()}
    struct = {
        "a": jax.ShapeDtypeStruct((2,), jnp.float64),
        "b": jax.ShapeDtypeStruct((), jnp.float64),
    }
    tree = hessian.from_lineax(lineax.FunctionLinearOperator(of_tree, struct))
    np.testing.assert_allclose(tree.mm(np.eye(3)), [[2, 0, 0], [0, 2, 0], [1, 1, 1]])
    tagged = lineax.MatrixLinearOperator(jnp.asarray(A + A.T), lineax.symmetric_tag)
    assert hessian.from_lineax(tagged).symmetric


# Decompositions


def decaying(n, kind, *, psd, seed=0, complex_=False):
    """A symmetric matrix of skerch's synthetic families, and its eigenvalues."""
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(random(n, n, complex_=complex_, seed=seed))[0]
    i = np.arange(n)
    values = {
        "exp": 10.0 ** -np.maximum(0, 0.5 * (i - 9)),
        "poly": np.where(i < 10, 1.0, (np.maximum(i - 8, 1.0)) ** -2.0),
        "lowrank": (i < 10).astype(float),
    }[kind]
    values = values if psd else values * rng.choice([-1, 1], n)
    return (Q * values) @ Q.conj().T, values


def relative_error(A, found):
    V = np.asarray(found.vectors())
    return np.linalg.norm(A - (V * np.asarray(found.values)) @ V.conj().T) / np.linalg.norm(A)


@pytest.mark.parametrize("noise", ["srft", "rademacher"])
@pytest.mark.parametrize(("kind", "dtype", "tolerance"), [
    ("lowrank", np.float64, 1e-12), ("lowrank", np.float32, 1e-4),
    ("exp", np.float64, 1e-7), ("exp", np.float32, 1e-3), ("poly", np.float64, 3e-2),
])  # fmt: skip
def test_families_of_matrices_are_recovered(kind, dtype, tolerance, noise):
    A, values = decaying(120, kind, psd=False)
    operator = hessian.Dense(A.astype(dtype), symmetric=True)
    n = 40
    for found in (
        hessian.seigh(operator, KEY, n, 80, noise=noise),
        hessian.seigh(operator, KEY, n, recovery="hmt", noise=noise),
        hessian.block_lanczos(operator, KEY, n, block_size=8, noise=noise),
    ):
        assert relative_error(A, found) < tolerance
        largest = np.sort(np.abs(values))[::-1][:10]
        np.testing.assert_allclose(np.abs(found.values[:10]), largest, atol=30 * tolerance)
        V = found.vectors()
        np.testing.assert_allclose(
            V.conj().T @ V, np.eye(n), atol=1e-4 if dtype == np.float32 else 1e-11
        )
    assert found.values.dtype == dtype


def of_skerch(kind, decay, n, rank, *, psd, symmetric):
    """A matrix of skerch's `SynthMat`, and its singular values: ones, then a decay."""
    rng = np.random.default_rng(0)
    after = np.arange(1, n - rank + 1)
    values = np.ones(n)
    values[rank:] = 10.0 ** (-decay * after) if kind == "exp" else (after + 1.0) ** -decay
    if kind == "lowrank":
        values[rank:] = 0
    if not psd:
        values[rank:] *= rng.choice([-1, 1], n - rank)
    U, V = (np.linalg.qr(rng.standard_normal((n, n)))[0] for _ in range(2))
    A = (U * values) @ (U if symmetric else V).T
    if kind == "lowrank":
        noise = rng.standard_normal((n, n)) * decay / n
        A = A + ((noise + noise.T) / np.sqrt(2) if symmetric else noise)
    return A, np.linalg.svd(A, compute_uv=False)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("psd", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("kind", "decay"), [
    ("exp", 0.5), ("exp", 0.1), ("poly", 4), ("poly", 2), ("lowrank", 1e-3), ("lowrank", 1e-2),
])  # fmt: skip
def test_families_of_skerch_hold_its_tolerances(kind, decay, symmetric, psd, dtype):
    """Those of its own tests: 2 r values to 1e-7, 1e-3 or 3e-3, the residual's energy to 5%."""
    n, rank, outer, inner = 500, 10, 100, 300
    A, values = of_skerch(kind, decay, n, rank, psd=psd, symmetric=symmetric)
    operator = hessian.Dense(A.astype(dtype), symmetric=symmetric)
    of = hessian.seigh if symmetric else hessian.ssvd
    found = of(operator, KEY, outer, inner)
    tolerance = {"exp": 1e-3 if dtype == np.float32 else 1e-7, "poly": 3e-3}
    found_values = np.abs(found.values[: 2 * rank])
    if kind in tolerance:
        np.testing.assert_allclose(found_values, values[: 2 * rank], atol=tolerance[kind])
    rest = A - found.operator().mm(jnp.eye(n, dtype=dtype))
    assert np.sum(np.asarray(rest) ** 2) <= 0.05 * np.sum(A**2)
    error = hessian.a_posteriori_error(operator, found, jax.random.key(5), 30)
    true = np.sum(np.asarray(rest, np.float64) ** 2)
    assert 0 <= error.difference[0] <= 2 * true + 1e-6


@pytest.mark.parametrize("recovery", ["nystrom", "singlepass"])
def test_recoveries_for_positive_operators(recovery):
    A, _ = decaying(120, "exp", psd=True)
    operator = hessian.Dense(A, symmetric=True)
    found = hessian.seigh(operator, KEY, 40, recovery=recovery, psd=True)
    assert relative_error(A, found) < 1e-7
    with pytest.warns(UserWarning, match="positive semidefinite"):
        hessian.seigh(operator, KEY, 40, recovery=recovery)


def test_complex_hermitian_operators_and_phases():
    A, _ = decaying(80, "lowrank", psd=False, complex_=True)
    operator = hessian.Dense(A, symmetric=True)
    for found in (
        hessian.seigh(operator, KEY, 12, 24, noise="phase"),
        hessian.seigh(operator, KEY, 12, 24, noise="srft"),
        hessian.block_lanczos(operator, KEY, 12, noise="phase", block_size=4),
    ):
        assert relative_error(A, found) < 1e-11
        assert not jnp.iscomplexobj(found.values)
    with pytest.raises(ValueError, match="phase is for complex operators"):
        hessian.seigh(hessian.Dense(np.eye(30), symmetric=True), KEY, 4, noise="phase")


@pytest.mark.parametrize("complex_", [False, True])
def test_singular_values_of_any_operator(complex_):
    A = random(70, 9, complex_=complex_) @ random(9, 50, complex_=complex_)
    found = hessian.ssvd(hessian.Dense(A), KEY, 12, 24)
    np.testing.assert_allclose(found.operator().mm(np.eye(50)), A, atol=1e-9)
    expected = np.linalg.svd(A, compute_uv=False)[:9]
    np.testing.assert_allclose(found.values[:9], expected, rtol=1e-9)
    U, V = found.left(9), found.right(9)
    np.testing.assert_allclose(U.conj().T @ U, np.eye(9), atol=1e-10)
    np.testing.assert_allclose(V.conj().T @ V, np.eye(9), atol=1e-10)


def test_the_core_is_that_of_skerch_for_its_own_random_vectors():
    A, left, right = (GOLDEN[name] for name in ("A", "left", "right"))
    Y = A @ right.T
    Q = orthonormal(jnp.asarray(Y[:, :8]))
    core = core_of(jnp.asarray(left @ Y), left @ Q, right @ Q)
    np.testing.assert_allclose(Q @ core @ Q.T, GOLDEN["core_QCQ"], atol=1e-12)


def test_a_symmetric_core_is_closer():
    A, C = GOLDEN["A"], GOLDEN["core_QCQ"]
    assert np.linalg.norm(A - (C + C.T) / 2) < np.linalg.norm(A - C)


def test_at_equal_products_lanczos_is_next_to_the_best_and_a_sketch_within_bounds():
    """Of the rank-k errors; 300 dimensions, eigenvalues of both signs."""
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.standard_normal((300, 300)))[0]
    values = np.exp(-0.1 * np.arange(300)) * rng.choice([-1, 1], 300)
    A, k = (Q * values) @ Q.T, 20
    best = np.linalg.norm(np.sort(np.abs(values))[::-1][k:])
    operator = hessian.Dense(A, symmetric=True)
    ratio = lambda found: relative_error(A, found) * np.linalg.norm(A) / best
    assert ratio(hessian.block_lanczos(operator, KEY, k, 2 * k, block_size=4)) < 1.01
    assert ratio(hessian.seigh(operator, KEY, k, recovery="hmt")) < 3.5
    assert ratio(hessian.seigh(operator, KEY, k, 2 * k)) < 4.5


def test_lanczos_finds_repeated_eigenvalues_once_each_and_outlives_an_exhausted_space():
    values = np.repeat([3.0, -2.0, 1.0], [4, 3, 2])
    Q = np.linalg.qr(random(50, 50))[0]
    A = (Q[:, :9] * values) @ Q[:, :9].T
    found = hessian.block_lanczos(hessian.Dense(A, symmetric=True), KEY, 12, 40, block_size=5)
    np.testing.assert_allclose(found.values[:9], values, atol=1e-12)
    np.testing.assert_allclose(found.values[9:], 0, atol=1e-12)
    np.testing.assert_allclose(found.Q.T @ found.Q, np.eye(40), atol=1e-12)


def test_columns_depend_on_key_and_number_alone():
    for kind in ("srft", "gaussian", "rademacher", "phase"):
        dtype = jnp.complex128 if kind == "phase" else jnp.float64
        noise = hessian.Noise(kind, 90, 20)
        whole = noise.block(KEY, range(20), dtype)
        np.testing.assert_array_equal(noise.block(KEY, [7, 3], dtype), whole[:, [7, 3]])
        fewer = hessian.Noise(kind, 90, 8).block(KEY, range(8), dtype)
        np.testing.assert_array_equal(fewer, whole[:, :8])
        assert abs(float(jnp.mean(jnp.abs(whole) ** 2)) * 90 - 1) < 0.1
        Y = jnp.asarray(random(90, 3), dtype)
        np.testing.assert_allclose(noise.adjoint_times(KEY, Y), whole.conj().T @ Y, atol=1e-12)
    V = hessian.Noise("srft", 90, 20).block(KEY, range(20), jnp.float64)
    np.testing.assert_allclose(V.T @ V, np.eye(20), atol=1e-13)
    assert not np.allclose(
        whole, hessian.Noise("phase", 90, 20).block(jax.random.key(1), range(20), dtype)
    )


def test_blocks_of_columns_change_nothing():
    A, _ = decaying(60, "exp", psd=False)
    operator = hessian.Dense(A, symmetric=True)
    whole, parts = (hessian.seigh(operator, KEY, 10, 20, block_size=b) for b in (None, 3))
    np.testing.assert_allclose(whole.values, parts.values, atol=1e-13)


def test_several_devices_give_what_one_gives_and_keep_the_basis_in_rows():
    A, _ = decaying(120, "exp", psd=False)
    operator = hessian.Dense(A, symmetric=True)
    for mesh in (jax.make_mesh((4,), ("data",)), jax.make_mesh((2,), ("c",))):
        for run in (
            lambda **o: hessian.seigh(operator, KEY, 16, 32, **o),
            lambda **o: hessian.seigh(operator, KEY, 16, recovery="hmt", **o),
            lambda **o: hessian.block_lanczos(operator, KEY, 16, block_size=8, **o),
        ):
            one, several = run(), run(mesh=mesh)
            # Of eigenvalues of one magnitude any may come first.
            np.testing.assert_allclose(np.sort(one.values), np.sort(several.values), atol=1e-13)
            rows = {shard.data.shape[0] for shard in several.Q.addressable_shards}
            assert rows == {120 // mesh.size}
    with pytest.raises(ValueError, match="multiple of the 4 devices"):
        hessian.seigh(operator, KEY, 15, 30, mesh=jax.make_mesh((4,), ("data",)))


def test_products_and_bases_on_several_devices_exchange_small_matrices_only():
    """The lines of the compiled program that gather or reduce: k x k, never rows."""
    from tensorgrad_jax.hessian.mesh import in_rows
    from tensorgrad_jax.hessian.orthogonal import _tsqr

    mesh = jax.make_mesh((4,), ("data",))
    Y = in_rows(mesh, jnp.asarray(random(160, 6)))
    Q, R = factored(Y)
    np.testing.assert_allclose(Q @ R, Y, atol=1e-12)
    np.testing.assert_allclose(Q.T @ Q, np.eye(6), atol=1e-13)
    text = _tsqr(Y.sharding.mesh, "data").lower(Y).compile().as_text()
    gathered = [
        line for line in text.splitlines() if "all-gather(" in line or "all-reduce(" in line
    ]
    assert gathered
    assert all("f64[24,6]" in line for line in gathered)


def test_tsqr_keeps_an_ill_conditioned_sketch_orthonormal_in_float32():
    from tensorgrad_jax.hessian.mesh import in_rows

    Y = random(160, 12).astype(np.float32) @ np.diag(10.0 ** -np.arange(12)).astype(np.float32)
    Q = np.asarray(orthonormal(in_rows(jax.make_mesh((4,), ("data",)), jnp.asarray(Y))))
    np.testing.assert_allclose(Q.T @ Q, np.eye(12), atol=2e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda A: hessian.seigh(hessian.Dense(np.ones((3, 2))), KEY, 1), "must be symmetric"),
        (lambda A: hessian.seigh(A, KEY, 0), "outer must be"),
        (lambda A: hessian.seigh(A, KEY, 11), "outer must be"),
        (lambda A: hessian.seigh(A, KEY, 5, 4), "inner must be"),
        (lambda A: hessian.seigh(A, KEY, 5, 11), "inner must be"),
        (lambda A: hessian.seigh(A, KEY, 5, 8, recovery="hmt"), "inner belongs to"),
        (lambda A: hessian.seigh(A, KEY, 5, recovery="magic"), "recovery must be one of"),
        (lambda A: hessian.seigh(A, KEY, 5, noise="white"), "kind must be one of"),
        (lambda A: hessian.seigh(A, KEY, 5, block_size=0), "block_size must be"),
        (lambda A: hessian.ssvd(A, KEY, 5, 3), "inner must be"),
        (lambda A: hessian.block_lanczos(A, KEY, 5, 4), "products must be"),
        (lambda A: hessian.block_lanczos(A, KEY, 5, 8, block_size=9), "block_size must be"),
        (lambda A: hessian.block_lanczos(A, KEY, 10, 10, block_size=7), "room for k=10"),
        (lambda A: hessian.Noise("srft", 10, 11), "columns must be"),
        (lambda A: hessian.Noise("srft", 10, 4).block(KEY, [4], jnp.float32), "columns are 0 to 3"),
    ],
)
def test_wrong_arguments_of_decompositions_are_named(call, message, unchecked):
    with pytest.raises(ValueError, match=message):
        call(hessian.Dense(np.eye(10), symmetric=True))


# Errors


def test_error_estimates_are_unbiased_and_hold_their_bounds():
    A, _ = decaying(60, "poly", psd=False)
    operator = hessian.Dense(A, symmetric=True)
    found = hessian.seigh(operator, KEY, 10, 20)
    truth = [np.linalg.norm(A - found.truncated(k).operator().mm(np.eye(60))) ** 2 for k in (10, 3)]
    estimates = np.array(
        [
            hessian.a_posteriori_error(operator, found, jax.random.key(i), 30, [10, 3]).difference
            for i in range(1, 201)
        ]
    )
    np.testing.assert_allclose(estimates.mean(0), truth, rtol=0.05)
    low, high = hessian.post_bounds(30, 0.5)
    assert np.mean(estimates <= 0.5 * np.array(truth), 0).max() <= low
    assert np.mean(estimates >= 1.5 * np.array(truth), 0).max() <= high
    one = hessian.a_posteriori_error(operator, found, jax.random.key(1), 400, [10, 3])
    np.testing.assert_allclose(one.operator, np.linalg.norm(A) ** 2, rtol=0.1)
    np.testing.assert_allclose(one.approximation[1], np.sum(found.values[:3] ** 2), rtol=0.15)
    np.testing.assert_allclose(one.samples.mean(1)[0], one.operator)
    A = random(30, 4) @ random(4, 20)
    of_svd = hessian.a_posteriori_error(
        hessian.Dense(A), hessian.ssvd(hessian.Dense(A), KEY, 6), KEY
    )
    assert of_svd.relative[0] < 1e-10


def test_bounds_scree_and_budgets_are_those_of_skerch():
    for n, error in ((30, 0.5), (30, 0.25), (7, 1.0)):
        expected = GOLDEN[f"bounds_{n}_{error:g}"]
        np.testing.assert_allclose(hessian.post_bounds(n, error), expected, rtol=1e-12)
    twice = hessian.post_bounds(60, 0.5)
    np.testing.assert_allclose(hessian.post_bounds(30, 0.5, is_complex=True), twice)
    bounds = hessian.scree(jnp.array([3.0, -2.0, 1.0, 0.5]), 4.0, 0.7)
    np.testing.assert_allclose(bounds, GOLDEN["scree"], rtol=1e-6)
    assert np.all(np.diff(bounds, axis=1) < 0)
    assert np.all(bounds[1] >= bounds[0])
    for m, n, budget, symmetric, outer, inner in GOLDEN["budgets"].tolist():
        found = hessian.prio_hpars((m, n), budget, symmetric=bool(symmetric))
        assert found == (outer, inner)
        rows = m if symmetric else m + n
        assert outer * rows + inner**2 <= budget
        assert inner >= 2 * outer


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hessian.post_bounds(0, 0.5), "n must be"),
        (lambda: hessian.post_bounds(30, 1.5), r"error must be a number in \[0, 1\]"),
        (lambda: hessian.scree(jnp.array([1.0, 2.0]), 1, 1), "descending magnitude"),
        (lambda: hessian.prio_hpars((3, 4), 100, symmetric=True), "must be square"),
        (lambda: hessian.prio_hpars((30, 40), 5), "budget must be enough"),
    ],
)
def test_wrong_arguments_of_errors_are_named(call, message, unchecked):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_check_tells_what_is_wrong_with_an_operator():
    assert check_operator(hessian.Dense(np.diag([1.0, -2.0, 3.0]), symmetric=True))["ok"]
    askew = check_operator(hessian.Dense(np.triu(random(6, 6))))
    assert not askew["ok"]
    assert askew["asymmetry"] > 0.1
    infinite = check_operator(hessian.Dense(np.full((3, 3), np.inf)))
    assert not infinite["finite"]
    calls = []
    moving = hessian.Function(
        lambda X: calls.append(0) or X * (1 + len(calls)), (4, 4), jnp.float64, True
    )
    assert not check_operator(moving)["deterministic"]


def test_nothing_warns_where_a_hessian_is_decomposed():
    params, data = network()
    H = hessian.hvp_operator(loss, params, data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = hessian.seigh(H, KEY, 10, 20)
        hessian.seigh(H, KEY, 10, recovery="hmt")
        hessian.block_lanczos(H, KEY, 10)
    np.testing.assert_array_less(np.diff(np.abs(found.values)), 1e-15)
