"""Matrices of independent entries: signs, and normal numbers.

Rows are handled in tiles, drawn where they are used. A tile lies transposed, (columns, rows of the
tile): what a word of random bits is unpacked into is then contiguous in the rows.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from tensorgrad_jax.backend.pieces import over_pieces
from tensorgrad_jax.random_matrices.base import PRECISION, RandomMatrix
from tensorgrad_jax.random_matrices.counters import BLOCK_BITS, Rows, rows_at, words

# A tile should stay in a CPU's cache; elsewhere a step of the loop costs more than memory does.
TILE_BYTES = {"cpu": 2**22, "default": 2**26}


@dataclasses.dataclass(frozen=True)
class _Independent(RandomMatrix):
    """A matrix whose entries of a block of columns are made of the two words of one counter."""

    @abc.abstractmethod
    def _blocks(self, key: PRNGKeyArray, rows: Rows, n_blocks: int) -> Array:
        """Return the entries of the first blocks of columns, (>= columns, number of rows)."""

    block_columns: ClassVar[int]

    def entries(self, key: PRNGKeyArray, rows: Rows) -> Float[Array, "columns slab"]:
        """Return P^T at these rows."""
        n_blocks = -(-self.columns // self.block_columns)
        return self._blocks(key, rows, n_blocks)[: self.columns]

    @abc.abstractmethod
    def _single(self, key: PRNGKeyArray, rows: Rows, number: Array) -> Array:
        """Return one column at these rows."""

    def _columns_at(self, key, numbers, dtype):
        steps = jnp.arange(self.rows, dtype=jnp.uint32)
        of = lambda number: self._single(key, rows_at(0).plus(steps), number)
        return jax.lax.map(of, numbers.astype(jnp.uint32)).T.astype(dtype)

    def materialise(
        self, key: PRNGKeyArray, row_offset: int = 0, rows: int | None = None
    ) -> Float[Array, "slab columns"]:
        """Return rows of the matrix itself, by default all of them from `row_offset` on."""
        rows = self.rows - row_offset if rows is None else rows
        self._check_rows(rows, row_offset)
        steps = jnp.arange(rows, dtype=jnp.uint32)
        return self.entries(key, rows_at(row_offset).plus(steps)).T

    def _tile(self, key, row_offset, first, n, dtype):
        steps = jnp.asarray(first, jnp.uint32) + jnp.arange(n, dtype=jnp.uint32)
        return self.entries(key, rows_at(row_offset).plus(steps)).astype(dtype)

    def _width(self, platform):
        return max(1, TILE_BYTES[platform] // (4 * self.columns))

    def _transposed(self, key, x, row_offset):
        def total(x, width):
            def add(first, n, total):
                part = jax.lax.dynamic_slice_in_dim(x, first, n, axis=1)
                tile = self._tile(key, row_offset, first, n, x.dtype)
                return total + jnp.matmul(tile, part.T, precision=PRECISION)

            return over_pieces(add, x.shape[1], width, jnp.zeros((self.columns, len(x)), x.dtype)).T

        return self._for_platform(total, x)

    def _product(self, key, y, row_offset, rows):
        def product(y, width):
            def put(first, n, out):
                tile = self._tile(key, row_offset, first, n, y.dtype)
                part = jnp.matmul(y, tile, precision=PRECISION)
                return jax.lax.dynamic_update_slice_in_dim(out, part, first, axis=1)

            return over_pieces(put, rows, width, jnp.zeros((len(y), rows), y.dtype))

        return self._for_platform(product, y)

    def _for_platform(self, function, x):
        run = lambda platform: lambda x: function(x, self._width(platform))
        return jax.lax.platform_dependent(x, cpu=run("cpu"), default=run("default"))


@dataclasses.dataclass(frozen=True)
class Rademacher(_Independent):
    """Independent signs, +1 or -1 with probability 1/2.

    The sign of an entry is bit (column mod 64) of its counter's two words. It is put into the
    number 1.0 in the place of its sign bit.

    Attributes:
        rows: number of rows.
        columns: number of columns.
    """

    block_columns = 64
    most_columns = 2**BLOCK_BITS * 64

    def _blocks(self, key, rows, n_blocks):
        blocks = jnp.arange(n_blocks, dtype=jnp.uint32)[:, None]
        drawn = jnp.stack(words(key, rows, blocks), axis=1)
        shifts = 31 - jnp.arange(32, dtype=jnp.uint32)[:, None]
        signs = (drawn[:, :, None] << shifts) & jnp.uint32(0x80000000)
        ones = jax.lax.bitcast_convert_type(signs | jnp.uint32(0x3F800000), jnp.float32)
        return ones.reshape(64 * n_blocks, -1)

    def _single(self, key, rows, number):
        first, second = words(key, rows, number // 64)
        bits = jnp.where(number % 64 < 32, first, second) >> (number % 32)
        return jnp.where(bits & 1 == 0, jnp.float32(1), jnp.float32(-1))


@dataclasses.dataclass(frozen=True)
class Normal(_Independent):
    """Independent standard normal numbers, two columns from the two words of a counter.

        z_0 = r cos(t), z_1 = r sin(t),    r = sqrt(-2 log u),    u in (0, 1), t in [0, 2 pi)

    The largest magnitude is 6.7. Programs that a compiler rounds differently, as those of different
    kinds of devices, agree on an entry to float32's rounding.

    Attributes:
        rows: number of rows.
        columns: number of columns.

    References:
        G. Box and M. Muller, A note on the generation of random normal deviates, 1958.
    """

    block_columns = 2
    most_columns = 2**BLOCK_BITS * 2

    def _blocks(self, key, rows, n_blocks):
        blocks = jnp.arange(n_blocks, dtype=jnp.uint32)[:, None]
        return jnp.stack(self._pair(key, rows, blocks), axis=1).reshape(2 * n_blocks, -1)

    def _single(self, key, rows, number):
        return jnp.where(number % 2 == 0, *self._pair(key, rows, number // 2))

    def _pair(self, key, rows, blocks):
        first, second = words(key, rows, blocks)
        radius = jnp.sqrt(-2 * jnp.log(_uniform(first >> 1, 31)))
        # Angles of an eighth of the circle, and three bits that say which: two signs, and which
        # of the two numbers is the cosine. Library functions take an angle of any size, and ten
        # times as long.
        cosine, sine = _cosine_and_sine(math.pi / 4 * _uniform(second >> 3, 29))
        swapped = (second & 1) == 1
        both = (jnp.where(swapped, sine, cosine), jnp.where(swapped, cosine, sine))
        signs = (second & 2, second & 4)
        return [jnp.where(sign == 0, z, -z) * radius for z, sign in zip(both, signs, strict=True)]


def _uniform(bits, n_bits):
    """Return (bits + 1/2) / 2^n_bits, for less than 32 bits; signed integers convert fastest."""
    return (bits.astype(jnp.int32).astype(jnp.float32) + 0.5) * np.float32(2.0**-n_bits)


def _cosine_and_sine(angle):
    """Return both for angles of at most pi/4, by their power series: below float32's rounding."""
    z = angle * angle
    cosine = 1 + z * (-1 / 2 + z * (1 / 24 + z * (-1 / 720 + z * (1 / 40320))))
    sine = angle * (1 + z * (-1 / 6 + z * (1 / 120 + z * (-1 / 5040 + z * (1 / 362880)))))
    return cosine, sine
