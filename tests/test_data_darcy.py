"""Darcy flow against solutions that are known, and the samples made of it."""

import jax
import numpy as np
import pytest

from tensorgrad_jax.data import DataError, generate_darcy, open_dataset, solve_darcy
from tensorgrad_jax.data.darcy import ConvergenceError, darcy_samples
from tensorgrad_jax.data.random_fields import neumann_gaussian_field


def centres(n):
    x = (np.arange(n) + 0.5) / n
    return np.meshgrid(x, x, indexing="ij")


def relative(error, exact):
    return np.linalg.norm(error) / np.linalg.norm(exact)


def test_constant_permeability_has_the_sine_series():
    """a u = sum over odd k, l of 16 / (pi^4 k l (k^2 + l^2)) sin(pi k x) sin(pi l y)."""
    x, y = centres(32)
    k = np.arange(1, 400, 2)[:, None, None]
    sines = lambda z: np.sin(np.pi * k[:, :, 0] * z[None])
    weights = 16 / (np.pi**4 * k[:, 0] * k[:, 0].T * (k[:, 0] ** 2 + k[:, 0].T ** 2))
    exact = sines(x[:, 0]).T @ weights @ sines(y[0]) / 3
    got = solve_darcy(np.full_like(x, 3.0), tolerance=1e-9)
    assert relative(got - exact, exact) < 3e-3
    assert np.max(exact) == pytest.approx(0.0737 / 3, rel=5e-3)


def test_second_order_for_a_smooth_permeability():
    """u = sin(pi x) sin(2 pi y) with a = 1 + x y / 2; the source follows from the equation."""

    def error(n):
        x, y = centres(n)
        a = 1 + x * y / 2
        u = np.sin(np.pi * x) * np.sin(2 * np.pi * y)
        u_x = np.pi * np.cos(np.pi * x) * np.sin(2 * np.pi * y)
        u_y = 2 * np.pi * np.sin(np.pi * x) * np.cos(2 * np.pi * y)
        f = 5 * np.pi**2 * a * u - (y / 2) * u_x - (x / 2) * u_y
        return relative(solve_darcy(a, f, tolerance=1e-9) - u, u)

    coarse, fine = error(16), error(32)
    assert 3.5 < coarse / fine < 4.5, (coarse, fine)
    assert fine < 4e-3


@pytest.mark.parametrize("axis", [0, 1])
def test_the_flux_through_an_interface_is_continuous(axis):
    """u = g(x) sin(pi y), permeability 0.02 left of x = 1/2 and 0.36 right of it.

    The flux q = a g' is 1 - x on the left and 1/2 - s (x - 1/2) on the right, continuous where the
    slope of u jumps by a factor of 18; s is such that g(1) = 0. The source is -q' + a pi^2 g.
    """
    low, high = 0.02, 0.36
    s = 3 * high / low + 2

    def error(n):
        x, y = centres(n)
        left, t = x < 0.5, x - 0.5
        a = np.where(left, low, high)
        g = np.where(left, (x - x**2 / 2) / low, 3 / 8 / low + (t / 2 - s * t**2 / 2) / high)
        u = g * np.sin(np.pi * y)
        f = np.where(left, 1, s) * np.sin(np.pi * y) + a * np.pi**2 * u
        if axis:
            a, f, u = a.T, f.T, u.T
        return relative(solve_darcy(a, f, tolerance=1e-9) - u, u)

    coarse, fine = error(16), error(32)
    assert 3.5 < coarse / fine < 4.5, (coarse, fine)
    assert fine < 3e-3


SAMPLES = {"resolution": 16, "solver_resolution": 32, "tolerance": 1e-4, "seed": 3}


def test_a_sample_depends_on_its_number_alone():
    x, y = darcy_samples(range(3), split="train", **SAMPLES)
    x2, y2 = darcy_samples([2], split="train", **SAMPLES)
    np.testing.assert_array_equal(x[2], x2[0])
    np.testing.assert_array_equal(y[2], y2[0])
    assert np.any(darcy_samples([2], split="test", **SAMPLES)[0] != x2)
    assert set(np.unique(x)) == {0, 1}
    assert (x.dtype, y.dtype) == (np.float32, np.float32)
    # A coarser grid is a part of a finer one; double precision solves the same problem.
    x4, y4 = darcy_samples([2], split="train", **(SAMPLES | {"resolution": 4}))
    np.testing.assert_array_equal(x4, x2[:, ::4, ::4])
    np.testing.assert_array_equal(y4, y2[:, ::4, ::4])
    x8, y8 = darcy_samples([2], split="train", float64=True, **SAMPLES)
    assert y8.dtype == np.float64
    np.testing.assert_array_equal(x8, x2)
    np.testing.assert_allclose(y2, y8, atol=1e-5)


def test_the_field_has_its_covariance_and_no_constant_part():
    n, draws = 16, 400
    draw = jax.jit(jax.vmap(lambda key: neumann_gaussian_field(key, n)))
    fields = np.asarray(draw(jax.random.split(jax.random.key(0), draws)), np.float64)
    z = (np.arange(n) + 0.5) / n
    waves = np.stack([np.cos(np.pi * k * z) * (np.sqrt(2) if k else 1) for k in range(n)]) / n
    power = np.mean((waves @ fields @ waves.T) ** 2, axis=0)
    assert power[0, 0] < 1e-12
    for k in [(1, 0), (0, 1), (2, 3), (5, 1)]:
        expected = (np.pi**2 * (k[0] ** 2 + k[1] ** 2) + 100.0) ** -3
        # Relative standard error of a mean of squared normal numbers: sqrt(2 / 400).
        assert abs(power[k] / expected - 1) < 4 * np.sqrt(2 / draws)


def test_files(tmp_path):
    options = {"n_train": 3, "n_test": 2, "resolution": 8, "solver_resolution": 32}
    paths = generate_darcy(tmp_path, **options)
    assert [p.name for p in paths] == ["darcy_train_8.hdf5", "darcy_test_8.hdf5"]
    source = open_dataset(tmp_path, "darcy", "test", 4)
    x, y = darcy_samples(
        range(2), split="test", resolution=4, solver_resolution=32, tolerance=1e-4, seed=0
    )
    for i in range(2):
        np.testing.assert_array_equal(source[i]["x"][..., 0], x[i])
        np.testing.assert_array_equal(source[i]["y"][..., 0], y[i])
    with pytest.raises(DataError, match="made with solver_resolution=32, not 128"):
        generate_darcy(tmp_path, n_train=3, n_test=2, resolution=8)
    with pytest.raises(DataError, match=r"solver_resolution: got 20, .* multiple of .* 8"):
        generate_darcy(tmp_path, **(options | {"solver_resolution": 20}))
    with pytest.raises(DataError, match=r"tolerance=1e-12 was not reached for 3 of 3 .*float64"):
        generate_darcy(tmp_path / "exact", tolerance=1e-12, **options)


def test_what_cannot_be_solved_is_an_error(unchecked):
    ones = np.ones((2, 16, 16))
    for wrong, message in (
        (ones - np.eye(16), "positive and finite"),
        (ones * np.nan, "positive and finite"),
        (ones[..., :4], r"shape \(..., n, n\)"),
    ):
        with pytest.raises(ValueError, match=message):
            solve_darcy(wrong)
    np.testing.assert_array_equal(solve_darcy(ones, 0 * ones), 0 * ones)
    with pytest.raises(ConvergenceError, match="for 1 of 2 samples"):
        solve_darcy(ones, np.stack([ones[0], ones[1] * np.inf]))
