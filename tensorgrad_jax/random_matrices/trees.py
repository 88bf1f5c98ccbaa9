"""Products with what is stored in parts: a gradient is never put together to be projected."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from tensorgrad_jax.random_matrices.base import RandomMatrix


def width(shape: Sequence[int], dtype: Any) -> int:
    """Return how many rows of a matrix an array of this shape needs: two per complex number."""
    parts = 2 if jnp.issubdtype(dtype, jnp.complexfloating) else 1
    return parts * math.prod(shape)


def columns_of(leaf: Inexact[Array, "batch ..."]) -> Iterable[Inexact[Array, "batch n"]]:
    """Yield a batch of arrays as real matrices: of complex ones all real, all imaginary parts."""
    flat = leaf.reshape(len(leaf), math.prod(leaf.shape[1:]))
    yield from (flat.real, flat.imag) if jnp.iscomplexobj(flat) else (flat,)


def multiply_transposed_tree(
    matrix: RandomMatrix, key: Any, tree: Any
) -> Inexact[Array, "batch columns"]:
    """Return P^T g for a batch of pytrees g, leaf by leaf.

    The leaves lie in g one after the other in the order of `jax.tree.leaves`, each in row-major
    order, complex ones as all their real and then all their imaginary parts.

    Args:
        matrix: P, with as many rows as the tree has real numbers per example.
        key: the matrix's key.
        tree: leaves of shape (batch, ...).

    Raises:
        ValueError: if the leaves' leading sizes differ, or there are not as many numbers as rows.
    """
    leaves = jax.tree.leaves(tree)
    sizes = {leaf.shape[0] if leaf.ndim else None for leaf in leaves}
    if len(sizes) != 1 or None in sizes:
        shapes = [leaf.shape for leaf in leaves]
        raise ValueError(f"tree: leaves must have one leading size, got shapes {shapes}")
    found = sum(width(leaf.shape[1:], leaf.dtype) for leaf in leaves)
    if found != matrix.rows:
        raise ValueError(
            f"tree: {found} numbers per example for a matrix of {matrix.rows} rows; shapes "
            f"{[leaf.shape for leaf in leaves]}"
        )
    total, offset = jnp.zeros((leaves[0].shape[0], matrix.columns), jnp.float32), 0
    for leaf in leaves:
        for part in columns_of(leaf):
            if part.shape[1]:
                total = total + matrix.multiply_transposed(key, part, offset)
            offset += part.shape[1]
    return total
