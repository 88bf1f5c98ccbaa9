"""How a projector's features come about within a backward pass: its reduction of gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax.numpy as jnp
from jaxtyping import Array, Inexact

from tensorgrad_jax.per_example import Leaf, Project, ProjectLayers, Reduction
from tensorgrad_jax.random_matrices import RandomMatrix

Make = Callable[[Any], Reduction]


class Source(NamedTuple):
    """What features are made of.

    Attributes:
        make: a hashable function from the key to the reduction: what a program is compiled for.
        key: arrays.
    """

    make: Make
    key: Any


@dataclasses.dataclass(frozen=True)
class OfMatrix:
    """Products with a matrix, of gradients cast to a dtype as the features are."""

    matrix: Any
    dtype: str = "float32"

    def __call__(self, key: Any) -> Reduction:
        """Return the projection."""
        return _CastProject(self.matrix, key, self.dtype)


@dataclasses.dataclass(frozen=True)
class OfLayers:
    """Kronecker products, one per parameter."""

    columns: int

    def __call__(self, key: Any) -> Reduction:
        """Return the projection."""
        return ProjectLayers(self.columns, key)


@dataclasses.dataclass(frozen=True, eq=False)
class _CastProject(Project):
    dtype: str

    def reduce(self, leaf: Leaf, operands: Any, gradients: Inexact[Array, "n ..."]) -> Array:
        """Return this parameter's part of the features."""
        return super().reduce(leaf, operands, gradients.astype(self.dtype))

    def reduce_slab(
        self, leaf: Leaf, operands: Any, gradients: Inexact[Array, "n ..."], axis: int, first: Any
    ) -> Array:
        """Return the features' part of some indices of an axis."""
        return super().reduce_slab(leaf, operands, gradients.astype(self.dtype), axis, first)

    def combine(self, results: Any, structure: Any, n: int) -> Array:
        """Return the features in the dtype."""
        return super().combine(results, structure, n).astype(self.dtype)


@dataclasses.dataclass(frozen=True)
class OnTopOfEachOther:
    """Matrices on top of each other, with a key each: a matrix for `Project`."""

    parts: tuple[RandomMatrix, ...]

    def multiply_transposed(self, key: Any, x: Array, row_offset: int) -> Array:
        """Return x P for x (n, rows), with the rows of P from `row_offset` on: (n, columns)."""
        total = jnp.zeros((len(x), self.parts[0].columns), jnp.float32)
        begin = 0
        for matrix, own in zip(self.parts, key, strict=True):
            first, last = max(row_offset, begin), min(row_offset + x.shape[1], begin + matrix.rows)
            if first < last:
                part = x[:, first - row_offset : last - row_offset]
                total = total + matrix.multiply_transposed(own, part, first - begin)
            begin += matrix.rows
        return total


def on_top_of_each_other(sources: list[Source | None], dtype: str) -> Source | None:
    """Return the source of the sum of features; None if one of them has none."""
    if not all(source is not None and isinstance(source.make, OfMatrix) for source in sources):
        return None
    known = cast("list[Source]", sources)
    matrices = tuple(cast("OfMatrix", source.make).matrix for source in known)
    if not all(isinstance(matrix, RandomMatrix) for matrix in matrices):
        return None
    keys = tuple(source.key for source in known)
    return Source(OfMatrix(OnTopOfEachOther(matrices), dtype), keys)
