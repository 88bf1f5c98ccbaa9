"""How much of a batch is worked on at once."""

from __future__ import annotations

import math
from typing import Any

import jax


def independent_parts(params: Any, shape: tuple[int, ...]) -> int:
    """Return into how many parts a batch (batch, *grid, channels) is best cut on this machine.

    XLA runs most matrix products on one core of a CPU, but independent ones at the same time: two
    halves of a batch keep two cores busy (docs/performance.md). More parts than two were slower on
    two cores, and every part is compiled. Not where that outweighs the work, nor where the
    gradient of the weights, of which each part has its own, is not small beside the activations.
    """
    points = math.prod(shape[:-1])
    weights = sum(leaf.size for leaf in jax.tree.leaves(params))
    worth_it = shape[0] % 2 == 0 and points >= 2**15 and weights <= 64 * points
    return 2 if worth_it and jax.default_backend() == "cpu" else 1


def samples_at_once(n: int) -> int:
    """Return how many of n independent samples are best solved at once.

    On CPUs one: it stays in the cache, an iteration stops when it has converged, and its last bits
    do not depend on how many there are. Elsewhere all of them.
    """
    return 1 if jax.default_backend() == "cpu" else n


# float32 numbers in 1 MiB, the second cache of a core.
_CACHED_NUMBERS = 2**18


def numbers_at_once(most: int) -> int:
    """Return how many numbers an array is best to hold that is made, reduced and forgotten.

    On CPUs those that stay in the cache, else `most`. Squares of per-example gradients took half
    the time with 2^18 numbers at a time instead of 2^22 (docs/truegrad.md).
    """
    return min(most, _CACHED_NUMBERS) if jax.default_backend() == "cpu" else most
