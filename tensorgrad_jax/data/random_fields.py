"""Gaussian random fields: on the torus, on the periodic unit interval, on the unit square."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

# Sample i of a split is drawn from the seed, this number and i.
_SPLIT_NUMBER = {"train": 0, "test": 1}


def split_key(seed: int, split: str) -> Key[Array, ""]:
    """Return the key from which sample i of a split, train or test, takes fold_in(key, i)."""
    return jax.random.fold_in(jax.random.key(seed), _SPLIT_NUMBER[split])


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

    re, im = jnp.moveaxis(_normals(key, number, (2,)).astype(dtype), -1, 0) / jnp.sqrt(2.0)
    re, im = re.astype(dtype), jnp.where(mirrored, -im, im).astype(dtype)

    squared = (k1**2 + k2**2).astype(dtype)
    kept = (squared > 0) & (2 * jnp.abs(k1) < n) & (2 * k2 < n)
    amplitude = jnp.where(kept, jnp.sqrt(variance * (squared + shift) ** -power), 0)
    return n * n * jnp.fft.irfft2(amplitude * jax.lax.complex(re, im), s=(n, n))


def periodic_gaussian_function(
    key: Key[Array, ""],
    resolution: int,
    *,
    variance: float = 625.0,
    shift: float = 25.0,
    power: float = 2.0,
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, " n"]:
    """One draw of N(0, variance * (-d^2/dx^2 + shift)^(-power)) on the periodic interval [0, 1).

    As `periodic_gaussian_field`, with eigenfunctions exp(2 pi i k x), k != 0, of mean square 1 and
    eigenvalues variance * (4 pi^2 k^2 + shift)^(-power): E f(x)^2 = 0.592^2 with the default
    numbers, and every draw has mean zero.

    Args:
        key: a typed PRNG key.
        resolution: number n of grid points, at x_j = j / n; frequencies from n/2 on are left out.
        variance: factor of the covariance operator.
        shift: number added to the operator.
        power: exponent; draws are smoother the larger it is.
        dtype: real floating-point type of the result.

    Returns:
        The function at the grid points.

    References:
        Li et al., "Fourier Neural Operator for Parametric Partial Differential Equations", ICLR
        2021, section 5.1, which has the covariance 625 (-Laplace + 25)^(-2).
    """
    n = resolution
    k = jnp.arange(n // 2 + 1, dtype=jnp.int32)
    re, im = (_normals(key, k, (2,)).astype(dtype) / jnp.sqrt(2.0).astype(dtype)).T
    eigenvalue = variance * ((2 * jnp.pi * k.astype(dtype)) ** 2 + shift) ** -power
    amplitude = jnp.where((k > 0) & (2 * k < n), jnp.sqrt(eigenvalue), 0)
    return n * jnp.fft.irfft(amplitude * jax.lax.complex(re, im), n)


def neumann_gaussian_field(
    key: Key[Array, ""],
    resolution: int,
    *,
    shift: float = 100.0,
    power: float = 3.0,
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, "n n"]:
    """One draw of N(0, (-Laplace + shift)^(-power)) on [0, 1]^2 without its constant part.

    The Laplacian has zero normal derivatives at the boundary, so that the field does not know of
    it::

        f(x) = sum_k sqrt(lambda_k) xi_k c_k1(x_1) c_k2(x_2),    k in {0, 1, ...}^2 without 0,
        lambda_k = (pi^2 |k|^2 + shift)^(-power),   c_0 = 1,   c_m(x) = sqrt(2) cos(pi m x)

    with standard normal xi_k, which depend on the key and on k alone and are drawn in single
    precision.

    Args:
        key: a typed PRNG key.
        resolution: number n of grid points per axis, at x_j = (j + 1/2) / n.
        shift: number added to -Laplace; 1 / sqrt(shift) is the length scale.
        power: exponent; draws are smoother the larger it is.
        dtype: real floating-point type of the result.

    Returns:
        The field at the grid points; axis 0 is x_1, axis 1 is x_2.
    """
    n = resolution
    k = jnp.arange(n, dtype=jnp.int32)
    xi = _normals(key, (k[:, None] << 16) | k[None, :], ()).astype(dtype)
    squared = (k[:, None] ** 2 + k[None, :] ** 2).astype(dtype)
    eigenvalue = (jnp.pi**2 * squared + shift) ** -power
    amplitude = jnp.where(squared > 0, jnp.sqrt(eigenvalue), 0)
    return n * jax.scipy.fft.idctn(amplitude * xi, type=2, norm="ortho")


def _normals(key, numbers, shape):
    """Standard normal numbers, one array of the shape for each of the integers."""
    draw = lambda number: jax.random.normal(jax.random.fold_in(key, number), shape, jnp.float32)
    return jax.vmap(draw)(numbers.ravel()).reshape(*numbers.shape, *shape)
