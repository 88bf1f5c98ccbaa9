"""Darcy flow on the unit square through a medium of two phases, and samples of it."""

import contextlib
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tensorgrad_jax.backend.batches import samples_at_once
from tensorgrad_jax.data.random_fields import neumann_gaussian_field, split_key

PERMEABILITY = (0.02, 0.36)
"""Of the phases 0 and 1 of the generated media."""

_MAX_ITERATIONS = 500


class ConvergenceError(ValueError):
    """The iteration did not reach its tolerance."""


def solve_darcy(
    permeability: Float[np.ndarray, "*batch n n"],
    source: Float[np.ndarray, "*batch n n"] | None = None,
    *,
    tolerance: float = 1e-4,
) -> Float[np.ndarray, "*batch n n"]:
    r"""Pressure u of a flow through a porous medium.

    $$
    -\nabla \cdot (a \nabla u) = f \;\text{ on } [0, 1]^2, \qquad u = 0 \;\text{ on the boundary.}
    $$

    Finite volumes: a and u live at the centres x_j = (j + 1/2) / n of n x n cells. The flux through
    a face is that of two half cells in series, hence the harmonic mean of their permeabilities,
    which is exact where a jumps on the face; boundary faces are half a cell away. The error is
    O(1/n^2) where a is smooth.

    Conjugate gradients, preconditioned by the solution for a = 1, which a sine transform gives.
    Their number of iterations does not grow with n, only with the contrast max(a) / min(a).

    Computed in double precision if `permeability` is float64, else in single precision. On the
    host: not for use under `jax.jit`.

    Args:
        permeability: a, positive; axis -2 is x_1, axis -1 is x_2.
        source: f; None for 1.
        tolerance: of the residual, relative to f, in the norm sqrt(r . P r) with the
            preconditioner P: up to factors of the contrast the relative error of u in the discrete
            energy norm. Single precision reaches 1e-5 on 64x64 cells, 4e-5 on 256x256.

    Returns:
        u at the centres of the cells.

    Raises:
        ValueError: if the permeability is not positive and finite, or arrays are not square grids.
        ConvergenceError: if the tolerance was not reached.

    References:
        Eymard, Gallouet, Herbin, "Finite volume methods", Handbook of Numerical Analysis VII, 2000.
    """
    *batch, n, m = permeability.shape
    if n != m:
        raise ValueError(f"permeability must have shape (..., n, n), not {permeability.shape}")
    if not (np.all(permeability > 0) and np.all(np.isfinite(permeability))):
        raise ValueError("permeability must be positive and finite everywhere")
    if not tolerance > 0:
        raise ValueError(f"tolerance must be positive, not {tolerance}")
    source = np.ones_like(permeability) if source is None else source
    if source.shape != permeability.shape:
        raise ValueError(
            f"source must have the shape of permeability, {permeability.shape}, not {source.shape}"
        )
    double = permeability.dtype == np.float64
    dtype = np.float64 if double else np.float32
    a, f = (np.asarray(values, dtype).reshape(-1, n, n) for values in (permeability, source))
    with jax.enable_x64(True) if double else contextlib.nullcontext():
        size = samples_at_once(len(a))
        parts = [
            _solve(a[i : i + size], f[i : i + size], dtype(tolerance))
            for i in range(0, len(a), size)
        ]
        u, residual = (np.concatenate(values) for values in zip(*parts, strict=True))
    n_bad = int(np.sum(~(residual <= tolerance)))  # written so that NaN counts as bad
    if n_bad:
        raise ConvergenceError(
            f"tolerance={tolerance:g} was not reached for {n_bad} of {len(u)} samples in "
            f"{_MAX_ITERATIONS} iterations, only {np.max(residual):.2g}; try a larger one"
            + ("" if double else ", or float64")
        )
    return u.reshape(*batch, n, n)


def darcy_samples(
    indices: Sequence[int],
    *,
    split: str,
    resolution: int,
    solver_resolution: int,
    tolerance: float,
    seed: int,
    float64: bool = False,
) -> tuple[Float[np.ndarray, "b n n"], Float[np.ndarray, "b n n"]]:
    """Phases x and pressures y of the samples with the given numbers.

    x is 1 where `neumann_gaussian_field` is positive, else 0; the permeability is
    `PERMEABILITY[x]`, the source 1. A sample depends on the seed, its split, its number and the
    solver's resolution alone.

    Args:
        indices: numbers of the samples.
        split: train or test.
        resolution: grid points per axis of x and y. They are every (solver_resolution /
            resolution)-th cell of the solver's, beginning with the first: x_j = j / resolution +
            1 / (2 solver_resolution). Coarser grids are subsets of finer ones.
        solver_resolution: cells per axis, a multiple of resolution.
        tolerance: see `solve_darcy`.
        seed: any integer from 0 to 2^32 - 1.
        float64: compute in double precision; the media are the same draws.

    Returns:
        x and y, float32 or float64.
    """
    dtype = np.float64 if float64 else np.float32
    with jax.enable_x64(True) if float64 else contextlib.nullcontext():
        key = split_key(seed, split)
        fields = [np.asarray(_field(key, i, solver_resolution, dtype)) for i in indices]
    phases = (np.stack(fields) > 0).astype(dtype)
    low, high = PERMEABILITY
    pressure = solve_darcy(np.where(phases > 0, dtype(high), dtype(low)), tolerance=tolerance)
    every = solver_resolution // resolution
    return phases[:, ::every, ::every], pressure[:, ::every, ::every]


@partial(jax.jit, static_argnames=("resolution", "dtype"))
def _field(key, index, resolution, dtype):
    return neumann_gaussian_field(jax.random.fold_in(key, index), resolution, dtype=dtype)


@jax.jit
def _solve(
    permeability: Float[Array, "b n n"], source: Float[Array, "b n n"], tolerance: Float[Array, ""]
) -> tuple[Float[Array, "b n n"], Float[Array, " b"]]:
    """Return solutions and their relative residuals."""
    n = permeability.shape[-1]
    k = jnp.arange(n)
    # cos^2 where the cosine transform would have sin^2: `poisson` reverses the frequencies.
    eigenvalue = 4 * n**2 * jnp.cos(jnp.pi * k / (2 * n)).astype(permeability.dtype) ** 2
    eigenvalues = eigenvalue[:, None] + eigenvalue[None, :]
    checkerboard = 1 - 2 * ((k[:, None] + k[None, :]) % 2)

    def poisson(r):
        # sin(pi (n - k)(j + 1/2) / n) = (-1)^j cos(pi k (j + 1/2) / n): a sine transform is a
        # cosine transform of the array with alternating signs, its frequencies reversed.
        spectrum = jax.scipy.fft.dctn(checkerboard * r, type=2, norm="ortho")
        return checkerboard * jax.scipy.fft.idctn(spectrum / eigenvalues, type=2, norm="ortho")

    def solve(a, f):
        across = [n**2 * _face_permeabilities(a), n**2 * _face_permeabilities(a.T)]

        def divergence(faces, u):
            flux = faces * jnp.diff(u, axis=0, prepend=0, append=0)
            return -jnp.diff(flux, axis=0)

        def operator(u):
            return divergence(across[0], u) + divergence(across[1], u.T).T

        def iterate(state):
            u, r, p, rz, i = state
            ap = operator(p)
            step = rz / jnp.vdot(p, ap)
            u, r = u + step * p, r - step * ap
            z = poisson(r)
            new = jnp.vdot(r, z)
            return u, r, z + new / rz * p, new, i + 1

        z = poisson(f)
        initial = jnp.vdot(f, z)
        initial = jnp.where(initial == 0, 1, initial)  # no source: u = 0 is exact
        # A tenth of the tolerance: rounding makes the residual that is checked differ from r.
        enough = (tolerance / 10) ** 2 * initial
        goes_on = lambda state: (state[3] > enough) & (state[4] < _MAX_ITERATIONS)
        u, *_ = jax.lax.while_loop(goes_on, iterate, (jnp.zeros_like(f), f, z, jnp.vdot(f, z), 0))
        r = f - operator(u)
        return u, jnp.sqrt(jnp.abs(jnp.vdot(r, poisson(r))) / initial)

    return jax.vmap(solve)(permeability, source)


def _face_permeabilities(a):
    """Of the n + 1 faces across axis 0, so that flux = value * difference of the two centres."""
    inner = 2 / (1 / a[1:] + 1 / a[:-1])
    return jnp.concatenate([2 * a[:1], inner, 2 * a[-1:]])
