"""Low-rank layers of Flax NNX, and models that are wrapped."""

import functools
import subprocess
import sys

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tensorgrad_jax.models import FNO

import tensorgrad_jax as tg
from tensorgrad_jax import oialr
from tensorgrad_jax.oialr.cost import chain_is_cheaper, chain_products, dense_products
from tensorgrad_jax.oialr.layers import (
    FrozenBasis,
    is_low_rank,
    kernel_of,
    low_rank_of,
    make_low_rank,
)
from tensorgrad_jax.oialr.low_rank import factor, reconstruct, resized


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def linear(**options):
    return nnx.Linear(20, 16, rngs=nnx.Rngs(0), **options)


LAYERS = {
    "linear": (linear, (64, 3, 20)),
    "no_bias": (functools.partial(linear, use_bias=False), (64, 20)),
    "bfloat16": (functools.partial(linear, dtype=jnp.bfloat16), (64, 20)),
    "wide_output": (
        functools.partial(linear, dtype=jnp.bfloat16, preferred_element_type=jnp.float32),
        (64, 20),
    ),
    "precision": (functools.partial(linear, precision="highest"), (64, 20)),
    "general": (
        lambda: nnx.LinearGeneral((4, 5), (3, 6), axis=(1, -1), rngs=nnx.Rngs(0)), (64, 4, 7, 5),
    ),
    "general_out": (lambda: nnx.LinearGeneral(20, (2, 8), rngs=nnx.Rngs(0)), (64, 20)),
    "conv1": (lambda: nnx.Conv(6, 12, 3, rngs=nnx.Rngs(0)), (16, 15, 6)),
    "conv2": (lambda: nnx.Conv(4, 16, (3, 3), strides=2, rngs=nnx.Rngs(0)), (16, 9, 9, 4)),
    "conv2_circular": (
        lambda: nnx.Conv(4, 16, (3, 3), padding="CIRCULAR", rngs=nnx.Rngs(0)), (16, 9, 9, 4),
    ),
    "conv2_batches": (lambda: nnx.Conv(4, 16, (3, 3), rngs=nnx.Rngs(0)), (3, 8, 9, 9, 4)),
    "conv_groups": (
        lambda: nnx.Conv(4, 16, (3, 3), feature_group_count=2, rngs=nnx.Rngs(0)), (16, 9, 9, 4),
    ),
    "conv_mask": (
        lambda: nnx.Conv(4, 16, 3, mask=jnp.ones((3, 4, 16)).at[0].set(0), rngs=nnx.Rngs(0)),
        (16, 9, 4),
    ),
}  # fmt: skip
ALWAYS_DENSE = ("conv_groups", "conv_mask")


def low_rank_pair(name, size):
    """Return a low-rank layer and a dense one with the same weight, and an input."""
    make, shape = LAYERS[name]
    layer, dense = make(), make()
    kernel = kernel_of(layer)
    x = resized(factor(layer.kernel[...], kernel.rows, ratio=size / 12), size)
    core = normal(size, size, seed=1)
    x = x.with_core(core)
    make_low_rank(layer, x)
    dense.kernel.set_value(reconstruct(x))
    return layer, dense, normal(*shape, seed=2)


def tolerance(name):
    return {"rtol": 0.1, "atol": 0.15} if name in ("bfloat16", "wide_output") else {
        "rtol": 1e-4, "atol": 1e-4}  # fmt: skip


@pytest.mark.parametrize("size", [2, 12])
@pytest.mark.parametrize("name", list(LAYERS))
def test_a_low_rank_layer_is_the_layer_with_its_weight(name, size):
    layer, dense, x = low_rank_pair(name, size)
    y, expected = nnx.jit(lambda m, x: m(x))(layer, x), dense(x)
    assert y.shape == expected.shape
    assert y.dtype == expected.dtype
    np.testing.assert_allclose(y, expected, **tolerance(name))


@pytest.mark.parametrize("size", [2, 12])
@pytest.mark.parametrize("name", list(LAYERS))
def test_the_core_gets_the_gradient_between_the_bases(name, size):
    layer, dense, x = low_rank_pair(name, size)
    loss = lambda m, x: jnp.sum(jnp.sin(m(x).astype(jnp.float32)))
    g = nnx.as_pure(nnx.grad(loss)(layer, x))
    assert set(g) == {"kernel", "bias"} - ({"bias"} if name == "no_bias" else set())
    dense_g = nnx.as_pure(nnx.grad(loss)(dense, x))
    w = low_rank_of(layer)
    G = dense_g["kernel"].reshape(w.U.shape[0], -1)
    expected = w.U.T @ G @ w.Vt.T
    bound = 0.1 if name in ("bfloat16", "wide_output") else 1e-4
    assert jnp.linalg.norm(g["kernel"] - expected) <= bound * jnp.linalg.norm(expected)
    if "bias" in g:
        assert jnp.linalg.norm(g["bias"] - dense_g["bias"]) <= bound * (
            1 + jnp.linalg.norm(dense_g["bias"])
        )


def products(layer, x):
    """Return the multiplications of all products in a layer's program."""
    graph, state = nnx.split(layer)
    closed = jax.make_jaxpr(lambda s, x: nnx.merge(graph, s)(x))(state, x)

    def count(jaxpr):
        total = 0
        for eqn in jaxpr.eqns:
            for sub in jax.extend.core.jaxprs_in_params(eqn.params):
                total += count(sub)
            if eqn.primitive.name == "dot_general":
                (contracted, _), _ = eqn.params["dimension_numbers"]
                size = np.prod([eqn.invars[0].aval.shape[i] for i in contracted])
                total += int(size * np.prod(eqn.outvars[0].aval.shape))
            if eqn.primitive.name == "conv_general_dilated":
                window = np.prod(eqn.invars[1].aval.shape[:-1])
                total += int(window * np.prod(eqn.outvars[0].aval.shape))
        return total

    return count(closed.jaxpr)


@pytest.mark.parametrize("name", ["linear", "general", "conv2", *ALWAYS_DENSE])
@pytest.mark.parametrize("size", [1, 2, 4, 8, 12])
def test_the_cheaper_way_is_taken(name, size):
    layer, dense, x = low_rank_pair(name, size)
    w = low_rank_of(layer)
    m, n = w.U.shape[0], w.Vt.shape[1]
    positions = dense(x).size // n
    counted = products(layer, x)
    if name in ALWAYS_DENSE:
        assert counted >= products(dense, x)
        return
    chain, rebuilt = (f(m, n, size, positions) for f in (chain_products, dense_products))
    assert counted in (chain, rebuilt)
    near = 0.8 < chain / rebuilt < 1.25  # of strided convolutions positions are estimated
    assert counted == min(chain, rebuilt) or near
    assert chain_is_cheaper(m, n, size, positions) == (chain < rebuilt)


def test_a_layer_is_called_where_it_was_and_bases_are_no_parameters():
    layer = linear()
    holder = nnx.Sequential(layer, nnx.relu)
    make_low_rank(layer, factor(layer.kernel[...]))
    assert is_low_rank(holder.layers[0])
    assert isinstance(layer, nnx.Linear)
    assert type(layer).__name__ == "LowRankLinear"
    params, bases, rest = nnx.state(holder, nnx.Param, FrozenBasis, ...)
    assert jax.tree.map(jnp.shape, nnx.as_pure(params)) == nnx.State(
        {"layers": {0: {"bias": (16,), "kernel": (16, 16)}}}
    )
    assert len(jax.tree.leaves(bases)) == 3
    assert not jax.tree.leaves(rest)
    graph, state = nnx.split(holder)
    again = nnx.merge(graph, state)
    np.testing.assert_array_equal(again(jnp.ones((2, 20))), holder(jnp.ones((2, 20))))
    clone = nnx.clone(holder)
    np.testing.assert_array_equal(clone(jnp.ones((2, 20))), holder(jnp.ones((2, 20))))


def test_which_layers_have_kernels():
    rngs = nnx.Rngs(0)
    assert kernel_of(nnx.LinearGeneral(4, 3, batch_axis={0: 2}, rngs=rngs)) is None
    stacked = nnx.vmap(lambda rngs: nnx.Linear(4, 3, rngs=rngs), in_axes=0)(nnx.Rngs(0).split(3))
    assert kernel_of(stacked) is None
    assert kernel_of(nnx.Embed(30, 4, rngs=rngs)) is None
    assert kernel_of(nnx.LayerNorm(4, rngs=rngs)) is None
    assert kernel_of(nnx.ConvTranspose(4, 4, 3, rngs=rngs)) is None


class Block(nnx.Module):
    """A small transformer with a convolution in front; definition order is not alphabetic."""

    def __init__(self, rngs):
        self.stem = nnx.Conv(1, 8, (2, 2), strides=2, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(num_heads=2, in_features=8, decode=False, rngs=rngs)
        self.mlp = nnx.List([nnx.Linear(8, 16, rngs=rngs), nnx.Linear(16, 8, rngs=rngs)])
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.again = self.mlp[0]
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        x = self.stem(x).reshape(len(x), -1, 8)
        x = x + self.attention(self.norm(x))
        x = x + self.mlp[1](nnx.relu(self.mlp[0](x) + self.again(x)))
        return self.head(x.mean(1))


def data(n=32):
    x = normal(n, 8, 8, 1, seed=3)
    return x, jnp.asarray(np.random.default_rng(4).integers(0, 4, n))


def loss(model, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()


def options(**more):
    base = {
        "delay": 4, "stability_frequency": 4, "sigma_cutoff_fraction": 0.35, "bucket": 1,
        "network_layer_perc_step": 1.0, "keep_last_layer": False,
    }  # fmt: skip
    return oialr.Config(**(base | more))


def train(steps, config, wrapped=None, optimizer=None):
    if wrapped is None:
        model = Block(nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, optax.adamw(1e-2), wrt=nnx.Param)
        wrapped = oialr.wrap(model, config, optimizer)
    programs = []

    @nnx.jit
    def step(model, optimizer, x, y):
        programs.append(1)
        value, g = nnx.value_and_grad(loss)(model, x, y)
        optimizer.update(model, g)
        return value

    x, y = data()
    values = []
    for _ in range(steps):
        wrapped.step()
        values.append(float(step(wrapped.model, optimizer, x, y)))
    return wrapped, optimizer, values, len(programs)


def test_layers_are_found_in_the_order_of_their_definition():
    wrapped = oialr.wrap(Block(nnx.Rngs(0)), options())
    projections = ["query", "key", "value", "out"]
    assert list(wrapped.layers) == [
        "stem.kernel", *(f"attention.{p}.kernel" for p in projections),
        "again.kernel", "mlp.1.kernel", "head.kernel",
    ]  # fmt: skip


def test_a_wrapped_model_trains_through_conversion_and_checks():
    wrapped, optimizer, values, programs = train(30, options())
    what = [e.what for e in wrapped.events]
    assert what[0] == "factored"
    assert what.count("checked") >= 6
    assert values[-1] < values[0]
    assert 2 < programs <= len(what) + 1
    # A layer that is used twice is one layer; the stem of 4 inputs is worth it too.
    assert len(wrapped.report().ranks) == 8
    assert wrapped.report().trainable < wrapped.report().dense
    state = nnx.as_pure(optimizer.opt_state)
    shapes = lambda tree: jax.tree.map(jnp.shape, tree)
    assert shapes(state[0].mu) == shapes(wrapped.params) == shapes(state[0].nu)
    assert str(wrapped.events[-1].report) == str(wrapped.report())


def test_a_conversion_and_a_check_without_a_cut_do_not_change_the_function():
    wrapped, _, _, _ = train(3, options(sigma_cutoff_fraction=0.0))
    x, _ = data()
    before = wrapped(x)
    assert wrapped.step()  # the fourth: converted and checked
    np.testing.assert_allclose(wrapped(x), before, atol=1e-5)


def test_one_program_where_shapes_stay():
    still = options(full_rank_warmup=False, reinit_shapes=False)
    wrapped, _, _, programs = train(20, still)
    assert programs == 1
    assert sum(wrapped.report().ranks.values()) < sum(x.full_rank for x in wrapped.bases.values())


def test_masked_and_sliced_runs_agree():
    curves = [
        train(20, options(full_rank_warmup=False, reinit_shapes=keep))[2] for keep in (False, True)
    ]
    np.testing.assert_allclose(*curves, rtol=2e-4)


def test_a_history_of_a_wrapped_model():
    wrapped, optimizer, _, _ = train(2, options())
    history = oialr.History(wrapped.kernels, order=list(wrapped.layers))
    history.record(2, wrapped.params, wrapped.bases)
    train(3, None, wrapped, optimizer)
    row = history.record(5, wrapped.params, wrapped.bases)
    assert row is not None
    assert list(row.stability) == list(wrapped.layers)
    assert all(0.2 < s <= 1.001 for s in row.stability.values())


@pytest.mark.parametrize("moments", ["transport", "zero"])
def test_a_run_resumed_across_rank_changes_is_the_run(moments):
    config = options(moments=moments)
    whole, _, expected, _ = train(25, config)
    wrapped, optimizer, first, _ = train(14, config)
    record = wrapped.record()
    saved = jax.device_get(
        (nnx.as_pure(nnx.state(wrapped.model)), nnx.as_pure(nnx.state(optimizer)))
    )

    model = Block(nnx.Rngs(1))
    again = nnx.Optimizer(model, optax.adamw(1e-2), wrt=nnx.Param)
    resumed = oialr.wrap(model, config, again)
    resumed.restore(record)
    for target, state in zip((model, again), saved, strict=True):
        shapes = lambda tree: jax.tree.map(jnp.shape, tree)
        assert shapes(nnx.as_pure(nnx.state(target))) == shapes(state)
        nnx.update(target, state)
    second = train(11, None, resumed, again)[2]
    assert first + second == expected
    assert resumed.report().ranks == whole.report().ranks
    for a, b in zip(jax.tree.leaves(resumed.params), jax.tree.leaves(whole.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_record_of_another_model_is_refused():
    wrapped, _, _, _ = train(6, options())
    other = oialr.wrap(nnx.Sequential(linear(), linear()), options())
    with pytest.raises(ValueError, match=r"the record's 'stem.kernel' is no kernel of this model"):
        other.restore(wrapped.record())
    record = wrapped.record()
    record["sizes"]["stem.kernel"] = 99
    with pytest.raises(ValueError, match="has no core of size 99"):
        oialr.wrap(Block(nnx.Rngs(0)), options()).restore(record)


def test_layers_of_ones_own_are_their_own():
    """The pointwise layers of the operators multiply in their own way: that is kept."""
    model = FNO((4, 4), in_channels=1, out_channels=1, hidden_channels=12, n_layers=2,
                rngs=nnx.Rngs(0))  # fmt: skip
    x = normal(2, 8, 8, 1)
    before = model(x)
    wrapped = oialr.wrap(model, options(delay=0))
    assert len(wrapped.bases) >= 4
    np.testing.assert_allclose(wrapped(x), before, atol=1e-4)


def test_what_wrapping_refuses():
    with pytest.raises(ValueError, match="no layer can become low-rank"):
        oialr.wrap(nnx.LayerNorm(4, rngs=nnx.Rngs(0)))
    wrapped = oialr.wrap(Block(nnx.Rngs(0)), options(delay=1))
    with pytest.raises(ValueError, match="no optimizer is known"):
        wrapped.step()


def test_trees_do_without_flax():
    program = (
        "import sys; sys.modules['flax'] = None\n"
        "from tensorgrad_jax import oialr\n"
        "assert oialr.Controller and oialr.History\n"
        "try: oialr.wrap\n"
        "except ModuleNotFoundError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "oialr.wrap needs flax: pip install 'tensorgrad-jax[train]'\n"


def test_an_optimizer_that_cannot_be_carried_is_refused_when_it_is_named():
    layers = [nnx.Linear(64, 64, rngs=nnx.Rngs(i)) for i in range(3)]
    model = nnx.Sequential(*layers)
    optimizer = nnx.Optimizer(model, tg.scale_by_adam(mu_dtype=jnp.int8), wrt=nnx.Param)
    with pytest.raises(ValueError, match=r"moments of 'layers\.0\.kernel' in 8 bits"):
        oialr.wrap(model, oialr.Config(), optimizer)
