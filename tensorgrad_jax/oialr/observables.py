r"""What the bases of weights do during training: stability and mixing.

A weight W = U Sigma V^H (seen as a matrix, tall) has the basis B = U V^H, its orthogonal polar
factor: the nearest matrix with orthonormal columns. For two times t and s,

    stability(t, s) = mean over j of cos(B_t[:, j], B_s[:, j]) = tr(B_t^H B_s) / n,

in [-1, 1]. It is `subspaces.stability`, which divides by |B_t| |B_s| in place of n, so that weights
of lower rank have one too. How the basis is mixed stands in R of W = Q R, diagonal positive. B is
computed by Newton-Schulz iterations, products of matrices alone.

Source: D. Coquelin et al., Harnessing Orthogonality to Train Low-Rank Neural Networks, arXiv
2401.08505, section 3. How its figures map distances of R to similarities is in none of its files:
`r_similarity` is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

from tensorgrad_jax.oialr.axes import axis_overlap, leading_basis, unfolding, without_factor
from tensorgrad_jax.oialr.kernels import Kernel
from tensorgrad_jax.oialr.low_rank import as_matrix
from tensorgrad_jax.subspaces import stability as stability
from tensorgrad_jax.transforms.orthogonalize import TO_CONVERGENCE, polar_factors


def polar_factor(kernel: Inexact[Array, ...], rows: int = 1) -> Inexact[Array, "m n"]:
    """Return the basis B = U V^H of a kernel whose `rows` leading axes make up its rows.

    Where the matrix has singular values of zero, also those of B are: it then is a partial
    isometry. Singular values below a millionth of the norm are in between.
    """
    matrix = as_matrix(kernel, rows)
    wide = jnp.promote_types(matrix.real.dtype, jnp.float32)
    parts = [matrix.real, matrix.imag] if jnp.iscomplexobj(matrix) else [matrix]
    stacked = jnp.stack([x.astype(wide) for x in parts])
    with jax.default_matmul_precision("highest"):
        factors = polar_factors(stacked, TO_CONVERGENCE, wide)
    return jax.lax.complex(factors[0], factors[1]) if len(parts) == 2 else factors[0]


def mixing(kernel: Inexact[Array, ...], rows: int = 1) -> Inexact[Array, "n n"]:
    """Return R of W = Q R (of W^T where W is wide), with a positive diagonal, hence unique."""
    matrix = as_matrix(kernel, rows)
    if matrix.shape[0] < matrix.shape[1]:
        matrix = matrix.T
    wide = jnp.promote_types(matrix.dtype, jnp.float32)
    r = jnp.linalg.qr(matrix.astype(wide), mode="r")
    diagonal = jnp.diagonal(r)
    size = jnp.abs(diagonal)
    phase = jnp.where(size > 0, diagonal / jnp.where(size > 0, size, 1), 1)
    return phase.conj()[:, None] * r


class RSimilarity(NamedTuple):
    """How far two mixing matrices are apart.

    Attributes:
        similarity: 1 / (1 + |R_t - R_s|_F / |R_s|_F), in (0, 1].
        distance: |R_t - R_s|_F.
        columns: Euclidean distance of every column from its counterpart.
    """

    similarity: Float[Array, ""]
    distance: Float[Array, ""]
    columns: Float[Array, " n"]


def r_similarity(before: Inexact[Array, "n n"], after: Inexact[Array, "n n"]) -> RSimilarity:
    """Return similarity and distances of R at an earlier and a later time."""
    columns = jnp.linalg.norm(after - before, axis=0)
    distance, size = jnp.linalg.norm(columns), jnp.linalg.norm(before)
    relative = distance / jnp.where(size > 0, size, 1)
    return RSimilarity(1 / (1 + relative), distance, columns)


class Observation(NamedTuple):
    """What is known of kernels at one time.

    Attributes:
        bases: polar factor of every matrix, by name.
        mixing: R of every matrix, and of the unfoldings of tensors, by name or label.
        leading: leading basis of every axis of a tensor, by label.
    """

    bases: dict[str, Any]
    mixing: dict[str, Any]
    leading: dict[str, Any]


def axis_labels(name: str, shape: Sequence[int], kernel: Kernel) -> dict[str, tuple[int, int]]:
    """Return of a tensor's axes that are to have factors place and rank, by the label of each.

    In labels the axis of real and imaginary part is number 0; places begin behind it.
    """
    ranks = without_factor(shape, kernel.shares or ())
    return {f"{name} axis {i + 1}": (i, r) for i, r in enumerate(ranks) if r is not None}


def observe(leaves: dict[str, Any], kernels: dict[str, Kernel]) -> Observation:
    """Return what is known of kernels now: of matrices as such, of tensors axis by axis."""
    bases, mixed, leading = {}, {}, {}
    for name, kernel in kernels.items():
        w = leaves[name]
        if kernel.shares is None:
            bases[name], mixed[name] = polar_factor(w, kernel.rows), mixing(w, kernel.rows)
            continue
        for label, (axis, rank) in axis_labels(name, w.shape, kernel).items():
            leading[label], mixed[label] = leading_basis(w, axis, rank), mixing(unfolding(w, axis))
    return Observation(bases, mixed, leading)


def compare(before: Observation, after: Observation) -> dict[str, dict[str, Any]]:
    """Return `stability`, `r_similarity` and `r_distance` of every kernel, by these words.

    The stability of an axis is the overlap of its leading subspaces, see `oialr.axes`.
    """
    found = {name: r_similarity(r, after.mixing[name]) for name, r in before.mixing.items()}
    axes = {n: axis_overlap(a, after.leading[n]) for n, a in before.leading.items()}
    return {
        "stability": {n: stability(b, after.bases[n]) for n, b in before.bases.items()} | axes,
        "r_similarity": {n: x.similarity for n, x in found.items()},
        "r_distance": {n: x.distance for n, x in found.items()},
    }
