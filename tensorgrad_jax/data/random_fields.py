"""Gaussian random fields on the torus."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key


def periodic_gaussian_field(
    key: Key[Array, ""],
    resolution: int,
    *,
    variance: float = 27.0,
    shift: float = 9.0,
    power: float = 4.0,
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, "n n"]:
    """One draw of N(0, variance * (-Laplace + shift)^(-power)) on the torus [0, 2 pi)^2.

    The draw is the Karhunen-Loeve series::

        f(x) = sum_k sqrt(lambda_k) xi_k exp(i k.x),    k in Z^2 without 0,
        lambda_k = variance * (|k|^2 + shift)^(-power)

    with complex standard normal xi_k, E|xi_k|^2 = 1, xi_{-k} = conj(xi_k). The Laplacian is that of
    [0, 2 pi)^2, hence the integer k, and the eigenfunctions exp(i k.x) have *mean* square 1, not
    integral 1. So E f(x)^2 = sum_k lambda_k at every x: 0.186^2 with the default numbers. The mean
    of every draw is zero.

    xi_k depends on the key and on k alone. Draws at two resolutions are therefore the same
    function up to the frequencies that only the finer grid has; frequencies |k_i| >= n/2 are left
    out. The xi_k are drawn in single precision whatever ``dtype`` is, so that a field in double
    precision is the same draw with less rounding, not another one.

    Args:
        key: a typed PRNG key.
        resolution: number n of grid points per axis, at x_j = 2 pi j / n.
        variance: factor of the covariance operator.
        shift: number added to -Laplace; 1 / sqrt(shift) is the length scale.
        power: exponent; draws are smoother the larger it is.
        dtype: real floating-point type of the result.

    Returns:
        The field at the grid points; axis 0 is x_1, axis 1 is x_2.

    References:
        Kossaifi, Kovachki, Azizzadenesheli, Anandkumar, "Multi-grid tensorized Fourier neural
        operator for high-resolution PDEs", 2023, which has the covariance 27 (-Laplace + 9)^(-4).
    """
    n = resolution
    # The layout of rfft2: all k_1, and k_2 >= 0. The other half follows from xi_{-k} = conj(xi_k).
    k1 = jnp.fft.fftfreq(n, 1 / n).astype(jnp.int32)[:, None]
    k2 = jnp.arange(n // 2 + 1, dtype=jnp.int32)[None, :]

    # On the column k_2 = 0 both k and -k are present: they share one draw.
    mirrored = (k2 == 0) & (k1 < 0)
    number = ((jnp.where(mirrored, -k1, k1) & 0xFFFF) << 16) | k2

    def xi(number):
        return jax.random.normal(jax.random.fold_in(key, number), (2,), jnp.float32)

    re, im = jnp.moveaxis(jax.vmap(jax.vmap(xi))(number).astype(dtype), -1, 0) / jnp.sqrt(2.0)
    re, im = re.astype(dtype), jnp.where(mirrored, -im, im).astype(dtype)

    squared = (k1**2 + k2**2).astype(dtype)
    kept = (squared > 0) & (2 * jnp.abs(k1) < n) & (2 * k2 < n)
    amplitude = jnp.where(kept, jnp.sqrt(variance * (squared + shift) ** -power), 0)
    return n * n * jnp.fft.irfft2(amplitude * jax.lax.complex(re, im), s=(n, n))
