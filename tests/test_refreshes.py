"""Moments at a refresh: variances and means, what is not known, when there is none."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tensorgrad_jax as tg

SPEC = tg.TensorSpec()


def gradients(n, shape=(9, 8, 7), mean=0.0):
    r = np.random.default_rng(0)
    return [jnp.asarray(mean + r.normal(size=shape), jnp.float32) for _ in range(n)]


def run(optimizer, gs):
    state = optimizer.init(gs[0])
    update = jax.jit(optimizer.update)
    updates = []
    for g in gs:
        u, state = update(g, state)
        updates.append(u)
    return updates, state


@pytest.mark.parametrize("projection", [tg.Tucker(0.3), tg.UnstructuredSparse(0.3, "topk")])
def test_transformations_that_subtract_the_squared_mean_stay_finite(projection):
    """`optax.scale_by_stddev` takes the root of v - m^2, which is never negative."""
    optimizer = tg.in_subspace(optax.scale_by_stddev(), projection, 2, specs=SPEC)
    updates, state = run(optimizer, gradients(8, mean=3.0))
    assert all(bool(jnp.all(jnp.isfinite(u))) for u in updates)
    m, v = state.inner.mu["params"], state.inner.nu["params"]
    assert bool(jnp.all(v >= m**2 * (1 - 1e-4)))


def test_means_exceed_their_second_moments_no_more_than_without_compression():
    """|m| <= 2 sqrt(v) after every refresh; carried over as a variance v would be too small."""
    optimizer = tg.in_subspace(tg.scale_by_adam(), tg.Tucker(0.3), 20, specs=SPEC)
    r = np.random.default_rng(1)
    mean = np.einsum("i,j,k->ijk", *(r.normal(size=d) for d in (9, 8, 7))) * 3
    updates, state = run(optimizer, [jnp.asarray(mean, jnp.float32) + g for g in gradients(61)])
    del updates
    m, v, t = state.inner.mu["params"], state.inner.nu["params"], 61
    ratio = jnp.abs(m) / (1 - 0.9**t) / jnp.sqrt(v / (1 - 0.999**t))
    assert float(ratio.max()) < 2


def test_what_does_not_move_keeps_its_moments():
    """Largest entries that stay the largest: the moments of an uncompressed optimizer's."""
    g = gradients(1)[0]
    projection = tg.UnstructuredSparse(0.3, "topk")
    optimizer = tg.in_subspace(tg.scale_by_adam(), projection, 1, specs=SPEC)
    scales = (1.0, -0.3, 0.5, 2.0)
    got, _ = run(optimizer, [s * g for s in scales])
    expected, _ = run(tg.scale_by_adam(), [s * g for s in scales])
    for u, e in zip(got, expected, strict=True):
        np.testing.assert_allclose(u, jnp.where(u != 0, e, 0), rtol=1e-5)


def test_an_own_rule_sees_all_moments_of_a_parameter_by_name():
    seen = []

    def rule(leaf, moments, old, new):
        seen.append((leaf.name, *sorted(moments)))
        return {"mu": 0 * moments["mu"], "nu": moments["nu"] + 1}

    params = {"a": gradients(1)[0], "z": gradients(1)[0] * (1 + 1j), "b": jnp.ones(3)}
    specs = {"a": SPEC, "z": SPEC, "b": None}
    optimizer = tg.in_subspace(tg.scale_by_adam(), tg.Tucker(0.3), 1, rule, specs=specs)
    _, state = optimizer.update(params, optimizer.init(params))
    assert sorted(set(seen)) == [("a", "mu", "nu"), ("z", "mu", "nu")]
    assert float(state.inner.nu["a"].min()) > 0.9


def test_chained_moments_of_one_name_have_their_paths():
    seen = []
    inner = optax.chain(optax.scale_by_adam(), optax.scale_by_adam())

    def rule(leaf, moments, old, new):
        seen.append(sorted(moments))
        return moments

    optimizer = tg.in_subspace(inner, tg.Tucker(0.3), 1, rule, specs=SPEC)
    g = gradients(1)[0]
    optimizer.update(g, optimizer.init(g))
    assert seen == [["0.mu", "0.nu", "1.mu", "1.nu"]]


def test_a_gradient_of_zeros_chooses_no_subspace():
    optimizer = tg.in_subspace(optax.scale(1.0), tg.Tucker(0.3), 100, specs=SPEC)
    g = gradients(1)[0]
    state = optimizer.init(g)
    update = jax.jit(optimizer.update)
    _, state = update(0 * g, state)
    assert int(state.next_refresh["params"]) == 0
    kept, state = update(g, state)
    assert int(state.next_refresh["params"]) == 101
    expected, _ = update(g, optimizer.init(g))
    np.testing.assert_allclose(kept, expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_negative_zero_is_a_zero(dtype):
    optimizer = tg.in_subspace(optax.scale(1.0), tg.Tucker(0.3), 100, specs=SPEC)
    g = jnp.full((9, 8, 7), -0.0, dtype)
    _, state = optimizer.update(g, optimizer.init(g))
    assert int(state.next_refresh["params"]) == 0


@pytest.mark.parametrize("schedule", [tg.linear_gap, tg.exponential_gap, tg.exponential2_gap])
def test_a_gap_schedule_holds_its_end_value(schedule):
    gap = schedule(200, 50, 1000)
    assert [int(gap(step)) for step in (1000, 1334, 10**6)] == [50, 50, 50]


def test_transport_keeps_second_moments_of_sums_and_means_alike():
    """Weights of an inner transformation's moments are found, whatever its decays."""
    g = gradients(12)
    for inner in (optax.scale_by_rss(), optax.scale_by_rms(0.99), optax.scale_by_amsgrad()):
        optimizer = tg.in_subspace(inner, tg.UnstructuredSparse(0.5), 3, specs=SPEC)
        updates, _ = run(optimizer, g)
        plain, _ = run(inner, g)
        size = lambda u: float(jnp.sqrt(jnp.mean(u**2)))
        # Half of the entries, each as large as without compression.
        assert size(updates[-1]) == pytest.approx(size(plain[-1]) / 2**0.5, rel=0.25), inner
