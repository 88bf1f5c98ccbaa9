"""From what was measured of an operator to its eigenpairs: small dense problems."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from tensorgrad_jax.hessian.eigenpairs import Eigh, eigh_by_magnitude, eigh_in_basis
from tensorgrad_jax.hessian.orthogonal import factored

_PRECISION = jax.lax.Precision.HIGHEST


def core_of(M: Any, left: Any, right: Any) -> Any:
    """Return C = left^+ M (right^+)^H, the core of A ~ Q C P^H that least squares find.

    Args:
        M: inner sketch V_l^H A V_r, (s, s).
        left: V_l^H Q, (s, k).
        right: V_r^H P, (s, k).
    """
    return least_squares(right, least_squares(left, M).conj().T).conj().T


def eigh_of_core(Q: Any, M: Any, left: Any, right: Any) -> Eigh:
    """Return the decomposition of A ~ Q C Q^H, with `core_of`'s C symmetrised.

    Args:
        Q: orthonormal columns, (D, k).
        M: inner sketch V_l^H A V_r, (s, s).
        left: V_l^H Q, (s, k).
        right: V_r^H Q, (s, k).

    Raises:
        ValueError: if the shapes do not belong together.
    """
    s, k = M.shape[0], Q.shape[1]
    if M.shape != (s, s) or left.shape != (s, k) or right.shape != (s, k):
        raise ValueError(
            f"eigh_of_core: expected M (s, s), left and right (s, {k}), got {M.shape}, "
            f"{left.shape} and {right.shape}"
        )
    return eigh_in_basis(Q, core_of(M, left, right))


def singlepass(Y: Any, Q: Any, R: Any, of_noise: Any) -> Eigh:
    """Return the decomposition of A ~ Q C Q^H, with the C of least squares in C (Q^H V) = Q^H Y.

    Columns of Q where Y has nothing are left out of the equations: rounding chose them, and they
    may make a square system as good as singular.

    Args:
        Y: A V, (D, k).
        Q: orthonormal columns, (D, k), of Y = Q R.
        R: (k, k).
        of_noise: V^H Q, (k, k).
    """
    sizes = jnp.abs(jnp.diagonal(R))
    kept = sizes > jnp.finfo(Y.dtype).eps * math.sqrt(Y.shape[0]) * sizes.max()
    # Transposed, with V^H Q on the left; what is left out has zeros in the solution.
    right = jnp.matmul(Y.conj().T, Q, precision=_PRECISION)
    C = jnp.linalg.lstsq(of_noise * kept, right)[0]
    return eigh_in_basis(Q, C.conj().T)


def nystrom(Y: Any, V: Any) -> Eigh:
    """Return the decomposition of Y (V^H Y)^+ Y^H.

    Of A + shift I, as small as rounding allows: small eigenvalues of V^H Y, which are divided by,
    would otherwise be rounding's own. What remains below rounding is left out.

    References:
        J. Tropp, A. Yurtsever, M. Udell, V. Cevher, Fixed-rank approximation of a
        positive-semidefinite matrix from streaming data, NeurIPS 2017.
    """
    eps = jnp.finfo(Y.dtype).eps
    shift = eps * jnp.linalg.norm(Y) * math.sqrt(Y.shape[0])
    Y = Y + shift * V
    B = jnp.matmul(V.conj().T, Y, precision=_PRECISION)
    sizes, W = jnp.linalg.eigh((B + B.conj().T) / 2)
    kept = jnp.abs(sizes) > eps * jnp.abs(sizes).max()
    scale = jnp.where(kept, 1 / jnp.sqrt(jnp.where(kept, jnp.abs(sizes), 1)), 0)
    Q, R = factored(jnp.matmul(Y, W * scale, precision=_PRECISION))
    C = jnp.matmul(R * jnp.sign(sizes), R.conj().T, precision=_PRECISION)
    values, Z = eigh_by_magnitude(C)
    # What is smaller than the shift is rounding's own: zero, and the order by magnitude stays.
    return Eigh(jnp.sign(values) * jnp.maximum(jnp.abs(values) - shift, 0), Q, Z)


@jax.jit
def least_squares(A: Any, B: Any) -> Any:
    """Return X that minimises |A X - B|, of a well-conditioned tall A."""
    Q, R = jnp.linalg.qr(A)
    inner = jnp.matmul(Q.conj().T, B, precision=_PRECISION)
    return jax.scipy.linalg.solve_triangular(R, inner)
