"""What every random matrix promises, and the checks and dtypes that all share."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact, Integer

from tensorgrad_jax.random_matrices.counters import LARGEST_SLAB, ROW_BITS, rows_at

# Matrices are exact in bfloat16 or not, what they multiply is not: TF32 would cost four digits.
PRECISION = jax.lax.Precision.HIGHEST


def check_count(owner: str, name: str, value: Any, least: int = 1) -> None:
    """Raise ValueError unless `value` is an integer of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{owner}: {name} must be an integer of at least {least}, got {value!r}")


@dataclasses.dataclass(frozen=True)
class RandomMatrix(abc.ABC):
    """A matrix P (rows x columns) that is a function of a key and is never held.

    An entry depends on the key, its row and its column alone. What is multiplied may therefore
    come in any batches, slabs of rows and tiles, on any number of devices. Entries have mean 0
    and mean square 1,

        E P P^T = columns I,    so that    E |P^T g|^2 = columns |g|^2

    and P / sqrt(columns) is a Johnson-Lindenstrauss map. They are float32 numbers whatever is
    multiplied; float64 arrays are multiplied in float64.

    Attributes:
        rows: number of rows, p.
        columns: number of columns, k.

    Raises:
        ValueError: at construction, if a number is not a positive integer, or if there are more
            than 2^44 rows or more columns than the kind can count.
    """

    rows: int
    columns: int

    most_columns: ClassVar[int] = 2**31 - 1
    whole_blocks: ClassVar[bool] = False  # whether row offsets must be known to the compiler

    def __post_init__(self):
        owner = type(self).__name__
        check_count(owner, "rows", self.rows)
        check_count(owner, "columns", self.columns)
        for name, most in (("rows", 2**ROW_BITS), ("columns", self.most_columns)):
            if getattr(self, name) > most:
                raise ValueError(
                    f"{owner}: {name} may be {most} at most, got {getattr(self, name)}"
                )

    def multiply_transposed(
        self,
        key: Any,
        x: Inexact[Array, "batch slab"],
        row_offset: int | Integer[Array, ...] = 0,
    ) -> Inexact[Array, "batch columns"]:
        """Return x P', where P' are the rows of P from `row_offset` on, one per column of x.

        The parts of a vector g that is never put together add up: with g = (g_0, g_1, ...) the
        product P^T g is the sum of the parts' products at their offsets.

        Args:
            key: a Threefry key (the matrix itself where it is explicit).
            x: of any floating-point dtype; of complex numbers both parts are multiplied.
            row_offset: an integer. Within a program that runs on several devices: an unsigned
                array of shape (), or of shape (2,) with the row's upper and lower 32 bits.

        Returns:
            In float32, or the wider dtype of x.

        Raises:
            ValueError: if x is not a matrix of such numbers, or reaches beyond the last row.
        """
        x = self._checked("x", x)
        self._check_rows(x.shape[1], row_offset)
        return self._run(_transposed, key, x, row_offset, x.shape[1])

    def multiply(
        self,
        key: Any,
        y: Inexact[Array, "batch columns"],
        row_offset: int | Integer[Array, ...] = 0,
        rows: int | None = None,
    ) -> Inexact[Array, "batch slab"]:
        """Return y P'^T: P y for every row of y, of which `rows` entries from `row_offset` on.

        Args:
            key: as for `multiply_transposed`, whose adjoint this is.
            y: of any floating-point dtype; of complex numbers both parts are multiplied.
            row_offset: as for `multiply_transposed`.
            rows: how many; None for all from `row_offset`, an integer, to the last.

        Raises:
            ValueError: if y is not a matrix of such numbers with a column per column of P, or
                rows beyond the last are asked for.
        """
        y = self._checked("y", y)
        owner = type(self).__name__
        if y.shape[1] != self.columns:
            raise ValueError(
                f"{owner}: y must have {self.columns} columns, one per column of the matrix, "
                f"got shape {y.shape}"
            )
        if rows is None:
            if not isinstance(row_offset, int):
                raise ValueError(f"{owner}: rows must be given where row_offset is an array")
            rows = self.rows - row_offset
        check_count(owner, "rows", rows)
        self._check_rows(rows, row_offset)
        return self._run(_product, key, y, row_offset, rows)

    def materialise(
        self, key: Any, row_offset: int = 0, rows: int | None = None
    ) -> Inexact[Array, "slab columns"]:
        """Return rows of the matrix itself, by default all of them from `row_offset` on."""
        return self.multiply(key, jnp.eye(self.columns), row_offset, rows).T

    def columns_at(
        self, key: Any, numbers: Integer[Array, " n"], dtype: Any = jnp.float32
    ) -> Inexact[Array, "rows n"]:
        """Return the columns of these numbers, each as it is in a matrix of any more columns.

        Args:
            key: as for `multiply_transposed`.
            numbers: below `columns`; they may be traced, so that blocks of as many columns share
                one program.
            dtype: float32 or float64.
        """
        return _compiled_columns(self, key, jnp.asarray(numbers, jnp.int32), jnp.dtype(dtype))

    def _columns_at(self, key: Any, numbers: Any, dtype: Any) -> Any:
        """Do what `columns_at` does; of a kind that can draw single columns, without all others."""
        unit = jax.nn.one_hot(numbers, self.columns, dtype=dtype)
        return self.multiply(key, unit).T

    @abc.abstractmethod
    def _transposed(self, key: Any, x: Any, row_offset: Any) -> Any:
        """Do what `multiply_transposed` does for a real x in float32 or wider.

        The offset is two uint32, the upper and the lower word; an integer for `whole_blocks`.
        """

    @abc.abstractmethod
    def _product(self, key: Any, y: Any, row_offset: Any, rows: int) -> Any:
        """Do what `multiply` does for a real y in float32 or wider."""

    def _run(self, product, key, array, row_offset, rows):
        if self.whole_blocks and not isinstance(row_offset, int):
            raise ValueError(
                f"{type(self).__name__}: row_offset must be an integer, not an array: this kind "
                "transforms whole blocks of rows"
            )
        if self.whole_blocks:
            return _compiled_for_offset(product, self, key, array, row_offset, rows)
        return _compiled(product, self, key, array, jnp.stack(rows_at(row_offset)), rows)

    def _checked(self, name, array):
        owner = type(self).__name__
        if array.ndim != 2:
            raise ValueError(f"{owner}: {name} must have two dimensions, got shape {array.shape}")
        if not jnp.issubdtype(array.dtype, jnp.inexact):
            raise ValueError(
                f"{owner}: {name} must be of floating-point numbers, got dtype {array.dtype}"
            )
        return array.astype(jnp.promote_types(array.dtype, jnp.float32))

    def _check_rows(self, n, row_offset):
        owner = type(self).__name__
        if n > LARGEST_SLAB:
            raise ValueError(f"{owner}: a slab may have {LARGEST_SLAB} rows, got {n}")
        if not isinstance(row_offset, int):
            if row_offset.shape not in ((), (2,)):
                raise ValueError(
                    f"{owner}: row_offset must be an integer or an array of shape () or (2,), got "
                    f"shape {row_offset.shape}"
                )
            return
        if not 0 <= row_offset <= self.rows - n:
            raise ValueError(
                f"{owner}: rows {row_offset} to {row_offset + n} were asked for of a matrix of "
                f"{self.rows} rows"
            )


def _transposed(matrix, key, x, row_offset, rows):
    del rows
    return _by_parts(lambda part: matrix._transposed(key, part, row_offset), x)


def _product(matrix, key, y, row_offset, rows):
    return _by_parts(lambda part: matrix._product(key, part, row_offset, rows), y)


def _by_parts(product, x):
    if not jnp.iscomplexobj(x):
        return product(x)
    real, imaginary = jnp.split(product(jnp.concatenate([x.real, x.imag])), 2)
    return jax.lax.complex(real, imaginary)


def _call(product, matrix, key, array, row_offset, rows):
    return product(matrix, key, array, row_offset, rows)


def _columns(matrix, key, numbers, dtype):
    return matrix._columns_at(key, numbers, dtype)


_compiled_columns = jax.jit(_columns, static_argnums=(0, 3))
# Called outside of a program, products of one shape are compiled once, whatever their offset.
_compiled = jax.jit(_call, static_argnums=(0, 1, 5))
_compiled_for_offset = jax.jit(_call, static_argnums=(0, 1, 4, 5))
