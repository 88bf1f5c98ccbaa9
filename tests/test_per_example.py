"""Reductions of per-example gradients equal those of gradients that are written out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from per_example_models import MODELS, N, gradients, problem

import tensorgrad_jax as tg
from tensorgrad_jax.per_example import InSubspace, Project, Squares, Stack, per_example, report


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


@functools.cache
def _problem(name):
    loss, params, batch = problem(name)
    return loss, params, batch, gradients(loss, params, batch)


class Matrix:
    """An explicit matrix in the place of a random one."""

    def __init__(self, rows, columns):
        self.entries = np.random.default_rng(0).normal(size=(rows, columns))

    def multiply_transposed(self, key, x, row_offset):
        rows = jax.lax.dynamic_slice_in_dim(self.entries, row_offset, x.shape[1], 0)
        return jnp.matmul(x, key * rows, precision="highest")


def close(actual, expected, tolerance=1e-12):
    """Compare trees relative to their largest number: some gradients are zero but for noise."""
    scale = max(float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(expected))
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * scale),
        actual,
        expected,
    )


def tolerance(name):
    """Flax takes the softmax of attention in float32."""
    return 1e-6 if name in ("attention", "encoder") else 1e-12


def mean_of_squares(g):
    return jax.tree.map(lambda g: jnp.mean(g**2, 0), g)


def flat(g):
    return jnp.concatenate([x.reshape(N, -1) for x in jax.tree.leaves(g)], 1)


EXACT = ["linear", "embed", "recurrent", "shared and tied"]


@pytest.mark.parametrize(
    ("name", "method"), [(n, "auto") for n in MODELS] + [(n, "exact") for n in EXACT]
)
def test_squares_are_those_of_explicit_gradients(name, method):
    loss, params, batch, g = _problem(name)
    size = 2 if method == "exact" else None
    value, gradient, squares = jax.jit(
        per_example(loss, Squares(), method=method, microbatch_size=size)
    )(params, batch)
    expected = jax.value_and_grad(loss)(params, batch)
    close((value, gradient), expected, tolerance(name))
    close(squares, mean_of_squares(g), tolerance(name))


def test_products_with_few_positions_are_squared_by_their_factors():
    for name in ("linear sequence of two", "einsum, two positions per head", "fno"):
        loss, params, batch, _ = _problem(name)
        rows = report(loss, Squares())(params, batch)
        hows = [row.how for row in rows if "kernel" in row.path or "spectral" in row.path]
        assert any(how == "squares of factors, 2 positions per example" for how in hows)


def test_squares_of_terms_that_cancel_are_not_negative():
    """Both positions' terms are alike but for the sign: gradients are rounding errors."""
    x = jax.random.normal(jax.random.key(0), (64, 1, 40), jnp.float32)
    batch = jnp.concatenate([x, -3 * x], 1)
    loss = lambda w, x: jnp.mean(jnp.sum(jnp.array([[3.0], [1.0]], x.dtype) * (x @ w), (1, 2)))
    w = jnp.ones((40, 3), jnp.float32)
    squares = per_example(loss, Squares(), method="fast")(w, batch)[2]
    assert 0 <= jnp.min(squares) <= jnp.max(squares) < 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_what_one_backward_pass_does(name):
    loss, params, batch, _ = _problem(name)
    rows = report(loss, Squares())(params, batch)
    assert all(row.method == "fast" for row in rows) == MODELS[name][2]
    if not MODELS[name][2]:
        slow = next(row for row in rows if row.method == "exact")
        with pytest.raises(ValueError, match="method 'fast' cannot do parameter") as error:
            per_example(loss, Squares(), method="fast")(params, batch)
        assert slow.path in str(error.value)
        assert slow.uses[0] in str(error.value)


@pytest.mark.parametrize(
    "name", ["encoder", "conv groups", "scan over layers", "shared and tied", "rest"]
)
@pytest.mark.parametrize("method", ["exact", "auto"])
@pytest.mark.parametrize("size", [1, 2])
def test_stack_and_features(name, method, size):
    loss, params, batch, g = _problem(name)
    make = functools.partial(per_example, loss, method=method, microbatch_size=size)
    close(jax.jit(make(Stack()))(params, batch)[2], g, tolerance(name))
    matrix = Matrix(flat(g).shape[1], 7)
    features = jax.jit(lambda key: make(Project(matrix, key))(params, batch)[2])(2.0)
    close(features, flat(g) @ (2 * matrix.entries), tolerance(name))


@pytest.mark.parametrize("method", ["exact", "auto"])
def test_squares_of_projected_gradients(method):
    loss, params, batch, g = _problem("shared and tied")
    projection = tg.Tucker(rank=2)
    key = jax.random.key(0)

    def based(p):
        return projection.refresh(key, p, projection.init(p)) if p.ndim == 2 else None

    basis = jax.tree.map(based, params)
    leaves, structure = jax.tree.flatten(params)
    bases = structure.flatten_up_to(basis)
    reduced = jax.jit(
        lambda basis: per_example(loss, InSubspace(projection, basis), method=method)(params, batch)
    )(basis)[2]
    for p, b, gs, actual in zip(
        leaves, bases, jax.tree.leaves(g), structure.flatten_up_to(reduced), strict=True
    ):
        compact = gs if b is None else jnp.stack([projection.project(x, b) for x in gs])
        assert p.ndim != 2 or actual.shape == (2, 2)
        close(actual, jnp.mean(compact**2, 0))


def test_squares_exceed_those_of_the_mean_gradient():
    loss, params, batch, _ = _problem("encoder")
    _, gradient, squares = jax.jit(per_example(loss, Squares()))(params, batch)
    room = jax.tree.map(lambda s, g: jnp.min(s - g**2 * (1 - 1e-12)), squares, gradient)
    assert min(jax.tree.leaves(room)) >= 0
    assert max(jax.tree.leaves(jax.tree.map(jnp.max, squares))) > 0


def test_backpack_divides_once_more():
    loss, params, batch, g = _problem("conv")
    squares = jax.jit(per_example(loss, Squares(normalisation="backpack")))(params, batch)[2]
    close(squares, jax.tree.map(lambda g: jnp.sum(g**2, 0) / N**2, g))


def test_terms_are_squared_by_themselves():
    """With granularity "token": dense layer, bias, norm, convolution, table."""
    x = jax.random.normal(jax.random.key(0), (N, 5, 4))
    params = {
        "table": jnp.linspace(-1, 1, 24).reshape(6, 4),
        "scale": jnp.arange(1.0, 5),
        "kernel": jnp.cos(jnp.arange(12.0)).reshape(4, 3),
        "bias": jnp.ones(3),
        "conv": jnp.sin(jnp.arange(18.0)).reshape(2, 3, 3),
    }
    ids = jnp.array([[0, 1, 1, 5, 0], [2, 2, 2, 2, 2], [4, 3, 2, 1, 0]])

    def run(p, batch, kept=lambda name, value: value):
        x, ids = batch
        rows = kept("rows", jnp.take(p["table"], ids, axis=0))
        scaled = kept("scaled", (x + rows) * p["scale"])
        dense = kept("dense", scaled @ p["kernel"])
        biased = kept("biased", dense + p["bias"])
        conv = jax.lax.conv_general_dilated(
            biased, p["conv"], (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
        )
        return kept("conv", conv), (x, rows, scaled, biased)

    def loss(p, batch):
        y, _ = run(p, batch)
        return jnp.mean(jnp.sum(y**2, (1, 2)))

    squares = jax.jit(per_example(loss, Squares(granularity="token")))(params, (x, ids))[2]

    zeros = {}
    run(params, (x, ids), lambda name, value: zeros.setdefault(name, jnp.zeros_like(value)) + value)

    def total(probes):
        y, rest = run(params, (x, ids), lambda name, value: value + probes[name])
        return jnp.sum(y**2), rest

    d, (x, rows, scaled, biased) = jax.grad(total, has_aux=True)(zeros)
    square = jax.tree.map(jnp.square, d)
    expected = {
        "table": jnp.zeros((6, 4)).at[ids].add(square["rows"]),
        "scale": jnp.sum((x + rows) ** 2 * square["scaled"], (0, 1)),
        "kernel": jnp.einsum("nti,nto->io", scaled**2, square["dense"]),
        "bias": jnp.sum(square["biased"], (0, 1)),
        "conv": jnp.stack(
            [jnp.einsum("nti,nto->io", biased[:, k : k + 4] ** 2, square["conv"]) for k in range(2)]
        ),
    }
    close(squares, jax.tree.map(lambda s: s / N, expected))


def test_a_use_of_unknown_terms_has_none_to_square(unchecked):
    del unchecked
    loss, params, batch, _ = _problem("recurrent")
    with pytest.raises(ValueError, match=r"granularity 'token'.*scan"):
        per_example(loss, Squares(granularity="token"))(params, batch)


@pytest.mark.parametrize("method", ["exact", "auto"])
def test_derivatives_that_a_function_brings_along_are_kept(method):
    @jax.custom_vjp
    def layer(x, w):
        return jnp.round(x @ w)

    layer.defvjp(
        lambda x, w: (layer(x, w), (x, w)),
        lambda kept, d: (d @ kept[1].T, 3 * kept[0].T @ d),
    )
    loss = lambda w, x: jnp.mean(layer(jnp.tanh(x), w) ** 2)
    w, x = jnp.ones((4, 3)), jax.random.normal(jax.random.key(0), (N, 4))
    value, gradient, squares = per_example(loss, Squares(), method=method)(w, x)
    close((value, gradient), jax.value_and_grad(loss)(w, x))
    close(squares, mean_of_squares(gradients(loss, w, x)))
    assert jnp.max(squares) > 0


def test_dropout_with_a_key_per_example():
    def loss(w, batch):
        x, keys = batch
        drop = lambda x, key: jnp.where(jax.random.bernoulli(key, 0.5, x.shape), x, 0)
        return jnp.mean(jnp.sum((jax.vmap(drop)(x, keys) @ w) ** 2, -1))

    w, x = jnp.ones((40, 3)), jax.random.normal(jax.random.key(0), (N, 40))
    batch = (x, jax.random.split(jax.random.key(1), N))
    value, gradient, squares = per_example(loss, Squares(), method="fast")(w, batch)
    close((value, gradient), jax.value_and_grad(loss)(w, batch))
    close(squares, mean_of_squares(gradients(loss, w, batch)))


def test_complex_parameters_have_squared_magnitudes():
    def loss(w, x):
        return jnp.mean(jnp.abs(jnp.einsum("ni,ij->nj", x, w)) ** 2)

    w = jnp.array([[1 + 2j, 3.0], [1j, 2 - 1j]])
    x = jax.random.normal(jax.random.key(0), (N, 2)) + 1j
    g = gradients(loss, w, x)
    for method in ("exact", "fast"):
        squares = per_example(loss, Squares(), method=method)(w, x)[2]
        assert not jnp.iscomplexobj(squares)
        close(squares, jnp.mean(jnp.abs(g) ** 2, 0))


@pytest.mark.parametrize("name", ["linear", "linear sequence", "conv", "fno"])
def test_squares_of_bfloat16_gradients_are_float32(name):
    loss, params, batch = problem(name, jnp.bfloat16)
    gradient, squares = jax.jit(per_example(loss, Squares()))(params, batch)[1:]
    assert {str(x.dtype) for x in jax.tree.leaves(gradient)} == {"bfloat16"}
    assert {str(x.dtype) for x in jax.tree.leaves(squares)} == {"float32"}
    wide, params, batch = problem(name)
    close(squares, mean_of_squares(gradients(wide, params, batch)), 0.05)


def test_small_cotangents_of_large_batches_do_not_underflow():
    x = jnp.full((4096, 2), 1e-4, jnp.float16)
    loss = lambda w, x: jnp.mean((x @ w).astype(jnp.float32)) * 1e-2
    squares = per_example(loss, Squares())(jnp.ones((2, 1), jnp.float16), x)[2]
    np.testing.assert_allclose(squares, 1e-12, rtol=0.05)


def test_arguments_and_aggregates():
    x, y = jnp.arange(12.0).reshape(6, 2), jnp.arange(6.0)
    fun = lambda scale, x, w, y: jnp.sum((scale * (x @ w) - y) ** 2)
    scale, w = jnp.asarray(2.0), {"w": jnp.array([1.0, -1.0])}
    loss = lambda scale, x, w, y: fun(scale, x, w["w"], y)
    value, (g_scale, g_w), (s_scale, s_w) = per_example(
        loss, Squares(), argnums=(0, 2), batch_argnums=(1, 3), loss_reduction="sum", method="fast"
    )(scale, x, w, y)
    expected = jax.value_and_grad(loss, (0, 2))(scale, x, w, y)
    close((value, (g_scale, g_w)), expected)
    error = 2 * (2 * (x @ w["w"]) - y)
    close(
        (s_scale, s_w["w"]),
        (jnp.mean((error * (x @ w["w"])) ** 2), jnp.mean((2 * error[:, None] * x) ** 2, 0)),
    )


def test_a_penalty_belongs_to_every_example():
    loss = lambda w, x: jnp.mean((x @ w) ** 2) + 0.1 * jnp.sum(w**2)
    w, x = jnp.array([1.0, 2.0]), jax.random.normal(jax.random.key(0), (N, 2))
    value, gradient, squares = per_example(loss, Squares())(w, x)
    close((value, gradient), jax.value_and_grad(loss)(w, x))
    close(squares, mean_of_squares(gradients(loss, w, x)))
    no_examples = lambda w, x: jnp.sum(w**2)
    close(per_example(no_examples, Squares())(w, x), (5.0, 2 * w, 4 * w**2))


def _linear(w, x):
    return jnp.mean(x @ w)


WRONG_ARGUMENTS = {
    "fun must be callable": lambda: per_example(3, Squares()),
    "reduction must be a Reduction": lambda: per_example(_linear, "squares"),
    "method must be one of": lambda: per_example(_linear, Squares(), method="quick"),
    "loss_reduction must be one of": lambda: per_example(_linear, Squares(), loss_reduction="max"),
    "microbatch_size must be a positive": lambda: per_example(
        _linear, Squares(), microbatch_size=0
    ),
    "argnums must be an argument's number": lambda: per_example(_linear, Squares(), argnums=-1),
    "an argument holds parameters or examples": lambda: per_example(_linear, Squares(), argnums=1),
    "granularity must be one of": lambda: Squares(granularity="pixel"),
    "normalisation must be one of": lambda: Squares(normalisation="sum"),
    "projection must be a Projection": lambda: InSubspace("tucker", None),
}


@pytest.mark.parametrize("message", WRONG_ARGUMENTS)
def test_wrong_arguments_are_named(message, unchecked):
    del unchecked
    with pytest.raises(ValueError, match=message):
        WRONG_ARGUMENTS[message]()


W, X = jnp.ones(2), jnp.ones((3, 2))
WRONG_CALLS = {
    "need 2 arguments, got 1": ((_linear,), (W,)),
    "holds no examples": ((_linear,), (W, X[:0])),
    "dtype int32 has no gradient": (
        (lambda w, x: _linear(w["i"], x),),
        ({"i": jnp.ones(2, jnp.int32)}, X),
    ),
    "is a scalar; examples lie along axis 0": ((_linear,), (W, jnp.ones(()))),
    "differ in their axis 0": ((lambda w, x: _linear(w, x[0]),), (W, (X, X[:2]))),
    "must return a real scalar": ((lambda w, x: x @ w,), (W, X)),
    "hold no parameters": ((lambda w, x: jnp.mean(x),), ({}, X)),
    "cannot take a batch of one": (
        (lambda w, x: jnp.mean(x[1] @ w + 0 * x.reshape(3, 2)[1]),),
        (W, X),
    ),
}


@pytest.mark.parametrize("message", WRONG_CALLS)
def test_wrong_calls_are_named(message):
    (fun,), arguments = WRONG_CALLS[message]
    with pytest.raises(ValueError, match=message):
        per_example(fun, Squares(), check_independence=False)(*arguments)


def test_features_of_complex_parameters_are_refused():
    fun = lambda w, x: jnp.mean(jnp.abs(x @ w) ** 2)
    with pytest.raises(ValueError, match="is complex; features are of real parameters"):
        per_example(fun, Project(Matrix(2, 3), 1.0))(W + 0j, X)


def test_fast_squares_need_little_more_memory_than_the_gradient():
    """Four layers of 256 x 256: at most 1.3 times the gradient's peak; S itself is part of it."""
    params = [(jnp.ones((256, 256), jnp.float32), jnp.ones(256, jnp.float32)) for _ in range(4)]
    x = jnp.ones((1024, 256), jnp.float32)

    def loss(params, x):
        for w, b in params:
            x = jnp.tanh(x @ w + b)
        return jnp.mean(x**2)

    def peak(function):
        memory = jax.jit(function).lower(params, x).compile().memory_analysis()
        return (
            memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        )

    plain = peak(jax.value_and_grad(loss))
    assert peak(per_example(loss, Squares(), method="fast")) <= 1.3 * plain
