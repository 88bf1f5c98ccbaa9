r"""A task in three dimensions: the Allen-Cahn equation on the periodic cube.

    u_t = nu Laplace(u) + u - u^3    on [0, 2 pi)^3,   u(0) a smooth random field of deviation 1.

Strang splitting: both halves of the equation are solved exactly, diffusion by its Fourier
multiplier exp(-nu |k|^2 t), the reaction pointwise, u -> u e^t / sqrt(1 + u^2 (e^(2t) - 1)). Second
order in the time step, stable for every one. Fronts of width sqrt(nu) form between +1 and -1.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Samples(NamedTuple):
    """Fields (N, n, n, n, 1): initial values and values at the end."""

    x: np.ndarray
    y: np.ndarray


def solve(u: jax.Array, viscosity: float, t_end: float, n_steps: int) -> jax.Array:
    """Return u(t_end) of one initial field (n, n, n)."""
    n, dt = u.shape[0], t_end / n_steps
    k, k_last = jnp.fft.fftfreq(n, 1 / n), jnp.fft.rfftfreq(n, 1 / n)
    squared = k[:, None, None] ** 2 + k[None, :, None] ** 2 + k_last**2
    half = jnp.exp(-viscosity * squared * dt / 2)

    def diffuse(u):
        return jnp.fft.irfftn(half * jnp.fft.rfftn(u), s=u.shape)

    def step(u, _):
        u = diffuse(u)
        u = u * jnp.exp(dt) / jnp.sqrt(1 + u**2 * (jnp.exp(2 * dt) - 1))
        return diffuse(u), None

    return jax.lax.scan(step, u, length=n_steps)[0]


def initial_field(key: jax.Array, n: int, length: float = 4.0, power: float = 4.0) -> jax.Array:
    """Return a Gaussian random field of deviation 1 with spectrum (|k|^2 + length^2)^-power."""
    noise = jax.random.normal(key, (n, n, n))
    k, k_last = jnp.fft.fftfreq(n, 1 / n), jnp.fft.rfftfreq(n, 1 / n)
    squared = k[:, None, None] ** 2 + k[None, :, None] ** 2 + k_last**2
    amplitude = (squared + length**2) ** (-power / 2)
    field = jnp.fft.irfftn(amplitude * jnp.fft.rfftn(noise), s=noise.shape)
    return field / jnp.sqrt(jnp.mean(field**2))


def generate(
    n_samples: int,
    n: int = 24,
    viscosity: float = 0.02,
    t_end: float = 2.0,
    n_steps: int = 40,
    seed: int = 0,
) -> Samples:
    """Return samples whose initial fields are drawn independently."""

    @jax.jit
    def sample(key):
        u = initial_field(key, n)
        return u, solve(u, viscosity, t_end, n_steps)

    keys = jax.random.split(jax.random.key(seed), n_samples)
    pairs = [sample(key) for key in keys]
    x, y = (
        np.stack([np.asarray(f)[..., None] for f in fields]) for fields in zip(*pairs, strict=True)
    )
    return Samples(x, y)
