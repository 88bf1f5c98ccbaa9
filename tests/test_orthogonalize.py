"""Polar factors of updates, and Muon for tensors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import muon

import tensorgrad_jax as tg
from tensorgrad_jax.projections.pairs import Pair

STATELESS = optax.EmptyState()


def draw(*shape, seed=0, kind=float):
    r = np.random.default_rng(seed)
    x = r.normal(size=shape)
    return x if kind is float else x + 1j * r.normal(size=shape)


def polar_factor(x):
    u, _, vh = np.linalg.svd(x, full_matrices=False)
    return u @ vh


def orthogonalized(g, **options):
    return np.asarray(tg.orthogonalize(**options).update(jnp.asarray(g), STATELESS)[0])


def as_pair(z, axis):
    return np.stack([z.real, z.imag], axis).astype(np.float32)


@pytest.mark.parametrize("kind", [float, complex])
@pytest.mark.parametrize("shape", [(6, 6), (5, 9), (9, 5), (2, 3, 4, 7)])
def test_an_update_has_the_singular_vectors_of_the_gradient_and_values_near_one(shape, kind):
    g = draw(*shape, kind=kind).astype(np.float32 if kind is float else np.complex64)
    larger = max(shape[-2:]) * (1 if kind is float else 2)
    update = orthogonalized(g, scale=0.5) / (0.5 * larger**0.5)
    # U V^H and the update have the same singular vectors: their product is positive definite.
    product = update @ np.swapaxes(polar_factor(g), -1, -2).conj()
    if shape[-2] <= shape[-1]:
        np.testing.assert_allclose(product, np.swapaxes(product, -1, -2).conj(), atol=1e-3)
    values = np.linalg.svd(update, compute_uv=False)
    assert values.min() > 0.6
    assert values.max() < 1.3


@pytest.mark.parametrize("kind", [float, complex])
def test_the_root_mean_square_of_real_numbers_is_the_scale(kind):
    update = orthogonalized(draw(40, 24, 24, kind=kind), scale=0.3)
    numbers = np.stack([update.real, update.imag]) if kind is complex else update
    assert 0.75 < np.sqrt((numbers**2).mean()) / 0.3 < 1.1


def test_complex_numbers_are_the_same_in_every_form():
    z = draw(3, 4, 5, 6, kind=complex).astype(np.complex64)
    expected = orthogonalized(z)
    for axis in (0, 2, 4):
        spec = tg.TensorSpec(complex_axis=axis)
        update = orthogonalized(as_pair(z, axis), specs=spec)
        parts = np.moveaxis(update, axis, 0)
        np.testing.assert_allclose(parts[0] + 1j * parts[1], expected, atol=1e-5)
    pair = tg.orthogonalize().update({"w": Pair(jnp.asarray(as_pair(z, 0)))}, STATELESS)[0]["w"]
    np.testing.assert_allclose(pair.array(), expected, atol=1e-5)


def test_a_spec_names_the_axes_of_the_matrix():
    z = draw(5, 3, 6, 2, kind=complex).astype(np.complex64)  # rows 0, columns 2
    expected = np.moveaxis(orthogonalized(np.moveaxis(z, (0, 2), (-2, -1))), (-2, -1), (0, 2))
    pair = as_pair(z, 3)
    update = orthogonalized(pair, specs=tg.TensorSpec(complex_axis=3, matrix_axes=(0, 2)))
    np.testing.assert_allclose(update[:, :, :, 0] + 1j * update[:, :, :, 1], expected, atol=1e-5)


def test_complex_products_are_those_of_parts(monkeypatch):
    """What other devices than processors compute."""
    z = draw(3, 6, 5, kind=complex).astype(np.complex64)
    expected = orthogonalized(z)
    monkeypatch.setattr(
        jax.lax, "platform_dependent", lambda *x, default, **by_platform: default(*x)
    )
    np.testing.assert_allclose(orthogonalized(z), expected, atol=1e-5)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_the_size_of_a_gradient_does_not_matter(size):
    g = draw(4, 6, 5).astype(np.float32)
    np.testing.assert_allclose(orthogonalized(size * g), orthogonalized(g), atol=1e-5)


def test_zeros_and_vectors_stay_what_they_are():
    g = {"w": jnp.zeros((2, 4, 4)).at[1, 0, 0].set(3.0), "b": jnp.arange(3.0)}
    update, _ = tg.orthogonalize().update(g, STATELESS)
    assert not update["w"][0].any()
    assert update["w"][1].any()
    np.testing.assert_array_equal(update["b"], g["b"])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.complex64])
def test_updates_have_the_dtype_of_the_gradients(dtype):
    g = jnp.asarray(draw(6, 6), dtype)
    assert tg.orthogonalize(dtype=jnp.bfloat16).update(g, STATELESS)[0].dtype == dtype


def test_products_in_bfloat16_are_within_their_precision():
    g = draw(10, 16, 16, kind=complex).astype(np.complex64)
    error = orthogonalized(g, dtype=jnp.bfloat16) - orthogonalized(g)
    assert np.linalg.norm(error) < 0.1 * np.linalg.norm(orthogonalized(g))


def test_muon_of_tensors_is_optax_muon_on_a_model_of_matrices():
    params = {f"w{i}": jnp.asarray(draw(8 + i, 12, seed=i), jnp.float32) for i in range(2)}
    # How Nesterov's first steps are weighted differs (Optax corrects both terms apart).
    ours = tg.tensor_muon(1e-2, matrix_scale=0.2, mu_dtype=None, b1=0.0)
    theirs = muon(1e-2, consistent_rms=0.2, beta=0.0)
    state, other = ours.init(params), theirs.init(params)
    for i in range(4):
        g = {n: jnp.asarray(draw(*p.shape, seed=9 + i), jnp.float32) for n, p in params.items()}
        update, state = ours.update(g, state, params)
        expected, other = theirs.update(g, other, params)
        for name in params:
            np.testing.assert_allclose(update[name], expected[name], rtol=2e-3, atol=2e-5)


def test_a_core_of_full_rank_is_the_whole_momentum():
    params = {"w": jnp.asarray(as_pair(draw(4, 3, 6, 6, kind=complex), 0))}
    specs = {"w": tg.TensorSpec(complex_axis=0)}
    options = {"specs": specs, "mu_dtype": None, "update_proj_gap": 2}
    whole = tg.tensor_muon(1e-2, None, **{k: options[k] for k in ("specs", "mu_dtype")})
    core = tg.tensor_muon(1e-2, tg.Tucker((..., 1.0, 1.0), factors="real"), **options)
    unitary = tg.tensor_muon(1e-2, tg.Tucker((4, 3, 6, 6)), **options)
    states = [t.init(params) for t in (whole, core, unitary)]
    for i in range(3):
        g = {"w": jnp.asarray(as_pair(draw(4, 3, 6, 6, seed=i, kind=complex), 0))}
        updates = []
        for n, t in enumerate((whole, core, unitary)):
            update, states[n] = t.update(g, states[n], params)
            updates.append(update["w"])
        np.testing.assert_allclose(updates[1], updates[0], atol=1e-5)
    # Bases of the channels turn a polar factor with them; those of frequencies mix the matrices.
    assert not np.allclose(updates[2], updates[0], atol=1e-4)


@pytest.mark.parametrize("projection", [None, tg.Tucker((..., 0.5, 0.5), factors="real")])
def test_channels_need_not_be_the_last_axes(projection):
    """A convolution with its channels first, as Equinox and PyTorch have them."""
    last = {"w": jnp.asarray(draw(3, 3, 8, 6), jnp.float32)}
    first = {"w": jnp.moveaxis(last["w"], (2, 3), (0, 1))}
    options = {"update_proj_gap": 2, "specs": {"w": tg.TensorSpec()}, "mu_dtype": None}
    make = lambda: tg.tensor_muon(1e-2, projection, **options)
    updates = [(t := make()).update(g, t.init(g), g)[0]["w"] for g in (last, first)]
    assert updates[1].shape == (8, 6, 3, 3)
    np.testing.assert_allclose(jnp.moveaxis(updates[1], (0, 1), (2, 3)), updates[0], atol=1e-6)


@pytest.mark.parametrize("nesterov", [True, False])
def test_a_weight_of_what_lies_outside_compresses_the_momentum_after_every_step(nesterov):
    b, projection = 0.9, tg.Tucker((2, 3, 2))
    spec = tg.TensorSpec()
    transform = tg.in_subspace(
        optax.trace(b, nesterov=nesterov),
        projection,
        100,
        complement=1 + b if nesterov else 1,
        specs=spec,
    )
    first = jnp.asarray(draw(4, 5, 3), jnp.float32)
    basis = projection.refresh(jax.random.key(0), first, projection.init(first))
    kept = lambda x: projection.lift(projection.project(x, basis), basis)
    state, buffer = transform.init(first), jnp.zeros_like(first)
    for i in range(4):
        g = first if i == 0 else jnp.asarray(draw(4, 5, 3, seed=i), jnp.float32)
        update, state = transform.update(g, state)
        buffer = b * kept(buffer) + g
        np.testing.assert_allclose(update, g + b * buffer if nesterov else buffer, atol=2e-5)


def test_the_state_is_a_sixteenth_of_adamws():
    params = {"w": jnp.zeros((2, 16, 9, 32, 32))}
    specs = {"w": tg.TensorSpec(complex_axis=0)}
    ours = tg.state_bytes(tg.tensor_muon(1e-3, specs=specs).init(params))["total"]
    assert ours < 0.07 * tg.state_bytes(optax.adamw(1e-3).init(params))["total"]


def test_what_kind_a_leaf_is():
    """A tensor has one moment in a core, a matrix one, all others Adam's two."""
    params = {
        "tensor": jnp.zeros((4, 8, 16)),
        "matrix": jnp.zeros((8, 10)),
        "coordinates": jnp.zeros((3, 10)),
        "bias": jnp.zeros(7),
    }
    specs = {n: tg.TensorSpec() if n == "tensor" else None for n in params}
    state = tg.tensor_muon(1e-3, specs=specs, mu_dtype=None).init(params)
    moments = tg.state_bytes(state)["moments"] // 4
    assert moments == 4 * 4 * 8 + 80 + 2 * 30 + 2 * 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 0.0}, "scale must be a positive number, got 0.0"),
        ({"steps": 0}, "steps must be an integer in .*, got 0"),
        ({"dtype": jnp.int8}, "dtype must be a real float dtype, got"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        tg.orthogonalize(**options)


def test_bad_specs_and_ranks(unchecked):
    with pytest.raises(ValueError, match="matrix_axes must be two integers or None"):
        tg.TensorSpec(matrix_axes=(1,))
    one = jnp.ones(4)
    with pytest.raises(ValueError, match="names no two axes of a matrix"):
        tg.orthogonalize(tg.TensorSpec()).update(one, STATELESS)
    with pytest.raises(ValueError, match="names no two axes of a matrix"):
        tg.orthogonalize(tg.TensorSpec(matrix_axes=(0, 5))).update(jnp.ones((2, 2)), STATELESS)
    with pytest.raises(ValueError, match=r"b1 must be a number in \[0, 1\), got 1.0"):
        tg.tensor_muon(1e-3, b1=1.0)
    for wrong in ({"scale": 0.0}, {"matrix_scale": 0.0}, {"steps": 0}, {"on_refresh": "x"}):
        with pytest.raises(ValueError, match="must be"):
            tg.tensor_muon(1e-3, **wrong)
    with pytest.raises(ValueError, match="complement must be one of"):
        tg.in_subspace(optax.identity(), tg.Tucker(), complement="half")
    with pytest.raises(ValueError, match="rank must be"):
        tg.Tucker((..., 0.5, ...))


def test_an_ellipsis_stands_for_whole_modes():
    assert tg.Tucker((..., 0.5, 0.5)).ranks((7, 6, 8, 10)) == (7, 6, 4, 5)
    assert tg.Tucker((3, ..., 2)).ranks((7, 6, 8, 10)) == (3, 6, 8, 2)
    assert tg.Tucker((..., 0.5, 0.5)).ranks((8, 10)) == (4, 5)
    with pytest.raises(ValueError, match="has 2 entries for a tensor of shape"):
        tg.Tucker((..., 0.5, 0.5)).ranks((8,))
