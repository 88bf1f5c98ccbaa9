"""Squares of projected gradients, and the Adam in a compact space that takes them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import tensorgrad_jax as tg
import train
from tensorgrad_jax import truegrad
from tensorgrad_jax.data import generate_burgers
from tensorgrad_jax.training.build import build_gradients, build_model, build_optimizer
from tensorgrad_jax.training.config import parse
from tensorgrad_jax.training.losses import LOSSES
from tensorgrad_jax.training.step import Encoding, TrainState, make_train_step
from tensorgrad_jax.transforms.subspace import InSubspaceState

N = 4
SPARSE, LOW_RANK = tg.UnstructuredSparse(0.1), tg.Tucker(0.3)
# A complex tensor as a pair of real ones, a real one, and one that is not compressed.
SPECS = {"pair": tg.TensorSpec(complex_axis=-1), "real": tg.TensorSpec(), "bias": None}


def _problem(n):
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "pair": jax.random.normal(keys[0], (6, 5, 4, 2)) / 4,
        "real": jax.random.normal(keys[1], (4, 5, 6)) / 4,
        "bias": jnp.ones(6),
    }
    return params, (jax.random.normal(keys[2], (n, 6)), jax.random.normal(keys[3], (n, 5)))


def _loss(params, batch):
    x, y = batch
    z = jnp.einsum("ni,ijkp,nj->nkp", x, params["pair"], y)
    w = jnp.einsum("nkp,kji,nj->npi", jnp.sin(z), params["real"], y) + params["bias"]
    return jnp.mean(jnp.tanh(w) ** 2)


def _optimizer(projection, inner=None, match_size=False):
    return tg.projected_adamw(
        1e-2,
        projection,
        update_proj_gap=2,
        specs=SPECS,
        eps=1e-12,
        inner=inner,
        match_size=match_size,
    )


def _run(projection, batch, params, inner, steps=4, match_size=False):
    optimizer = _optimizer(projection, inner, match_size)
    grads = truegrad.value_and_grads_in_subspace(_loss, projection, SPECS)

    @jax.jit
    def step(params, state):
        if inner is None:
            squares, extra = None, {}
            gradient = jax.grad(_loss)(params, batch)
        else:
            _, gradient, squares = grads(state, params, batch)
            extra = {"sum_grad_squared": squares}
        updates, state = optimizer.update(gradient, state, params, **extra)
        return optax.apply_updates(params, updates), state, squares

    state = optimizer.init(params)
    for _ in range(steps):
        before = params, state
        params, state, squares = step(params, state)
    return params, before, squares


def test_with_one_example_it_is_adam_in_the_subspace():
    params, batch = _problem(1)
    inner = truegrad.scale_by_true_adam(default_to_adam=True, graft=False)
    ours = _run(SPARSE, batch, params, inner)[0]
    adam = _run(SPARSE, batch, params, None)[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), ours, adam)


def test_squares_are_those_of_projected_gradients():
    params, batch = _problem(N)
    projection = LOW_RANK
    inner = truegrad.scale_by_true_adam(default_to_adam=True)
    _, (params, state), squares = _run(projection, batch, params, inner, match_size=True)
    subspace = next(s for s in state if isinstance(s, InSubspaceState))
    single = [
        jax.grad(_loss)(params, jax.tree.map(lambda x, i=i: x[i : i + 1], batch)) for i in range(N)
    ]
    for leaf_name in ("pair", "real"):
        p = params[leaf_name]
        leaf = tg.projections.LeafProjection(projection, SPECS[leaf_name], p.shape, p.dtype)
        basis = leaf.basis_of(subspace.basis[leaf_name])
        compact = [leaf.project(leaf.to_tensor(g[leaf_name]), basis) for g in single]
        as_array = lambda x: tg.projections.pairs.as_array(x)
        is_pair = tg.projections.pairs.is_pair
        square = lambda *c: jnp.mean(jnp.abs(jnp.stack(c)) ** 2, 0)
        compact = [jax.tree.map(as_array, c, is_leaf=is_pair) for c in compact]
        expected = jax.tree.map(square, *compact)
        half = 2 if leaf_name == "pair" else 1
        jax.tree.map(
            lambda s, e, half=half: np.testing.assert_allclose(half * s, e, rtol=1e-4, atol=1e-9),
            squares[leaf_name],
            expected,
        )
    assert squares["real (sample)"] is None


def test_a_state_without_subspaces_of_true_adam_is_refused():
    params, batch = _problem(N)
    grads = truegrad.value_and_grads_in_subspace(_loss, LOW_RANK, SPECS)
    for state in (optax.adam(1e-3).init(params), _optimizer(LOW_RANK).init(params)):
        with pytest.raises(ValueError, match="one in_subspace around scale_by_true_adam"):
            grads(state, params, batch)
    inner = truegrad.scale_by_true_adam(default_to_adam=True)
    state = _optimizer(LOW_RANK, inner).init(params)
    others = truegrad.value_and_grads_in_subspace(_loss, LOW_RANK)
    with pytest.raises(ValueError, match="belongs to other parameters or specs"):
        others(state, {**params, "bias": jnp.ones((11, 10, 11))}, batch)


@pytest.mark.parametrize("optimizer_type", ["adamw", "tensorgrad"])
def test_a_step_of_train_py_takes_squares_of_samples(optimizer_type):
    flags = ["--opt.second_moment", "per_example", "--opt.optimizer_type", optimizer_type]
    flags += ["--fno.n_layers", "1", "--fno.hidden_channels", "16", "--fno.n_modes", "[8,8]"]
    config = parse(flags)
    graph, params = nnx.split(nnx.eval_shape(lambda: build_model(config, 1, 1)), nnx.Param)
    params = nnx.to_pure_dict(params)
    optimizer = build_optimizer(config, 4)
    scalar = lambda dtype: jax.ShapeDtypeStruct((), dtype)
    state = jax.eval_shape(optimizer.init, params)
    state = TrainState(params, state, scalar(jnp.int32), scalar(jnp.float32))
    field = jax.ShapeDtypeStruct((4, 16, 16, 1), jnp.float32)
    of, none = build_gradients(config), Encoding(None, None)
    step = make_train_step(graph, optimizer, LOSSES["l2"], none, gradients_of=of)
    out = jax.eval_shape(step, state, {"x": field, "y": field})
    kinds = lambda tree: [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]
    assert kinds(out) == kinds(state)
    assert build_gradients(parse(flags[2:])) is None


@pytest.fixture(scope="module")
def burgers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("burgers")
    generate_burgers(folder, n_train=16, n_test=4, resolution=32, t_end=0.2, dt=0.02)
    return folder


@pytest.mark.parametrize("optimizer_type", ["adamw", "tensorgrad"])
def test_train_py_learns_with_squares_of_samples(optimizer_type, burgers, tmp_path):
    """Both runs end with a fraction of the first epoch's loss, and are not the same."""
    options = {
        "data.problem": "burgers", "data.root": burgers, "data.generate": False,
        "data.n_train": 16, "data.n_tests": "[4]", "data.train_resolution": 32,
        "data.test_resolutions": "[32]", "data.test_batch_sizes": "[4]", "data.batch_size": 4,
        "fno.n_modes": "[6]", "fno.hidden_channels": 8, "fno.n_layers": 1,
        "opt.optimizer_type": optimizer_type, "opt.learning_rate": 2e-2, "opt.n_epochs": 12,
        "opt.save_every": 100, "opt.save_dir": tmp_path,
    }  # fmt: skip
    if optimizer_type == "tensorgrad":
        options["opt.update_proj_gap"] = 10
    flags = [str(x) for name, value in options.items() for x in (f"--{name}", value)]
    losses = {}
    for moment in ("batch", "per_example"):
        assert train.main([*flags, "--opt.second_moment", moment, "--name", moment]) == 0
        lines = (tmp_path / moment / "metrics.jsonl").read_text().splitlines()
        losses[moment] = [json.loads(line)["train_loss"] for line in lines]
        assert len(losses[moment]) == 12
        assert losses[moment][-1] < 0.4 * losses[moment][0]
    assert losses["batch"][-1] != losses["per_example"][-1]
