"""What a decomposition is: values, and vectors that are computed when they are asked for."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tensorgrad_jax.hessian.operators import LinearOperator, LowRank

_PRECISION = jax.lax.Precision.HIGHEST


class Eigh(NamedTuple):
    """A (D, D) operator as (Q Z) diag(values) (Q Z)^H.

    Attributes:
        values: eigenvalues, by descending magnitude, (k,).
        Q: orthonormal columns, (D, q).
        Z: orthonormal columns, (q, k).
    """

    values: Any
    Q: Any
    Z: Any

    def vectors(self, k: int | None = None) -> Any:
        """Return the first k eigenvectors, (D, k); None for all."""
        return jnp.matmul(self.Q, self.Z[:, :k], precision=_PRECISION)

    def truncated(self, k: int) -> Eigh:
        """Return the decomposition with the k values of largest magnitude alone."""
        return Eigh(self.values[:k], self.Q, self.Z[:, :k])

    def operator(self) -> LinearOperator:
        """Return the approximation as an operator."""
        vectors = self.vectors()
        return LowRank(vectors, self.values, vectors)


class Svd(NamedTuple):
    """An (m, n) operator as (Q U) diag(values) (P V)^H.

    Attributes:
        values: singular values, descending, (k,).
        Q: orthonormal columns, (m, k).
        U: unitary, (k, k).
        P: orthonormal columns, (n, k).
        V: unitary, (k, k).
    """

    values: Any
    Q: Any
    U: Any
    P: Any
    V: Any

    def left(self, k: int | None = None) -> Any:
        """Return the first k left singular vectors, (m, k)."""
        return jnp.matmul(self.Q, self.U[:, :k], precision=_PRECISION)

    def right(self, k: int | None = None) -> Any:
        """Return the first k right singular vectors, (n, k)."""
        return jnp.matmul(self.P, self.V[:, :k], precision=_PRECISION)

    def operator(self) -> LinearOperator:
        """Return the approximation as an operator."""
        return LowRank(self.left(), self.values, self.right())


def eigh_in_basis(Q: Any, C: Any) -> Eigh:
    """Return the decomposition of A ~ Q C Q^H, Q (D, k) orthonormal and C (k, k) symmetrised."""
    values, Z = eigh_by_magnitude(C)
    return Eigh(values, Q, Z)


@jax.jit
def eigh_by_magnitude(C: Any) -> tuple[Any, Any]:
    """Return eigenvalues by descending magnitude, and eigenvectors, of (C + C^H) / 2."""
    values, Z = jnp.linalg.eigh((C + C.conj().T) / 2)
    order = jnp.argsort(-jnp.abs(values))
    return values[order], Z[:, order]
