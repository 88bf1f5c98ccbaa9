"""The Burgers solver against the Cole-Hopf solution.

    python validation/cole_hopf.py

u = -2 nu phi_x / phi solves Burgers' equation where phi solves the heat equation from
phi(x, 0) = exp(-integral of u(x, 0) / (2 nu)); the Fourier series of phi is exact to rounding. The
start is sin(2 pi x), which steepens to a front. Errors are relative, in the maximum. In space they
fall faster than any power of the number of points, in time as dt^4. Prints them and writes
cole_hopf.png; exit status 1 if a claim fails.
"""

import sys
from pathlib import Path

import numpy as np

from tensorgrad_jax.data import solve_burgers

T = 0.5
VISCOSITIES = (0.1, 0.03, 0.01)
POINTS, STEPS = (32, 48, 64, 96, 128, 192), (0.01, 0.005, 0.0025, 0.00125)


def exact(n: int, nu: float, t: float = T) -> tuple[np.ndarray, np.ndarray]:
    """Return the start and the solution at time t, on n points."""
    x = np.arange(n) / n
    phi = np.fft.fft(np.exp((np.cos(2 * np.pi * x) - 1) / (4 * np.pi * nu)))
    k = 2 * np.pi * np.fft.fftfreq(n, 1 / n)
    phi = phi * np.exp(-nu * k**2 * t)
    return np.sin(2 * np.pi * x), -2 * nu * np.fft.ifft(1j * k * phi).real / np.fft.ifft(phi).real


def error(n: int, nu: float, dt: float) -> float:
    """Return the solver's error; NaN where it says that the points do not resolve the front."""
    start, _ = exact(n, nu)
    _, fine = exact(n * 8, nu)  # its series needs more points than the solver
    try:
        got = solve_burgers(start, viscosity=nu, t_end=T, dt=dt)
    except ValueError:
        return float("nan")
    return float(np.abs(got - fine[::8]).max() / np.abs(fine).max())


def main() -> int:
    """Measure, print, draw."""
    space = {nu: np.array([error(n, nu, 0.001) for n in POINTS]) for nu in VISCOSITIES}
    time = {nu: np.array([error(256, nu, dt) for dt in STEPS]) for nu in VISCOSITIES}
    orders = {nu: np.log2(errors[:-1] / errors[1:]) for nu, errors in time.items()}
    for nu in VISCOSITIES:
        print(f"viscosity {nu}: on {POINTS} points", *(f"{e:.1e}" for e in space[nu]))
        print(f"  at steps of {STEPS}", *(f"{e:.1e}" for e in time[nu]), "orders", orders[nu])
    plot(space, time)
    accurate = all(errors[-1] < 1e-7 for errors in space.values())
    return int(not (accurate and all(order[-1] > 3.7 for order in orders.values())))


def plot(space, time) -> None:
    """Draw the solutions, and the errors over the points and over the time step."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (first, second, third) = plt.subplots(1, 3, figsize=(12, 3.4))
    x = np.arange(1024) / 1024
    first.plot(x, exact(1024, 0.1)[0], "k:", label="start")
    for i, nu in enumerate(VISCOSITIES):
        first.plot(x, exact(1024, nu)[1], f"C{i}", lw=1)
        start = exact(128, nu)[0]
        got = solve_burgers(start, viscosity=nu, t_end=T, dt=0.005)
        first.plot(x[::32], got[::4], f"C{i}o", ms=3, label=f"viscosity {nu}")
        second.semilogy(POINTS, space[nu], f"C{i}o-", ms=4)
        third.loglog(STEPS, time[nu], f"C{i}o-", ms=4)
    slope = np.array(STEPS) ** 4
    third.loglog(STEPS, time[VISCOSITIES[-1]][-1] * slope / slope[-1], "k:", label="fourth order")
    first.set(xlabel="x", title=f"solution at t = {T}: exact, and every fourth point")
    second.set(xlabel="points", title="relative error, dt = 0.001")
    third.set(xlabel="time step", title="relative error, 256 points")
    third.set_xticks(STEPS, map(str, STEPS))
    third.set_xticks([], minor=True)
    first.legend(fontsize=7)
    third.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=120)


if __name__ == "__main__":
    sys.exit(main())
