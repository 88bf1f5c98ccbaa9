"""Functions with a derivative of their own are opened where it is marked to be the body's."""

import functools

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from per_example_models import gradients
from tensorgrad_jax.models import FNO

from tensorgrad_jax.backend.derivatives import same_derivative
from tensorgrad_jax.per_example import Project, Squares, Stack, per_example, report
from tensorgrad_jax.random_matrices import Rademacher, key_from

SLABS = "all examples' gradients of a slab at a time"


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def few(monkeypatch):
    """Room for so few numbers that every matrix of a test's size is cut."""
    for module in ("chunks", "fast"):
        monkeypatch.setattr(f"tensorgrad_jax.per_example.{module}.CHUNK_NUMBERS", 10)


def close(found, expected, tolerance=1e-12):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape
        assert jnp.linalg.norm(a - b) <= tolerance * jnp.linalg.norm(b)


def product(x, w):
    return x @ w


def with_derivative(wrap, factor):
    """Return a product, wrapped, whose own derivative with respect to w is `factor` times it."""
    function = wrap(product)

    @function.defjvp
    def _(primals, tangents):
        (x, w), (dx, dw) = primals, tangents
        return function(x, w), dx @ w + factor * (x @ dw)

    return function


def loss_of(function):
    return lambda w, x: jnp.mean(jnp.sum(jnp.sin(function(jnp.tanh(x), w)) ** 2, -1))


def arguments():
    w = jax.random.normal(jax.random.key(0), (4, 3), jnp.float64)
    return w, jax.random.normal(jax.random.key(1), (5, 4), jnp.float64)


def uses(loss, *arguments):
    return {name for row in report(loss, Squares())(*arguments) for name in row.uses}


def test_what_is_marked_is_opened():
    loss = loss_of(with_derivative(same_derivative, 1))
    w, x = arguments()
    assert uses(loss, w, x) == {"dot_general"}
    fast = jax.jit(per_example(loss, Stack(), method="fast"))(w, x)[2]
    close(fast, gradients(loss_of(product), w, x))
    # JAX itself never sees the mark.
    false = loss_of(with_derivative(same_derivative, 3))
    close(jax.grad(false)(w, x), 3 * jax.grad(loss_of(product))(w, x))
    close(per_example(false, Stack(), method="fast")(w, x)[2], fast)


@pytest.mark.parametrize("factor", [1, 3])
@pytest.mark.parametrize("method", ["exact", "fast"])
def test_what_is_not_marked_keeps_its_derivative(factor, method):
    def jitted(function):
        """As a mark is made, under another name."""
        return jax.custom_jvp(jax.jit(function))

    for wrap in (jax.custom_jvp, jitted):
        loss = loss_of(with_derivative(wrap, factor))
        w, x = arguments()
        assert uses(loss, w, x) == {"custom_jvp_call"}
        found = per_example(loss, Stack(), method=method)(w, x)[2]
        close(found, factor * gradients(loss_of(product), w, x))


def test_an_unmarked_function_within_a_marked_one_keeps_its_derivative():
    inner = with_derivative(jax.custom_jvp, 3)
    outer = same_derivative(lambda x, w: inner(x, 2 * w))
    outer.defjvp(lambda primals, tangents: jax.jvp(lambda x, w: inner(x, 2 * w), primals, tangents))
    w, x = arguments()
    loss = loss_of(outer)
    assert uses(loss, w, x) == {"custom_jvp_call"}
    close(per_example(loss, Stack(), method="fast")(w, x)[2], gradients(loss, w, x))


def test_marks_survive_transformations():
    """A marked function in another one, under jit, vmap, a checkpoint and in a loop over layers."""
    marked = with_derivative(same_derivative, 1)
    outer = same_derivative(lambda x, w, twice: marked(x, w) * (2 if twice else 1), (2,))
    outer.defjvp(
        lambda twice, primals, tangents: jax.jvp(lambda x, w: outer(x, w, twice), primals, tangents)
    )
    plain = lambda x, w, twice: x @ w * (2 if twice else 1)
    functions = {
        "outer": lambda f: lambda x, w: f(x, w, True),
        "jit": lambda f: jax.jit(lambda x, w: f(x, w, False)),
        "vmap": lambda f: jax.vmap(lambda x, w: f(x[None], w, True)[0], (0, None)),
        "checkpoint": lambda f: jax.checkpoint(lambda x, w: f(x, w, False)),
    }
    w, x = arguments()
    for name, around in functions.items():
        loss = loss_of(around(outer))
        assert uses(loss, w, x) == {"dot_general"}, name
        close(
            per_example(loss, Stack(), method="fast")(w, x)[2],
            gradients(loss_of(around(plain)), w, x),
        )

    layers = jax.random.normal(jax.random.key(2), (3, 4, 4), jnp.float64)
    loop = lambda f: (
        lambda w, x: jnp.mean(jax.lax.scan(lambda x, w: (jnp.tanh(f(x, w)), None), x, w)[0] ** 2)
    )
    assert uses(loop(marked), layers, x) == {"dot_general"}
    squares = per_example(loop(marked), Squares(), method="fast")(layers, x)[2]
    close(squares, jnp.mean(gradients(loop(product), layers, x) ** 2, 0))


def test_results_of_several_outputs():
    def both(x, w):
        return x @ w, w

    marked = same_derivative(both)
    marked.defjvp(lambda primals, tangents: jax.jvp(both, primals, tangents))

    def loss(function):
        def of(w, x):
            y, same = function(x, w)
            return jnp.mean(jnp.sum(jnp.sin(y) * y @ same.T, -1))

        return of

    w, x = arguments()
    assert uses(loss(marked), w, x) == {"dot_general"}
    close(per_example(loss(marked), Stack())(w, x)[2], gradients(loss(both), w, x))


def test_platforms_within_a_marked_function():
    """The plain branch is taken there; elsewhere a choice between platforms stays as it is."""

    def function(x, w):
        slow = lambda x, w: jnp.einsum("...i,ij->...j", x, w)
        return jax.lax.platform_dependent(x, w, cpu=lambda x, w: (w.T @ x.T).T, default=slow)

    marked = same_derivative(function)
    marked.defjvp(lambda primals, tangents: jax.jvp(function, primals, tangents))
    w, x = arguments()
    for loss, names in ((loss_of(marked), {"dot_general"}), (loss_of(function), {"cond"})):
        assert uses(loss, w, x) == names
        close(per_example(loss, Stack(), method="fast")(w, x)[2], gradients(loss, w, x))


@pytest.mark.parametrize(
    "activation",
    [
        jax.nn.relu, jax.nn.relu6, jax.nn.silu, jax.nn.gelu, jax.nn.softplus, jax.nn.elu,
        jax.nn.selu, jax.nn.leaky_relu, jax.nn.log_sigmoid, jax.nn.hard_swish, jax.nn.mish,
    ],
)  # fmt: skip
def test_activations_of_jax(activation):
    """Behind a layer, where they do not hinder its rule, and of a parameter; at zero, too."""
    w, x = arguments()
    x = x.at[0].set(0)
    params = {"w": w, "gate": jnp.array([-1.0, 0.0, 2.0])}

    def loss(params, x):
        y = activation(x @ params["w"])
        return jnp.mean(jnp.sum(y * activation(params["gate"]) + y**2, -1))

    rows = {row.path: row for row in report(loss, Squares())(params, x)}
    assert rows["['w']"].how == "squares of factors, one position per example"
    close(per_example(loss, Stack(), method="fast")(params, x)[2], gradients(loss, params, x))


MODELS = {
    "1-D": lambda **options: (FNO((6,), 2, 1, 4, 2, rngs=nnx.Rngs(0), **options), (8, 2)),
    "2-D": lambda **options: (FNO((4, 3), 2, 1, 4, 2, rngs=nnx.Rngs(0), **options), (6, 5, 2)),
    "coarse": lambda **options: (FNO((6, 6), 2, 1, 4, 2, rngs=nnx.Rngs(0), **options), (4, 4, 2)),
}


@functools.cache
def operator(name, **options):
    with jax.enable_x64(True):
        model, shape = MODELS[name](**options)
        graph, params = nnx.split(model, nnx.Param)
        params = jax.tree.map(lambda x: x.astype(jnp.float64), nnx.to_pure_dict(params))
        x = jax.random.normal(jax.random.key(1), (3, *shape), jnp.float64)
        loss = lambda params, x: jnp.mean(jnp.sum(jnp.sin(nnx.merge(graph, params)(x)) ** 2, -1))
        return loss, params, x, gradients(loss, params, x)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("transform", ["matrix", "fft"])
@pytest.mark.parametrize("name", MODELS)
def test_features_of_an_operator(name, transform):
    loss, params, x, g = operator(name, transform=transform)
    flat = jnp.concatenate([leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(g)], 1)
    matrix = Rademacher(flat.shape[1], 12)
    reduction = Project(matrix, key_from(0))
    rows = {row.path: row for row in report(loss, reduction)(params, x)}
    assert {row.method for row in rows.values()} == {"fast"}
    products = [row for path, row in rows.items() if "kernel" in path or "spectral" in path]
    assert len(products) == 4 + 2 * 4
    assert {row.uses for row in products} == {("dot_general",)}
    # A coarse grid has some of the frequencies alone: a slice of the weights, which is not cut.
    whole = [row for row in products if name != "coarse" or "spectral" not in row.path]
    assert {row.how for row in whole} == {SLABS}
    features = jax.jit(per_example(loss, reduction, method="fast"))(params, x)[2]
    close(features, flat @ matrix.materialise(key_from(0)))


@pytest.mark.parametrize("options", [{}, {"norm": "group_norm", "domain_padding": 0.2}])
def test_gradients_of_an_operator(options):
    loss, params, x, g = operator("2-D", **options)
    close(jax.jit(per_example(loss, Stack(), method="fast"))(params, x)[2], g)


def test_peak_memory_of_an_operators_features():
    """Not the examples times the parameters of the spectral weights."""
    n, make = 64, lambda: FNO((32, 32), 1, 1, 32, 2, rngs=nnx.Rngs(0))
    graph, params = nnx.split(nnx.eval_shape(make), nnx.Param)
    params = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), nnx.to_pure_dict(params)
    )
    x = jax.ShapeDtypeStruct((n, 32, 32, 1), jnp.float32)
    p = sum(leaf.size for leaf in jax.tree.leaves(params))
    loss = lambda params, x: jnp.mean(nnx.merge(graph, params)(x) ** 2)
    matrix = Rademacher(p, 256)

    fast = per_example(loss, Project(matrix, key_from(0)), check_independence=False)
    compiled = jax.jit(lambda *arguments: fast(*arguments)[2]).lower(params, x).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 4 * n * p / 2
