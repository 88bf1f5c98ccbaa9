"""The factored second moment: what it is exact for, what it keeps, what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tensorgrad_jax as tg


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def apply(transform, gradients):
    state = transform.init(gradients[0])
    for g in gradients:
        update, state = transform.update(g, state, g)
    return update, state


def test_a_second_moment_that_is_a_product_is_exact():
    """|g|^2 = p(frequency) q(channels) with signs that change: Adam's own second moment."""
    scale = jnp.exp(draw(5, 3, 1, 1)) * jnp.exp(draw(1, 1, 8, 9, seed=1))
    gradients = [scale * jnp.sign(draw(5, 3, 8, 9, seed=s)) * (1 + s) for s in range(4)]
    spec = tg.TensorSpec(groups=((0, 1), (2, 3)))
    got, state = apply(tg.scale_by_factored_rms(0.9, specs=spec), gradients)
    expected, _ = apply(tg.scale_by_adam(b1=0.0, b2=0.9), gradients)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert [x.size for x in state.nu["params"]] == [15, 72]


@pytest.mark.parametrize("groups", [None, ((0, 1, 2), (0, 1, 3))])
def test_axes_in_all_groups_index_independent_second_moments(groups):
    gradients = [draw(2, 3, 5, 4, seed=s) * 10.0 ** draw(2, 3, 1, 1) for s in range(3)]
    spec = tg.TensorSpec(groups=groups)
    got, state = apply(tg.scale_by_factored_rms(0.9, specs=spec), gradients)
    assert [x.size for x in state.nu["params"]] == [30, 24]
    for i in range(2):
        for j in range(3):
            alone = [g[i, j] for g in gradients]
            expected, _ = apply(tg.scale_by_factored_rms(0.9, specs=tg.TensorSpec()), alone)
            np.testing.assert_allclose(got[i, j], expected, rtol=1e-5)


def test_with_adams_momentum_above_it_is_adam_where_it_is_exact():
    """The second moment is that of the gradients, not of what is divided."""
    scale = jnp.exp(draw(5, 3, 8, 1)) * jnp.exp(draw(5, 3, 1, 9, seed=1))
    gradients = [scale * jnp.sign(draw(5, 3, 8, 9, seed=s)) * (1 + s) for s in range(4)]
    for spec in (tg.TensorSpec(groups=((0, 1, 2), (0, 1, 3))), lambda params: None):
        transform = tg.scale_by_factored_rms(0.9, specs=spec, numerator=optax.ema(0.7))
        got, _ = apply(transform, gradients)
        expected, _ = apply(tg.scale_by_adam(b1=0.7, b2=0.9), gradients)
        np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_means_over_each_group_are_those_of_the_squares():
    gradients = [draw(6, 5, 4, seed=s) for s in range(3)]
    spec = tg.TensorSpec(groups=((0,), (1,), (2,)))
    update, state = apply(tg.scale_by_factored_rms(0.5, 0.0, specs=spec), gradients)
    v = (gradients[-1] / update) ** 2
    weights = np.array([0.125, 0.25, 0.5]) / 0.875
    exact = sum(w * g**2 for w, g in zip(weights, gradients, strict=True))
    for axes in ((1, 2), (0, 2), (0, 1)):
        np.testing.assert_allclose(v.mean(axes), exact.mean(axes), rtol=1e-4)
    assert [x.shape for x in state.nu["params"]] == [(6, 1, 1), (1, 5, 1), (1, 1, 4)]


def test_a_real_pair_shares_one_second_moment_of_the_size_of_its_numbers():
    """The update of the complex number, as large as a real number's: sqrt(2) times that."""
    pair = [draw(2, 7, 6, 5, seed=s) for s in range(3)]
    got, state = apply(tg.scale_by_factored_rms(specs=tg.TensorSpec(complex_axis=0)), pair)
    numbers = [jax.lax.complex(p[0], p[1]) for p in pair]
    expected, other = apply(tg.scale_by_factored_rms(specs=tg.TensorSpec()), numbers)
    np.testing.assert_allclose(jax.lax.complex(got[0], got[1]), 2**0.5 * expected, rtol=1e-5)
    assert tg.state_bytes(state) == tg.state_bytes(other)


def test_slices_of_batch_axes_have_moments_of_their_own():
    gradients = [draw(6, 3, 5, seed=s) * jnp.array([1.0, 100.0, 1e4])[:, None] for s in range(2)]
    spec = tg.TensorSpec(batch_axes=(1,))
    got, _ = apply(tg.scale_by_factored_rms(specs=spec), gradients)
    for i in range(3):
        alone = [g[:, i] for g in gradients]
        expected, _ = apply(tg.scale_by_factored_rms(specs=tg.TensorSpec()), alone)
        np.testing.assert_allclose(got[:, i], expected, rtol=1e-5)


def test_other_parameters_have_the_full_second_moment():
    gradients = [{"bias": draw(7, seed=s), "weight": draw(20, 10, 10, seed=s)} for s in range(3)]
    got, state = apply(tg.scale_by_factored_rms(), gradients)
    expected, _ = apply(tg.scale_by_adam(b1=0.0), gradients)
    np.testing.assert_allclose(got["bias"], expected["bias"], rtol=1e-5)
    assert [x.shape for x in state.nu["weight"]] == [(20, 10, 1), (1, 10, 10)]


@pytest.mark.parametrize("value", [0.0, 1e-25, 1e18])
def test_updates_are_finite_in_the_range_of_gradients(value):
    gradients = [value * draw(8, 6, 5)]
    update, _ = apply(tg.scale_by_factored_rms(specs=tg.TensorSpec()), gradients)
    assert np.all(np.isfinite(update))


def test_subspace_momentum_keeps_little_and_learns():
    """Both moments are small; compiled once; nothing of the gradient is dropped."""
    target = draw(8, 7, 12, 12)
    optimizer = tg.subspace_momentum(
        optax.linear_schedule(0.1, 0.0, 100), update_proj_gap=10, b2=0.99, specs=tg.TensorSpec()
    )
    traces = []

    @jax.jit
    def step(params, state):
        traces.append(1)
        updates, state = optimizer.update(2 * (params - target), state, params)
        return optax.apply_updates(params, updates), state

    params = jnp.zeros_like(target)
    state = optimizer.init(params)
    assert tg.state_bytes(state)["total"] < 0.12 * 2 * target.nbytes
    for _ in range(100):
        params, state = step(params, state)
    assert len(traces) == 1
    assert jnp.linalg.norm(params - target) < 0.05 * jnp.linalg.norm(target)


@pytest.mark.parametrize("options", [{"b2": 1.0}, {"eps": -1e-8}])
def test_arguments_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        tg.scale_by_factored_rms(**options)


@pytest.mark.parametrize("groups", [((0,), (1,)), ((0, 1), (1, 2), (0,)), ((0, 1), (2, 3))])
def test_groups_that_do_not_fit_are_refused(groups):
    spec = tg.TensorSpec(groups=groups)
    with pytest.raises(ValueError, match="groups"):
        tg.scale_by_factored_rms(specs=spec).init(jnp.zeros((3, 4, 5)))


def test_momentum_in_bfloat16_is_half_as_large_also_of_complex_numbers():
    gradients = [draw(2, 8, 5, 6, 7, seed=s) for s in range(3)]
    make = lambda dtype: tg.subspace_momentum(
        1.0, tg.Tucker(0.3), 2, specs=tg.TensorSpec(complex_axis=0), mu_dtype=dtype
    )
    (full, state), (half, small) = (apply(make(d), gradients) for d in (None, jnp.bfloat16))
    group = lambda state: state[0].inner["tensor"].groups[0]
    kept, halved = (group(s).numerator.inner.mu["params"].parts for s in (state, small))
    assert 2 * halved.nbytes == kept.nbytes
    assert 0 < jnp.linalg.norm(half - full) < 0.01 * jnp.linalg.norm(full)


def test_subspace_momentum_in_the_whole_space_is_adamw():
    """All of the momentum kept, the second moment not factored: optax.adamw."""
    gradients = [{"w": draw(4, 3, 5, seed=s), "b": draw(4, seed=s)} for s in range(5)]
    groups = tg.TensorSpec(groups=((0, 1, 2),))
    ours = tg.subspace_momentum(
        0.1, tg.Tucker(1.0), 2, weight_decay=0.3, specs={"w": groups, "b": None}
    )
    theirs = optax.adamw(0.1, weight_decay=0.3)
    params = [gradients[-1], gradients[-1]]
    for optimizer, i in ((ours, 0), (theirs, 1)):
        state = optimizer.init(params[i])
        for g in gradients:
            updates, state = optimizer.update(g, state, params[i])
            params[i] = optax.apply_updates(params[i], updates)
    for name in ("w", "b"):
        np.testing.assert_allclose(params[0][name], params[1][name], rtol=2e-4, atol=1e-5)


def test_what_momentum_leaves_out_is_passed_on():
    """Of a gradient outside the subspace the update is the gradient over the root, undamped."""
    first, second = draw(4, 6, 5), draw(4, 6, 5, seed=1)
    optimizer = tg.subspace_momentum(1.0, tg.Tucker(0.1), 100, b2=0.5, specs=tg.TensorSpec())
    state = optimizer.init(first)
    _, state = optimizer.update(first, state, first)
    basis = state[0].inner["tensor"].groups[0].numerator.basis["params"]
    project = lambda g: tg.Tucker(0.1).lift(tg.Tucker(0.1).project(g, basis), basis)
    outside = second - project(second)
    update, state = optimizer.update(outside, state, first)
    v = (first**2 / 2 + outside**2) / 1.5
    means = v.mean(2, keepdims=True), v.mean(1, keepdims=True)
    root = jnp.sqrt(means[0] * means[1] / v.mean((1, 2), keepdims=True))
    momentum = 0.9 * 0.1 / (1 - 0.9**2) * project(first)
    expected = (momentum + outside) / root
    expected /= jnp.maximum(1, jnp.sqrt(jnp.mean(expected**2)))
    np.testing.assert_allclose(-update, expected, rtol=1e-4, atol=1e-5)
