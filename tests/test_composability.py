"""In every place where an Optax transformation can stand.

Of the common tests of optax.contrib these apply and are here: convergence on a convex problem,
wrapping in inject_hyperparams, structs of the state that do not change, sharding that does not
change, trees without leaves. That updates keep a half-precision dtype does not: ours are float32,
so that they can be rounded once, when they are added.
"""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tensorgrad_jax.models import FNO, tensor_specs

import tensorgrad_jax as tg

SPECS = {"w": tg.TensorSpec(), "z": tg.TensorSpec(), "b": None}
STATIC = (
    "rank", "sparse_ratio", "sparse_type", "mode", "order", "lambda_sparse", "update_proj_gap",
    "specs", "n_iter", "on_refresh", "mask", "seed",
)  # fmt: skip
OPTIMIZERS = {
    "tensorgrad": lambda **o: tg.tensorgrad(1e-2, update_proj_gap=2, **o),
    "projected_adamw": lambda **o: tg.projected_adamw(
        1e-2, tg.MatrixLowRank(0.25), update_proj_gap=2, weight_decay=0.1, **o
    ),
    "subspace_momentum": lambda **o: tg.subspace_momentum(
        1e-2, tg.Tucker(0.2), update_proj_gap=2, weight_decay=0.1, **o
    ),
    "subspace_muon": lambda **o: tg.subspace_muon(
        1e-2, tg.Tucker(0.2), update_proj_gap=2, weight_decay=0.1, **o
    ),
    "tensor_muon": lambda **o: tg.tensor_muon(1e-2, update_proj_gap=2, weight_decay=0.1, **o),
    "lion": lambda **o: optax.chain(
        tg.in_subspace(optax.scale_by_lion(), tg.StructuredSparse(0.3), 2, **o),
        optax.scale(-1e-2),
    ),
    "filter_by": lambda **o: optax.chain(tg.filter_by(tg.Tucker(0.3), 2, **o), optax.sgd(1e-2)),
    "reference": lambda **o: tg.reference_adamw(
        1e-2, tg.UnstructuredSparse(0.2, "topk"), 2, weight_decay=0.1, **o
    ),
}
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)
# Each compiles several programs: one with a composite, one with a foreign inner optimizer, one that
# needs the parameters.
some_optimizers = pytest.mark.parametrize("name", ["tensorgrad", "lion", "reference"])


def tree(seed=0):
    r = np.random.default_rng(seed)
    normal = lambda *shape: r.normal(size=shape).astype(np.float32)
    return {
        "w": jnp.asarray(normal(6, 5, 4)),
        "z": jnp.asarray(normal(4, 3, 5) + 1j * normal(4, 3, 5)),
        "b": jnp.asarray(normal(3)),
    }


def run(optimizer, params, gradients, state=None):
    state = optimizer.init(params) if state is None else state
    update = jax.jit(optimizer.update)
    for g in gradients:
        updates, state = update(g, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def assert_close(a, b, tolerance=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=tolerance), a, b)


def struct(state):
    return jax.tree.map(lambda x: (x.shape, x.dtype), state)


@every_optimizer
def test_scan_eval_shape_and_struct_init(name):
    optimizer = OPTIMIZERS[name](specs=SPECS)
    params, gradients = tree(9), [tree(i) for i in range(3)]
    expected, state = run(optimizer, params, gradients)

    def step(carry, g):
        p, s = carry
        updates, s = optimizer.update(g, s, p)
        return (optax.apply_updates(p, updates), s), None

    stacked = jax.tree.map(lambda *x: jnp.stack(x), *gradients)
    (scanned, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), stacked)
    assert_close(scanned, expected, 1e-5)
    structs = jax.eval_shape(lambda: params)
    assert struct(jax.eval_shape(optimizer.init, params)) == struct(state)
    assert struct(optimizer.init(structs)) == struct(state)


@some_optimizers
def test_multi_steps_are_the_full_batch(name):
    """With a real pair in the place of the complex leaf, which optax 0.2.8 accumulates as real."""
    pair = lambda t: t | {"z": jnp.stack([t["z"].real, t["z"].imag])}
    params, gradients = pair(tree(9)), [pair(tree(i)) for i in range(6)]
    specs = SPECS | {"z": tg.TensorSpec(0)}
    mean = lambda gs: jax.tree.map(lambda *x: sum(x) / len(x), *gs)
    expected, _ = run(
        OPTIMIZERS[name](specs=specs), params, [mean(gradients[:3]), mean(gradients[3:])]
    )
    accumulated = optax.MultiSteps(OPTIMIZERS[name](specs=specs), 3)
    got, _ = run(accumulated, params, gradients)
    assert_close(got, expected, 2e-5)


@some_optimizers
def test_masked_and_partition(name):
    params, gradients = tree(9), [tree(i) for i in range(2)]
    only = lambda t, names: {n: t[n] for n in names}
    alone, _ = run(
        OPTIMIZERS[name](specs=only(SPECS, "wz")),
        only(params, "wz"),
        [only(g, "wz") for g in gradients],
    )
    labels = {"w": "small", "z": "small", "b": "sgd"}
    # The specs may be those of all parameters, or a function.
    for specs in (SPECS, lambda p: jax.tree.map(lambda _: tg.TensorSpec(), p)):
        parts = optax.partition(
            {"small": OPTIMIZERS[name](specs=specs), "sgd": optax.sgd(1.0)}, labels
        )
        got, _ = run(parts, params, gradients)
        assert_close(only(got, "wz"), alone)
        np.testing.assert_allclose(
            got["b"], params["b"] - gradients[0]["b"] - gradients[1]["b"], rtol=1e-5
        )
    masked = optax.masked(OPTIMIZERS[name](specs=SPECS), {"w": True, "z": True, "b": False})
    got, _ = run(masked, params, gradients)
    assert_close(only(got, "wz"), alone)


def test_inject_hyperparams_keeps_the_rate_real_and_compiles_once():
    """The first leaf is complex: Optax then makes complex numbers of all hyper-parameters."""
    params = {"a": tree()["z"], "b": tree()["b"]}
    specs = {"a": tg.TensorSpec(), "b": None}
    make = optax.inject_hyperparams(tg.tensorgrad, static_args=STATIC)
    injected = make(learning_rate=lambda step: 0.1 / (step + 1), specs=specs, weight_decay=0.1)
    plain = tg.tensorgrad(lambda step: 0.1 / (step + 1), specs=specs, weight_decay=0.1)
    traces = []

    @jax.jit
    def step(p, s, g):
        traces.append(1)
        updates, s = injected.update(g, s, p)
        return optax.apply_updates(p, updates), s

    p, s = params, injected.init(params)
    for _ in range(3):
        p, s = step(p, s, params)
    expected, _ = run(plain, params, [params] * 3)
    assert len(traces) == 1
    assert p["b"].dtype == jnp.float32
    assert_close(p, expected, 1e-5)


@some_optimizers
def test_apply_if_finite_restores_everything(name):
    params = tree(9)
    optimizer = optax.apply_if_finite(OPTIMIZERS[name](specs=SPECS), 5)
    bad = tree(1) | {"w": tree(1)["w"].at[0, 0, 0].set(jnp.nan)}
    expected, state = run(optimizer, params, [tree(0), tree(2)])
    got, after = run(optimizer, params, [tree(0), bad, tree(2)])
    assert_close(got, expected)
    assert_close(after.inner_state, state.inner_state)


@every_optimizer
def test_trees_without_leaves(name):
    optimizer = OPTIMIZERS[name]()
    updates, _ = optimizer.update({}, optimizer.init({}), {})
    assert updates == {}


@every_optimizer
def test_checkpoints_continue_exactly(name, tmp_path):
    optimizer = OPTIMIZERS[name](specs=SPECS)
    params, gradients = tree(9), [tree(i) for i in range(4)]
    expected, _ = run(optimizer, params, gradients)
    halfway, state = run(optimizer, params, gradients[:1])  # between two refreshes
    saved = {"params": halfway, "state": state}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "c", saved)
        checkpointer.wait_until_finished()
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, saved)
        restored = checkpointer.restore(tmp_path / "c", target)
    assert jax.tree.structure(restored) == jax.tree.structure(saved)
    got, _ = run(optimizer, restored["params"], gradients[1:], restored["state"])
    jax.tree.map(np.testing.assert_array_equal, got, expected)


@every_optimizer
def test_convergence_on_a_parabola(name):
    """The target lies in every subspace that its own gradient spans, and entries take turns."""
    target = jnp.asarray(np.einsum("i,j,k->ijk", *(np.linspace(0.5, 1, d) for d in (6, 5, 4))))
    params = {"w": jnp.zeros((6, 5, 4))}
    rate = {"lion": 1.0, "filter_by": 20.0}.get(name, 5.0)
    optimizer = optax.chain(OPTIMIZERS[name](specs={"w": tg.TensorSpec()}), optax.scale(rate))
    loss = lambda p: jnp.sum((p["w"] - target) ** 2)

    def step(carry, _):
        p, s = carry
        updates, s = optimizer.update(jax.grad(loss)(p), s, p)
        return (optax.apply_updates(p, updates), s), None

    # The reference's decay pulls to zero: its parabola has its minimum elsewhere.
    start = loss(params)
    (end, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), length=300)
    assert loss(end) < 0.05 * start


def test_linen_parameters():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(nn.Conv(8, (5, 5))(x))

    x = np.ones((1, 8, 8, 4), np.float32)
    params = Net().init(jax.random.key(0), x)
    optimizer = OPTIMIZERS["tensorgrad"](specs=None)
    state = optimizer.init(params)
    assert list(state[0].basis) == []  # 800 elements: the default rule leaves it alone
    specs = jax.tree.map(lambda p: tg.TensorSpec() if p.ndim == 4 else None, params)
    optimizer = OPTIMIZERS["tensorgrad"](specs=specs)
    got, state = run(optimizer, params, [params])
    assert list(state[0].basis) == ["params.Conv_0.kernel"]
    assert jax.tree.structure(got) == jax.tree.structure(params)


def test_nnx_optimizer():
    model = FNO((4, 4), 1, 1, 4, 1, rngs=nnx.Rngs(0))
    x = jnp.ones((1, 8, 8, 1))
    optimizer = nnx.Optimizer(model, tg.tensorgrad(1e-2, specs=tensor_specs), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        loss, gradients = nnx.value_and_grad(lambda m: jnp.mean((m(x) - 1) ** 2))(model)
        optimizer.update(model, gradients)
        return loss

    losses = [float(step(model, optimizer)) for _ in range(5)]
    assert losses[-1] < losses[0]


def test_equinox_parameters():
    model = eqx.nn.Conv2d(4, 8, 5, key=jax.random.key(0))
    params, rest = eqx.partition(model, eqx.is_inexact_array)
    specs = jax.tree.map(lambda p: tg.TensorSpec() if p.ndim == 4 else None, params)
    optimizer = OPTIMIZERS["tensorgrad"](specs=specs)
    got, state = run(optimizer, params, [params])
    assert list(state[0].basis) == ["weight"]
    assert eqx.combine(got, rest)(np.ones((4, 8, 8), np.float32)).shape == (8, 4, 4)


@some_optimizers
def test_sharded_parameters_have_stable_shardings(name):
    mesh = Mesh(np.array(jax.devices()[:8]), ("x",))
    place = lambda t: {
        "w": jax.device_put(t["w"], NamedSharding(mesh, P("x"))),
        "b": jax.device_put(t["b"], NamedSharding(mesh, P())),
    }
    make = lambda seed: {
        "w": jnp.asarray(np.random.default_rng(seed).normal(size=(8, 5, 4)), jnp.float32),
        "b": tree(seed)["b"],
    }
    specs = {"w": tg.TensorSpec(), "b": None}
    optimizer = OPTIMIZERS[name](specs=specs)
    expected, _ = run(optimizer, make(9), [make(i) for i in range(3)])

    update = jax.jit(optimizer.update)
    params = place(make(9))
    state = jax.jit(optimizer.init)(params)
    shardings = []
    for i in range(3):
        updates, state = update(place(make(i)), state, params)
        params = optax.apply_updates(params, updates)
        shardings.append(jax.tree.map(lambda x: x.sharding, (params, state)))
    equal = jax.tree.map(
        lambda a, b, x: a.is_equivalent_to(b, x.ndim), shardings[0], shardings[-1], (params, state)
    )
    assert all(jax.tree.leaves(equal))
    assert_close(params, expected, 1e-5)


class RandomPhases(tg.Tucker):
    """Tucker whose factor columns are multiplied by random phases after every refresh."""

    seed = 0

    def refresh(self, key, tensor, basis):
        factors = super().refresh(key, tensor, basis)
        angles = jax.random.uniform(jax.random.fold_in(key, self.seed), (100,), maxval=6.3)
        phases = jnp.exp(1j * angles)
        return tuple(u * phases[: u.shape[1]] for u in factors)


@pytest.mark.parametrize("on_refresh", ["transport", "keep"])
def test_only_transport_is_independent_of_the_phases_of_the_factors(on_refresh):
    specs = {"z": tg.TensorSpec()}
    only = lambda t: {"z": t["z"]}
    results = []
    for i, kind in enumerate((tg.Tucker, RandomPhases, RandomPhases)):
        projection = kind(0.3)
        if i == 2:
            projection = type("Other", (RandomPhases,), {"seed": 1})(0.3)
        optimizer = tg.projected_adamw(1e-2, projection, 2, specs=specs, on_refresh=on_refresh)
        results.append(run(optimizer, only(tree(9)), [only(tree(j)) for j in range(5)])[0]["z"])
    spread = max(np.abs(results[0] - other).max() for other in results[1:])
    if on_refresh == "transport":
        assert spread < 2e-5
    else:
        assert spread > 1e-3
