"""Adam moments and the count of their bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tensorgrad_jax as tg


def run(transform, gradients):
    state = transform.init(gradients[0])
    for g in gradients:
        update, state = transform.update(g, state)
    return update, state


def random(n, shape=(5, 3)):
    r = np.random.default_rng(0)
    return [jnp.asarray(r.normal(size=shape), jnp.float32) for _ in range(n)]


def test_real_gradients_give_optax_adam():
    gradients = random(5)
    got, state = run(tg.scale_by_adam(0.8, 0.99, 1e-3), gradients)
    expected, other = run(optax.scale_by_adam(0.8, 0.99, 1e-3), gradients)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    np.testing.assert_allclose(state.nu, other.nu, rtol=1e-6)


def test_complex_gradients_follow_the_definition():
    real, imaginary = random(8)[:4], random(8)[4:]
    gradients = [a + 1j * b for a, b in zip(real, imaginary, strict=True)]
    got, state = run(tg.scale_by_adam(0.9, 0.99, 1e-8), gradients)
    m = v = 0
    for g in gradients:
        g = np.asarray(g, np.complex128)
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * np.abs(g) ** 2
    expected = m / (1 - 0.9**4) / (np.sqrt(v / (1 - 0.99**4)) + 1e-8)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert state.nu.dtype == jnp.float32


def test_the_update_turns_with_the_phase_of_the_gradients():
    gradients = [a + 1j * b for a, b in zip(random(6)[:3], random(6)[3:], strict=True)]
    phase = jnp.exp(0.7j)
    plain, _ = run(tg.scale_by_adam(), gradients)
    turned, _ = run(tg.scale_by_adam(), [phase * g for g in gradients])
    np.testing.assert_allclose(turned, phase * plain, rtol=1e-5)


def test_dtypes_of_the_moments():
    params = {
        "half": jnp.ones(3, jnp.bfloat16),
        "single": jnp.ones(3),
        "complex": jnp.ones(3, jnp.complex64),
    }
    dtypes = lambda tree: {n: str(x.dtype) for n, x in tree.items()}
    state = tg.scale_by_adam().init(params)
    assert dtypes(state.mu) == {"half": "float32", "single": "float32", "complex": "complex64"}
    assert set(dtypes(state.nu).values()) == {"float32"}
    transform = tg.scale_by_adam(mu_dtype=jnp.bfloat16, nu_dtype=jnp.bfloat16)
    state = transform.init(params)
    assert set(dtypes(state.mu).values()) == {"bfloat16"}
    assert state.mu["complex"].shape == (2, 3)  # real and imaginary part
    assert set(dtypes(state.nu).values()) == {"bfloat16"}
    _, after = transform.update(params, state)
    assert dtypes(after.mu) == dtypes(state.mu)
    assert dtypes(after.nu) == dtypes(state.nu)


@pytest.mark.parametrize(
    "arguments", [{"b1": 1.0}, {"b2": -0.1}, {"eps": -1.0}, {"mu_dtype": jnp.int32}]
)
def test_bad_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match=r"scale_by_adam: .* got"):
        tg.scale_by_adam(**arguments)


def test_state_bytes_counts_every_array():
    params = {"w": jnp.ones((2, 8, 8, 8)), "b": jnp.ones(5)}
    specs = {"w": tg.TensorSpec(0), "b": None}
    projection = tg.Residual(tg.UnstructuredSparse(0.05, "topk"), tg.Tucker(4))
    optimizer = tg.projected_adamw(1e-3, projection, specs=specs)
    state = optimizer.init(params)
    counted = tg.state_bytes(state)
    # int(.05 * 512) entries, a core of 4x4x4, a thirty-second of the entries as a sample.
    kept = 25 + 64 + 16
    assert counted["moments"] == kept * (8 + 4) + 2 * 5 * 4
    assert counted["basis"] == 25 * 4 + 3 * 8 * 4 * 8
    assert counted["total"] == sum(x.nbytes for x in jax.tree.leaves(state))
    assert counted["total"] == counted["moments"] + counted["basis"] + counted["other"]
    # Without allocating, and for any Optax state.
    assert tg.state_bytes(jax.eval_shape(optimizer.init, params)) == counted
    assert tg.state_bytes(optax.adam(1e-3).init(params))["moments"] == 2 * 4 * (1024 + 5)


def test_random_entries_cost_no_index_bytes():
    params = {"w": jnp.ones((8, 16, 16))}
    state = tg.in_subspace(tg.scale_by_adam(), tg.UnstructuredSparse(0.25)).init(params)
    assert tg.state_bytes(state)["basis"] == 4
