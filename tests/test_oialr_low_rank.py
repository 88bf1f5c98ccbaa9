"""Cores between frozen bases: what a check does to a weight and to moments, and the rank rule."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensorgrad_jax.oialr.low_rank import (
    LowRank,
    as_matrix,
    cut,
    cut_rank,
    factor,
    reconstruct,
    resized,
    rotate,
    transport,
    transport_squares,
)
from tensorgrad_jax.oialr.rank_rule import new_rank

PEER = np.load(pathlib.Path(__file__).parent / "golden" / "oialr.npz")
LAYERS = ("tall", "wide", "square", "conv2", "conv2_stride", "conv1")


def normal(*shape, seed=0, dtype=np.float64):
    draw = np.random.default_rng(seed).normal
    x = draw(size=shape)
    return jnp.asarray(x + 1j * draw(size=shape) if dtype == np.complex128 else x, dtype)


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(
    ("sigma", "rank", "full", "fraction", "expected"),
    [
        ([1, 1, 1, 1], 4, 4, 0.1, 4),  # all equal: none is below
        ([1, 0.5, 0.2, 0.1], 4, 4, 0.1, 4),  # at the cutoff is not below it
        ([1, 0.5, 0.2, 0.09], 4, 4, 0.1, 3),
        ([1, 0.5, 0.09, 0.01], 4, 4, 0.1, 2),
        ([1, 0.01, 0, 0], 4, 4, 0.1, 2),  # one large: half of them stay
        ([1, 0.01, 0, 0, 0], 5, 5, 0.1, 2),  # floor of the half
        ([1, 0.01], 2, 2, 0.1, 1),
        ([3], 1, 8, 0.5, 1),  # rank 1 stays
        ([0, 0, 0], 3, 3, 0.1, 3),  # zeros are not below zero
        ([1, 0.5, 0.2, 0.01], 4, 4, 0.0, 4),
        ([1, 0.01, 0.01, 0.01, 0.01, 0, 0, 0], 5, 8, 0.1, 2),  # what is dead does not count
        ([1] + [0.01] * 7, 8, 400, 0.1, 4),  # half of 8 is not above the 1%, which is 4
        ([1] + [0.01] * 5, 6, 400, 0.1, 4),
        ([1, 0.9, 0.9, 0.9, 0.9, 0.01], 6, 400, 0.1, 5),
        ([1, 0.01, 0.01], 3, 1000, 0.1, 3),  # the 1% is above the rank: it never grows
    ],
)
def test_rank_rule(sigma, rank, full, fraction, expected):
    rule = jax.jit(new_rank, static_argnums=(2, 3))
    assert int(rule(jnp.asarray(sigma, jnp.float32), rank, full, fraction)) == expected


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_those_of_the_original(name):
    """Ranks of four checks, and the weight behind each, to the round-off of its float32."""
    read = lambda key: jnp.asarray(PEER[f"{name}/{key}"], jnp.float64)
    x = factor(read("weight"))
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6 * np.linalg.norm(b), rtol=0)
    close(reconstruct(x), read("weight"))
    for i in range(4):
        x = x.with_core(x.U.T @ as_matrix(read(f"before/{i}"), 1) @ x.Vt.T)
        x, _, _ = jax.jit(cut_rank, static_argnums=1)(x, 0.3)
        assert int(x.rank) == int(PEER[f"{name}/rank/{i}"])
        close(reconstruct(x), read(f"weight/{i}"))


@pytest.mark.parametrize("name", ["conv2", "conv2_stride", "conv1"])
def test_convolutions_are_those_of_the_original(name):
    with jax.enable_x64(False):
        kernel = reconstruct(factor(jnp.asarray(PEER[f"{name}/weight/3"])))
        dims = kernel.ndim - 2
        strides, padding = ([2] * dims, 1) if "stride" in name else ([1] * dims, 0)
        y = jax.lax.conv_general_dilated(
            jnp.asarray(PEER[f"{name}/x"]), kernel, strides, [(padding, padding)] * dims
        )
        np.testing.assert_allclose(y, PEER[f"{name}/y"], atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
@pytest.mark.parametrize(("shape", "rows"), [((9, 5), 1), ((5, 9), 1), ((3, 2, 4, 5), 3)])
def test_rotation_leaves_the_weight(shape, rows, dtype):
    x = factor(normal(*shape, dtype=dtype), rows)
    x = cut(x, 4)
    x = x.with_core(jnp.zeros_like(x.S).at[:4, :4].set(normal(4, 4, seed=1, dtype=dtype)))
    y, (P, Q), sigma = rotate(x)
    np.testing.assert_allclose(reconstruct(y), reconstruct(x), atol=1e-12)
    np.testing.assert_allclose(y.S, jnp.diag(sigma), atol=1e-12)
    np.testing.assert_allclose(P.conj().T @ x.S @ Q, y.S, atol=1e-12)
    assert (np.diff(sigma[:4]) <= 0).all()
    for basis in (y.U, y.Vt.conj().T):
        gram = basis.conj().T @ basis
        np.testing.assert_allclose(gram, np.diag([1, 1, 1, 1, 0]), atol=1e-12)


def test_rotation_of_a_core_that_has_lost_rank_does_not_reach_what_is_dead():
    x = cut(factor(normal(8, 6)), 4)
    x = x.with_core(jnp.zeros((6, 6)).at[:2, :2].set(normal(2, 2, seed=1)))
    y, _, _ = rotate(x)
    np.testing.assert_allclose(y.U.T @ y.U, np.diag([1, 1, 1, 1, 0, 0]), atol=1e-12)
    zero, _, sigma = rotate(x.with_core(jnp.zeros((6, 6))))
    np.testing.assert_allclose(zero.U.T @ zero.U, np.diag([1, 1, 1, 1, 0, 0]), atol=1e-12)
    assert not sigma.any()


def test_a_core_with_a_number_that_is_not_finite_stays():
    x = factor(normal(6, 5))
    x = x.with_core(x.S.at[1, 2].set(jnp.nan))
    y, (P, Q), _ = cut_rank(x, 0.1)
    jax.tree.map(np.testing.assert_array_equal, x, y)
    np.testing.assert_array_equal(P, np.eye(5))
    np.testing.assert_array_equal(Q, np.eye(5))


@pytest.mark.parametrize("ratio", [0.25, 0.5, 1.0])
def test_factor_with_a_ratio_is_the_truncated_decomposition(ratio):
    w = normal(12, 8)
    u, s, vt = np.linalg.svd(np.asarray(w), full_matrices=False)
    k = int(8 * ratio)
    x = factor(w, ratio=ratio)
    np.testing.assert_allclose(reconstruct(x), (u[:, :k] * s[:k]) @ vt[:k], atol=1e-12)
    assert x.size == k
    assert factor(w, ratio=ratio, bucket=3).size == min(8, 3 * -(-k // 3))
    assert factor(w, ratio=0.01).size == 1


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
def test_masked_training_is_training_with_slices(dtype):
    """The gradient of a core outside its block is zero, and within that of the small core."""
    w, target = normal(9, 7, dtype=dtype), normal(9, 7, seed=1, dtype=dtype)
    masked = cut(factor(w), 3)
    sliced = resized(masked, 3)

    def gradient(x):
        loss = lambda S: jnp.sum(jnp.abs(reconstruct(x.with_core(S)) - target) ** 2)
        return jax.grad(loss)(x.S)

    large, small = gradient(masked), gradient(sliced)
    np.testing.assert_allclose(large[:3, :3], small, atol=1e-12)
    assert not large[3:].any()
    assert not large[:, 3:].any()
    error = 2 * (reconstruct(sliced) - target).conj()
    np.testing.assert_allclose(small, sliced.U.T @ error @ sliced.Vt.T, atol=1e-12)


def test_moments_are_carried_as_gradients_are():
    """An average of gradients of W becomes that of gradients of S; of squares, their mass stays."""
    x = factor(normal(7, 7))
    gradients = normal(20, 7, 7, seed=1)
    m, v = gradients.mean(0), (gradients**2).mean(0)
    V = x.Vt.T
    to_core = lambda g: x.U.T @ g @ V
    expected = jnp.stack([to_core(g) for g in gradients])
    np.testing.assert_allclose(transport(m, x.U, V), expected.mean(0), atol=1e-12)
    carried = transport_squares(v, x.U, V)
    np.testing.assert_allclose(carried.sum(), v.sum(), rtol=1e-12)
    assert (carried > 0).all()
    many = normal(4000, 7, 7, seed=2) * jnp.abs(normal(7, 7, seed=3))
    mean = lambda g: (g**2).mean(0)
    of_many = transport_squares(mean(many), x.U, V)
    np.testing.assert_allclose(of_many, mean(jax.vmap(to_core)(many)), rtol=0.15)


def test_a_low_rank_kernel_is_a_node_of_a_tree():
    x = factor(normal(6, 4))
    assert len(jax.tree.leaves({"a": x, "b": x.without_core()})) == 7
    doubled = jax.jit(lambda x: jax.tree.map(lambda y: 2 * y, x))(x)
    assert isinstance(doubled, LowRank)
    np.testing.assert_allclose(reconstruct(doubled), 8 * reconstruct(x), rtol=1e-12)
    assert x.full_rank == 4
