"""The truncated discrete Fourier transform on a regular grid: two ways to compute it.

For real `x` on a grid with n_1 x ... x n_d points and a kept set of frequencies f the forward
transform is

    X[f] = 1/(n_1...n_d) sum_j x[j] exp(-2 pi i sum_a f_a j_a / n_a)

and the inverse, from coefficients Y that are given for f_d >= 0 only,

    y[j] = sum_f c(f_d) Re( Y[f] exp(2 pi i sum_a f_a j_a / n_a) )

with c = 1 for f_d = 0 and for f_d = n_d/2, and 2 otherwise: the other half of the spectrum of a
real function is the complex conjugate of this one. Coefficients travel as two real arrays, real
and imaginary part, because neither every optimizer nor every precision knows complex numbers.

`"fft"` runs a fast Fourier transform over one axis after the other and cuts each spectrum before
the next axis is transformed. `"matrix"` multiplies every axis with a small real matrix of the
kept cosines and sines only; where few of the frequencies are kept this is less work, and all of
it is matrix products.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tensorgrad_jax.backend.products import constant_times_each

# Accelerators round the factors of float32 products to fewer bits unless told not to. A transform
# sums over whole axes, where that error (1e-3) would be seen in the output.
PRECISION = jax.lax.Precision.HIGHEST


def kept_frequencies(grid: Sequence[int], modes: Sequence[int]) -> tuple[range, ...]:
    """The frequencies kept on every axis, as contiguous ranges.

    Args:
        grid: number of points per axis.
        modes: number of frequencies wanted per axis; the last axis counts f >= 0 alone.

    Returns:
        With k = min(modes, available frequencies): -(k//2) ... (k-1)//2 for every axis but the
        last, 0 ... k-1 for the last, which has n//2 + 1 available ones.
    """
    leading = [min(n, m) for n, m in zip(grid[:-1], modes[:-1], strict=True)]
    last = min(grid[-1] // 2 + 1, modes[-1])
    return (*(range(-(k // 2), k - k // 2) for k in leading), range(last))


def choose_method(grid: Sequence[int], frequencies: Sequence[range]) -> str:
    """The transform that `"auto"` stands for: `"matrix"` where that takes little work.

    The rule is `matrix_work` <= 64 per axis. On two CPU cores in float32 (benchmarks/transforms.py)
    a convolution with its gradients takes of the time by FFT .15, .39, .60, 1.1 at 18, 66, 130, 258
    per axis in 1-D; .35, .37, .64, .80 to .91, .94 at 12, 22, 50, 68, 98 in 2-D; .38, .55, .87, .77
    at 5, 11, 36, 53 in 3-D. On GPUs, where matrix products cost less, it has not been measured.
    """
    return "matrix" if matrix_work(grid, frequencies) <= 64 * len(grid) else "fft"


def matrix_work(grid: Sequence[int], frequencies: Sequence[range]) -> float:
    """Multiplications per grid point of `"matrix"`: sum_a r_a prod_{b<a} r_b / n_b.

    r = 2 (1 + highest |f|) is the number of rows per axis.
    """
    work, share = 0.0, 1.0
    for n, r in zip(grid, _row_counts(frequencies), strict=True):
        work += 2 * r * share
        share *= 2 * r / n
    return work


def truncated_rfftn(
    x: Float[Array, "batch *grid channels"], frequencies: Sequence[range], method: str
) -> tuple[Float[Array, "batch *modes channels"], Float[Array, "batch *modes channels"]]:
    """Real and imaginary part of the kept coefficients of `x` (scaled by 1 / number of points)."""
    scale = 1 / math.prod(x.shape[1:-1])
    if method == "matrix":
        real, imag = _matrix_rfftn(x, frequencies)
        return real * scale, imag * scale
    dim = len(frequencies)
    z = jnp.fft.rfft(x, axis=dim)[..., : len(frequencies[-1]), :]
    for axis in range(dim - 1, 0, -1):
        kept = frequencies[axis - 1]
        z = jnp.roll(jnp.fft.fft(z, axis=axis), -kept.start, axis)
        z = jax.lax.slice_in_dim(z, 0, len(kept), axis=axis)
    return z.real * scale, z.imag * scale


def truncated_irfftn(
    real: Float[Array, "batch *modes channels"],
    imag: Float[Array, "batch *modes channels"],
    frequencies: Sequence[range],
    grid: Sequence[int],
    method: str,
) -> Float[Array, "batch *grid channels"]:
    """The real function on `grid` that has these coefficients at `frequencies` and no others."""
    dim = len(grid)
    if method == "matrix":
        n = grid[-1]
        weight = np.array([1.0 if f == 0 or 2 * f == n else 2.0 for f in frequencies[-1]])
        weight = weight.astype(real.dtype)[:, None]
        return _matrix_irfftn(real * weight, imag * weight, frequencies, grid)
    z = jax.lax.complex(real, imag)
    for axis in range(1, dim):
        kept, n = frequencies[axis - 1], grid[axis - 1]
        z = jnp.roll(_pad_end(z, axis, n - len(kept)), kept.start, axis)
        z = jnp.fft.ifft(z, axis=axis, norm="forward")
    return jnp.fft.irfft(z, n=grid[-1], axis=dim, norm="forward")


def _matrix_rfftn(x, frequencies):
    """Unscaled truncated transform by one real matrix product per axis, no axis ever moved.

    The products with cosines and sines along every axis are real, about m_1 x ... x m_d numbers
    in all: the complex exponentials are put together from them when everything is small.
    """
    batch, *grid, channels = x.shape
    rows = _row_counts(frequencies)
    lead, t = batch, x
    for n, r in zip(grid, rows, strict=True):
        t = _wave_product(t.reshape(lead, n, -1), n, r, False)
        lead *= 2 * r
    return _exponentials(
        t.reshape(batch, *(s for r in rows for s in (2, r)), channels), frequencies
    )


def _matrix_irfftn(real, imag, frequencies, grid):
    """The transpose of `_matrix_rfftn`: up to a weight per frequency, the inverse transform."""
    batch, channels = real.shape[0], real.shape[-1]
    rows = _row_counts(frequencies)
    shape = (batch, *(s for r in rows for s in (2, r)), channels)
    # Of the type of an array made from these, which under `shard_map` is more than shape and dtype.
    products = jax.eval_shape(lambda z: jnp.broadcast_to(z.ravel()[0], shape), real)
    from_products = functools.partial(_exponentials, frequencies=frequencies)
    (t,) = jax.linear_transpose(from_products, products)((real, imag))
    rest = channels
    for n, r in reversed(list(zip(grid, rows, strict=True))):
        t = _wave_product(t.reshape(-1, 2 * r, rest), n, r, True)
        rest *= n
    return t.reshape(batch, *grid, channels)


def _exponentials(t, frequencies):
    """Real and imaginary part from the products with cosines and sines along every axis."""
    real, imag = t[..., 0, :, :], t[..., 1, :, :]
    # Backwards, so that the axes in front of the one that is being folded keep their places.
    for axis in range(len(frequencies) - 2, -1, -1):
        real, imag = _fold(real, imag, 1 + 2 * axis, frequencies[axis])
    return real, imag


def _row_counts(frequencies: Sequence[range]) -> list[int]:
    """Number of cosines per axis: 0 ... highest |f|."""
    return [1 + max(abs(f[0]), abs(f[-1])) for f in frequencies]


def _waves(n: int, rows: int) -> np.ndarray:
    """Rows cos(2 pi f j / n) for f = 0 ... rows-1, then -sin(2 pi f j / n): shape (2 rows, n)."""
    # The product is reduced modulo n before it meets pi: exact for every n.
    angle = 2 * np.pi / n * (np.outer(np.arange(rows), np.arange(n)) % n)
    return np.concatenate([np.cos(angle), -np.sin(angle)])


def _wave_product(t, n, rows, transposed):
    """`_waves(n, rows)`, or its transpose, applied to axis 1 of t (lead, n or 2 rows, rest)."""
    matrix = _waves(n, rows)
    return constant_times_each(matrix.T if transposed else matrix, t)


def _fold(real, imag, axis, kept):
    """Put exp(-i f .) = cos + i (-sin) together along (axis: cos or -sin, axis + 1: |f|)."""
    (cos_r, sin_r), (cos_i, sin_i) = _halves(real, axis), _halves(imag, axis)

    def join(positive, negative):
        lo, hi = max(1, -kept[-1]), -kept[0] + 1
        below = jnp.flip(jax.lax.slice_in_dim(negative, min(lo, hi), hi, axis=axis), axis)
        above = jax.lax.slice_in_dim(positive, max(0, kept[0]), max(0, kept[-1] + 1), axis=axis)
        return jnp.concatenate([below, above], axis)

    return join(cos_r - sin_i, cos_r + sin_i), join(cos_i + sin_r, cos_i - sin_r)


def _halves(t, axis):
    return tuple(jax.lax.index_in_dim(t, q, axis, keepdims=False) for q in (0, 1))


def _pad_end(z, axis, width):
    return jnp.pad(z, [(0, width if a == axis else 0) for a in range(z.ndim)])
