"""Losses against recorded values and gradients, and their behaviour at the edges."""

import functools
import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensorgrad_jax.training.losses import h1_loss, lp_loss

GOLDEN = np.load(Path(__file__).parent / "golden" / "losses.npz")
CASES = [key for key in GOLDEN.files if key.startswith(("lp", "h1")) and not key.endswith("_grad")]


def loss_of(key):
    name, form, reduction, *rest = key.split("_")
    options = {"relative": form == "rel", "reduction": reduction}
    if name.startswith("lp"):
        return lambda u, y: lp_loss(u, y, **options)
    return lambda u, y: h1_loss(u, y, periodic=not rest, **options)


def test_every_recorded_case_is_covered():
    assert len(CASES) == 36


@functools.cache
def computed(dim):
    """Every case of one dimension, compiled together: one compilation instead of twelve."""
    pred, target = (np.moveaxis(GOLDEN[f"{name}{dim}"], 1, -1) for name in ("pred", "target"))
    losses = {key: jax.value_and_grad(loss_of(key)) for key in CASES if key[2] == dim}
    return jax.jit(lambda u, y: {key: f(u, y) for key, f in losses.items()})(pred, target)


@pytest.mark.parametrize("key", CASES)
def test_golden(key):
    value, grad = computed(key[2])[key]
    np.testing.assert_allclose(value, GOLDEN[key], rtol=1e-5)
    expected = np.moveaxis(GOLDEN[f"{key}_grad"], 1, -1)
    assert np.linalg.norm(grad - expected) < 1e-5 * np.linalg.norm(expected)


LOSSES = {
    "lp": lp_loss,
    "l1": lambda u, y, **k: lp_loss(u, y, p=1, **k),
    "l3": lambda u, y, **k: lp_loss(u, y, p=3, **k),
    "h1": h1_loss,
    "h1_open": lambda u, y, **k: h1_loss(u, y, periodic=False, **k),
}


def field(seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(2, 8, 6, 3)), jnp.float32)


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_gradient_is_finite_where_the_loss_is_not_smooth(loss, relative):
    f = jax.jit(jax.value_and_grad(functools.partial(loss, relative=relative)))
    y = np.asarray(field())
    for pred, target in {"zero target": (y, 0 * y), "all zero": (0 * y, 0 * y)}.values():
        value, grad = f(pred, target)
        assert np.isfinite(value)
        assert np.isfinite(grad).all()
    value, grad = f(y, y)
    assert value == 0
    assert not np.any(grad)
    # The same guards must not make a diverged prediction look perfect.
    diverged = y.copy()
    diverged[0, 0, 0, 0] = np.nan
    assert np.isnan(f(diverged, y)[0])


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_relative_loss_ignores_the_unit_and_absolute_loss_scales_with_it(loss):
    u, y = field(seed=1), field(seed=2)
    f = jax.jit(lambda u, y: (loss(u, y), loss(u, y, relative=False)))
    (ratio, size), (scaled_ratio, scaled_size) = f(u, y), f(3 * u, 3 * y)
    np.testing.assert_allclose(scaled_ratio, ratio, rtol=1e-5)
    np.testing.assert_allclose(scaled_size, 3 * size, rtol=1e-5)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_reductions(loss):
    u, y = field(seed=1), field(seed=2)
    kinds = ("none", "sum", "mean")
    each, total, mean = jax.jit(lambda u, y: [loss(u, y, reduction=kind) for kind in kinds])(u, y)
    assert each.shape == (2, 3)
    np.testing.assert_allclose(total, each.sum(), rtol=1e-6)
    np.testing.assert_allclose(mean, each.mean(), rtol=1e-6)
    # No sample or channel sees another one.
    one = loss(u[1:, ..., 2:], y[1:, ..., 2:])
    np.testing.assert_allclose(one, each[1, 2], rtol=1e-6)


def test_bfloat16_sums_in_float32():
    y = jnp.ones((1, 64, 64, 1), jnp.bfloat16)
    u = y + jnp.bfloat16(1.0)
    # 4,096 ones added up in bfloat16 stop at 256.
    value, grad = jax.value_and_grad(lambda u: lp_loss(u, y, relative=False))(u)
    assert value.dtype == jnp.float32
    assert value == 1
    assert grad.dtype == jnp.bfloat16


def test_h1_of_a_sine_wave_and_of_a_cubic():
    n = 512
    x = np.arange(n, dtype=np.float32) / n
    wave = jnp.asarray(np.sin(2 * np.pi * x)[None, :, None])
    # ||sin||^2 + ||2 pi cos||^2 on the unit interval
    exact = np.sqrt(0.5 + 0.5 * (2 * np.pi) ** 2)
    np.testing.assert_allclose(h1_loss(wave, 0 * wave, relative=False), exact, rtol=1e-4)
    # The one-sided stencils are exact up to cubics; the central ones are wrong by h^2 there.
    n = 8
    x = np.arange(n, dtype=np.float32) / n
    cubic = jnp.asarray((x**3)[None, :, None])
    slope = 3 * x**2 + np.where((x == 0) | (x == x[-1]), 0, 1 / n**2)
    exact = np.sqrt(np.mean(x**6) + np.mean(slope**2))
    got = h1_loss(cubic, 0 * cubic, periodic=False, relative=False)
    np.testing.assert_allclose(got, exact, rtol=1e-5)


# The annotations, which are checked in the tests only, would notice some of these earlier.
UNCHECKED_LP, UNCHECKED_H1 = inspect.unwrap(lp_loss), inspect.unwrap(h1_loss)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: UNCHECKED_LP(field(), field()[:1]), "target has shape"),
        (lambda: UNCHECKED_H1(jnp.ones((2, 3)), jnp.ones((2, 3))), "grid"),
        (lambda: lp_loss(field(), field(), p=0.5), "got 0.5"),
        (lambda: UNCHECKED_LP(field(), field(), reduction="max"), "got 'max'"),
        (lambda: h1_loss(jnp.ones((1, 3, 8, 1)), jnp.ones((1, 3, 8, 1)), periodic=False), "4"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
