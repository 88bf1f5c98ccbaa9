"""Momentum in 8 bits: as good as in float32 in the mean, and a quarter of its bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tensorgrad_jax.models import FNO, tensor_specs

import tensorgrad_jax as tg
from tensorgrad_jax.projections.pairs import Pair
from tensorgrad_jax.transforms.eight_bits import EightBits, decoded, encoded, zeros
from tensorgrad_jax.transforms.moments import momentum
from tensorgrad_jax.transforms.packing import plain

RNG = np.random.default_rng(0)


def draw(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


@pytest.mark.parametrize(
    ("shape", "scales"),
    [((6, 9, 16, 16), (6, 9, 1, 1)), ((5, 4, 4), (1, 1, 1)), ((3, 200), (3, 1)), ((7,), (1,))],
)  # fmt: skip
def test_blocks_are_the_last_axes_of_128_numbers_or_more(shape, scales):
    stored = encoded(draw(*shape), jnp.uint32(1))
    assert stored.codes.shape == shape
    assert stored.scales.shape == scales == zeros(jnp.zeros(shape), shape).scales.shape


def test_rounding_is_right_in_the_mean_and_never_farther_than_a_step():
    x = draw(4, 8, 16)
    many = jax.vmap(lambda seed: decoded(encoded(x, seed)))(jnp.arange(2000, dtype=jnp.uint32))
    step = np.abs(np.asarray(x)).max((1, 2), keepdims=True) / 127
    assert np.all(np.abs(many - x) <= step * 1.001)
    assert np.max(np.abs(many.mean(0) - x) / step) < 0.06  # five standard errors
    largest = np.argmax(np.abs(np.asarray(x[0])))
    np.testing.assert_allclose(
        many[:, 0].reshape(2000, -1)[:, largest], x[0].ravel()[largest], rtol=1e-6
    )
    np.testing.assert_array_equal(decoded(encoded(jnp.zeros((3, 70)), jnp.uint32(0))), 0)


def test_what_is_small_beside_its_block_is_not_lost():
    """A thousandth of the largest is below one of 127 levels, and comes through all the same."""
    gradient = jnp.full(256, 1e-3).at[0].set(1.0)
    transform = momentum(0.9, jnp.int8)
    update = jax.jit(transform.update)
    state, total = transform.init(gradient), 0.0
    for _ in range(300):
        out, state = update(gradient, state)
        total = total + out / 300
    np.testing.assert_allclose(total[0], 1.0, rtol=0.01)
    np.testing.assert_allclose(total[1:].mean(), 1e-3, rtol=0.1)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64])
@pytest.mark.parametrize(
    "make", [lambda d: momentum(0.9, d), lambda d: tg.scale_by_adam(mu_dtype=d)]
)
def test_updates_are_those_of_float32_within_rounding(make, dtype):
    gradients = [draw(5, 16, 16) for _ in range(6)]
    if dtype == jnp.complex64:
        gradients = [g + 1j * draw(5, 16, 16) for g in gradients]
    found = {}
    for precision in (None, jnp.int8):
        transform = make(precision)
        state = transform.init(gradients[0])
        for g in gradients:
            out, state = transform.update(g, state)
        found[precision] = out, state
    exact, rough = found[None][0], found[jnp.int8][0]
    assert rough.dtype == dtype
    assert jnp.linalg.norm(rough - exact) < 0.03 * jnp.linalg.norm(exact)
    assert isinstance(found[jnp.int8][1].mu, EightBits)


def test_state_is_a_quarter_of_float32_and_stays_as_it_is():
    x = {"w": draw(4, 64, 64), "b": draw(8)}
    transform = momentum(0.9, "int8")
    state = transform.init(x)
    traced = []
    step = jax.jit(lambda g, s: traced.append(0) or transform.update(g, s), donate_argnums=1)
    shapes = jax.tree.map(lambda a: (a.shape, a.dtype, a.weak_type), state)
    for _ in range(3):
        _, state = step(x, state)
    assert jax.tree.map(lambda a: (a.shape, a.dtype, a.weak_type), state) == shapes
    assert len(traced) == 1
    n = sum(a.size for a in jax.tree.leaves(x))
    assert tg.state_bytes(state)["moments"] <= 1.01 * n + 8


@pytest.mark.parametrize("as_pair", [False, True])
def test_at_a_refresh_it_is_carried_over_as_float32_is(as_pair):
    spec = tg.TensorSpec(complex_axis=0) if as_pair else tg.TensorSpec()
    x = [{"w": draw(2, 6, 16, 16)} for _ in range(4)]
    found = {}
    for dtype in (jnp.float32, jnp.int8):
        transform = tg.in_subspace(
            momentum(0.9, dtype),
            tg.Residual(tg.UnstructuredSparse(0.1), tg.Tucker(0.3)) if as_pair else tg.Tucker(0.3),
            update_proj_gap=2, specs={"w": spec},
        )  # fmt: skip
        state = transform.init(x[0])
        for g in x:
            out, state = transform.update(g, state)
        found[dtype] = out["w"], state
    exact, rough = found[jnp.float32][0], found[jnp.int8][0]
    assert jnp.linalg.norm(rough - exact) < 0.04 * jnp.linalg.norm(exact)
    moments = jax.tree.leaves(
        found[jnp.int8][1].inner.mu, is_leaf=lambda x: isinstance(x, EightBits)
    )
    assert all(isinstance(x, EightBits) for x in moments)


def test_pairs_of_entries_hold_codes_of_both_parts():
    pair = Pair(draw(2, 70))
    state = momentum(0.9, jnp.int8).init(pair)
    assert isinstance(state.mu, Pair)
    assert plain(state.mu.parts).shape == (2, 70)


def test_the_recommended_optimizer_trains_with_it():
    from flax import nnx

    model = FNO((4, 4), 1, 1, 16, 2, rngs=nnx.Rngs(0))
    graph, params = nnx.split(model, nnx.Param)
    waves = jnp.sin(2 * jnp.pi * jnp.arange(8) / 8)
    batch = draw(4, 1, 1, 1) * waves[None, :, None, None] * jnp.ones((4, 8, 8, 1))
    loss = lambda p: jnp.mean((nnx.merge(graph, p)(batch) - jnp.roll(batch, 2, 1)) ** 2)
    reached, sizes = {}, {}
    for dtype in (jnp.bfloat16, jnp.int8):
        optimizer = tg.tensor_muon(1e-2, specs=tensor_specs, mu_dtype=dtype, update_proj_gap=10)

        @jax.jit
        def step(p, state, optimizer=optimizer):
            updates, state = optimizer.update(jax.grad(loss)(p), state, p)
            return optax.apply_updates(p, updates), state

        p, state = params, optimizer.init(params)
        for _ in range(60):
            p, state = step(p, state)
        reached[dtype], sizes[dtype] = float(loss(p)), tg.state_bytes(state)["moments"]
    assert reached[jnp.bfloat16] < 0.5 * float(loss(params))
    assert reached[jnp.int8] < 1.5 * reached[jnp.bfloat16]
    assert sizes[jnp.int8] < 0.75 * sizes[jnp.bfloat16]


def test_other_integers_are_refused(unchecked):
    with pytest.raises(ValueError, match="mu_dtype must be a real float dtype"):
        tg.tensor_muon(1e-3, mu_dtype=jnp.int32)
