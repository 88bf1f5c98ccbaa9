"""Burgers' equation on a periodic interval, and samples of it."""

import contextlib
import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from tensorgrad_jax.data.navier_stokes import UnstableError
from tensorgrad_jax.data.random_fields import periodic_gaussian_function, split_key
from tensorgrad_jax.data.time_stepping import runge_kutta_step

# The share of the energy above half the cut that is allowed. Resolved shocks have little there: on
# 128 points at viscosity 0.003 the worst of 32 samples has 8e-4 and is wrong by 2e-3 (against 256
# points), at 0.005 it has 4e-5 and is wrong by 6e-5.
_TAIL_ENERGY = 1e-3


def solve_burgers(
    initial: Float[np.ndarray, "*batch n"], *, viscosity: float, t_end: float, dt: float
) -> Float[np.ndarray, "*batch n"]:
    r"""Solution at time `t_end` of Burgers' equation with period 1.

    With the viscosity $\nu$,

    $$
    \partial_t u + u\, \partial_x u = \nu\, \partial_x^2 u, \qquad u(x, 0) = \text{initial}.
    $$

    Space: Fourier-Galerkin on the frequencies |k| < n/3, products formed on the grid, where that
    cut (the two-thirds rule) keeps them free of aliasing. What the initial function contains above
    the cut is dropped. Time: fourth-order Runge-Kutta on exp(4 pi^2 k^2 viscosity t) u_k, which
    treats the viscosity exactly.

    Computed in double precision if `initial` is float64, else in single precision. A sample does
    not depend on those it shares the batch with. On the host: not for use under `jax.jit`.

    Args:
        initial: u at time 0, at x_j = j / n.
        viscosity: positive. Shocks have a width of about 4 viscosity / their height.
        t_end: time at which the solution is wanted, positive.
        dt: largest time step; the step taken is t_end / ceil(t_end / dt).

    Returns:
        u at time t_end, at the same points.

    Raises:
        ValueError: viscosity, t_end or dt is not positive, or there are fewer than 4 points.
        UnstableError: the result is not finite or has a larger norm than the initial function,
            which no exact solution has: dt is too large; or the grid does not resolve its shocks.

    References:
        Canuto et al., "Spectral Methods in Fluid Dynamics", 1988: integrating factors, de-aliasing.
    """
    for name, value in (("viscosity", viscosity), ("t_end", t_end), ("dt", dt)):
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be a positive number, not {value}")
    *batch, n = initial.shape
    if n < 4:
        raise ValueError(f"initial must have shape (..., n) with n >= 4, not {initial.shape}")
    double = initial.dtype == np.float64
    dtype = np.float64 if double else np.float32
    start = np.asarray(initial, dtype).reshape(-1, n)
    n_steps = math.ceil(t_end / dt * (1 - 1e-9))  # 1 / 0.002 is 500 steps, whatever it rounds to
    with jax.enable_x64(True) if double else contextlib.nullcontext():
        u = np.asarray(_integrate(start, dtype(viscosity), dtype(t_end / n_steps), n_steps))

    with np.errstate(over="ignore", invalid="ignore"):
        energy = _energies(u)
        unstable = ~(energy.sum(-1) <= 1.02 * _energies(start).sum(-1) + 1e-12)  # NaN counts
    if unstable.any():
        raise UnstableError(
            f"dt={dt} is too large for resolution {n} and viscosity {viscosity}: {unstable.sum()} "
            f"of {len(u)} solutions blew up before t_end={t_end}; try dt={dt / 2:g}"
        )
    tail = energy[:, n // 6 :].sum(-1) > _TAIL_ENERGY * energy.sum(-1)
    if tail.any():
        raise UnstableError(
            f"resolution {n} does not resolve the shocks of viscosity {viscosity} in {tail.sum()} "
            f"of {len(u)} solutions; try a solver_resolution of {2 * n}, with half the time step"
        )
    return u.reshape(*batch, n)


def burgers_samples(
    indices: Sequence[int],
    *,
    split: str,
    resolution: int,
    solver_resolution: int,
    viscosity: float,
    t_end: float,
    dt: float,
    seed: int,
    float64: bool = False,
) -> tuple[Float[np.ndarray, "b n"], Float[np.ndarray, "b n"]]:
    """Initial functions x and the solutions y at `t_end` they evolve to.

    The initial function is a draw of `periodic_gaussian_function`, root mean square 0.59. A sample
    depends on seed, split, number and the options of the solver alone.

    Args:
        indices: numbers of the samples, from 0.
        split: train or test; the two share no draws.
        resolution: grid points of x and y, every (solver_resolution / resolution)-th one of the
            solver's.
        solver_resolution: grid points of the solver, a multiple of resolution.
        viscosity: see `solve_burgers`, also for t_end, dt and the errors raised.
        t_end: time at which the solution is taken.
        dt: largest time step.
        seed: any integer from 0 to 2^32 - 1.
        float64: compute in double precision; the initial functions are the same draws.

    Returns:
        x and y, float32 or float64.
    """
    dtype = np.float64 if float64 else np.float32
    with jax.enable_x64(True) if float64 else contextlib.nullcontext():
        key = split_key(seed, split)
        x = np.asarray(_functions(key, jnp.asarray(indices, jnp.int32), solver_resolution, dtype))
    y = solve_burgers(x, viscosity=viscosity, t_end=t_end, dt=dt)
    every = solver_resolution // resolution
    return x[:, ::every], y[:, ::every]


def _energies(u):
    """Mean squares by frequency, 0 to n // 2; of no more than two ends twice what they are."""
    return 2 * np.abs(np.fft.rfft(u.astype(np.float64)) / u.shape[-1]) ** 2


@partial(jax.jit, static_argnames=("resolution", "dtype"))
def _functions(key, indices, resolution, dtype):
    def draw(i):
        return periodic_gaussian_function(jax.random.fold_in(key, i), resolution, dtype=dtype)

    return jax.vmap(draw)(indices)


@jax.jit
def _integrate(
    initial: Float[Array, "b n"],
    viscosity: Float[Array, ""],
    dt: Float[Array, ""],
    n_steps: Int[Array, ""] | int,
) -> Float[Array, "b n"]:
    n = initial.shape[-1]
    k = jnp.arange(n // 2 + 1)
    kept = 3 * k < n
    wave = (2 * jnp.pi * k).astype(initial.dtype)
    derivative = jnp.where(kept, -0.5j * wave, 0)
    # Exact viscous decay over half a step.
    half = jnp.exp(-viscosity * wave**2 * dt / 2)

    def slope(u):
        return derivative * jnp.fft.rfft(jnp.fft.irfft(u, n) ** 2)

    u = jnp.where(kept, jnp.fft.rfft(initial), 0)
    return jnp.fft.irfft(jax.lax.fori_loop(0, n_steps, runge_kutta_step(slope, half, dt), u), n)
