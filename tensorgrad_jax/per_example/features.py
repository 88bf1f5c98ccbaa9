"""Features: random projections of the gradients of all examples."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from tensorgrad_jax.per_example.reductions import Leaf, Reduction
from tensorgrad_jax.random_matrices import Kron, Rademacher, RandomMatrix
from tensorgrad_jax.random_matrices.counters import rows_at


@runtime_checkable
class Matrix(Protocol):
    """A random matrix of any number of rows, as far as `Project` knows it."""

    def multiply_transposed(self, key: Any, x: Array, row_offset: int) -> Array:
        """Return x P for x (n, rows), with the rows of P from `row_offset` on: (n, columns)."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Project(Reduction):
    """Features: the gradient of every example, all parameters one after the other, times P.

        y_n = P^T g_n,    g_n in R^p, P in R^(p x k)

    Parameters lie in the order of `jax.tree.leaves`, each flattened in row-major order.

    Attributes:
        matrix: an object whose `multiply_transposed(key, x, row_offset)` maps (n, rows) to
            (n, k) with the rows of P that begin at `row_offset`. One of
            `tensorgrad_jax.random_matrices` that can begin anywhere ("rademacher", "normal",
            "sjlt") draws each of its rows once for all examples.
        key: handed to the matrix.
    """

    matrix: Matrix
    key: Any
    rows = True
    adds_leaves = True

    @property
    def takes_slabs(self) -> bool:
        """Whether the matrix can begin at a row that is known at run time only."""
        return isinstance(self.matrix, RandomMatrix) and not self.matrix.whole_blocks

    def operands(self, leaves: Sequence[Leaf], structure: Any) -> list[Any]:
        """Return the key."""
        del structure
        return [self.key] * len(leaves)

    def reduce(self, leaf: Leaf, operands: Any, gradients: Inexact[Array, "n ..."]) -> Array:
        """Return this parameter's part of the features."""
        flat = _flat("Project", leaf, gradients)
        return self.matrix.multiply_transposed(operands, flat, leaf.offset)

    def reduce_slab(
        self, leaf: Leaf, operands: Any, gradients: Inexact[Array, "n ..."], axis: int, first: Any
    ) -> Array:
        """Return the features' part of some indices of an axis.

        What lies before that axis makes as many runs of consecutive rows of the matrix.
        """
        matrix: Any = self.matrix
        runs, row = math.prod(leaf.shape[:axis]), math.prod(leaf.shape[axis + 1 :])
        flat = gradients.reshape(len(gradients), runs, -1)

        def part(run):
            index = jnp.asarray(run * leaf.shape[axis] + first, jnp.uint32)
            begin = jnp.stack(rows_at(leaf.offset).plus(index * jnp.uint32(row)))
            x = jax.lax.dynamic_index_in_dim(flat, run, 1, keepdims=False)
            return matrix.multiply_transposed(operands, x, begin)

        if runs == 1:
            return part(0)
        add = lambda run, total: total + part(run)
        return jax.lax.fori_loop(1, runs, add, part(0))

    def combine(self, results: Sequence[Any], structure: Any, n: int) -> Any:
        """Return the features: the sum of the parameters' parts."""
        del structure, n
        return results[0]


@dataclasses.dataclass(frozen=True, eq=False)
class ProjectLayers(Reduction):
    """Features with a matrix of its own for every parameter: a Kronecker product for matrices.

        y_n = sum_l P_l^T vec(G_nl),    P_l = A_l (x) B_l

    A parameter of shape (..., n) is a matrix of n columns, one with a single axis is multiplied by
    a matrix of independent signs. The gradient of a dense layer is a sum of outer products
    x_t d_t^T of its input and cotangent, and its features are (A^T x_t) (x) (B^T d_t): where that
    is not far more work, neither the gradient nor anything of its size is formed. It is another
    matrix than that of `Project`, see `tensorgrad_jax.random_matrices.Kron`.

    Attributes:
        columns: number of features, k; A has the largest divisor of k up to sqrt(k) as number of
            columns.
        key: what all matrices are drawn from.
    """

    columns: int
    key: Any
    rows = True
    adds_leaves = True

    def matrix(self, leaf: Leaf) -> RandomMatrix:
        """Return the matrix of a parameter."""
        if len(leaf.shape) < 2:
            return Rademacher(leaf.size, self.columns)
        left = next(a for a in range(math.isqrt(self.columns), 0, -1) if self.columns % a == 0)
        return Kron(
            Rademacher(leaf.size // leaf.shape[-1], left),
            Rademacher(leaf.shape[-1], self.columns // left),
        )

    def operands(self, leaves: Sequence[Leaf], structure: Any) -> list[Any]:
        """Return a key per parameter."""
        del structure
        return [jax.random.fold_in(self.key, i) for i in range(len(leaves))]

    def takes_outer(self, leaf: Leaf) -> bool:
        """Whether the parameter is a matrix."""
        return len(leaf.shape) == 2

    def prefers_outer(self, leaf: Leaf, positions: int) -> bool:
        """Whether it takes at most twice the multiplications; gradients take memory, too."""
        (rows, columns), matrix = leaf.shape, self.matrix(leaf)
        assert isinstance(matrix, Kron)
        left, right = matrix.left.columns, matrix.right.columns
        by_factors = positions * (rows * left + columns * right + left * right)
        by_gradient = positions * rows * columns + left * columns * (rows + right)
        return by_factors <= 2 * by_gradient

    def reduce_outer(
        self,
        leaf: Leaf,
        operands: Any,
        left: Inexact[Array, "n positions rows"],
        right: Inexact[Array, "n positions columns"],
    ) -> Array:
        """Return the features of sums of outer products."""
        matrix = self.matrix(leaf)
        assert isinstance(matrix, Kron)
        wide = lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return matrix.multiply_outer(operands, wide(left), wide(right))

    def reduce(self, leaf: Leaf, operands: Any, gradients: Inexact[Array, "n ..."]) -> Array:
        """Return this parameter's part of the features."""
        flat = _flat("ProjectLayers", leaf, gradients)
        return self.matrix(leaf).multiply_transposed(operands, flat)

    def combine(self, results: Sequence[Any], structure: Any, n: int) -> Any:
        """Return the features: the sum of the parameters' parts."""
        del structure, n
        return results[0]


def _flat(owner: str, leaf: Leaf, gradients: Array) -> Array:
    if jnp.iscomplexobj(gradients):
        raise ValueError(
            f"{owner}: parameter {leaf.path} is complex; features are of real parameters: "
            "hold real and imaginary part"
        )
    return gradients.reshape(len(gradients), leaf.size)
