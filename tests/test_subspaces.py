"""Angles and distances of subspaces keep their closed forms and identities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from tensorgrad_jax import subspaces as sub

D, K = 60, 7


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def basis(seed, k=K, complex_=False):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((D, k))
    x = x + 1j * rng.standard_normal((D, k)) if complex_ else x
    return jnp.asarray(np.linalg.qr(x)[0])


def at_angles(angles):
    """Two bases with these principal angles."""
    Q = np.asarray(basis(5, 2 * len(angles)))
    A, rest = Q[:, : len(angles)], Q[:, len(angles) :]
    return jnp.asarray(A), jnp.asarray(A * np.cos(angles) + rest * np.sin(angles))


@pytest.mark.parametrize("complex_", [False, True])
@pytest.mark.parametrize("k", [K, 4])
def test_angles_are_those_of_scipy(complex_, k):
    A, B = basis(0, complex_=complex_), basis(1, k, complex_)
    expected = np.sort(scipy.linalg.subspace_angles(np.asarray(A), np.asarray(B)))
    np.testing.assert_allclose(sub.principal_angles(A, B), expected, atol=1e-12)
    np.testing.assert_allclose(sub.principal_angles(B, A), expected, atol=1e-12)


def test_small_angles_keep_their_digits():
    angles = np.array([1e-12, 1e-7, 0.3, 1.2, np.pi / 2])
    A, B = at_angles(angles)
    np.testing.assert_allclose(sub.principal_angles(A, B), angles, rtol=1e-3, atol=1e-13)
    A, B = at_angles(np.full(3, 1e-8))
    np.testing.assert_allclose(sub.fubini_study(A, B), np.sqrt(3) * 1e-8, rtol=1e-6)


@pytest.mark.parametrize("complex_", [False, True])
def test_distances_are_their_functions_of_the_angles(complex_):
    A, B = basis(2, complex_=complex_), basis(3, complex_=complex_)
    t = np.asarray(sub.principal_angles(A, B))
    for value, expected in (
        (sub.overlap(A, B), np.mean(np.cos(t) ** 2)),
        (sub.geodesic(A, B), np.linalg.norm(t)),
        (sub.chordal(A, B), np.linalg.norm(2 * np.sin(t / 2))),
        (sub.chordal(A, B, "largest"), 2 * np.sin(t.max() / 2)),
        (sub.projection(A, B), np.linalg.norm(np.sin(t))),
        (sub.projection(A, B, "largest"), np.sin(t.max())),
        (sub.fubini_study(A, B), np.arccos(np.prod(np.cos(t)))),
        (sub.overlap(A, B), 1 - sub.projection(A, B) ** 2 / K),
        (sub.projection(A, B) * np.sqrt(2), np.linalg.norm(A @ A.conj().T - B @ B.conj().T)),
    ):
        np.testing.assert_allclose(value, expected, atol=1e-12)


def test_equal_and_orthogonal_spaces_lie_at_the_ends_of_all_ranges():
    Q = basis(4, 2 * K)
    A, B = Q[:, :K], Q[:, K:]
    rotated = A @ jnp.linalg.qr(jax.random.normal(jax.random.key(0), (K, K), jnp.float64))[0]
    ends = {
        sub.overlap: (1, 0),
        sub.geodesic: (0, np.pi * np.sqrt(K) / 2),
        sub.chordal: (0, np.sqrt(2 * K)),
        sub.projection: (0, np.sqrt(K)),
        sub.fubini_study: (0, np.pi / 2),
    }
    for function, (same, apart) in ends.items():
        np.testing.assert_allclose(function(A, rotated), same, atol=1e-7)
        np.testing.assert_allclose(function(A, B), apart, atol=1e-7)


def test_many_angles_leave_fubini_study_finite_where_the_product_underflows():
    A, B = at_angles(np.full(30, 1.5))
    assert np.prod(np.cos(np.full(30, 1.5))) < 1e-30
    np.testing.assert_allclose(sub.fubini_study(A, B), np.pi / 2, atol=1e-12)


def test_masks_are_bases_of_coordinates():
    A, indices = basis(6), jnp.array([3, 11, 40, 59, 0])
    dense = jnp.eye(D)[:, indices]
    np.testing.assert_allclose(sub.overlap_with_mask(A, indices), sub.overlap(A, dense), atol=1e-14)
    first, second = jnp.array([1, 2, 3, 4]), jnp.array([3, 4, 5, 6])
    shared = sub.overlap(jnp.eye(D)[:, first], jnp.eye(D)[:, second])
    np.testing.assert_allclose(sub.iou(first, second), shared / (2 - shared))
    np.testing.assert_allclose(sub.iou(first, second), 2 / 6)


def test_overlaps_for_all_k_at_once_are_those_one_by_one():
    Q, Z = basis(7, 9), jnp.linalg.qr(jax.random.normal(jax.random.key(1), (9, 9), jnp.float64))[0]
    ranking = jnp.asarray(np.random.default_rng(0).permutation(D)[:9])
    expected = [np.sum(np.asarray(Q @ Z)[ranking[:k], :k] ** 2) for k in range(1, 10)]
    np.testing.assert_allclose(sub.overlaps_with_ranking(Q, Z, ranking), expected, atol=1e-14)


def test_chance_is_k_over_the_dimension():
    """validation/subspaces.py has more of it, in 1,000 dimensions."""
    rng = np.random.default_rng(0)
    for k in (20, 120, 320):
        A, B = (jnp.asarray(np.linalg.qr(rng.standard_normal((400, k)))[0]) for _ in range(2))
        assert abs(float(sub.overlap(A, B)) - k / 400) < 0.01
        mask = jnp.asarray(rng.permutation(400)[:k])
        assert abs(float(sub.overlap_with_mask(A, mask)) - k / 400) < 0.02


def test_stability_compares_bases_column_by_column():
    A = basis(8)
    rotation = jnp.linalg.qr(jax.random.normal(jax.random.key(2), (K, K), jnp.float64))[0]
    np.testing.assert_allclose(sub.stability(A, A), 1)
    np.testing.assert_allclose(sub.stability(A, -A), -1)
    np.testing.assert_allclose(sub.stability(A @ rotation, A @ rotation), 1)
    np.testing.assert_allclose(sub.stability(A, A @ rotation), jnp.trace(rotation) / K)


def test_stability_of_partial_isometries_counts_what_they_have():
    lacking = basis(8) @ jnp.diag(jnp.arange(K) < K - 2).astype(jnp.float64)
    np.testing.assert_allclose(sub.stability(lacking, lacking), 1)
    np.testing.assert_allclose(sub.stability(lacking, basis(8)), np.sqrt((K - 2) / K))
    assert sub.stability(lacking, jnp.zeros_like(lacking)) == 0


def test_there_is_one_stability():
    from tensorgrad_jax import oialr

    assert oialr.stability is sub.stability


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sub.overlap(basis(0), jnp.ones((3, 2))), "matrices of as many rows"),
        (lambda: sub.principal_angles(jnp.ones(3), jnp.ones(3)), "matrices of as many rows"),
        (lambda: sub.stability(basis(0), basis(1, 3)), "one shape"),
        (lambda: sub.chordal(basis(0), basis(1), "two"), "norm must be"),
        (
            lambda: sub.overlaps_with_ranking(basis(0), jnp.eye(K), jnp.arange(3)),
            "one coordinate per column",
        ),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
