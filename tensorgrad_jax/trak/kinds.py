"""Names of random matrices, and what the projectors' arguments may be."""

from __future__ import annotations

import enum
import operator
from typing import Any

import jax
import jax.numpy as jnp

from tensorgrad_jax.random_matrices import SJLT, SRFT, Normal, Rademacher, RandomMatrix


class ProjectionType(enum.StrEnum):
    """The kind of random matrix; wherever one is asked for, its value will do."""

    normal = "normal"
    rademacher = "rademacher"
    sjlt = "sjlt"
    srft = "srft"


class UnknownProjectionTypeError(KeyError, ValueError):
    """A projection type that there is not. A KeyError in traker, a ValueError by its nature."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would print it quoted


def matrix_of(kind: str | ProjectionType, rows: int, columns: int) -> RandomMatrix:
    """Return the random matrix of a kind.

    "sjlt" gets four entries per row (fewer where four do not divide the columns), "srft" blocks of
    2^14 rows, or of as many as there are columns.

    Raises:
        UnknownProjectionTypeError: a KeyError and a ValueError, if there is no such kind.
    """
    try:
        kind = ProjectionType(kind)
    except ValueError:
        allowed = [k.value for k in ProjectionType]
        raise UnknownProjectionTypeError(
            f"Projection type {kind!r} not recognized: must be one of {allowed}"
        ) from None
    if kind is ProjectionType.normal:
        return Normal(rows, columns)
    if kind is ProjectionType.sjlt:
        return SJLT(rows, columns, next(s for s in (4, 3, 2, 1) if columns % s == 0))
    if kind is ProjectionType.srft:
        return SRFT(rows, columns, min(rows, max(2**14, columns)))
    return Rademacher(rows, columns)


def positive(owner: str, name: str, value: Any) -> int:
    """Return a positive integer as an int, or raise ValueError."""
    if (number := _integer(value)) is None or number < 1:
        raise ValueError(f"{owner}: {name} must be a positive integer, got {value!r}")
    return number


def bounded(owner: str, name: str, value: Any, bits: int) -> int:
    """Return an integer of range(2^bits) as an int, or raise ValueError."""
    if (number := _integer(value)) is None or not 0 <= number < 2**bits:
        raise ValueError(
            f"{owner}: {name} must be an integer from 0 to 2^{bits} - 1, got {value!r}"
        )
    return number


def _integer(value):
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def dtype_of(owner: str, dtype: Any) -> Any:
    """Return a floating-point dtype of JAX, given as such, by name, or as PyTorch's.

    Raises:
        ValueError: if it is none, or one that JAX is not configured to hold (float64).
    """
    name = str(dtype).removeprefix("torch.") if "torch" in str(type(dtype)) else dtype
    try:
        result = jnp.dtype(name)
    except TypeError:
        result = None
    if result is None or not jnp.issubdtype(result, jnp.floating):
        raise ValueError(f"{owner}: dtype must be a floating-point dtype, got {dtype!r}")
    if jax.dtypes.canonicalize_dtype(result) != result:
        raise ValueError(f"{owner}: dtype {dtype!r} needs jax_enable_x64")
    return result
