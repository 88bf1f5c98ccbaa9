"""A matrix that is given: to replay the random numbers of another library."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from tensorgrad_jax.random_matrices.base import PRECISION, RandomMatrix


@dataclasses.dataclass(frozen=True)
class Explicit(RandomMatrix):
    """A matrix that is held: the array, of shape (rows, columns), takes the place of the key.

    Attributes:
        rows: number of rows.
        columns: number of columns.
    """

    def _transposed(self, key: Inexact[Array, "rows columns"], x, row_offset):
        return jnp.matmul(x, self._part(key, row_offset, x.shape[1], x), precision=PRECISION)

    def _product(self, key, y, row_offset, rows):
        return jnp.matmul(y, self._part(key, row_offset, rows, y).T, precision=PRECISION)

    def _part(self, matrix, row_offset, n, like):
        if matrix.shape != (self.rows, self.columns):
            raise ValueError(
                f"Explicit: the matrix must have shape {(self.rows, self.columns)}, got "
                f"{matrix.shape}"
            )
        # No array has 2^32 rows: the upper word of the offset is zero.
        return jax.lax.dynamic_slice_in_dim(matrix, row_offset[1], n).astype(like.dtype)
