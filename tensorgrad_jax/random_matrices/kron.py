"""A Kronecker product, for gradients that are sums of outer products; and matrices on each other.

The gradient of a dense layer y = W^T x is the sum of x_t d_t^T over the positions t at which the
layer acts, d being the cotangent of y. For P = A (x) B

    P^T vec(x d^T) = (A^T x) (x) (B^T d)

so that features need neither the gradient nor anything of its size.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact, PRNGKeyArray

from tensorgrad_jax.random_matrices.base import PRECISION, RandomMatrix


@dataclasses.dataclass(frozen=True, init=False)
class Kron(RandomMatrix):
    """The Kronecker product P = A (x) B of two random matrices.

        P[i n + j, a k_B + b] = A[i, a] B[j, b]    with n rows and k_B columns of B

    This is *another* matrix than one of independent entries, with rows of fewer random numbers: the
    error of |P^T g|^2 is larger, the more so the nearer the gradient is to an outer product. It is
    chosen for its cost.

    Attributes:
        left: A.
        right: B.
        rows: the product of theirs.
        columns: the product of theirs.

    Raises:
        ValueError: at construction, if one of both is no random matrix.

    References:
        S. Choe et al., What is your data worth to GPT? (LoGra), arXiv 2405.13954, section 3.
    """

    left: RandomMatrix
    right: RandomMatrix
    whole_blocks = True

    def __init__(self, left: RandomMatrix, right: RandomMatrix):
        for name, part in (("left", left), ("right", right)):
            if not isinstance(part, RandomMatrix):
                raise ValueError(f"Kron: {name} must be a RandomMatrix, got {part!r}")
        for name, value in {
            "left": left,
            "right": right,
            "rows": left.rows * right.rows,
            "columns": left.columns * right.columns,
        }.items():
            object.__setattr__(self, name, value)
        self.__post_init__()

    def multiply_outer(
        self,
        key: PRNGKeyArray,
        x: Inexact[Array, "batch positions left_rows"],
        d: Inexact[Array, "batch positions right_rows"],
    ) -> Inexact[Array, "batch columns"]:
        """Return P^T vec(sum_t x_t d_t^T) for every example of a batch, from x and d alone.

        Raises:
            ValueError: if the shapes do not fit each other or the matrix.
        """
        if (
            x.ndim != 3
            or x.shape[:2] != d.shape[:2]
            or (x.shape[-1], d.shape[-1]) != (self.left.rows, self.right.rows)
        ):
            raise ValueError(
                "Kron: x and d must have shapes (batch, positions, "
                f"{self.left.rows}) and (batch, positions, {self.right.rows}), got {x.shape} and "
                f"{d.shape}"
            )
        keys = _keys(key)
        batch, positions = x.shape[:2]
        flat = lambda a: a.reshape(batch * positions, a.shape[-1])
        left = self.left.multiply_transposed(keys[0], flat(x))
        right = self.right.multiply_transposed(keys[1], flat(d))
        left = left.reshape(batch, positions, self.left.columns)
        right = right.reshape(batch, positions, self.right.columns)
        product = jnp.einsum("bta,btc->bac", left, right, precision=PRECISION)
        return product.reshape(batch, self.columns)

    def _slab(self, row_offset, n):
        """Return the first row of A that a slab meets, how many, and what it lacks before them."""
        first, before = divmod(row_offset, self.right.rows)
        return first, -(-(before + n) // self.right.rows), before

    def _transposed(self, key, x, row_offset):
        n = self.right.rows
        first, n_left, before = self._slab(row_offset, x.shape[1])
        padded = jnp.pad(x, ((0, 0), (before, n_left * n - before - x.shape[1])))
        keys, batch = _keys(key), len(x)
        by_right = self.right.multiply_transposed(keys[1], padded.reshape(batch * n_left, n))
        turned = by_right.reshape(batch, n_left, self.right.columns).swapaxes(1, 2)
        turned = turned.reshape(batch * self.right.columns, n_left)
        both = self.left.multiply_transposed(keys[0], turned, first)
        both = both.reshape(batch, self.right.columns, self.left.columns)
        return both.swapaxes(1, 2).reshape(batch, self.columns)

    def _product(self, key, y, row_offset, rows):
        first, n_left, before = self._slab(row_offset, rows)
        keys, batch = _keys(key), len(y)
        by_left = y.reshape(batch, self.left.columns, self.right.columns).swapaxes(1, 2)
        by_left = by_left.reshape(batch * self.right.columns, self.left.columns)
        by_left = self.left.multiply(keys[0], by_left, first, n_left)
        turned = by_left.reshape(batch, self.right.columns, n_left).swapaxes(1, 2)
        both = self.right.multiply(keys[1], turned.reshape(batch * n_left, self.right.columns))
        return both.reshape(batch, n_left * self.right.rows)[:, before : before + rows]


def _keys(key):
    return jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)
