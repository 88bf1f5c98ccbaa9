"""Random arrays of many axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
from jaxtyping import Array, Float, PRNGKeyArray


def drawn(
    distribution: Callable[..., Array], key: PRNGKeyArray, shape: Sequence[int]
) -> Float[Array, ...]:
    """Return `distribution(key, shape)`, for a distribution of `jax.random`.

    XLA for CPUs needs seconds to compile a generator of arrays of five or six axes, and a tenth of
    that for a vector. There the numbers, which are the same, are drawn as a vector.
    """
    shape = tuple(shape)
    vector = lambda key: distribution(key, (math.prod(shape),)).reshape(shape)
    array = lambda key: distribution(key, shape)
    return jax.lax.platform_dependent(key, cpu=vector, default=array)
