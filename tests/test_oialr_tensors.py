"""Spectral weights between frozen Tucker factors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tensorgrad_jax.models import FNO, tensor_specs

import tensorgrad_jax as tg
from tensorgrad_jax import oialr
from tensorgrad_jax.oialr.kernels import spectral
from tensorgrad_jax.oialr.tensors import ModesChange, factor_tensor
from tensorgrad_jax.oialr.trees import lift

SHARES = (1.0, 0.8, 0.5, 0.5)
SHAPE = (2, 4, 5, 8, 6)
OPTIMIZERS = {
    "adamw": optax.adamw(3e-3),
    "tensor_muon": tg.tensor_muon(3e-3, None, specs=tensor_specs),
}


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_a_factored_tensor_is_its_projection():
    x = factor_tensor(normal(*SHAPE), SHARES)
    assert x.size == [4, 4, 4, 3] == x.rank.tolist()
    assert x.factors[0] is None
    for u in x.factors[1:]:
        np.testing.assert_allclose(u.T @ u, np.eye(u.shape[1]), atol=1e-6)
    w = x.weight()
    assert w.shape == SHAPE
    np.testing.assert_allclose(factor_tensor(w, SHARES).weight(), w, atol=1e-5)
    assert jnp.linalg.norm(w - normal(*SHAPE)) < jnp.linalg.norm(normal(*SHAPE))


def test_the_core_gets_the_gradient_in_the_factors():
    x, target = factor_tensor(normal(*SHAPE), SHARES), normal(*SHAPE, seed=1)
    loss = lambda core: jnp.sum((x.with_core(core).weight() - target) ** 2)
    error = 2 * (x.weight() - target)
    expected = ModesChange(tuple(x.factors)).linear(error)
    np.testing.assert_allclose(jax.grad(loss)(x.S), expected, atol=1e-4)


def test_a_check_turns_factors_and_cuts():
    x = factor_tensor(normal(*SHAPE), SHARES)
    x = x.with_core(normal(*x.S.shape, seed=2))
    same, change = x.cut_rank(0.0)
    np.testing.assert_allclose(same.weight(), x.weight(), atol=1e-5)
    np.testing.assert_allclose(change.linear(x.S), same.S, atol=1e-6)
    for axis in (2, 3, 4):  # the core's unfoldings have orthogonal rows, the largest first
        rows = jnp.moveaxis(same.S, axis, 0).reshape(same.S.shape[axis], -1)
        gram = rows @ rows.T
        np.testing.assert_allclose(gram, jnp.diag(jnp.diagonal(gram)), atol=1e-4)
        assert (np.diff(jnp.diagonal(gram)) <= 1e-4).all()
    # What fades along the last axis is cut there, at most half at once, and stays away.
    fading = x.with_core(x.S * jnp.array([1, 1e-2, 1e-3]))
    small, _ = fading.cut_rank(0.3)
    assert small.rank.tolist()[-1] == 1
    assert not small.S[..., 1:].any()
    assert small.shrunk(1).size[-1] == 1
    np.testing.assert_allclose(small.shrunk(1).weight(), small.weight(), atol=1e-5)
    error = jnp.linalg.norm(small.weight() - fading.weight())
    assert error < 0.05 * jnp.linalg.norm(fading.weight())
    again, _ = small.cut_rank(0.3)
    np.testing.assert_allclose(again.weight(), small.weight(), atol=1e-5)
    broken = x.with_core(x.S.at[0, 0, 0, 0, 0].set(jnp.nan))
    np.testing.assert_array_equal(broken.cut_rank(0.3)[0].rank, x.rank)


def test_squares_keep_their_mass_under_a_rotation():
    x = factor_tensor(normal(*SHAPE), SHARES)
    _, change = x.cut_rank(0.0)
    v = jnp.abs(normal(*x.S.shape, seed=3))
    np.testing.assert_allclose(change.squares(v).sum(), v.sum(), rtol=1e-5)


def operator(width=8):
    model = FNO((4, 4), 1, 1, width, n_layers=2, rngs=nnx.Rngs(0))
    graph, variables = nnx.split(model, nnx.Param)
    return graph, nnx.to_pure_dict(variables)


def of_spectral(tree):
    found = jax.tree_util.tree_leaves_with_path(tree)
    names = [(jax.tree_util.keystr(path), leaf) for path, leaf in found]
    return [(name, leaf) for name, leaf in names if "spectral" in name]


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_an_operator_trains_with_cores(name):
    optimizer, (graph, params) = OPTIMIZERS[name], operator()
    x = normal(4, 8, 8, 1)
    y = jnp.cumsum(x, axis=1) / 8
    config = oialr.Config(
        delay=4, stability_frequency=6, sigma_cutoff_fraction=0.3, keep_last_layer=False,
        network_layer_perc_step=1.0, bucket=1,
    )  # fmt: skip
    controller = oialr.Controller(optimizer, config, spectral(0.5))
    trees = oialr.Trees(params, {}, optimizer.init(params))

    @jax.jit
    def step(params, bases, opt_state):
        loss = lambda p: jnp.mean((nnx.merge(graph, lift(p, bases))(x) - y) ** 2)
        value, g = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(g, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    values = []
    for number in range(20):
        trees = controller.step(*trees)
        if number == 3:  # momentum is carried over, also where parameters go by their names
            core = trees.params["blocks"][0]["conv"]["spectral_weight"].shape
            found = of_spectral(trees.opt_state)
            assert found
            for _, moment in found:
                assert moment.shape == core
                assert jnp.linalg.norm(moment.astype(jnp.float32)) > 0
        params, opt_state, value = step(*trees)
        trees = trees._replace(params=params, opt_state=opt_state)
        values.append(float(value))
    assert values[-1] < values[0]
    assert sorted(trees.bases) == [f"blocks.{i}.conv.spectral_weight" for i in range(2)]
    report = oialr.param_report(trees.params, trees.bases)
    assert all(len(r) == 2 for r in report.ranks.values())
    dense = sum(x.size for _, x in of_spectral(operator()[1]))
    assert sum(x.alive() for x in trees.bases.values()) <= dense / 4


def test_a_record_restores_the_shapes_of_tensors():
    optimizer, (_, params) = OPTIMIZERS["adamw"], operator()
    config = oialr.Config(delay=1, keep_last_layer=False)
    controller = oialr.Controller(optimizer, config, spectral(0.5))
    trees = controller.step(params, {}, optimizer.init(params))
    again = oialr.Controller(optimizer, config, spectral(0.5))
    cores, bases = again.restore(controller.record(trees.bases), params)
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert shapes(cores) == shapes(trees.params)
    assert shapes(bases) == shapes(trees.bases)
    record = controller.record(trees.bases)
    record["sizes"]["blocks.0.conv.spectral_weight"] = [4, 3, 99, 4]
    with pytest.raises(ValueError, match="has no core of size"):
        again.restore(record, params)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("share", [0.0, 1.0, "half"])
def test_shares_that_are_none(share):
    with pytest.raises(ValueError, match=r"share must be a number in \(0, 1\)"):
        spectral(share)
