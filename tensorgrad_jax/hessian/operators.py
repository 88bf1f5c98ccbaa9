"""Linear operators: matrices that are known by their products alone.

An operator has `shape`, `dtype`, `symmetric`, and multiplies *blocks* of columns: `mm(X)` is A X,
`rmm(X)` is A^H X, `mv(x)` the product with one vector. Measuring a hundred columns in one block is
one program of matrix products; one after the other they are a hundred of vectors.

    A = Dense(matrix);    A.mm(X);    2.0 * A + Diagonal(d);    A @ B;    A.adjoint

Whatever has these members is an operator for the functions of this package.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

PRECISION = jax.lax.Precision.HIGHEST


class LinearOperator(abc.ABC):
    """A linear map of C^n or R^n to C^m or R^m.

    Attributes:
        shape: (m, n).
        dtype: of what it multiplies and of products.
        symmetric: whether it is its own adjoint: symmetric if real, Hermitian if complex.
    """

    shape: tuple[int, int]
    dtype: Any
    symmetric: bool = False

    @abc.abstractmethod
    def _mm(self, X: Any) -> Any:
        """Return A X for a matrix of n rows."""

    def _rmm(self, X: Any) -> Any:
        """Return A^H X for a matrix of m rows."""
        if self.symmetric:
            return self._mm(X)
        raise NotImplementedError(f"{type(self).__name__} has no product with its adjoint")

    def mm(self, X: Any) -> Any:
        """Return A X.

        Args:
            X: (n, b).

        Returns:
            (m, b).

        Raises:
            ValueError: if X is no matrix of n rows.
        """
        return self._mm(self._checked(X, self.shape[1], 2))

    def rmm(self, X: Any) -> Any:
        """Return A^H X, (n, b), of X (m, b).

        Raises:
            ValueError: if X is no matrix of m rows.
            NotImplementedError: if the operator knows no product with its adjoint.
        """
        return self._rmm(self._checked(X, self.shape[0], 2))

    def mv(self, x: Any) -> Any:
        """Return A x, (m,), of x (n,).

        Raises:
            ValueError: if x is no vector of n numbers.
        """
        return self._mm(self._checked(x, self.shape[1], 1)[:, None])[:, 0]

    def _checked(self, X: Any, rows: int, ndim: int) -> Any:
        X = jnp.asarray(X)
        if X.ndim != ndim or X.shape[0] != rows:
            what = f"a matrix of {rows} rows" if ndim == 2 else f"a vector of {rows} numbers"
            raise ValueError(f"{type(self).__name__}: expected {what}, got shape {X.shape}")
        return X

    @property
    def adjoint(self) -> LinearOperator:
        """The operator A^H."""
        return self if self.symmetric else Adjoint(self)

    def __add__(self, other: LinearOperator) -> LinearOperator:
        return Sum((self, other))

    def __sub__(self, other: LinearOperator) -> LinearOperator:
        return Sum((self, Scaled(other, -1.0)))

    def __matmul__(self, other: Any) -> Any:
        if isinstance(other, LinearOperator):
            return Product((self, other))
        return self.mv(other) if jnp.ndim(other) == 1 else self.mm(other)

    def __rmul__(self, factor: float) -> LinearOperator:
        return Scaled(self, factor)

    def __neg__(self) -> LinearOperator:
        return Scaled(self, -1.0)


@dataclasses.dataclass(frozen=True, eq=False)
class Dense(LinearOperator):
    """A matrix that is held.

    Attributes:
        matrix: (m, n).
        symmetric: not checked.

    Raises:
        ValueError: if it is no matrix, or is called symmetric and not square.
    """

    matrix: Any
    symmetric: bool = False

    def __post_init__(self):
        object.__setattr__(self, "matrix", jnp.asarray(self.matrix))
        if self.matrix.ndim != 2:
            raise ValueError(f"Dense: expected a matrix, got shape {self.matrix.shape}")
        _check_square("Dense", self.matrix.shape, self.symmetric)
        object.__setattr__(self, "shape", self.matrix.shape)
        object.__setattr__(self, "dtype", self.matrix.dtype)

    def _mm(self, X):
        return jnp.matmul(self.matrix, X, precision=PRECISION)

    def _rmm(self, X):
        return jnp.matmul(self.matrix.conj().T, X, precision=PRECISION)


@dataclasses.dataclass(frozen=True, eq=False)
class Function(LinearOperator):
    """An operator given by its product with a block of columns.

    Attributes:
        function: maps (n, b) to (m, b), linearly.
        shape: (m, n).
        dtype: of what it multiplies.
        symmetric: whether it is its own adjoint; not checked.
        adjoint_function: maps (m, b) to (n, b), if the product with the adjoint is known.
    """

    function: Callable[[Any], Any]
    shape: tuple[int, int]
    dtype: Any = jnp.float32
    symmetric: bool = False
    adjoint_function: Callable[[Any], Any] | None = None

    def __post_init__(self):
        _check_square("Function", self.shape, self.symmetric)

    def _mm(self, X):
        return self.function(X)

    def _rmm(self, X):
        return super()._rmm(X) if self.adjoint_function is None else self.adjoint_function(X)


@dataclasses.dataclass(frozen=True, eq=False)
class Diagonal(LinearOperator):
    """A diagonal matrix, given by its diagonal."""

    diagonal: Any

    def __post_init__(self):
        object.__setattr__(self, "diagonal", jnp.asarray(self.diagonal))
        if self.diagonal.ndim != 1:
            raise ValueError(f"Diagonal: expected a vector, got shape {self.diagonal.shape}")
        object.__setattr__(self, "shape", (self.diagonal.size,) * 2)
        object.__setattr__(self, "dtype", self.diagonal.dtype)
        object.__setattr__(self, "symmetric", not jnp.iscomplexobj(self.diagonal))

    def _mm(self, X):
        return self.diagonal[:, None] * X

    def _rmm(self, X):
        return self.diagonal.conj()[:, None] * X


@dataclasses.dataclass(frozen=True, eq=False)
class LowRank(LinearOperator):
    """U diag(s) V^H of thin matrices U (m, r), V (n, r); symmetric where V is U itself."""

    U: Any
    s: Any
    V: Any

    def __post_init__(self):
        r = self.s.shape[0]
        if self.U.shape[1] != r or self.V.shape[1] != r:
            raise ValueError(
                f"LowRank: U and V must have {r} columns, one per number of s, got shapes "
                f"{self.U.shape} and {self.V.shape}"
            )
        object.__setattr__(self, "shape", (self.U.shape[0], self.V.shape[0]))
        object.__setattr__(self, "dtype", self.U.dtype)
        object.__setattr__(self, "symmetric", self.U is self.V and not jnp.iscomplexobj(self.s))

    def _mm(self, X):
        inner = jnp.matmul(self.V.conj().T, X, precision=PRECISION)
        return jnp.matmul(self.U, self.s[:, None] * inner, precision=PRECISION)

    def _rmm(self, X):
        inner = jnp.matmul(self.U.conj().T, X, precision=PRECISION)
        return jnp.matmul(self.V, self.s.conj()[:, None] * inner, precision=PRECISION)


@dataclasses.dataclass(frozen=True, eq=False)
class Adjoint(LinearOperator):
    """A^H of an operator."""

    of: LinearOperator

    def __post_init__(self):
        object.__setattr__(self, "shape", self.of.shape[::-1])
        object.__setattr__(self, "dtype", self.of.dtype)

    def _mm(self, X):
        return self.of.rmm(X)

    def _rmm(self, X):
        return self.of.mm(X)

    @property
    def adjoint(self) -> LinearOperator:
        """The operator itself."""
        return self.of


@dataclasses.dataclass(frozen=True, eq=False)
class Scaled(LinearOperator):
    """A number times an operator."""

    of: LinearOperator
    factor: Any

    def __post_init__(self):
        object.__setattr__(self, "shape", self.of.shape)
        object.__setattr__(self, "dtype", self.of.dtype)
        object.__setattr__(self, "symmetric", self.of.symmetric and jnp.isrealobj(self.factor))

    def _mm(self, X):
        return self.factor * self.of.mm(X)

    def _rmm(self, X):
        return jnp.conj(self.factor) * self.of.rmm(X)


@dataclasses.dataclass(frozen=True, eq=False)
class Sum(LinearOperator):
    """A_1 + A_2 + ... of one shape.

    Raises:
        ValueError: if shapes differ.
    """

    terms: tuple[LinearOperator, ...]

    def __post_init__(self):
        shapes = {term.shape for term in self.terms}
        if len(shapes) != 1:
            raise ValueError(f"Sum: operators must have one shape, got {sorted(shapes)}")
        object.__setattr__(self, "shape", self.terms[0].shape)
        object.__setattr__(self, "dtype", jnp.result_type(*(t.dtype for t in self.terms)))
        object.__setattr__(self, "symmetric", all(t.symmetric for t in self.terms))

    def _mm(self, X):
        return sum(term.mm(X) for term in self.terms)

    def _rmm(self, X):
        return sum(term.rmm(X) for term in self.terms)


@dataclasses.dataclass(frozen=True, eq=False)
class Product(LinearOperator):
    """A_1 A_2 ..., as a map: the last is applied first.

    Raises:
        ValueError: if neighbours do not fit.
    """

    factors: tuple[LinearOperator, ...]

    def __post_init__(self):
        for left, right in zip(self.factors, self.factors[1:], strict=False):
            if left.shape[1] != right.shape[0]:
                raise ValueError(
                    f"Product: shapes {left.shape} and {right.shape} do not follow each other"
                )
        object.__setattr__(self, "shape", (self.factors[0].shape[0], self.factors[-1].shape[1]))
        object.__setattr__(self, "dtype", jnp.result_type(*(f.dtype for f in self.factors)))

    def _mm(self, X):
        for factor in reversed(self.factors):
            X = factor.mm(X)
        return X

    def _rmm(self, X):
        for factor in self.factors:
            X = factor.rmm(X)
        return X


def _check_square(owner: str, shape: tuple[int, ...], symmetric: bool) -> None:
    if symmetric and shape[0] != shape[1]:
        raise ValueError(f"{owner}: a symmetric operator must be square, got shape {tuple(shape)}")
