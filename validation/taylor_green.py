"""The Navier-Stokes solver against flows that are known in closed form.

    python validation/taylor_green.py

The Taylor-Green vortex omega = 2 cos(x) cos(y) is steady in its own flow and decays as
exp(-2 nu t); a forced shear flow, which has no advection, approaches its steady state as
f (1 - exp(-nu k^2 t)) / (nu k^2). A flow under a random force has no closed form: there the error
is the distance from the same flow at an eighth of the smallest step, and falls as dt^4. Prints
the largest errors and writes taylor_green.png; exit status 1 if a claim fails.
"""

import sys
from pathlib import Path

import jax
import numpy as np

from tensorgrad_jax.data import periodic_gaussian_field, solve_navier_stokes

N, NU, TIMES = 16, 0.1, np.linspace(1, 10, 10)
STEPS = (0.2, 0.1, 0.05)


def grid(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the coordinates of n x n points on the torus, in double precision."""
    x = 2 * np.pi * np.arange(n) / n
    return tuple(np.meshgrid(x, x, indexing="ij"))


def vortex() -> np.ndarray:
    """Return the relative error of the decaying vortex at each time."""
    x, y = grid(N)
    start = 2 * np.cos(x) * np.cos(y)
    solve = lambda t: solve_navier_stokes(0 * x, start, viscosity=NU, t_end=t, dt=0.1)
    ends = np.stack([solve(t) for t in TIMES])
    exact = start * np.exp(-2 * NU * TIMES)[:, None, None]
    return np.abs(ends - exact).max((1, 2)) / np.abs(exact).max((1, 2))


def shear(k: int = 3) -> np.ndarray:
    """Return the relative error of the forced shear flow at each time."""
    _, y = grid(N)
    force, rate = np.cos(k * y), NU * k**2
    solve = lambda t: solve_navier_stokes(force, viscosity=NU, t_end=t, dt=0.05)
    exact = (1 - np.exp(-rate * TIMES)) / rate
    return np.array([np.abs(solve(t) / e - force).max() for t, e in zip(TIMES, exact, strict=True)])


def convergence() -> np.ndarray:
    """Return the relative error of a randomly forced flow for each of STEPS."""
    force = np.asarray(periodic_gaussian_field(jax.random.key(0), 32), np.float64)
    solve = lambda dt: solve_navier_stokes(force, viscosity=0.01, t_end=4.0, dt=dt)
    reference = solve(STEPS[-1] / 8)
    return np.array([np.linalg.norm(solve(dt) - reference) for dt in STEPS]) / np.linalg.norm(
        reference
    )


def main() -> int:
    """Measure, print, draw."""
    decay, forced, errors = vortex(), shear(), convergence()
    orders = np.log2(errors[:-1] / errors[1:])
    print(f"Taylor-Green vortex, largest relative error: {decay.max():.1e}")
    print(f"forced shear flow, largest relative error:   {forced.max():.1e}")
    print(f"order of convergence in the time step:       {np.round(orders, 2)}")
    plot(decay, forced, errors)
    return int(not (decay.max() < 1e-11 and forced.max() < 1e-6 and np.all(orders > 3.7)))


def plot(decay, forced, errors) -> None:
    """Draw the errors over time and over the time step."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
    left.semilogy(TIMES, decay, "o-", ms=3, label="Taylor-Green vortex, dt = 0.1")
    left.semilogy(TIMES, forced, "s-", ms=3, label="forced shear flow, dt = 0.05")
    left.set(xlabel="time", ylabel="relative error, double precision", ylim=(1e-17, 1e-4))
    right.loglog(STEPS, errors, "o-", ms=4, label="randomly forced flow")
    slope = errors[-1] * (np.array(STEPS) / STEPS[-1]) ** 4
    right.loglog(STEPS, slope, "k:", label="fourth order")
    right.set(xlabel="time step", ylabel="relative error at t = 4")
    right.set_xticks(STEPS, map(str, STEPS))
    right.set_xticks([], minor=True)
    for axis in (left, right):
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=120)


if __name__ == "__main__":
    sys.exit(main())
