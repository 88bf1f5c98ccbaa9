"""What is done for one backend: the same numbers there, and plain operations everywhere else."""

import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from tensorgrad_jax.backend import ordering, pieces
from tensorgrad_jax.backend.bits import moved
from tensorgrad_jax.backend.drawing import drawn
from tensorgrad_jax.backend.entries import cleared_entries
from tensorgrad_jax.backend.gelu import normal_slope
from tensorgrad_jax.backend.ordering import after, made_apart, not_merged, stored, unknown_zero
from tensorgrad_jax.backend.pieces import blank, in_pieces
from tensorgrad_jax.backend.products import constant_times_each, multiply_each, sum_of_products


def normal(seed, *shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape)).astype(dtype)


X, Y = normal(0, 12, 6, 5), normal(1, 12, 6, 5, dtype=jnp.bfloat16)
M, INDICES = normal(2, 4, 6), jnp.array([0, 3, 4])

# Every trick: the function, its arguments, what it is in exact arithmetic, and an operation that a
# plain program has none of.
TRICKS = {
    "after": (lambda x, y: after(x, y, 2**30), (X, Y), lambda x, y: x, "bitcast_convert"),
    "not_merged": (not_merged, (X, Y), lambda x, y: x, "bitcast_convert"),
    "made_apart": (lambda x: made_apart(jnp.sin, x), (X,), jnp.sin, "bitcast_convert"),
    "moved": (lambda y: moved(lambda y: y[2:], y), (Y,), lambda y: y[2:], "bitcast_convert"),
    "blank": (
        lambda x: blank((3, 4), jnp.float32, x), (X,), lambda x: jnp.zeros((3, 4)),
        "bitcast_convert",
    ),
    "in_pieces, joined": (
        lambda y, m: in_pieces(
            lambda y, m: jnp.einsum("adb,md->amb", y.astype(jnp.float32), m), (y, m), (0, None), 0
        ),
        (Y, M), lambda y, m: jnp.einsum("adb,md->amb", y.astype(jnp.float32), m), "while",
    ),
    "in_pieces, added": (
        lambda y: in_pieces(lambda y: jnp.sum(y.astype(jnp.float32), 0), (y,), (0,), None),
        (Y,), lambda y: jnp.sum(y.astype(jnp.float32), 0), "while",
    ),
    "multiply_each": (
        multiply_each, (M, X), lambda m, x: jnp.einsum("md,adb->amb", m, x), "batching_dims"
    ),
    "constant_times_each": (
        lambda x: constant_times_each(np.asarray(M), x), (X,),
        lambda x: jnp.einsum("md,adb->amb", M, x), "batching_dims",
    ),
    "sum_of_products": (
        sum_of_products, (X[0], X[0, :, :3]), lambda x, y: x.T @ y, "optimization_barrier"
    ),
    "normal_slope": (
        lambda x: normal_slope(jax.grad(lambda x: jax.nn.gelu(x, False).sum()), x), (4 * X,),
        jax.grad(lambda x: jax.nn.gelu(x, False).sum()), "clamp|minimum",
    ),
    "stored": (stored, (X,), lambda x: x, "optimization_barrier"),
    "cleared_entries": (
        cleared_entries, (X[0], INDICES), lambda x, i: x.at[:, i].set(0), "xi8>"
    ),
    "drawn": (
        lambda key: drawn(jax.random.normal, key, (3, 2, 4)), (jax.random.key(0),),
        lambda key: jax.random.normal(key, (3, 2, 4)), "tensor<24xf32>",
    ),
}  # fmt: skip
every = pytest.mark.parametrize("name", TRICKS)


@pytest.fixture(autouse=True)
def _small_is_large(monkeypatch):
    monkeypatch.setattr(pieces, "PIECE_BYTES", 500)
    monkeypatch.setattr(ordering, "LARGE_BYTES", 0)


@every
def test_tricks_change_no_number(name):
    trick, arguments, plain, _ = TRICKS[name]
    found, expected = jax.jit(trick)(*arguments), plain(*arguments)
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(
        np.float32(found), np.float32(expected), rtol=1e-5, atol=1e-5, strict=True
    )


@every
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_other_backends_get_plain_operations(name, platform):
    """Also in a program that a CPU exports."""
    trick, arguments, _, mark = TRICKS[name]
    lowered = lambda platform: str(
        jax.export.export(jax.jit(trick), platforms=[platform])(*arguments).mlir_module()
    )
    assert re.search(mark, lowered("cpu"))
    assert not re.search(mark, lowered(platform))


@every
def test_tricks_under_vmap(name):
    trick, arguments, *_ = TRICKS[name]
    if name == "drawn":
        pytest.skip("keys are drawn from one by one")
    stacked = [jnp.stack([x, x]) for x in arguments]
    found = jax.jit(jax.vmap(trick))(*stacked)
    np.testing.assert_allclose(
        np.float32(found[1]), np.float32(jax.jit(trick)(*arguments)), rtol=1e-5, atol=1e-5
    )


@every
def test_tricks_under_shard_map(name):
    """With JAX's check of what varies over devices."""
    trick, arguments, plain, _ = TRICKS[name]
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    vary = lambda x: jax.lax.pcast(x, "data", to="varying")
    on_each = lambda *x: trick(*map(vary, x))
    mapped = jax.shard_map(on_each, mesh=mesh, in_specs=P(), out_specs=P("data"))
    found = jax.jit(mapped)(*arguments)
    np.testing.assert_allclose(
        np.float32(found), np.float32(plain(*arguments)), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.complex64, jnp.int32])
@pytest.mark.parametrize("value", [0, -1, np.nan, np.inf])
def test_the_unknown_zero_is_zero_whatever_it_is_computed_from(dtype, value):
    if dtype == jnp.int32 and not np.isfinite(value):
        value = 7
    zero = jax.jit(lambda x: unknown_zero(x, jnp.float32))(jnp.asarray(value).astype(dtype))
    assert zero == 0
    assert not np.signbit(zero)


def test_the_room_imports_nothing_of_the_library():
    code = """
import pathlib, re
for path in pathlib.Path("tensorgrad_jax/backend").glob("*.py"):
    for name in re.findall(r"tensorgrad_jax\\.(\\w+)", path.read_text()):
        assert name == "backend", (path, name)
for path in pathlib.Path("models").glob("*.py"):
    for line in re.findall(r"^(?:from|import) tensorgrad_jax.*", path.read_text(), re.M):
        forms = "projections.(leaf import TensorSpec|tucker_weight import TuckerWeight)"
        allowed = f"from tensorgrad_jax.(backend|{forms})"
        assert re.match(allowed, line), line
"""
    subprocess.run([sys.executable, "-c", code], check=True)
