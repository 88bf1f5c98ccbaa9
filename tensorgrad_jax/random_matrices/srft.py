"""A fast orthogonal transform between random signs and a random choice of its coefficients."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from tensorgrad_jax.backend.pieces import over_pieces
from tensorgrad_jax.random_matrices.base import RandomMatrix, check_count
from tensorgrad_jax.random_matrices.counters import distinct, rows_at, words

# Numbers that are transformed at once.
TILE_ENTRIES = 2**20
# The column block of a counter that gives the sign of a row, and the first of those that draw the
# permutation of a block, whose first row stands for it.
_SIGN, _ROUNDS, _PERMUTATION = 0, 8, 1


@dataclasses.dataclass(frozen=True)
class SRFT(RandomMatrix):
    """The subsampled randomised cosine transform, over blocks of rows.

        P_b = sqrt(L) D_b F S_b,    P = [P_0; P_1; ...]

    where D_b holds random signs of the L rows of block b, F^T is the orthonormal cosine transform
    DCT-II of length L and S_b picks k of its L coefficients. A product costs log L operations per
    row instead of k. The columns are orthogonal, P^T P = rows I, if `block` divides `rows`;
    otherwise the last block lacks its last rows.

    The first k' columns are the matrix of k' columns. A slab of rows is filled up with zeros to
    whole blocks, which is cheap for slabs of several blocks.

    Attributes:
        rows: number of rows.
        columns: number of columns, at most `block`.
        block: rows per block, L; None for one block of all rows.

    Raises:
        ValueError: at construction, if `block` is less than `columns` or more than 2^31 - 1.

    References:
        J. Tropp, Improved analysis of the subsampled randomized Hadamard transform, 2011.
        O. Balabanov et al., Block subsampled randomized Hadamard transform for low-rank
        approximation on distributed architectures, arXiv 2210.11295.
    """

    block: int | None = None
    whole_blocks = True

    def __post_init__(self):
        super().__post_init__()
        if self.block is not None:
            check_count("SRFT", "block", self.block)
        if not self.columns <= self.length < 2**31:
            raise ValueError(
                f"SRFT: block must be between columns={self.columns} and 2^31 - 1, got "
                f"{self.block} for {self.rows} rows"
            )

    @property
    def length(self) -> int:
        """Rows per block."""
        return self.rows if self.block is None else self.block

    def signs(self, key, first_block, n_blocks):
        """Return the signs of the rows of some blocks, (n_blocks, L)."""
        rows = self._row(first_block).plus(jnp.arange(n_blocks * self.length, dtype=jnp.uint32))
        bits = words(key, rows, _SIGN)[0] >> 31
        return (1 - 2 * bits.astype(jnp.int32)).reshape(n_blocks, self.length)

    def chosen(self, key, first_block, n_blocks):
        """Return the coefficients that some blocks keep, (n_blocks, k)."""
        columns = jnp.arange(self.columns, dtype=jnp.uint32)
        rounds = jnp.arange(_PERMUTATION, _PERMUTATION + _ROUNDS, dtype=jnp.uint32)

        def of_block(number):
            start = self._row(first_block).plus(number * jnp.uint32(self.length))
            drawn = jnp.stack(words(key, start, rounds), axis=1)
            return distinct(drawn, self.length, columns).astype(jnp.int32)

        return jax.vmap(of_block)(jnp.arange(n_blocks, dtype=jnp.uint32))

    def _row(self, block):
        """Return the first row of a block: an integer, or an integer and a traced number more."""
        start, more = block
        return rows_at(start * self.length).plus(
            jnp.asarray(more, jnp.uint32) * jnp.uint32(self.length)
        )

    def _blocks_of(self, row_offset, n):
        first, before = divmod(row_offset, self.length)
        n_blocks = -(-(before + n) // self.length)
        return first, before, n_blocks

    def _tile(self, batch):
        return max(1, TILE_ENTRIES // (max(1, batch) * self.length))

    def _transposed(self, key, x, row_offset):
        first, before, n_blocks = self._blocks_of(row_offset, x.shape[1])
        padded = jnp.pad(x, ((0, 0), (before, n_blocks * self.length - before - x.shape[1])))
        blocks = padded.reshape(len(x), n_blocks, self.length)

        def add(i, n, total):
            part = jax.lax.dynamic_slice_in_dim(blocks, i, n, axis=1)
            signed = part * self.signs(key, (first, i), n).astype(x.dtype)
            coefficients = jax.scipy.fft.dct(signed, norm="ortho")
            kept = self.chosen(key, (first, i), n)[None]
            return total + jnp.take_along_axis(coefficients, kept, axis=2).sum(1)

        zeros = jnp.zeros((len(x), self.columns), x.dtype)
        return math.sqrt(self.length) * over_pieces(add, n_blocks, self._tile(len(x)), zeros)

    def _product(self, key, y, row_offset, rows):
        first, before, n_blocks = self._blocks_of(row_offset, rows)

        def put(i, n, out):
            kept = self.chosen(key, (first, i), n)
            zeros = jnp.zeros((len(y), n, self.length), y.dtype)
            spread = zeros.at[:, jnp.arange(n)[:, None], kept].set(
                jnp.broadcast_to(y[:, None], (len(y), n, self.columns)), unique_indices=True
            )
            part = jax.scipy.fft.idct(spread, norm="ortho")
            part = part * self.signs(key, (first, i), n).astype(y.dtype)
            return jax.lax.dynamic_update_slice_in_dim(out, part, i, axis=1)

        out = jnp.zeros((len(y), n_blocks, self.length), y.dtype)
        out = math.sqrt(self.length) * over_pieces(put, n_blocks, self._tile(len(y)), out)
        return out.reshape(len(y), n_blocks * self.length)[:, before : before + rows]
