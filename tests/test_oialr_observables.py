"""Stability of bases and similarity of mixing matrices, histories, reports, counts."""

import builtins
import csv
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensorgrad_jax import oialr
from tensorgrad_jax.oialr.kernels import kernels_of, to_be_factored, working_layers
from tensorgrad_jax.oialr.observables import mixing, polar_factor, r_similarity, stability
from tensorgrad_jax.oialr.trees import low_rank


def normal(*shape, seed=0, dtype=np.float64):
    draw = np.random.default_rng(seed).normal
    x = draw(size=shape)
    return jnp.asarray(x + 1j * draw(size=shape) if dtype == np.complex128 else x, dtype)


def orthogonal(n, seed):
    return jnp.linalg.qr(normal(n, n, seed=seed))[0]


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
@pytest.mark.parametrize(("shape", "rows"), [((12, 7), 1), ((7, 12), 1), ((2, 3, 4, 9), 3)])
def test_polar_factor_is_u_vt(shape, rows, dtype):
    w = normal(*shape, dtype=dtype)
    u, _, vt = np.linalg.svd(np.asarray(w).reshape(np.prod(shape[:rows]), -1), full_matrices=False)
    np.testing.assert_allclose(polar_factor(w, rows), u @ vt, atol=1e-12)


@pytest.mark.usefixtures("double")
def test_polar_factor_of_a_badly_conditioned_matrix():
    u, v = orthogonal(10, 1), orthogonal(6, 2)
    sigma = jnp.array([1, 0.3, 1e-2, 1e-3, 1e-4, 2e-6])
    np.testing.assert_allclose(polar_factor((u[:, :6] * sigma) @ v.T), u[:, :6] @ v.T, atol=1e-10)
    lost = (u[:, :4] * sigma[:4]) @ v[:, :4].T
    np.testing.assert_allclose(polar_factor(lost), u[:, :4] @ v[:, :4].T, atol=1e-8)
    assert not polar_factor(jnp.zeros((4, 3))).any()


@pytest.mark.usefixtures("double")
def test_stability_is_the_mean_cosine_of_columns():
    a, b = polar_factor(normal(12, 7)), polar_factor(normal(12, 7, seed=1))
    norm = lambda x: x / jnp.linalg.norm(x, axis=0)
    cosines = (norm(a) * norm(b)).sum(0)
    np.testing.assert_allclose(stability(a, b), cosines.mean(), atol=1e-12)
    np.testing.assert_allclose(stability(a, b), jnp.trace(a.T @ b) / 7, atol=1e-12)


@pytest.mark.usefixtures("double")
def test_stability_does_not_see_scales_and_joint_rotations():
    w, other = normal(9, 9), normal(9, 9, seed=1)
    of = lambda w, v: float(stability(polar_factor(w), polar_factor(v)))
    np.testing.assert_allclose(of(w, w), 1, atol=1e-12)
    np.testing.assert_allclose(of(w, -w), -1, atol=1e-12)
    np.testing.assert_allclose(of(w, 7 * w), 1, atol=1e-12)
    left, right = orthogonal(9, 2), orthogonal(9, 3)
    np.testing.assert_allclose(of(left @ w, left @ other), of(w, other), atol=1e-12)
    np.testing.assert_allclose(of(w @ right, other @ right), of(w, other), atol=1e-12)
    np.testing.assert_allclose(of(w.T, other.T), of(w, other), atol=1e-12)
    # Another mixing of the same basis: what stability is there to not see.
    u, sigma, vt = jnp.linalg.svd(w)
    np.testing.assert_allclose(of(w, (u * sigma[::-1]) @ vt), 1, atol=1e-12)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("shape", [(12, 7), (7, 12)])
def test_mixing_is_the_r_with_a_positive_diagonal(shape):
    w = normal(*shape)
    r = mixing(w)
    tall = w if shape[0] > shape[1] else w.T
    assert (jnp.diagonal(r) > 0).all()
    np.testing.assert_allclose(r.T @ r, tall.T @ tall, atol=1e-12)
    left = orthogonal(12, 4)
    np.testing.assert_allclose(mixing(left @ tall), r, atol=1e-12)
    same = r_similarity(r, r)
    assert float(same.similarity) == 1
    away = r_similarity(r, 2 * r)
    np.testing.assert_allclose(away.similarity, 0.5, atol=1e-12)
    np.testing.assert_allclose(away.distance, jnp.linalg.norm(r), atol=1e-12)
    np.testing.assert_allclose(away.columns, jnp.linalg.norm(r, axis=0), atol=1e-12)


def params(seed=0):
    return {
        "first": {"kernel": normal(8, 6, seed=seed, dtype=np.float32), "bias": jnp.ones(6)},
        "second": {"kernel": normal(3, 3, 2, 5, seed=seed + 1, dtype=np.float32)},
        "table": {"embedding": normal(30, 4, dtype=np.float32)},
    }


def test_a_history_compares_records_and_writes_tables_and_pictures(tmp_path):
    history = oialr.History(lag=2)
    trees = [params(0), params(10), params(0), params(20)]
    assert history.record(0, trees[0]) is None
    assert history.record(5, trees[1]) is None
    same = history.record(10, trees[2])
    assert same is not None
    np.testing.assert_allclose(list(same.stability.values()), 1, atol=1e-5)
    np.testing.assert_allclose(list(same.r_similarity.values()), 1, atol=1e-5)
    history.record(15, trees[3])
    files = oialr.stability_report(history, tmp_path / "report", title="a model")
    assert sorted(f.name for f in files) == [
        "r_distance.csv", "r_similarity.csv", "r_similarity.png", "stability.csv", "stability.png",
    ]  # fmt: skip
    with open(tmp_path / "report" / "stability.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [r["step"] for r in rows] == ["10", "15"]
    assert list(rows[0]) == ["step", "first.kernel", "second.kernel", "mean"]
    expected = stability(
        polar_factor(trees[1]["second"]["kernel"], 3), polar_factor(trees[3]["second"]["kernel"], 3)
    )
    np.testing.assert_allclose(float(rows[1]["second.kernel"]), float(expected), atol=1e-5)
    columns = [float(rows[1][k]) for k in ("first.kernel", "second.kernel")]
    np.testing.assert_allclose(float(rows[1]["mean"]), np.mean(columns), atol=1e-5)


def test_a_history_sees_the_same_of_low_rank_kernels():
    dense, history = params(), oialr.History()
    cores, bases = low_rank(dense, keep_last_layer=False)
    history.record(0, dense)
    row = history.record(1, cores, bases)
    assert row is not None
    np.testing.assert_allclose(list(row.stability.values()), 1, atol=1e-5)


def test_reports_without_pictures_do_not_need_matplotlib(tmp_path, monkeypatch):
    history = oialr.History()
    for step in range(2):
        history.record(step, params(step))
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.delitem(sys.modules, "tensorgrad_jax.oialr.heat_map", raising=False)
    assert len(oialr.stability_report(history, tmp_path, images=False)) == 3
    with pytest.raises(ImportError, match=r"tensorgrad-jax\[train\]"):
        oialr.stability_report(history, tmp_path)


def test_what_a_history_refuses(tmp_path):
    with pytest.raises(ValueError, match="lag must be an integer"):
        oialr.History(lag=0)
    with pytest.raises(ValueError, match="no parameter is a kernel"):
        oialr.History().record(0, {"bias": jnp.ones(3)})
    with pytest.raises(ValueError, match="no rows"):
        oialr.stability_report(oialr.History(), tmp_path)
    with pytest.raises(ValueError, match="can have 1 to 1 axes as rows, got 2"):
        oialr.History(kernels=lambda name, leaf: 2).record(0, {"w": jnp.ones((2, 2))})


def test_counts_of_parameters():
    dense = params()
    n = sum(x.size for x in jax.tree.leaves(dense))
    before = oialr.param_report(dense)
    assert (before.dense, before.trainable, before.stored) == (n, n, n)
    assert (before.trainable_percent, before.stored_percent) == (100, 100)
    cores, bases = low_rank(dense, keep_last_layer=False, inner_dim_init_ratio=0.5, bucket=4)
    report = oialr.param_report(cores, bases)
    assert report.ranks == {"first.kernel": 3, "second.kernel": 2}
    others = 6 + 120
    assert report.trainable == others + 9 + 4
    assert report.stored == others + (16 + 8 * 4 + 4 * 6) + (16 + 18 * 4 + 4 * 5)
    assert report.dense == n
    assert "2 layers of ranks 2 to 3" in str(report)


def test_which_kernels_become_low_rank():
    shapes = {"a": (64, 6), "b": (64, 7), "c": (3, 3, 2, 300), "d": (3, 3, 40, 8), "e": (7, 64)}
    leaves = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    kernels = kernels_of(leaves)
    # 6 is below 64/10; 18 inputs of a window are below 300/10; 8 outputs of 360 are not too few.
    chosen = lambda **k: to_be_factored(shapes, kernels, **k)
    assert chosen(keep_last_layer=False) == ["b", "d", "e"]
    assert chosen() == ["b", "d"]
    assert chosen(keep_first_layer=True) == ["d"]
    with pytest.raises(ValueError, match="no layer can become low-rank: of 1 kernels"):
        to_be_factored({"b": (8, 8)}, {"b": kernels["b"]})


def test_which_layers_a_check_looks_at():
    names = list("abcdefghijkl")
    sizes = [len(working_layers(names, j, 0.1)) for j in range(1, 12)]
    assert sizes == [2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 12]
    assert working_layers(names, 1, 0.1) == ["k", "l"]
    assert [len(working_layers(names[:10], j, 0.1)) for j in (1, 2, 3)] == [1, 2, 3]
    # The original's: floor(.1 * 11) = 1 more at every check, but all if there are at most 10.
    assert [len(working_layers(names, j, 0.1, legacy=True)) for j in (1, 2)] == [1, 2]
    assert len(working_layers(names[:10], 1, 0.1, legacy=True)) == 10
    assert len(working_layers(names, 3, 1.0)) == 12
