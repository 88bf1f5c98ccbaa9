"""A sparse matrix: a few signs per row."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from tensorgrad_jax.backend.pieces import over_pieces
from tensorgrad_jax.random_matrices.base import RandomMatrix, check_count
from tensorgrad_jax.random_matrices.counters import high_half, rows_at, words

# Rows handled at once: what is scattered then stays in a CPU's cache.
TILE_ENTRIES = 2**15


@dataclasses.dataclass(frozen=True)
class SJLT(RandomMatrix):
    """The sparse Johnson-Lindenstrauss transform: `entries` numbers +-sqrt(k / entries) per row.

    The columns fall into `entries` blocks of equal width; a row has one entry in each, in a random
    column of the block with a random sign. A product costs rows times `entries` operations instead
    of rows times columns. It needs no dense tile, and the error of |P^T g|^2 is that of the dense
    kinds as long as no few components dominate g; more entries are for those that do.

    The place of an entry depends on the number of columns: unlike those of the other kinds, the
    first k' columns are not the matrix of k' columns.

    Attributes:
        rows: number of rows.
        columns: number of columns, a multiple of `entries`.
        entries: numbers per row, s.

    Raises:
        ValueError: at construction, if `entries` does not divide `columns`.

    References:
        D. Kane and J. Nelson, Sparser Johnson-Lindenstrauss transforms, J. ACM 61 (2014),
        section 1.1, the block construction.
    """

    entries: int = 4

    def __post_init__(self):
        super().__post_init__()
        check_count("SJLT", "entries", self.entries)
        if self.columns % self.entries:
            raise ValueError(
                f"SJLT: entries must divide columns={self.columns}, got {self.entries}"
            )

    def places(self, key, row_offset, first, n):
        """Return columns and values of the entries of n rows, both of shape (entries, n)."""
        steps = jnp.asarray(first, jnp.uint32) + jnp.arange(n, dtype=jnp.uint32)
        block = jnp.arange(self.entries, dtype=jnp.uint32)[:, None]
        drawn, sign = words(key, rows_at(row_offset).plus(steps), block)
        width = self.columns // self.entries
        columns = block * jnp.uint32(width) + high_half(drawn, jnp.uint32(width))
        value = np.float32(math.sqrt(width))
        return columns.astype(jnp.int32), jnp.where(sign >> 31 == 0, value, -value)

    @property
    def _width(self):
        return max(1, TILE_ENTRIES // self.entries)

    def _transposed(self, key, x, row_offset):
        def add(first, n, total):
            columns, values = self.places(key, row_offset, first, n)
            part = jax.lax.dynamic_slice_in_dim(x, first, n, axis=1).T
            scaled = values.astype(x.dtype)[:, :, None] * part
            return total.at[columns].add(scaled, mode="promise_in_bounds")

        return over_pieces(
            add, x.shape[1], self._width, jnp.zeros((self.columns, len(x)), x.dtype)
        ).T

    def _product(self, key, y, row_offset, rows):
        by_column = y.T

        def put(first, n, out):
            columns, values = self.places(key, row_offset, first, n)
            picked = by_column.at[columns].get(mode="promise_in_bounds")
            part = (values.astype(y.dtype)[:, :, None] * picked).sum(0).T
            return jax.lax.dynamic_update_slice_in_dim(out, part, first, axis=1)

        return over_pieces(put, rows, self._width, jnp.zeros((len(y), rows), y.dtype))
