"""Spectral convolutions whose weight is given by core and factors: the same function, less work."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tensorgrad_jax.models import FNO, SpectralConv, factored, tensor_specs

from tensorgrad_jax import oialr
from tensorgrad_jax.projections import TuckerWeight

GRIDS = {1: (16,), 2: (12, 9), 3: (6, 8, 5)}


def normal(*shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def parts_of(weight, seed=0, share=0.5, modes_too=False):
    """A weight in parts of the shape of this one."""
    sizes = weight.shape[1:]
    n_modes = len(sizes) - 2
    small = [i >= n_modes or (modes_too and i == 0) for i in range(len(sizes))]
    kept = [max(1, int(share * d)) if s else d for d, s in zip(sizes, small, strict=True)]
    factors = tuple(
        normal(d, p, seed=seed + i) / d**0.5 if s else None
        for i, (d, p, s) in enumerate(zip(sizes, kept, small, strict=True))
    )
    return TuckerWeight(normal(2, *kept, seed=seed + 9) * 0.1, factors)


def forced(monkeypatch, order):
    monkeypatch.setattr(factored, "cheapest", lambda *a: order)


def function_of(conv):
    """The layer as a function of its weight, in parts or as an array."""
    graph, params = nnx.split(conv, nnx.Param)
    params = nnx.to_pure_dict(params)
    return lambda weight, x: nnx.merge(graph, params | {"spectral_weight": weight})(x)


@pytest.mark.parametrize(
    ("dim", "transform", "modes_too"),
    [(1, "fft", False), (2, "matrix", False), (2, "fft", True), (3, "fft", False)],
)
@pytest.mark.parametrize("order", [factored.GRID, factored.MODES, factored.ARRAY])
def test_every_order_is_the_convolution_with_the_weight(
    dim, transform, modes_too, order, monkeypatch
):
    conv = SpectralConv(6, 4, (4,) * dim, transform=transform, rngs=nnx.Rngs(0))
    apply = function_of(conv)
    parts = parts_of(conv.spectral_weight, modes_too=modes_too)
    x = normal(3, *GRIDS[dim], 6, seed=5)
    forced(monkeypatch, order)
    with jax.default_matmul_precision("highest"):
        loss = lambda weight, x: jnp.sum(jnp.sin(apply(weight, x)))
        value, (of_parts, of_x) = jax.jit(jax.value_and_grad(loss, (0, 1)))(parts, x)
        expected, (of_array, dx) = jax.jit(jax.value_and_grad(loss, (0, 1)))(parts.array(), x)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(of_x, dx, atol=1e-5)
    _, pull = jax.vjp(TuckerWeight.array, parts)  # of core and factors, through the weight
    for ours, theirs in zip(
        jax.tree.leaves(of_parts), jax.tree.leaves(pull(of_array)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize("reference_shift", [False, True])
def test_coarse_grids_and_the_shift_of_the_reference(reference_shift):
    conv = SpectralConv(4, 4, (8, 8), reference_shift=reference_shift, rngs=nnx.Rngs(0))
    apply, parts = function_of(conv), parts_of(conv.spectral_weight)
    x = normal(2, 5, 7, 4)  # fewer frequencies than weights, odd
    np.testing.assert_allclose(apply(parts, x), apply(parts.array(), x), atol=1e-5)


def test_separable_weights():
    conv = SpectralConv(4, 4, (4, 4), separable=True, rngs=nnx.Rngs(0))
    factors = (None, normal(3, 2), normal(4, 2, seed=1))
    parts = TuckerWeight(normal(2, 4, 2, 2), factors)
    assert parts.shape == conv.spectral_weight.shape
    x = normal(2, 8, 8, 4)
    apply = function_of(conv)
    np.testing.assert_allclose(apply(parts, x), apply(parts.array(), x), atol=1e-5)


@pytest.mark.parametrize(
    ("precision", "order"),
    list(itertools.product(("mixed", "half"), (factored.GRID, factored.MODES))),
)
def test_bfloat16_products_stay_as_near_as_those_of_the_array(precision, order, monkeypatch):
    make = lambda p: SpectralConv(
        8, 8, (4, 4), transform="matrix", fno_block_precision=p, rngs=nnx.Rngs(0)
    )
    conv, exact = make(precision), make("full")
    parts, x = parts_of(conv.spectral_weight), normal(2, 16, 16, 8)
    forced(monkeypatch, order)
    result, full = function_of(conv)(parts, x), function_of(exact)(parts.array(), x)
    rounded = function_of(conv)(parts.array(), x)
    assert result.dtype == jnp.float32
    error = lambda y: jnp.linalg.norm(y - full) / jnp.linalg.norm(full - conv.bias[...])
    assert error(result) < 0.02
    assert error(rounded) < 0.02
    gradient = jax.grad(lambda w: jnp.sum(function_of(conv)(w, x) ** 2))(parts)
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(gradient))


def test_the_order_with_the_fewest_multiplications_is_taken():
    def order(n, p, points, modes=(range(-8, 8), range(9)), batch=8):
        sizes = [len(m) for m in modes]
        factors = (*[None] * len(sizes), jnp.ones((n, p)), jnp.ones((n, p)))
        weight = TuckerWeight(jnp.ones((2, *sizes, p, p)), factors)
        return factored.cheapest(weight, batch, (points, points), modes, "fft")

    assert order(32, 8, 64) == factored.GRID
    assert order(512, 128, 64) == factored.MODES
    # Cores nearly as wide as the weight, many samples: the factors are work to no end.
    assert order(64, 63, 16, (range(-8, 8), range(9)), 256) == factored.ARRAY


def test_neither_the_weight_nor_its_gradient_is_made():
    model = FNO((8, 8), 1, 1, 32, 1, rngs=nnx.Rngs(0))
    graph, params = nnx.split(model, nnx.Param)
    params = nnx.to_pure_dict(params)
    cores, bases = oialr.low_rank(params, oialr.spectral(0.25), keep_last_layer=False)
    x = normal(2, 16, 16, 1)

    def loss(cores, in_parts):
        return jnp.sum(nnx.merge(graph, oialr.lift(cores, bases, in_parts))(x) ** 2)

    program = lambda in_parts: str(jax.make_jaxpr(jax.grad(lambda c: loss(c, in_parts)))(cores))
    weight = "8,5,32,32]"
    assert weight in program(False)
    assert weight not in program(True)
    with jax.default_matmul_precision("highest"):
        values = [jax.jit(loss, static_argnums=1)(cores, in_parts) for in_parts in (False, True)]
    np.testing.assert_allclose(*values, rtol=1e-5)


@pytest.mark.parametrize("checkpoint", [False, True])
def test_an_operator_trains_factors_and_cores(checkpoint):
    """A Tucker-factorised operator is one whose parameters are core and factors."""
    model = FNO((4, 4), 1, 1, 8, 2, activation_checkpoint=checkpoint, rngs=nnx.Rngs(0))
    graph, params = nnx.split(model, nnx.Param)
    params = nnx.to_pure_dict(params)
    for block in params["blocks"].values():
        block["conv"]["spectral_weight"] = parts_of(block["conv"]["spectral_weight"])
    specs = tensor_specs(params)
    for block in specs["blocks"].values():
        assert block["conv"]["spectral_weight"].core.complex_axis == 0
        assert block["conv"]["spectral_weight"].factors == (None, None, None, None)
    x = normal(2, 8, 8, 1)
    predict = lambda params: nnx.merge(graph, params)(x)
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(predict(p) ** 2)))(params)
    dense = jax.tree.map(
        lambda w: w.array() if isinstance(w, TuckerWeight) else w,
        params,
        is_leaf=lambda w: isinstance(w, TuckerWeight),
    )
    np.testing.assert_allclose(predict(params), predict(dense), atol=1e-5)
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(gradient))


def test_a_jacobian_by_forward_mode():
    conv = SpectralConv(4, 4, (4, 4), rngs=nnx.Rngs(0))
    apply, parts = function_of(conv), parts_of(conv.spectral_weight)
    x, dx = normal(2, 8, 8, 4), normal(2, 8, 8, 4, seed=1)
    dparts = jax.tree.map(lambda a: normal(*a.shape, seed=2), parts)
    _, tangent = jax.jvp(apply, (parts, x), (dparts, dx))
    y, pullback = jax.vjp(apply, parts, x)
    cotangent = normal(*y.shape, seed=3)
    dot = lambda a, b: sum(
        jnp.vdot(u, v) for u, v in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )
    np.testing.assert_allclose(
        dot(pullback(cotangent), (dparts, dx)), dot(cotangent, tangent), rtol=1e-4
    )
