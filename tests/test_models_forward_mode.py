"""Forward mode, and derivatives of derivatives, through bfloat16 and recomputed models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tensorgrad_jax.models import FNO, precision
from tensorgrad_jax.models.linear_maps import linear_map

from tensorgrad_jax.backend import pieces

SETTINGS = [
    {"fno_block_precision": "mixed"},
    {"fno_block_precision": "mixed", "fno_block_weights_precision": "half"},
    {"fno_block_precision": "half", "transform": "matrix"},
    {"activation_checkpoint": True},
    {"activation_checkpoint": True, "fno_block_precision": "mixed"},
]
every_setting = pytest.mark.parametrize(
    "options", SETTINGS, ids=["mixed", "half weights", "half", "recomputed", "recomputed mixed"]
)


def normal(shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def flat(tree):
    return np.concatenate([np.float64(leaf).ravel() for leaf in jax.tree.leaves(tree)])


def error(value, expected):
    value, expected = flat(value), flat(expected)
    return np.linalg.norm(value - expected) / np.linalg.norm(expected)


def derivatives(options):
    """Every kind of derivative of one model, compiled together."""
    graph, variables = nnx.split(FNO((4, 4), 1, 1, 4, 1, rngs=nnx.Rngs(0), **options))
    x, dx = normal((2, 6, 6, 1)), normal((2, 6, 6, 1), 1)
    directions = jax.tree.map(lambda v: normal(v.shape, 2, v.dtype), variables)
    model = lambda variables, x: nnx.merge(graph, variables)(x)
    loss = lambda variables, x: jnp.mean(jnp.sin(model(variables, x)))
    slope = lambda variables: jax.jvp(lambda x: model(variables, x), (x,), (dx,))[1]
    one = lambda x, dx: jax.jvp(lambda x: model(variables, x[None]), (x,), (dx,))[1]

    @jax.jit
    def compute(variables, directions, x, dx):
        both = (variables, x), (directions, dx)
        y, pullback = jax.vjp(model, variables, x)
        hessian_vector = jax.jvp(jax.grad(loss), (variables, x), (directions, dx))[1]
        return {
            "tangent": jax.jvp(model, *both)[1],
            "pullback": pullback(jnp.cos(y)),
            "cotangent": jnp.cos(y),
            "one of the input alone": slope(variables),
            "a loss of a slope": jax.grad(lambda v: jnp.mean(slope(v) ** 2))(variables),
            "forward over reverse": hessian_vector,
            "mapped": jax.vmap(one)(x, dx)[:, 0],
        }

    values = compute(variables, directions, x, dx)
    values["directions"] = (directions, dx)
    return values


@pytest.fixture(scope="module")
def plain():
    return derivatives({})


@every_setting
def test_derivatives_are_those_of_the_float32_model(options, plain):
    found = derivatives(options)
    exact = options == {"activation_checkpoint": True}
    for name, value in found.items():
        if name != "directions":
            assert error(value, plain[name]) < (1e-5 if exact else 0.04), name
    # The tangent map and the pullback are transposes of each other.
    forward = np.vdot(flat(found["tangent"]), flat(found["cotangent"]))
    reverse = np.vdot(flat(found["pullback"]), flat(found["directions"]))
    size = np.linalg.norm(flat(found["tangent"])) * np.linalg.norm(flat(found["cotangent"]))
    assert abs(forward - reverse) < (1e-5 if exact else 0.01) * size


@pytest.mark.parametrize("n_bytes", [2**21, 4 * 5 * 4], ids=["whole", "by pieces"])
def test_second_derivatives_of_products_by_pieces(n_bytes, monkeypatch):
    """Pieces are cut out as integers: a derivative through these would be zero."""
    monkeypatch.setattr(pieces, "PIECE_BYTES", n_bytes)
    x, w = normal((11, 5), 0, jnp.bfloat16), normal((5, 4), 1, jnp.bfloat16)
    a, b = normal((2, 7, 3, 5), 2, jnp.bfloat16), normal((2, 7, 5, 4), 3, jnp.bfloat16)

    def ours(x, w, a, b):
        return precision.product(x, w, jnp.float32), precision.batched_products(a, b)

    def exact(x, w, a, b):
        x, w, a, b = (z.astype(jnp.float32) for z in (x, w, a, b))
        return x @ w, jnp.einsum("pmki,pmio->pmko", a, b)

    def second(f):
        loss = lambda *z: sum(jnp.sum(jnp.sin(y)) for y in f(*z))
        gradient = jax.grad(loss, (0, 1, 2, 3))
        moved = lambda *z: sum(jnp.sum(jnp.cos(g.astype(jnp.float32))) for g in gradient(*z))
        return {
            "reverse over reverse": jax.grad(moved, (0, 1, 2, 3)),
            "forward over reverse": lambda *z: jax.jvp(gradient, z, z)[1],
            "reverse over forward": jax.grad(lambda *z: jax.jvp(loss, z, z)[1], (0, 1, 2, 3)),
        }

    found, expected = second(ours), second(exact)
    for name, function in found.items():
        values = [jax.jit(f)(x, w, a, b) for f in (function, expected[name])]
        assert error(*values) < 0.02, name


# Linear maps with a transpose of their own.


def scaled(kept, x):
    return (kept[0] * x[0] + x[1],)


def twice_the_transpose(kept, cotangent):
    """Not the transpose of `scaled`, so that it is seen where it is used."""
    return 2 * kept[0] * cotangent[0], 2 * cotangent[0]


K, A, B = (normal((3,), seed) for seed in range(3))


def apply(k, a, b):
    return linear_map(scaled, twice_the_transpose, [k], [a, b])[0]


def test_the_given_transpose_is_the_one_that_is_used():
    np.testing.assert_allclose(apply(K, A, B), K * A + B, rtol=1e-6)
    da, db = jax.vjp(lambda a, b: apply(K, a, b), A, B)[1](A)
    np.testing.assert_allclose(da, 2 * K * A, rtol=1e-6)
    np.testing.assert_allclose(db, 2 * A, rtol=1e-6)
    # Of one argument alone, the other known or not.
    np.testing.assert_allclose(jax.grad(lambda b: apply(K, A, b).sum())(B), 2 * np.ones(3))
    transposed = jax.linear_transpose(lambda a, b: apply(K, a, b), A, B)(A)
    np.testing.assert_allclose(transposed[0], 2 * K * A, rtol=1e-6)
    # The transpose of the transpose is the map again.
    pull = lambda g: jax.linear_transpose(lambda a, b: apply(K, a, b), A, B)(g)
    np.testing.assert_allclose(jax.linear_transpose(pull, A)((A, B))[0], K * A + B, rtol=1e-6)


def test_derivatives_by_what_is_kept_are_those_of_the_map():
    np.testing.assert_allclose(jax.grad(lambda k: apply(k, A, B).sum())(K), A, rtol=1e-6)
    tangent = jax.jvp(apply, (K, A, B), (B, K, A))[1]
    np.testing.assert_allclose(tangent, B * A + K * K + A, rtol=1e-5)


@pytest.mark.parametrize("axes", [(0, 0, 0), (None, 0, 0), (0, None, 0), (None, None, 1)])
def test_linear_maps_under_vmap(axes):
    arguments = [
        x if axis is None else jnp.stack([x, 2 * x], axis)
        for x, axis in zip((K, A, B), axes, strict=True)
    ]
    mapped = jax.vmap(apply, in_axes=axes)
    expected = jax.vmap(lambda k, a, b: k * a + b, in_axes=axes)(*arguments)
    np.testing.assert_allclose(mapped(*arguments), expected, rtol=1e-6)
    # The gradient of what is not mapped is the sum over what is.
    found = jax.grad(lambda b: mapped(*arguments[:2], b).sum())(arguments[2])
    np.testing.assert_allclose(found, 2 * np.ones_like(found))
    found = jax.grad(lambda a: mapped(arguments[0], a, arguments[2]).sum())(arguments[1])
    factors = 2 * jnp.broadcast_to(arguments[0], (2, 3))
    np.testing.assert_allclose(found, factors.sum(0) if axes[1] is None else factors, rtol=1e-6)
