"""Forced two-dimensional Navier-Stokes equations in vorticity form, and samples of them."""

import contextlib
import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from tensorgrad_jax.backend.batches import samples_at_once
from tensorgrad_jax.data.random_fields import periodic_gaussian_field, split_key
from tensorgrad_jax.data.time_stepping import runge_kutta_step


class UnstableError(ValueError):
    """The time step was too large: the numerical solution left the bounds of the exact one."""


def solve_navier_stokes(
    forcing: Float[np.ndarray, "*batch n n"],
    initial_vorticity: Float[np.ndarray, "*batch n n"] | None = None,
    *,
    viscosity: float,
    t_end: float,
    dt: float,
) -> Float[np.ndarray, "*batch n n"]:
    r"""Vorticity at time ``t_end`` of an incompressible flow on the torus [0, 2 pi)^2.

    The equations are, with a forcing f that does not depend on time and the viscosity $\nu$,

    $$
    \partial_t \omega + u \cdot \nabla \omega = \nu \Delta \omega + f, \qquad
    u = (\partial_2 \psi, -\partial_1 \psi), \qquad -\Delta \psi = \omega,
    $$

    so that $\omega = \partial_1 u_2 - \partial_2 u_1$, positive for anticlockwise rotation. All
    quantities are dimensionless; with unit velocity and length the Reynolds number is
    1 / viscosity.

    Space: Fourier-Galerkin on the frequencies |k_i| < n/3. Products are formed on the grid, where
    that cut (the two-thirds rule) keeps them free of aliasing. What forcing and initial
    vorticity contain above the cut, and their mean, is dropped; a periodic velocity has no mean
    vorticity. Time: fourth-order Runge-Kutta on exp(viscosity |k|^2 t) omega_k, which treats the
    viscosity exactly; the forcing is part of the right-hand side.

    Computed in double precision if ``forcing`` is float64, else in single precision. A sample does
    not depend on those it shares the batch with. On the host: not for use under ``jax.jit``.

    Args:
        forcing: f at x_j = 2 pi j / n; axis -2 is x_1, axis -1 is x_2.
        initial_vorticity: omega at time 0; None for a fluid at rest.
        viscosity: kinematic viscosity, positive.
        t_end: time at which the vorticity is wanted, positive.
        dt: largest time step; the step taken is t_end / ceil(t_end / dt).

    Raises:
        ValueError: viscosity, t_end or dt is not positive, or the arrays are not square grids.
        UnstableError: the result is not finite or breaks ||omega(T)|| <= ||omega(0)|| + T ||f||,
            which every exact solution obeys.

    References:
        Basdevant, "Technical improvements for direct numerical simulation of homogeneous
        three-dimensional turbulence", J. Comput. Phys. 50 (1983): four transforms per slope.
        Canuto et al., "Spectral Methods in Fluid Dynamics", 1988: integrating factors, de-aliasing.
    """
    for name, value in (("viscosity", viscosity), ("t_end", t_end), ("dt", dt)):
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be a positive number, not {value}")
    *batch, n, m = forcing.shape
    if n != m or n < 4:
        raise ValueError(f"forcing must have shape (..., n, n) with n >= 4, not {forcing.shape}")
    if initial_vorticity is None:
        initial_vorticity = np.zeros_like(forcing)
    if initial_vorticity.shape != forcing.shape:
        raise ValueError(
            f"initial_vorticity must have the shape of forcing, {forcing.shape}, "
            f"not {initial_vorticity.shape}"
        )

    double = forcing.dtype == np.float64
    dtype = np.float64 if double else np.float32
    f, w0 = (np.asarray(a, dtype).reshape(-1, n, n) for a in (forcing, initial_vorticity))
    n_steps = math.ceil(t_end / dt * (1 - 1e-9))  # 5 / 0.05 is 100 steps, whatever it rounds to
    with jax.enable_x64(True) if double else contextlib.nullcontext():
        w = np.asarray(_integrate(f, w0, dtype(viscosity), dtype(t_end / n_steps), n_steps))

    bound = 1.01 * (_norm(w0) + t_end * _norm(f)) + 1e-6
    n_bad = int(np.sum(~(_norm(w) <= bound)))  # written so that NaN counts as bad
    if n_bad:
        raise UnstableError(
            f"dt={dt} is too large for resolution {n} and viscosity {viscosity}: {n_bad} of "
            f"{len(w)} solutions blew up before t_end={t_end}; try dt={dt / 2:g}, or a lower "
            "resolution"
        )
    return w.reshape(*batch, n, n)


def navier_stokes_samples(
    indices: Sequence[int],
    *,
    split: str,
    resolution: int,
    viscosity: float,
    t_end: float,
    dt: float,
    seed: int,
    solver_resolution: int | None = None,
    float64: bool = False,
) -> tuple[Float[np.ndarray, "b n n"], Float[np.ndarray, "b n n"]]:
    """Forcings x and the vorticities y at ``t_end`` that they drive a fluid at rest to.

    The forcing is a draw of N(0, 27 (-Laplace + 9)^(-4)) on [0, 2 pi)^2
    (:func:`periodic_gaussian_field`, root mean square 0.19). With viscosity 1/500 and t_end 5 the
    vorticity then has root mean square 0.86. Sample i depends on seed, split, i and the options of
    the flow, not on which other samples are asked for.

    At resolution 64, viscosity 1/500 and dt 0.05 the error of the time step is 1e-5 of the
    solution, that of the 64x64 grid 5e-3 (against 128x128): a finer solver makes it smaller.

    Args:
        indices: numbers of the samples, from 0.
        split: "train" or "test"; the two share no draws.
        resolution: grid points per axis of x and y.
        viscosity: see :func:`solve_navier_stokes`, also for t_end, dt and the errors raised.
        t_end: time at which the vorticity is taken.
        dt: largest time step.
        seed: any integer from 0 to 2^32 - 1.
        solver_resolution: grid points per axis of the solver, a multiple of resolution, of which
            x and y are every few points; None for resolution.
        float64: compute in double precision; the forcings are the same draws.

    Returns:
        x and y, float32 or float64.
    """
    dtype = jnp.float64 if float64 else jnp.float32
    with jax.enable_x64(True) if float64 else contextlib.nullcontext():
        key = split_key(seed, split)
        fine = solver_resolution or resolution
        x = np.asarray(_forcings(key, jnp.asarray(indices, jnp.int32), fine, dtype))
    y = solve_navier_stokes(x, viscosity=viscosity, t_end=t_end, dt=dt)
    every = fine // resolution
    return x[:, ::every, ::every], y[:, ::every, ::every]


def _norm(fields):
    """Root mean square of each of a batch of fields; overflow is inf, without a warning."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.sqrt(np.mean(np.square(fields, dtype=np.float64), axis=(-2, -1)))


@partial(jax.jit, static_argnames=("resolution", "dtype"))
def _forcings(key, indices, resolution, dtype):
    def draw(i):
        return periodic_gaussian_field(jax.random.fold_in(key, i), resolution, dtype=dtype)

    return jax.vmap(draw)(indices)


@jax.jit
def _integrate(
    forcing: Float[Array, "b n n"],
    initial_vorticity: Float[Array, "b n n"],
    viscosity: Float[Array, ""],
    dt: Float[Array, ""],
    n_steps: Int[Array, ""] | int,
) -> Float[Array, "b n n"]:
    n, dtype = forcing.shape[-1], forcing.dtype
    k1 = jnp.fft.fftfreq(n, 1 / n).astype(dtype)[:, None]
    k2 = jnp.fft.rfftfreq(n, 1 / n).astype(dtype)[None, :]
    squared = k1**2 + k2**2
    kept = (3 * jnp.abs(k1) < n) & (3 * k2 < n) & (squared > 0)
    inverse = jnp.where(kept, 1 / jnp.where(kept, squared, 1), 0)

    # Velocity from vorticity: u_k = (i k_2, -i k_1) omega_k / |k|^2.
    velocity = 1j * jnp.stack([k2 * inverse, -k1 * inverse])
    # u is free of divergence: -u.grad(omega) = (d_2^2 - d_1^2)(u_1 u_2) - d_1 d_2 (u_2^2 - u_1^2).
    advection = jnp.where(kept, jnp.stack([k1**2 - k2**2, k1 * k2]), 0)
    # Exact viscous decay over half a step.
    half = jnp.exp(-viscosity * squared * dt / 2)

    def solve(forcing, initial_vorticity):
        f = jnp.where(kept, jnp.fft.rfft2(forcing), 0)

        def slope(w):
            u1, u2 = jnp.fft.irfft2(velocity * w, s=(n, n))
            products = jnp.stack([u1 * u2, u2 * u2 - u1 * u1])
            return f + jnp.sum(advection * jnp.fft.rfft2(products), axis=0)

        w = jnp.where(kept, jnp.fft.rfft2(initial_vorticity), 0)
        return jnp.fft.irfft2(
            jax.lax.fori_loop(0, n_steps, runge_kutta_step(slope, half, dt), w), s=(n, n)
        )

    if samples_at_once(len(forcing)) == 1:
        return jax.lax.map(lambda pair: solve(*pair), (forcing, initial_vorticity))
    return jax.vmap(solve)(forcing, initial_vorticity)
