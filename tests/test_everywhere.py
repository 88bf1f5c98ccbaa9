"""Ordinary ways of using an Optax transformation, each with a real model."""

import functools

import equinox as eqx
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from test_composability import OPTIMIZERS, assert_close, run, struct

import tensorgrad_jax as tg

READY = (
    "tensorgrad", "subspace_momentum", "subspace_muon", "tensor_muon", "projected_adamw",
    "filter_by",
)  # fmt: skip
ready = pytest.mark.parametrize("name", READY)


def large(params):
    return jax.tree.map(lambda p: tg.TensorSpec() if jnp.ndim(p) >= 2 else None, params)


def assert_trains(optimizer, params, loss, steps=4, factor=1.0):
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        gradients = jax.grad(loss)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    start = loss(params)
    for _ in range(steps):
        params, state = step(params, state)
    assert loss(params) < factor * start


@ready
@pytest.mark.parametrize("spec_tree", [True, False])
def test_equinox_modules_with_holes(name, spec_tree):
    """A convolution without bias, an MLP: None stands where there is no array."""
    keys = jax.random.split(jax.random.key(0))
    model = {
        "conv": eqx.nn.Conv2d(2, 3, 3, use_bias=False, key=keys[0]),
        "mlp": eqx.nn.MLP(12, 4, 16, 1, key=keys[1]),
    }
    params, rest = eqx.partition(model, eqx.is_inexact_array)
    specs = large(params) if spec_tree else large

    def loss(params):
        model = eqx.combine(params, rest)
        return jnp.sum((model["mlp"](model["conv"](jnp.ones((2, 4, 4))).ravel()) - 1) ** 2)

    assert_trains(OPTIMIZERS[name](specs=specs), params, loss)


def test_specs_with_a_hole_where_there_is_a_parameter_or_a_spec_for_a_hole_are_refused():
    params = {"a": jnp.ones((4, 4, 4)), "b": None}
    make = lambda specs: tg.in_subspace(optax.scale(1.0), tg.Tucker(0.5), specs=specs)
    make({"a": tg.TensorSpec(), "b": None}).init(params)
    with pytest.raises(ValueError, match=r"no parameter for \['b'\]"):
        make({"a": tg.TensorSpec(), "b": tg.TensorSpec()}).init(params)
    with pytest.raises(ValueError, match=r"no parameter for \['c'\]"):
        make({"a": tg.TensorSpec(), "b": None, "c": None}).init(params)


@ready
def test_explicit_mesh_axes(name):
    """`jax.make_mesh`'s default: shardings are types; updates and states keep theirs."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    spec = {"w": P("x"), "b": P("x")}

    def tree(seed):
        r = np.random.default_rng(seed)
        draw = lambda *shape: jnp.asarray(r.normal(size=shape), jnp.float32)
        return {"w": draw(16, 12, 8), "b": draw(8)}

    optimizer = OPTIMIZERS[name]()
    expected, _ = run(optimizer, tree(9), [tree(i) for i in range(3)])
    with jax.set_mesh(mesh):
        place = lambda t: {k: jax.device_put(x, NamedSharding(mesh, spec[k])) for k, x in t.items()}
        params = place(tree(9))
        state = jax.jit(optimizer.init)(params)
        update = jax.jit(optimizer.update)
        before = struct(state)
        for i in range(3):
            updates, state = update(place(tree(i)), state, params)
            assert {k: u.sharding.spec[0] for k, u in updates.items()} == {"w": "x", "b": "x"}
            params = optax.apply_updates(params, updates)
        assert struct(state) == before
        # Moments of what is not compressed are sharded as the parameter is.
        bias_moments = [x for x in jax.tree.leaves(state) if x.shape == (8,)]
        assert all(x.sharding.spec == P("x") for x in bias_moments)
    assert_close(params, expected, 1e-4)


@ready
def test_tree_map_params_passes_compact_states_by(name):
    """Nothing kept in a compact space is shaped like the parameters."""
    optimizer = OPTIMIZERS[name]()
    params = {"w": jnp.ones((16, 12, 8)), "b": jnp.ones(8)}
    state = optimizer.init(params)
    doubled = optax.tree_map_params(optimizer, lambda x: 2 * x, state)
    assert jax.tree.structure(doubled) == jax.tree.structure(state)
    specs = optax.tree_map_params(
        optimizer, lambda _, s: s, state, {"w": P("x"), "b": P()},
        transform_non_params=lambda _: P(),
    )  # fmt: skip
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    shardings = jax.tree.map(lambda s: NamedSharding(mesh, s), specs)
    placed = jax.jit(lambda s: s, out_shardings=shardings)(state)
    assert struct(placed) == struct(state)


@ready
def test_flax_serialization_and_a_linen_train_state(name):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(nn.Conv(8, (5, 5))(x))

    x = jnp.ones((1, 8, 8, 4))
    params = Net().init(jax.random.key(0), x)["params"]
    optimizer = OPTIMIZERS[name](specs=large)
    train = TrainState.create(apply_fn=Net().apply, params=params, tx=optimizer)

    @jax.jit
    def step(train):
        loss = lambda p: jnp.mean((train.apply_fn({"params": p}, x) - 1) ** 2)
        return train.apply_gradients(grads=jax.grad(loss)(train.params))

    halfway = step(train)
    data = flax.serialization.to_bytes(halfway)
    restored = flax.serialization.from_bytes(train, data)
    jax.tree.map(np.testing.assert_array_equal, step(restored), step(halfway))


@ready
def test_bfloat16_parameters_in_conditions(name):
    """Both branches of a condition give updates of one dtype, that of the gradients."""
    params = {"w": jnp.ones((16, 12, 8), jnp.bfloat16), "b": jnp.ones(8, jnp.bfloat16)}
    make = OPTIMIZERS[name]
    for wrapped in (
        optax.apply_if_finite(make(), 3),
        optax.conditionally_transform(make(), lambda step: step % 2 == 0),
        optax.MultiSteps(make(), 2).gradient_transformation(),
    ):
        state = wrapped.init(params)
        update = jax.jit(wrapped.update)
        for _ in range(2):
            updates, state = update(params, state, params)
        assert {str(u.dtype) for u in jax.tree.leaves(updates)} == {"bfloat16"}


@pytest.mark.parametrize(
    "inner",
    [
        optax.trace(0.9), optax.ema(0.9, debias=False), optax.contrib.scale_by_adopt(),
        optax.scale_by_sm3(), optax.scale_by_lion(), optax.scale_by_yogi(), optax.identity(),
        optax.chain(optax.clip_by_block_rms(1.0), optax.trace(0.9, nesterov=True)),
    ],
)  # fmt: skip
def test_any_transformation_inside_a_full_space_is_itself(inner):
    """With nothing lost and entries as they are, compressing changes nothing."""
    gs = [{"w": jnp.asarray(np.random.default_rng(i).normal(size=(4, 3, 5)), jnp.float32)}
          for i in range(4)]  # fmt: skip
    optimizer = tg.in_subspace(
        inner, tg.UnstructuredSparse(1.0), 2, "keep", specs={"w": tg.TensorSpec()}
    )
    flat = lambda g: {"w": g["w"].ravel()}
    states = [optimizer.init(gs[0]), inner.init(flat(gs[0]))]
    for g in gs:
        got, states[0] = optimizer.update(g, states[0])
        expected, states[1] = inner.update(flat(g), states[1])
        np.testing.assert_allclose(got["w"].ravel(), expected["w"], rtol=1e-5, atol=1e-6)


def test_momentum_in_a_full_tucker_space_is_momentum():
    gs = [jnp.asarray(np.random.default_rng(i).normal(size=(4, 3, 5)), jnp.float32)
          for i in range(4)]  # fmt: skip
    optimizer = tg.in_subspace(optax.trace(0.9), tg.Tucker(1.0), 2, specs=tg.TensorSpec())
    got, expected = (run_updates(t, gs) for t in (optimizer, optax.trace(0.9)))
    np.testing.assert_allclose(got, expected, atol=1e-4)


def run_updates(transform, gs):
    state = transform.init(gs[0])
    for g in gs:
        update, state = transform.update(g, state)
    return update


@pytest.mark.parametrize(
    "inner", [optax.add_decayed_weights(0.1), optax.scale_by_trust_ratio(), optax.adamw(1e-3)]
)
def test_a_transformation_that_needs_parameters_is_told_so_at_init(inner):
    optimizer = tg.in_subspace(inner, tg.Tucker(0.5), specs=tg.TensorSpec())
    with pytest.raises(ValueError, match=r"inner transformation \w+ needs parameters"):
        optimizer.init(jnp.ones((4, 3, 5)))


@pytest.mark.parametrize("name", ["tensorgrad", "subspace_momentum", "projected_adamw"])
def test_a_schedule_of_the_weight_decay(name):
    schedule = optax.linear_schedule(0.5, 0.0, 3)
    params = {"w": jnp.ones((16, 12, 8)), "b": jnp.ones(8)}
    zero = jax.tree.map(jnp.zeros_like, params)
    make = {
        "tensorgrad": tg.tensorgrad, "subspace_momentum": tg.subspace_momentum,
        "projected_adamw": functools.partial(tg.projected_adamw, projection=tg.Tucker(0.2)),
    }[name]  # fmt: skip
    ours, theirs = (
        run(o, params, [zero] * 4)[0]
        for o in (make(0.1, weight_decay=schedule), optax.adamw(0.1, weight_decay=schedule))
    )
    assert_close(ours, theirs, 1e-6)
    assert float(ours["w"].max()) < 1


@ready
def test_python_numbers_and_numpy_arrays_as_leaves(name):
    params = {"w": np.ones((16, 12, 8), np.float32), "gain": 1.5, "n": np.float32(2)}
    optimizer = OPTIMIZERS[name]()
    updates, state = optimizer.update(params, optimizer.init(params), params)
    assert {k: np.shape(u) for k, u in updates.items()} == {"w": (16, 12, 8), "gain": (), "n": ()}
    updates, _ = optimizer.update(params, state, params)
    assert np.isfinite(updates["gain"])


@pytest.mark.usefixtures("unchecked")
def test_numbers_of_numpy_and_lists_wherever_numbers_and_tuples_are_asked_for():
    i, f = np.int64, np.float32
    assert tg.Tucker([i(3), i(2), i(2)], n_iter=i(2), scale=f(2)) == tg.Tucker(
        (3, 2, 2), n_iter=2, scale=2.0
    )
    assert tg.Tucker(np.array([0.5, 0.25])).rank == (0.5, 0.25)
    assert hash(tg.Tucker(f(0.25))) == hash(tg.Tucker(0.25))
    assert tg.UnstructuredSparse(f(0.5)) == tg.UnstructuredSparse(0.5)
    assert tg.StructuredSparse([i(2), i(2)]).ratio == (2, 2)
    assert tg.MatrixLowRank(i(4), row_axes=[i(0), i(1)]) == tg.MatrixLowRank(4, row_axes=(0, 1))
    assert tg.Residual(tg.Tucker(), tg.Tucker(), [f(1), 2]).weights == (1.0, 2)
    spec = tg.TensorSpec(i(0), [i(1)], [[i(2)], [3]])
    assert spec == tg.TensorSpec(0, (1,), ((2,), (3,)))
    assert [int(tg.linear_gap(i(200), f(50), i(10))(s)) for s in (0, 10)] == [200, 50]
    tg.tensorgrad(f(0.1), rank=f(0.2), sparse_ratio=f(0.1), update_proj_gap=i(5), seed=i(3),
                  weight_decay=f(0.1), b1=f(0.9), n_iter=i(1), lambda_sparse=f(1))  # fmt: skip
    for wrong in (lambda: tg.scale_by_adam(b1=f(1.5)), lambda: tg.Tucker(f(2.5))):
        with pytest.raises(ValueError, match="got"):
            wrong()


def test_entries_in_proportion_to_their_magnitudes_in_tensorgrad():
    params = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(16, 12, 8)), jnp.float32)}
    optimizer = tg.tensorgrad(1e-2, sparse_type="probability", update_proj_gap=2)
    got, _ = run(optimizer, params, [params] * 3)
    other, _ = run(tg.tensorgrad(1e-2, update_proj_gap=2), params, [params] * 3)
    assert np.abs(got["w"] - other["w"]).max() > 1e-4


@pytest.mark.parametrize("projection", [None, tg.Tucker(0.3)])
def test_extra_arguments_pass_by(projection):
    params = {"w": jnp.ones((16, 12, 8))}
    optimizer = tg.reference_adamw(1e-2, projection)
    updates, _ = optimizer.update(params, optimizer.init(params), params, value=jnp.ones(()))
    assert updates["w"].shape == (16, 12, 8)
