r"""How many singular values of a core stay.

With sigma_1 >= sigma_2 >= ..., r the rank so far and n the smaller side of the weight, let j be the
number of singular values before the first below `sigma_cutoff_fraction` sigma_1. Then

    r' = r                       if none is below,
    r' = floor(r / 2)            if j < r / 2 and r / 2 > l, l = floor(n / 100): at most half goes,
    r' = max(j, l)               otherwise.

The rank never grows, and is at least 1.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

SMALLEST_SHARE = 0.01  # of the smaller side


def new_rank(
    sigma: Float[Array, " p"],
    rank: Int[Array, ""] | int,
    full_rank: int,
    sigma_cutoff_fraction: float,
) -> Int[Array, ""]:
    """Return the rank after a check.

    Args:
        sigma: singular values in descending order, of which the first `rank` count.
        rank: the rank so far.
        full_rank: smaller side of the weight.
        sigma_cutoff_fraction: of the largest singular value, below which one is cut off.

    Examples:
        >>> import jax.numpy as jnp
        >>> [int(new_rank(jnp.array(s), 4, 4, 0.1)) for s in ([4.0, 3, 2, 0.1], [4.0, 0.1, 0, 0])]
        [3, 2]
    """
    rank = jnp.asarray(rank, jnp.int32)
    least = int(full_rank * SMALLEST_SHARE)
    below = (sigma < sigma[0] * sigma_cutoff_fraction) & (jnp.arange(len(sigma)) < rank)
    first = jnp.argmax(below).astype(jnp.int32)
    at_most_half = (2 * first < rank) & (rank > 2 * least)
    kept = jnp.where(at_most_half, rank // 2, jnp.maximum(first, least))
    kept = jnp.where(below.any(), kept, rank)
    return jnp.clip(kept, 1, rank)
