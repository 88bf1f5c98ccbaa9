"""Features from slabs of parameters and from factors equal those of gradients written out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from per_example_models import gradients, problem

from tensorgrad_jax.per_example import Project, ProjectLayers, chunks, per_example, report
from tensorgrad_jax.random_matrices import SRFT, Normal, Rademacher, key_from

K = 12


@functools.cache
def model(name):
    loss, params, batch = problem(name, jnp.float32)
    return loss, params, batch, gradients(loss, params, batch)


def flat(g):
    return jnp.concatenate([x.reshape(len(x), -1) for x in jax.tree.leaves(g)], 1)


def distance(a, b):
    return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))


@pytest.fixture
def few(monkeypatch):
    """Room for so few numbers that every parameter of a test's size is cut."""
    for module in ("chunks", "fast"):
        monkeypatch.setattr(f"tensorgrad_jax.per_example.{module}.CHUNK_NUMBERS", 10)


def how(loss, reduction, params, batch):
    return {row.how for row in report(loss, reduction)(params, batch)}


SLABS = "all examples' gradients of a slab at a time"


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(
    "name", ["linear sequence", "linear general", "einsum", "conv", "conv groups", "fno"]
)
def test_features_by_slabs(name):
    loss, params, batch, g = model(name)
    matrix = Rademacher(flat(g).shape[1], K)
    reduction = Project(matrix, key_from(0))
    features = jax.jit(per_example(loss, reduction))(params, batch)[2]
    expected = flat(g) @ matrix.materialise(key_from(0))
    assert distance(features, expected) < 1e-5
    # Convolutions in groups are not cut.
    assert (SLABS in how(loss, reduction, params, batch)) == (name != "conv groups")


@pytest.mark.usefixtures("few")
def test_slabs_along_every_axis():
    """A matrix used as it is and transposed, and a stack of matrices."""
    x = jax.random.normal(jax.random.key(0), (5, 4))
    keys = jax.random.split(jax.random.key(1), 3)
    shapes = {"a": (4, 7), "b": (3, 7), "c": (2, 3, 5)}
    params = {n: jax.random.normal(k, s) for (n, s), k in zip(shapes.items(), keys, strict=True)}

    def loss(params, x):
        y = jnp.tanh(x @ params["a"])
        y = jnp.tanh(params["b"] @ y.T).T
        y = jnp.einsum("bji,jik->bjk", jnp.stack([y, y**2], 1), params["c"])
        return jnp.mean(jnp.sum(jnp.sin(y) ** 2, axis=(1, 2)))

    g = gradients(loss, params, x)
    matrix = Normal(flat(g).shape[1], K)
    reduction = Project(matrix, key_from(3))
    rows = report(loss, reduction)(params, x)
    assert [row.how for row in rows] == [SLABS] * 3
    features = jax.jit(per_example(loss, reduction, method="fast"))(params, x)[2]
    assert distance(features, flat(g) @ matrix.materialise(key_from(3))) < 1e-5


@pytest.mark.usefixtures("few")
def test_rows_of_slabs_count_beyond_32_bits():
    """A parameter whose rows of the matrix begin before 2^32 and end behind it."""
    loss, params, batch, g = model("linear sequence")
    offset = 2**32 - 5

    class Later(Rademacher):
        def multiply_transposed(self, key, x, row_offset=0):
            high, low = row_offset if not isinstance(row_offset, int) else (0, row_offset)
            low = jnp.asarray(low, jnp.uint32)
            moved = low + jnp.uint32(offset)
            carry = (moved < low).astype(jnp.uint32)
            return super().multiply_transposed(key, x, jnp.stack([high + carry, moved]))

    n = flat(g).shape[1]
    features = jax.jit(per_example(loss, Project(Later(2**33, K), key_from(0))))(params, batch)[2]
    expected = flat(g) @ Rademacher(2**33, K).materialise(key_from(0), offset, n)
    assert distance(features, expected) < 1e-5


@pytest.mark.usefixtures("few")
def test_what_transforms_whole_blocks_is_not_cut():
    loss, params, batch, g = model("linear sequence")
    matrix = SRFT(flat(g).shape[1], K, flat(g).shape[1])
    reduction = Project(matrix, key_from(0))
    assert SLABS not in how(loss, reduction, params, batch)
    features = per_example(loss, reduction)(params, batch)[2]
    assert distance(features, flat(g) @ matrix.materialise(key_from(0))) < 1e-5


@pytest.mark.parametrize(
    ("name", "method"),
    [(name, "auto") for name in ("linear", "linear sequence", "encoder", "conv", "fno")]
    + [("linear sequence", "exact")],
)
def test_features_by_kronecker_products(name, method):
    loss, params, batch, g = model(name)
    reduction = ProjectLayers(K, key_from(5))
    features = jax.jit(per_example(loss, reduction, method=method))(params, batch)[2]
    expected = 0
    for i, x in enumerate(jax.tree.leaves(g)):
        key = jax.random.fold_in(key_from(5), i)
        rows = x.reshape(len(x), -1)
        leaf = per_example_leaf(x.shape[1:])
        expected = expected + rows @ reduction.matrix(leaf).materialise(key)
    assert distance(features, expected) < 1e-5
    by_factors = "factors of outer products" in how(loss, reduction, params, batch)
    assert by_factors == (name in ("linear", "linear sequence", "encoder", "fno"))


def per_example_leaf(shape):
    from tensorgrad_jax.per_example import Leaf

    return Leaf("", shape, jnp.float32, 0)


def test_a_matrix_on_the_left_has_its_factors_swapped():
    w, x = (
        jax.random.normal(jax.random.key(0), (4, 3)),
        jax.random.normal(jax.random.key(1), (5, 3)),
    )
    loss = lambda w, x: jnp.mean(jnp.sum(jnp.tanh(w @ x.T), axis=0))
    reduction = ProjectLayers(K, key_from(5))
    rows = report(loss, reduction)(w, x)
    assert rows[0].how == "factors of outer products"
    fast, exact = (per_example(loss, reduction, method=m)(w, x)[2] for m in ("fast", "exact"))
    assert distance(fast, exact) < 1e-5


def test_norms_survive_kronecker_products():
    """E |P^T g|^2 = k |g|^2, over many keys."""
    loss, params, batch, g = model("linear sequence")
    features = jax.jit(
        jax.vmap(lambda key: per_example(loss, ProjectLayers(256, key))(params, batch)[2])
    )(jax.vmap(lambda i: jax.random.fold_in(key_from(0), i))(jnp.arange(200)))
    ratio = jnp.mean(jnp.sum(features**2, -1), 0) / (256 * jnp.sum(flat(g) ** 2, 1))
    np.testing.assert_allclose(ratio, 1, atol=0.1)


def peak(function, *arguments):
    memory = jax.jit(function).lower(*arguments).compile().memory_analysis()
    return memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes


WIDTH, LAYERS, B, FEATURES = 1081, 10, 128, 4096  # 11.7e6 parameters


@pytest.mark.parametrize("kind", ["rademacher", "sjlt", "kron"])
def test_peak_memory_does_not_hold_examples_times_parameters(kind):
    """Below 4 times the parameters' bytes plus the features; the gradients are 128 times them."""
    from tensorgrad_jax.trak.kinds import matrix_of

    p = LAYERS * (WIDTH * WIDTH + WIDTH)
    params = [
        (
            jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32),
            jax.ShapeDtypeStruct((WIDTH,), jnp.float32),
        )
        for _ in range(LAYERS)
    ]
    x = jax.ShapeDtypeStruct((B, WIDTH), jnp.float32)

    def loss(params, x):
        for w, b in params:
            x = jnp.tanh(x @ w + b)
        return jnp.mean(x**2)

    def features(params, x):
        if kind == "kron":
            reduction = ProjectLayers(FEATURES, key_from(0))
        else:
            reduction = Project(matrix_of(kind, p, FEATURES), key_from(0))
        return per_example(loss, reduction, method="fast")(params, x)[2]

    assert p > 11.69e6
    assert peak(features, params, x) < 4 * 4 * p + 4 * B * FEATURES
    assert 4 * p / 2 > chunks.CHUNK_NUMBERS * 4


def test_features_where_the_first_parameter_is_used_twice():
    x = jax.random.normal(jax.random.key(0), (5, 4))
    params = {"a": jnp.arange(1.0, 5.0), "b": jnp.ones((4, 3))}
    loss = lambda p, x: jnp.mean(jnp.sum(jnp.sin((x * p["a"]) @ p["b"]), 1) * (x @ p["a"]))
    g = gradients(loss, params, x)
    matrix = Rademacher(16, K)
    reduction = Project(matrix, key_from(0))
    assert [row.method for row in report(loss, reduction)(params, x)] == ["exact", "fast"]
    features = per_example(loss, reduction)(params, x)[2]
    assert distance(features, flat(g) @ matrix.materialise(key_from(0))) < 1e-5
