"""How close two subspaces are: principal angles, overlap, Grassmannian distances, stability.

A subspace of R^D or C^D is given by an orthonormal basis, a matrix (D, k), or, where it is spanned
by coordinates, by their indices: a *mask*. With the singular values c_i = cos(theta_i) of A^H B,

| function        | is                                   | range              |
|-----------------|--------------------------------------|--------------------|
| `overlap`       | mean c_i^2 = |A^H B|_F^2 / k         | [0, 1]             |
| `geodesic`      | |theta|_2                            | [0, pi sqrt(k) / 2]|
| `chordal`       | |2 sin(theta / 2)|, 2-norm or largest| [0, sqrt(2 k)]     |
| `projection`    | |sin(theta)|, 2-norm or largest      | [0, sqrt(k)]       |
| `fubini_study`  | arccos prod c_i                      | [0, pi / 2]        |
| `iou`           | of two masks, shared / all           | [0, 1]             |
| `stability`     | Re tr(A^H B) / |A| |B|: of *bases*   | [-1, 1]            |

Of two random subspaces of k dimensions the expected overlap is k / D; largest angles, and with them
`chordal` and `projection` as maxima and `fubini_study`, saturate and say nothing where k is more
than a few. The identities `projection`^2 = k (1 - overlap) and, for masks of k indices each,
iou = overlap / (2 - overlap) hold.

References:
    A. Bjorck and G. Golub, Numerical methods for computing angles between linear subspaces, 1973.
    A. Edelman, T. Arias, S. Smith, The geometry of algorithms with orthogonality constraints, 1998.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, Integer

_PRECISION = jax.lax.Precision.HIGHEST
Norm = Literal["frobenius", "largest"]


def principal_angles(
    A: Inexact[Array, "D a"], B: Inexact[Array, "D b"]
) -> Float[Array, " min_a_b"]:
    """Return the angles between the spans of two orthonormal bases, ascending, in radians.

    The cosine of a small angle does not tell it: below 45 degrees angles come from the sines, the
    singular values of B - A A^H B.

    Raises:
        ValueError: if the bases are no matrices of as many rows.
    """
    _check(A, B)
    if A.shape[1] < B.shape[1]:
        A, B = B, A
    product = jnp.matmul(A.conj().T, B, precision=_PRECISION)
    cosines = jnp.linalg.svd(product, compute_uv=False)
    rest = B - jnp.matmul(A, product, precision=_PRECISION)
    sines = jnp.linalg.svd(rest, compute_uv=False)[::-1]
    large = jnp.arccos(jnp.clip(cosines, 0, 1))
    return jnp.where(cosines**2 < 0.5, large, jnp.arcsin(jnp.clip(sines, 0, 1)))


def overlap(A: Inexact[Array, "D a"], B: Inexact[Array, "D b"]) -> Float[Array, ""]:
    """Return |B^H A|_F^2 / a: the mean share of the unit vectors of A that lies in the span of B.

    Chance is b / D. For as many columns it is symmetric.

    Raises:
        ValueError: if the bases are no matrices of as many rows.
    """
    _check(A, B)
    product = jnp.matmul(B.conj().T, A, precision=_PRECISION)
    return jnp.sum(jnp.abs(product) ** 2) / A.shape[1]


def overlap_with_mask(A: Inexact[Array, "D a"], indices: Integer[Array, " b"]) -> Float[Array, ""]:
    """Return `overlap` of a basis with the span of coordinates, whose matrix is never formed."""
    return jnp.sum(jnp.abs(A[indices]) ** 2) / A.shape[1]


def overlaps_with_ranking(
    Q: Inexact[Array, "D q"], Z: Inexact[Array, "q k"], ranking: Integer[Array, " k"]
) -> Float[Array, " k"]:
    """Return for every n <= k how much of n columns of Q Z lies in n coordinates, both the first.

        f_n = |(Q Z)[ranking[:n], :n]|_F^2,    so that    overlap_n = f_n / n,    by chance n / D

    All of them cost one product (k, q) by (q, k) and two cumulative sums.

    Args:
        Q: an orthonormal basis.
        Z: orthonormal coefficients in it: the vectors are the columns of Q Z.
        ranking: coordinates, the first the foremost: for the largest weights
            `jnp.argsort(-jnp.abs(weights))[:k]`.

    Raises:
        ValueError: if there are not as many coordinates as vectors.
    """
    if ranking.shape != (Z.shape[1],):
        raise ValueError(
            "overlaps_with_ranking: ranking must name one coordinate per column of Z, "
            f"{Z.shape[1]}, got shape {ranking.shape}"
        )
    squares = jnp.abs(jnp.matmul(Q[ranking], Z, precision=_PRECISION)) ** 2
    return jnp.diagonal(jnp.cumsum(jnp.cumsum(squares, 0), 1))


def geodesic(A: Inexact[Array, "D a"], B: Inexact[Array, "D b"]) -> Float[Array, ""]:
    """Return the length of the shortest path between the subspaces, |theta|_2."""
    return jnp.linalg.norm(principal_angles(A, B))


def chordal(
    A: Inexact[Array, "D a"], B: Inexact[Array, "D b"], norm: Norm = "frobenius"
) -> Float[Array, ""]:
    """Return the distance of the nearest orthonormal bases, |2 sin(theta / 2)|.

    Args:
        A: an orthonormal basis.
        B: another.
        norm: "frobenius" for the 2-norm over all angles, "largest" for the largest.
    """
    return _norm("chordal", 2 * jnp.sin(principal_angles(A, B) / 2), norm)


def projection(
    A: Inexact[Array, "D a"], B: Inexact[Array, "D b"], norm: Norm = "frobenius"
) -> Float[Array, ""]:
    """Return |A A^H - B B^H| by way of |sin(theta)|; its Frobenius norm is sqrt(2) times that.

    Args:
        A: an orthonormal basis.
        B: another.
        norm: "frobenius" for the 2-norm over all angles, "largest" for the largest.
    """
    return _norm("projection", jnp.sin(principal_angles(A, B)), norm)


def fubini_study(A: Inexact[Array, "D a"], B: Inexact[Array, "D b"]) -> Float[Array, ""]:
    """Return arccos prod cos(theta_i).

    The product is taken of logarithms, as it leaves the numbers' range for hundreds of angles; and
    of 1 - product, as small distances would be lost in the arccosine.
    """
    angles = principal_angles(A, B)
    # log cos(t) = log1p(-2 sin(t / 2)^2) keeps the digits of small angles.
    logarithm = jnp.sum(jnp.log1p(-jnp.minimum(2 * jnp.sin(angles / 2) ** 2, 1)))
    return 2 * jnp.arcsin(jnp.sqrt(jnp.clip(-jnp.expm1(logarithm) / 2, 0, 1)))


def iou(first: Integer[Array, " a"], second: Integer[Array, " b"]) -> Float[Array, ""]:
    """Return the number of shared indices of two masks over the number of all.

    Args:
        first: indices, each once.
        second: likewise.
    """
    shared = jnp.isin(first, second).sum()
    return shared / (first.size + second.size - shared)


def stability(A: Inexact[Array, "D k"], B: Inexact[Array, "D k"]) -> Float[Array, ""]:
    """Return Re tr(A^H B) / (|A| |B|), with Frobenius norms, in [-1, 1]; 0 where one is zero.

    Of orthonormal bases that is tr(A^H B) / k, the mean cosine between their columns. Partial
    isometries count by what they have: the basis U V^H of a weight of rank r < k has columns that
    are shorter than one, its norm is sqrt(r), and its stability with itself is 1 as well.

    Other than the distances it compares bases, column by column, not the spaces that they span.

    Raises:
        ValueError: if they are no matrices of one shape.

    Examples:
        >>> import jax.numpy as jnp
        >>> basis = jnp.eye(3)[:, :2]
        >>> [round(float(stability(basis, b)), 3) for b in (basis, -basis, basis[::-1])]
        [1.0, -1.0, 0.5]
    """
    _check(A, B)
    if A.shape != B.shape:
        raise ValueError(f"stability: bases must have one shape, got {A.shape} and {B.shape}")
    norms = jnp.linalg.norm(A) * jnp.linalg.norm(B)
    return jnp.where(norms > 0, jnp.sum((A.conj() * B).real) / jnp.where(norms > 0, norms, 1), 0)


def _norm(owner: str, values: Any, norm: Norm) -> Any:
    if norm not in ("frobenius", "largest"):
        raise ValueError(f"{owner}: norm must be 'frobenius' or 'largest', got {norm!r}")
    return jnp.linalg.norm(values) if norm == "frobenius" else jnp.max(values)


def _check(A: Any, B: Any) -> None:
    shapes = [getattr(x, "shape", type(x).__name__) for x in (A, B)]
    if any(len(s) != 2 or isinstance(s, str) for s in shapes) or shapes[0][0] != shapes[1][0]:
        raise ValueError(
            f"A and B must be matrices of as many rows, got {shapes[0]} and {shapes[1]}"
        )
