"""Burgers' equation against the Cole-Hopf solution, and the samples made of it."""

import jax
import numpy as np
import pytest

from tensorgrad_jax.data import generate_burgers, open_dataset, solve_burgers
from tensorgrad_jax.data.burgers import burgers_samples
from tensorgrad_jax.data.hdf5 import DataError
from tensorgrad_jax.data.navier_stokes import UnstableError
from tensorgrad_jax.data.random_fields import periodic_gaussian_function


def cole_hopf(n, viscosity, t):
    """Start and end of the solution from u(x, 0) = sin(2 pi x).

    u = -2 viscosity phi_x / phi, where phi solves the heat equation from
    phi(x, 0) = exp(-integral of u(x, 0) / (2 viscosity)); its Fourier series is exact to rounding.
    """
    x = np.arange(n) / n
    phi = np.fft.fft(np.exp((np.cos(2 * np.pi * x) - 1) / (4 * np.pi * viscosity)))
    k = 2 * np.pi * np.fft.fftfreq(n, 1 / n)
    phi = phi * np.exp(-viscosity * k**2 * t)
    slope = np.fft.ifft(1j * k * phi).real
    return np.sin(2 * np.pi * x), -2 * viscosity * slope / np.fft.ifft(phi).real


@pytest.mark.parametrize("viscosity", [0.1, 0.01])
def test_cole_hopf(viscosity):
    """A wave decays; a wave steepens to a front, at the lower viscosity."""
    start, exact = cole_hopf(256, viscosity, 0.5)
    got = solve_burgers(start, viscosity=viscosity, t_end=0.5, dt=0.002)
    np.testing.assert_allclose(got, exact, atol=2e-7)
    assert np.max(np.abs(exact - start)) > 0.5


def test_halving_the_time_step_divides_the_error_by_sixteen():
    start, exact = cole_hopf(128, 0.03, 0.4)
    error = lambda dt: np.linalg.norm(
        solve_burgers(start, viscosity=0.03, t_end=0.4, dt=dt) - exact
    )
    coarse, fine = error(0.04), error(0.02)
    assert 11 < coarse / fine < 22, (coarse, fine)


def test_single_precision_agrees_with_double():
    start, exact = cole_hopf(128, 0.02, 0.5)
    got = solve_burgers(start.astype(np.float32), viscosity=0.02, t_end=0.5, dt=0.005)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, exact, atol=1e-4)


def test_what_cannot_be_solved_is_an_error_that_says_what_to_change():
    start, _ = cole_hopf(64, 0.1, 0.0)
    solve = lambda scale, **options: solve_burgers(scale * start, t_end=1.0, **options)
    with pytest.raises(UnstableError, match=r"dt=0.5 is too large .* 1 of 1 .* try dt=0.25"):
        solve(5.0, viscosity=0.01, dt=0.5)
    with pytest.raises(UnstableError, match=r"resolution 64 does not resolve .* of 128"):
        solve(1.0, viscosity=0.002, dt=0.002)
    with pytest.raises(ValueError, match=r"viscosity must be a positive number, not -1"):
        solve(1.0, viscosity=-1.0, dt=0.1)


def test_the_random_function_has_its_covariance():
    n, draws = 32, 500
    draw = jax.jit(jax.vmap(lambda key: periodic_gaussian_function(key, n)))
    functions = draw(jax.random.split(jax.random.key(0), draws))
    power = np.mean(np.abs(np.fft.fft(functions) / n) ** 2, axis=0)
    assert power[0] < 1e-12
    for k in (1, 2, 3, 10, 15):
        expected = 625 * (4 * np.pi**2 * k**2 + 25) ** -2.0
        # Relative standard error of a mean of exponential variables: 1 / sqrt(500).
        assert abs(power[k] / expected - 1) < 4 / np.sqrt(draws)
    # A draw is the same function at every resolution.
    key = jax.random.key(1)
    coarse, fine = (np.fft.rfft(periodic_gaussian_function(key, m)) / m for m in (16, 40))
    np.testing.assert_allclose(fine[:8], coarse[:8], atol=1e-7)


def test_files(tmp_path):
    options = {"n_train": 3, "n_test": 2, "resolution": 32, "t_end": 0.2}
    paths = generate_burgers(tmp_path, **options)
    assert [p.name for p in paths] == ["burgers_train_32.hdf5", "burgers_test_32.hdf5"]
    source = open_dataset(tmp_path, "burgers", "train", 16)
    assert source[0]["x"].shape == (16, 1)
    x, y = burgers_samples(
        [2], split="train", resolution=16, solver_resolution=256,
        viscosity=0.005, t_end=0.2, dt=0.005, seed=0,
    )  # fmt: skip
    np.testing.assert_array_equal(source[2]["x"][:, 0], x[0])
    np.testing.assert_array_equal(source[2]["y"][:, 0], y[0])
    with pytest.raises(DataError, match=r"burgers_train_32.hdf5: dt=0.2 is too large"):
        generate_burgers(tmp_path / "coarse", dt=0.2, viscosity=1e-5, **options)
    with pytest.raises(DataError, match=r"made with viscosity=0.005, not 0.02"):
        generate_burgers(tmp_path, viscosity=0.02, **options)
