"""GaLore: low rank of a matrix view of the tensor, with a basis on one side or on both."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact, PRNGKeyArray

from tensorgrad_jax.projections.base import Leaf, Projection
from tensorgrad_jax.projections.leading import (
    PRECISION,
    leading_by_gram,
    leading_by_svd,
    overlap,
    scaled_to_one,
    squared,
)
from tensorgrad_jax.projections.plain import check_scale, make_plain
from tensorgrad_jax.projections.ranks import uniform_ranks

_SIDES = ("std", "reverse_std", "left", "right", "full")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MatrixBasis:
    """The basis of a matrix projection.

    Attributes:
        left: orthonormal U of shape (rows, r), or None.
        right: orthonormal V of shape (columns, r), or None.
        shape: the tensor's shape; static, as no array tells it.
    """

    left: Any
    right: Any
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})


@dataclasses.dataclass(frozen=True)
class MatrixLowRank(Projection):
    """Keep the part of a matrix view X (m x n) of the tensor in leading singular subspaces.

        left: U^H X (r x n),   right: X V (m x r),   full: U^H X V (r x r).

    Complex tensors get a true conjugate transpose.

    Attributes:
        rank: an int, or a budget: the largest r whose compact form has at most `rank * m * n`
            elements (at least 1).
        side: "left", "right", "full"; "std" has the basis on the shorter side of the matrix
            (right for a square one), "reverse_std" on the longer one.
        row_axes: the first `row_axes` axes of the tensor are the rows of the matrix, the others
            the columns; or a tuple of the axes that are the rows (from the end where negative).
        scale: factor of what is lifted.

    Raises:
        ValueError: at construction, if an argument is not one of these; when a tensor is given
            that has no such axes, or none but them.

    References:
        J. Zhao et al., GaLore, arXiv 2403.03507.
    """

    rank: int | float = 0.25
    side: Literal["std", "reverse_std", "left", "right", "full"] = "std"
    row_axes: int | tuple[int, ...] = 1
    scale: float = 1.0

    def __post_init__(self):
        make_plain(self)
        rank = self.rank
        number = isinstance(rank, int | float) and not isinstance(rank, bool)
        if not number or rank <= 0 or (isinstance(rank, float) and rank > 1):
            raise ValueError(
                f"MatrixLowRank: rank must be a positive integer or a float in (0, 1], got {rank!r}"
            )
        if self.side not in _SIDES:
            raise ValueError(f"MatrixLowRank: side must be one of {_SIDES}, got {self.side!r}")
        axes = self.row_axes
        valid = axes >= 1 if isinstance(axes, int) else isinstance(axes, tuple) and len(axes) > 0
        if not valid or (isinstance(axes, tuple) and not all(type(a) is int for a in axes)):
            raise ValueError(
                "MatrixLowRank: row_axes must be a positive integer or a tuple of axes, got "
                f"{axes!r}"
            )
        check_scale("MatrixLowRank", self.scale)

    def _order(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
        """Return the axes, those of the rows first, and the number of the latter."""
        ndim, axes = len(shape), self.row_axes
        given = tuple(range(axes)) if isinstance(axes, int) else axes
        rows = tuple(a + ndim if a < 0 else a for a in given)
        if not set(rows) < set(range(ndim)) or len(set(rows)) < len(rows):
            raise ValueError(
                f"MatrixLowRank: row_axes={axes} leaves no columns of a tensor of shape "
                f"{tuple(shape)}, or does not name distinct axes of it"
            )
        return rows + tuple(a for a in range(ndim) if a not in rows), len(rows)

    def _matrix(self, tensor: Inexact[Array, ...]) -> Inexact[Array, "m n"]:
        m, n, _, _ = self._plan(tensor.shape)
        return tensor.transpose(self._order(tensor.shape)[0]).reshape(m, n)

    def _plan(self, shape: tuple[int, ...]) -> tuple[int, int, int | None, int | None]:
        """Return rows, columns, and the rank on the left and on the right (None: no basis)."""
        order, n_rows = self._order(shape)
        m = math.prod(shape[a] for a in order[:n_rows])
        n = math.prod(shape[a] for a in order[n_rows:])
        side = self.side
        if side in ("std", "reverse_std"):
            side = "right" if (m >= n) == (side == "std") else "left"
        if side == "full":
            if isinstance(self.rank, float):
                left, right = uniform_ranks(self.rank, (m, n))
                return m, n, left, right
            return m, n, min(self.rank, m), min(self.rank, n)
        across, along = (m, n) if side == "left" else (n, m)
        r = int(self.rank * m * n) // along if isinstance(self.rank, float) else self.rank
        r = max(1, min(r, across))
        return (m, n, r, None) if side == "left" else (m, n, None, r)

    def init(self, leaf: Leaf) -> MatrixBasis:
        """Return leading unit vectors."""
        m, n, left, right = self._plan(leaf.shape)
        unit = lambda d, r: None if r is None else jnp.asarray(np.eye(d, r), leaf.dtype)
        return MatrixBasis(unit(m, left), unit(n, right), tuple(leaf.shape))

    def compact_struct(self, leaf: Leaf) -> jax.ShapeDtypeStruct:
        """Return the struct of the small matrix."""
        m, n, left, right = self._plan(leaf.shape)
        shape = (m if left is None else left, n if right is None else right)
        return jax.ShapeDtypeStruct(shape, leaf.dtype)

    def refresh(
        self, key: PRNGKeyArray, tensor: Inexact[Array, ...], basis: MatrixBasis
    ) -> MatrixBasis:
        """Return leading singular vectors of the matrix."""
        del key
        _, _, left, right = self._plan(tensor.shape)
        x = self._matrix(scaled_to_one(tensor))
        return MatrixBasis(
            None if left is None else _leading(x, left),
            None if right is None else _leading(x.conj().T, right),
            basis.shape,
        )

    def project(self, tensor: Inexact[Array, ...], basis: MatrixBasis) -> Inexact[Array, "r c"]:
        """Multiply by U^H from the left, by V from the right."""
        left = None if basis.left is None else basis.left.conj().T
        return _product(left, self._matrix(tensor), basis.right)

    def lift(self, compact: Inexact[Array, "r c"], basis: MatrixBasis) -> Inexact[Array, ...]:
        """Multiply by U from the left, by V^H from the right."""
        right = None if basis.right is None else basis.right.conj().T
        order, _ = self._order(basis.shape)
        lifted = _product(basis.left, compact, right).reshape([basis.shape[a] for a in order])
        lifted = lifted.transpose([order.index(a) for a in range(len(order))])
        return lifted if self.scale == 1.0 else self.scale * lifted

    def lift_factor(self, shape: tuple[int, ...]) -> float:
        """Return `scale`."""
        del shape
        return self.scale

    def transport(
        self, compact: Inexact[Array, "r c"], old: MatrixBasis, new: MatrixBasis
    ) -> Inexact[Array, "r c"]:
        """Multiply by the overlaps of the bases."""
        return _product(overlap(new.left, old.left), compact, overlap(old.right, new.right))

    def transport_squares(
        self, compact: Inexact[Array, "r c"], old: MatrixBasis, new: MatrixBasis
    ) -> Inexact[Array, "r c"]:
        """Multiply by the squared overlaps of the bases."""
        left, right = overlap(new.left, old.left), overlap(old.right, new.right)
        return _product(squared(left), compact, squared(right))


def _leading(x, rank):
    # The Gram matrix is small on the shorter side only.
    return (leading_by_gram if x.shape[0] <= x.shape[1] else leading_by_svd)(x, rank)


def _product(left, x, right):
    if left is not None:
        x = jnp.matmul(left, x, precision=PRECISION)
    return x if right is None else jnp.matmul(x, right, precision=PRECISION)
