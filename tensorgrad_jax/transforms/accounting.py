"""Counting the bytes of an optimizer state."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tensorgrad_jax.projections.plain import shown
from tensorgrad_jax.transforms.subspace import InSubspaceState


def state_bytes(opt_state: optax.OptState) -> dict[str, int]:
    """Return the bytes of every array of an optimizer state, by what it is.

    Args:
        opt_state: any pytree of arrays or `jax.ShapeDtypeStruct` (so that
            `jax.eval_shape(optimizer.init, params)` counts without allocating).

    Returns:
        A dictionary with "moments" (arrays of the optimizers), "basis" (what projections
        remember of their subspaces), "other" (counters and other scalars) and "total". Of a
        sharded array only the shards of this process's devices count.
    """
    moments = basis = other = 0
    is_compressed = lambda node: isinstance(node, InSubspaceState)
    pending = [opt_state]
    while pending:
        for node in jax.tree.leaves(pending.pop(), is_leaf=is_compressed):
            if is_compressed(node):
                basis += sum(_nbytes(x) for x in jax.tree.leaves(node.basis))
                pending += [node.count, node.next_refresh, node.inner]
            elif not getattr(node, "ndim", 0):
                other += _nbytes(node)
            else:
                moments += _nbytes(node)
    return {"moments": moments, "basis": basis, "other": other, "total": moments + basis + other}


def _nbytes(x: Any) -> int:
    if isinstance(x, jax.Array):
        return sum(shard.data.nbytes for shard in x.addressable_shards)
    if isinstance(x, bool | int | float | complex):
        return jnp.result_type(x).itemsize
    if not hasattr(x, "dtype"):
        raise ValueError(f"state_bytes: opt_state must hold arrays, got {shown(x)}")
    return math.prod(x.shape) * x.dtype.itemsize
