"""The solver against solutions known in closed form, and its samples."""

import jax
import numpy as np
import pytest

from tensorgrad_jax.data import periodic_gaussian_field, solve_navier_stokes
from tensorgrad_jax.data.navier_stokes import UnstableError, navier_stokes_samples


def grid(n, dtype=np.float64):
    x = 2 * np.pi * np.arange(n, dtype=dtype) / n
    return np.meshgrid(x, x, indexing="ij")


def test_taylor_green_vortex_decays():
    """omega = 2 cos(x) cos(y) is steady in its own flow and decays as e^(-2 nu t)."""
    x, y = grid(16)
    start = 2 * np.cos(x) * np.cos(y)
    got = solve_navier_stokes(np.zeros_like(start), start, viscosity=0.1, t_end=2.0, dt=0.1)
    np.testing.assert_allclose(got, start * np.exp(-2 * 0.1 * 2.0), atol=1e-12)


def test_a_single_forced_mode_approaches_its_steady_state():
    """A shear flow has no advection: omega = f (1 - e^(-nu k^2 t)) / (nu k^2)."""
    _, y = grid(16)
    forcing = np.cos(3 * y)
    got = solve_navier_stokes(forcing, viscosity=0.05, t_end=4.0, dt=0.05)
    rate = 0.05 * 9
    np.testing.assert_allclose(got, forcing * (1 - np.exp(-rate * 4.0)) / rate, atol=1e-7)


def test_vorticity_turns_the_way_its_sign_says():
    """A weak ripple is carried along by the flow of a strong shear, in the shear's direction.

    omega = -2 cos(2 y) + eps cos(x): u_1 = d psi / dy with psi = -cos(2y)/2 is u_1 = sin(2 y).
    For short times the ripple's x-derivative moves as d omega/dt = -u_1 d omega/dx.
    """
    x, y = grid(32)
    eps, t = 1e-6, 1e-3
    shear, ripple = -2 * np.cos(2 * y), eps * np.cos(x)
    zero = np.zeros_like(x)
    both = solve_navier_stokes(zero, shear + ripple, viscosity=1e-9, t_end=t, dt=t)
    alone = solve_navier_stokes(zero, shear, viscosity=1e-9, t_end=t, dt=t)
    # u_1 eps sin(x), plus the shear carried by the ripple's flow u_2 = -d psi/dx = eps sin(x).
    expected = np.sin(2 * y) * eps * np.sin(x) - eps * np.sin(x) * 4 * np.sin(2 * y)
    np.testing.assert_allclose((both - alone - ripple) / t, expected, atol=1e-2 * eps)


def test_halving_the_time_step_divides_the_error_by_sixteen():
    forcing = np.asarray(periodic_gaussian_field(jax.random.key(0), 16), np.float64)
    solve = lambda dt: solve_navier_stokes(forcing, viscosity=0.01, t_end=4.0, dt=dt)
    reference = solve(0.0125)
    coarse, fine = (np.linalg.norm(solve(dt) - reference) for dt in (0.2, 0.1))
    assert 12 < coarse / fine < 20, coarse / fine
    assert fine / np.linalg.norm(reference) < 1e-5


def test_single_precision_agrees_with_double():
    forcing = np.asarray(periodic_gaussian_field(jax.random.key(1), 16))
    solve = lambda f: solve_navier_stokes(f, viscosity=0.01, t_end=2.0, dt=0.1)
    single, double = solve(forcing), solve(forcing.astype(np.float64))
    assert single.dtype == np.float32
    assert double.dtype == np.float64
    np.testing.assert_allclose(single, double, atol=1e-5)


def test_a_solution_that_blows_up_is_an_error_that_says_what_to_change():
    x, y = grid(16)
    with pytest.raises(UnstableError, match=r"dt=1.0 is too large for resolution 16"):
        solve_navier_stokes(
            np.zeros_like(x), 90 * np.sin(4 * x) * np.cos(3 * y) + 50 * np.cos(5 * y + x),
            viscosity=1e-4, t_end=20.0, dt=1.0,
        )  # fmt: skip
    with pytest.raises(ValueError, match=r"viscosity must be a positive number, not -1"):
        solve_navier_stokes(np.zeros_like(x), viscosity=-1.0, t_end=1.0, dt=0.1)


def test_the_random_field_has_its_covariance():
    """The expected power of frequency k is 27 (|k|^2 + 9)^-4, the mean is zero."""
    n, draws = 16, 400
    fields = jax.vmap(lambda key: periodic_gaussian_field(key, n))(
        jax.random.split(jax.random.key(0), draws)
    )
    power = np.mean(np.abs(np.fft.fft2(fields) / n**2) ** 2, axis=0)
    k = np.fft.fftfreq(n, 1 / n)
    expected = 27 * (k[:, None] ** 2 + k[None, :] ** 2 + 9.0) ** -4
    assert power[0, 0] < 1e-12
    for i, j in [(1, 0), (0, 1), (1, 2), (-3, 2), (2, -2), (4, 5)]:
        # Relative standard error of a mean of exponential variables: 1 / sqrt(400).
        assert abs(power[i, j] / expected[i, j] - 1) < 5 / np.sqrt(draws)


def test_a_sample_depends_on_its_number_alone():
    options = {
        "split": "train", "resolution": 8, "viscosity": 0.01, "t_end": 0.5, "dt": 0.1, "seed": 3,
    }  # fmt: skip
    x, y = navier_stokes_samples(range(4), **options)
    x2, y2 = navier_stokes_samples([2], **options)
    np.testing.assert_array_equal(x[2], x2[0])
    np.testing.assert_array_equal(y[2], y2[0])
    other, _ = navier_stokes_samples([2], **(options | {"split": "test"}))
    assert np.abs(other - x2).max() > 1e-3


def test_a_finer_solver_gives_the_same_flow_on_the_same_points():
    """At Reynolds number 1e5 a 16x16 grid truncates what a 32x32 one does not."""
    options = {"split": "train", "viscosity": 1e-5, "t_end": 1.0, "dt": 0.05, "seed": 0}
    x, y = navier_stokes_samples([1], resolution=16, **options)
    fine_x, fine_y = navier_stokes_samples([1], resolution=16, solver_resolution=32, **options)
    whole_x, whole_y = navier_stokes_samples([1], resolution=32, **options)
    np.testing.assert_array_equal(fine_x, whole_x[:, ::2, ::2])
    np.testing.assert_array_equal(fine_y, whole_y[:, ::2, ::2])
    assert np.abs(fine_x - x).max() < 0.05  # the frequencies that only the finer grid has
    assert 1e-4 < np.linalg.norm(fine_y - y) / np.linalg.norm(fine_y) < 0.2
