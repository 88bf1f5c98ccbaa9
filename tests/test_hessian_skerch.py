"""Decompositions and files beside those of skerch 1.2: see golden/make_skerch.py."""

import pathlib
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensorgrad_jax import hessian
from tensorgrad_jax.hessian import layout
from tensorgrad_jax.hessian.cores import core_of, eigh_of_core, nystrom, singlepass
from tensorgrad_jax.hessian.eigenpairs import eigh_in_basis
from tensorgrad_jax.hessian.layout import LayoutError
from tensorgrad_jax.hessian.measuring import reset
from tensorgrad_jax.hessian.orthogonal import factored, orthonormal

HERE = pathlib.Path(__file__).parent
GOLDEN = np.load(HERE / "golden" / "skerch.npz")
KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def dense(found):
    return np.asarray(found.operator().mm(jnp.eye(found.Q.shape[0])))


def symmetrised(A):
    return (A + A.T) / 2


@pytest.mark.parametrize("kind", ["positive", "indefinite"])
def test_recoveries_are_those_of_skerch_for_its_own_random_vectors(kind):
    A, V, right, left = (jnp.asarray(GOLDEN[n]) for n in (kind, "V", "right", "left"))
    Y = A @ V
    Q, R = factored(Y)
    M = left @ (A @ right)
    found = {
        "hmt": eigh_in_basis(Q, Q.T @ A @ Q),
        "singlepass": singlepass(Y, Q, R, V.T @ Q),
        "oversampled": eigh_of_core(Q, M, left @ Q, right.T @ Q),
    }
    if kind == "positive":
        found["nystrom"] = nystrom(Y, V)
    for recovery, ours in found.items():
        expected = symmetrised(GOLDEN[f"{kind}_{recovery}"])
        np.testing.assert_allclose(dense(ours), expected, atol=1e-10, err_msg=recovery)


def test_nystrom_of_an_indefinite_matrix_is_that_of_skerch_where_nothing_is_lost():
    A, V = (jnp.asarray(GOLDEN[n]) for n in ("indefinite", "V"))
    ours = dense(nystrom(A @ V, V))
    np.testing.assert_allclose(ours, GOLDEN["indefinite_nystrom"], atol=1e-8)


def test_the_core_of_any_operator_is_that_of_skerch():
    B, V, right, left = (jnp.asarray(GOLDEN[n]) for n in ("general", "V", "right", "left"))
    Q, P = orthonormal(B @ V), orthonormal((GOLDEN["general_left"] @ B).T)
    C = core_of(left @ (B @ right), left @ Q, right.T @ P)
    np.testing.assert_allclose(Q @ C @ P.T, GOLDEN["general_oversampled"], atol=1e-10)


def test_bounds_are_those_of_skerch():
    for n, error, is_complex, low, high in GOLDEN["bounds"].tolist():
        found = hessian.post_bounds(int(n), error, is_complex=bool(is_complex))
        np.testing.assert_allclose(found, (low, high), rtol=1e-12)


def of_its_tests(m, n, rank, dtype, *, symmetric, decay=100.0):
    """`RandomLordMatrix.exp`: `rank` singular values of one, then 10 to the -decay, -2 decay, ...

    Its tests take a decay of 100: the rank is exact. Eigenvalues have both signs.
    """
    rng = np.random.default_rng((m, n, rank))
    draw = lambda rows: rng.standard_normal((rows, min(m, n)))
    if np.issubdtype(dtype, np.complexfloating):
        real, draw = draw, lambda rows: real(rows) + 1j * real(rows)
    after = np.arange(1, min(m, n) - rank + 1)
    values = np.concatenate([np.ones(rank), 10.0 ** -np.minimum(decay * after, 300)])
    U = np.linalg.qr(draw(m))[0]
    if symmetric:
        values = values * rng.choice([-1, 1], len(values))
    V = U if symmetric else np.linalg.qr(draw(n))[0]
    return ((U * values) @ V.conj().T).astype(dtype)


def check(A, U, values, V, tolerance):
    """What its tests ask: residual, both bases, values by magnitude, dtypes."""
    U, values, V = map(np.asarray, (U, values, V))
    np.testing.assert_allclose((U * values) @ V.conj().T, A, atol=tolerance)
    for basis in (U, V):
        np.testing.assert_allclose(basis.conj().T @ basis, np.eye(len(values)), atol=tolerance)
    assert np.all(np.diff(np.abs(values)) <= 0)
    assert (U.dtype, values.dtype) == (A.dtype, A.real.dtype)


NOISES = ("rademacher", "gaussian", "srft", "phase")


@pytest.mark.parametrize(("dtype", "tolerance"), [
    (np.float32, 1e-3), (np.complex128, 3e-8),
    pytest.param(np.complex64, 1e-3, marks=pytest.mark.thorough),
    pytest.param(np.float64, 3e-8, marks=pytest.mark.thorough),
])  # fmt: skip
def test_its_tests_of_eigenvalues_hold(dtype, tolerance):
    """Rank 5 of 30 dimensions, 15 outer and 20 inner products, eigenvalues of both signs."""
    A = of_its_tests(30, 30, 5, dtype, symmetric=True)
    operator = hessian.Dense(A, symmetric=True)
    for noise in NOISES if np.iscomplexobj(A) else NOISES[:-1]:
        for found in (
            hessian.seigh(operator, KEY, 15, 20, noise=noise),
            *(
                hessian.seigh(operator, KEY, 15, recovery=recovery, noise=noise, psd=True)
                for recovery in ("hmt", "singlepass", "nystrom")
            ),
            hessian.block_lanczos(operator, KEY, 15, 20, block_size=5, noise=noise),
        ):
            check(A, found.vectors(), found.values, found.vectors(), tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-3), (np.complex128, 3e-8)])
@pytest.mark.parametrize(("m", "n"), [(20, 30), (30, 20)])
def test_its_tests_of_singular_values_hold(m, n, dtype, tolerance):
    A = of_its_tests(m, n, 5, dtype, symmetric=False)
    for noise in NOISES if np.iscomplexobj(A) else NOISES[:-1]:
        found = hessian.ssvd(hessian.Dense(A), KEY, 15, 20, noise=noise)
        check(A, found.left(), found.values, found.right(), tolerance)


@pytest.mark.parametrize(("decay", "tolerance"), [(0.05, 0.02), (0.1, 0.05)])
def test_its_tests_of_scree_bounds_hold(decay, tolerance):
    """Ten products estimate the error of rank 20, found from 40; the matrix is 200 x 200."""
    A = 123 * of_its_tests(200, 200, 10, np.float64, symmetric=False, decay=decay)
    exact = np.linalg.svd(A, compute_uv=False)
    tails = np.cumsum(exact[::-1] ** 2)[::-1][:20] / np.sum(exact**2)
    operator = hessian.Dense(A)
    found = hessian.ssvd(operator, KEY, 40, 80)
    error = hessian.a_posteriori_error(operator, found, jax.random.key(1), 10, [20])
    norm, rest = np.sqrt(error.operator), np.sqrt(error.difference[0])
    lower, upper = hessian.scree(found.values[:20], norm, rest)
    assert np.all(upper - tails >= -tolerance)
    assert np.all(tails - lower >= -tolerance)
    assert np.all(np.diff(lower) <= 0)
    assert np.all(np.diff(upper) <= 0)
    assert np.all(np.diff(upper - lower) <= 0)


def test_directions_that_rounding_chose_do_not_spoil_a_single_pass():
    """Rank 5 from 12 columns, and a basis whose rest is orthogonal to the noise."""
    A = jnp.asarray(of_its_tests(40, 40, 5, np.float64, symmetric=True))
    V = jnp.asarray(np.random.default_rng(0).standard_normal((40, 12)))
    Y = A @ V
    inside = orthonormal(Y[:, :5])
    rest = np.linalg.svd(np.concatenate([inside, V], 1).T)[2][-7:].T
    Q = jnp.concatenate([inside, rest], 1)
    assert jnp.linalg.cond(V.T @ Q) > 1e12
    found = singlepass(Y, Q, Q.T @ Y, V.T @ Q)
    np.testing.assert_allclose(dense(found), A, atol=1e-12)


@pytest.fixture
def rows(tmp_path):
    with zipfile.ZipFile(HERE / "golden" / "skerch_rows.zip") as archive:
        archive.extractall(tmp_path)
    return tmp_path


@pytest.mark.parametrize("part", ["1", "2"])
def test_its_layouts_by_rows_are_refused_and_left_as_they_are(rows, part):
    before = {path.name: path.read_bytes() for path in (rows / part).iterdir()}
    for kind in ("leftouter", "inner"):
        with pytest.raises(LayoutError, match="is not one column; layouts split by columns are"):
            layout.merge(rows / part / f"{kind}_ALL.h5", rows / part / "merged.h5")
    with pytest.raises(LayoutError, match="is not one column"):
        reset(rows / part)
    assert {path.name: path.read_bytes() for path in (rows / part).iterdir()} == before
