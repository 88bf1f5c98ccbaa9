"""The gradients of a few examples at a time, as they are: right for every function, and slow.

Costs a backward pass per example, batched over as many examples as their gradients leave room
for. It is what the fast method is tested against, and what does the parameters that it cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from tensorgrad_jax.per_example.chunks import chunk_size, over_chunks
from tensorgrad_jax.per_example.reductions import Leaf, Reduction, weighted


def exact(
    loss: Callable[[list[Array], list[Array]], Array],
    values: Sequence[Array],
    batch: Sequence[Array],
    reduction: Reduction,
    leaves: Sequence[Leaf],
    operands: Sequence[Any],
    reduced: Sequence[int],
    microbatch_size: int | None,
) -> tuple[Array, list[Array], dict[int, Any]]:
    """Return the sum of losses, of gradients, and the reduction, of `reduced` leaves.

    Args:
        loss: of one example: maps parameters and a batch of one to a scalar.
        values: the parameters.
        batch: arrays with the examples along axis 0.
        reduction: the reduction.
        leaves: all parameters.
        operands: the reduction's arrays for all of them.
        reduced: which of them to differentiate and reduce.
        microbatch_size: number of examples at a time, or None.
    """
    n = len(batch[0])
    size = chunk_size(n, sum(leaves[i].size for i in reduced), microbatch_size)

    def of_one(chosen, example):
        every = list(values)
        for i, value in zip(reduced, chosen, strict=True):
            every[i] = value
        return loss(every, [x[None] for x in example])

    def chunk(examples):
        chosen = [values[i] for i in reduced]
        losses, gradients = jax.vmap(jax.value_and_grad(of_one), (None, 0))(chosen, examples)
        parts = {
            i: reduction.reduce(leaves[i], operands[i], weighted(g, reduction.weight(n)))
            for i, g in zip(reduced, gradients, strict=True)
        }
        if reduction.adds_leaves:
            parts = added(parts)
        sums = (_wide_sum(losses), [_wide_sum(g) for g in gradients])
        return ((*sums, {}), parts) if reduction.rows else ((*sums, parts), {})

    (total, gradients, sums), rows = over_chunks(chunk, list(batch), n, size)
    gradients = [g.astype(values[i].dtype) for i, g in zip(reduced, gradients, strict=True)]
    return total, gradients, rows if reduction.rows else sums


def added(parts: dict[int, Any]) -> dict[int, Any]:
    """Return the sum of the leaves' parts, as the part of one of them."""
    if not parts:
        return {}
    first, *rest = parts.values()
    for part in rest:
        first = jax.tree.map(jnp.add, first, part)
    return {next(iter(parts)): first}


def _wide_sum(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32)).sum(0)
