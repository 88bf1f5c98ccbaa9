"""The order of products in a spectral convolution whose weight is given by core and factors.

Of a weight W = C x_in U x_out V with real matrices U (n, p) and V (m, q) over the channels, the
same for all frequencies, the convolution commutes with U and V:

    "grid":    y = K_C(x U) V^T             transforms of p and q channels
    "modes":   y = F^-1((F x U) C V^T)      U and V at the kept frequencies alone
    "array":   y = K_W(x)                   the weight is made

Which of them takes the fewest multiplications is known from shapes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tensorgrad_jax.projections.tucker_weight import TuckerWeight

from .fourier import PRECISION, matrix_work
from .precision import product

GRID, MODES, ARRAY = "grid", "modes", "array"


def of_channels(weight: TuckerWeight) -> TuckerWeight:
    """The same weight with its frequencies whole: their factors multiplied into the core."""
    *modes, left, right = weight.factors
    if all(u is None for u in modes):
        return weight
    core = TuckerWeight(weight.core, (*modes, None, None)).array()
    return TuckerWeight(core, (*[None] * len(modes), left, right))


def cheapest(
    weight: TuckerWeight, batch: int, grid: Sequence[int], kept: Sequence[range], method: str
) -> str:
    """Which order takes the fewest multiplications: "grid", "modes" or "array".

    Args:
        weight: factors over the channels alone.
        batch: number of samples.
        grid: points per axis.
        kept: frequencies per axis.
        method: of the transform, `"fft"` or `"matrix"`.

    Examples:
        >>> weight = lambda n, p: TuckerWeight(
        ...     jnp.ones((2, 16, 9, p, p)), (None, None, jnp.ones((n, p)), jnp.ones((n, p)))
        ... )
        >>> kept = (range(-8, 8), range(9))
        >>> [cheapest(weight(n, n // 4), 8, (64, 64), kept, "fft") for n in (32, 512)]
        ['grid', 'modes']
    """
    points, modes = math.prod(grid), math.prod(map(len, kept))
    n, m = weight.shape[-2:]
    p, q = weight.core.shape[-2:]
    per_point = matrix_work(grid, kept) if method == "matrix" else 2.5 * math.log2(points)
    transforms = lambda channels: points * channels * per_point
    left, right = (0 if u is None else u.size for u in weight.factors[-2:])
    making = 2 * modes * (n * p * q + n * q * m)
    work = {
        GRID: batch * (points * (left + right) + transforms(p + q) + 4 * modes * p * q),
        MODES: batch * (2 * modes * (left + right) + transforms(n + m) + 4 * modes * p * q),
        ARRAY: batch * (transforms(n + m) + 4 * modes * n * m) + making,
    }
    return min(work, key=lambda name: work[name])


def times(
    x: Float[Array, "*points n"], matrix: Float[Array, "n p"] | None, narrow: bool
) -> Float[Array, "*points p"]:
    """`x` times a matrix over the channels; `narrow`: bfloat16 factors, added up in float32."""
    if matrix is None:
        return x
    rows = x.reshape(-1, x.shape[-1])
    if narrow:
        bfloat16 = lambda a: a.astype(jnp.bfloat16)
        y = product(bfloat16(rows), bfloat16(matrix), jnp.dtype(jnp.float32))
    else:
        y = jax.lax.dot(rows, matrix.astype(x.dtype), precision=PRECISION)
    return y.reshape(*x.shape[:-1], matrix.shape[1])
