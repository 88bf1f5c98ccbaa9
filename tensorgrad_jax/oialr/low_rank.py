r"""One weight between two frozen orthonormal bases: factor, rotate, cut, transport.

A kernel, seen as a matrix W of shape (m, n), is held as

    W = U S V^H,    U (m, p) and V (n, p) frozen,    S (p, p) trained in full.

Only the leading `rank` columns of U and V are alive; the others are zeros, and so are then S
outside its leading block, its gradient U^H G V and everything that an optimizer makes of it. The
physical size p may therefore stand still while the rank shrinks: training with zeros is training
without.

Source: D. Coquelin et al., Harnessing Orthogonality to Train Low-Rank Neural Networks, arXiv
2401.08505.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, Int

from tensorgrad_jax.oialr.rank_rule import new_rank
from tensorgrad_jax.projections.leading import PRECISION

_product = functools.partial(jnp.matmul, precision=PRECISION)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("U", "S", "Vt", "rank"), meta_fields=("shape",)
)
@dataclasses.dataclass(frozen=True)
class LowRank:
    """A kernel U S Vt with its rank: a node of a tree of parameters.

    Attributes:
        U: (m, p), orthonormal columns, zeros from `rank` on.
        S: (p, p), the core; None where it is kept elsewhere, as among trainable parameters.
        Vt: (p, n), orthonormal rows, zeros from `rank` on.
        rank: int32 (), how many columns are alive.
        shape: of the kernel. Its leading axes make up the m rows, the others the n columns.
    """

    U: Any
    S: Any
    Vt: Any
    rank: Any
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Physical size p of the core."""
        return self.U.shape[1]

    @property
    def full_rank(self) -> int:
        """Smaller side of the matrix."""
        return min(self.U.shape[0], self.Vt.shape[1])

    def weight(self) -> Inexact[Array, ...]:
        """Return the kernel, see `reconstruct`."""
        return reconstruct(self)

    def ranks(self) -> int:
        """Return the rank."""
        return int(self.rank)

    def alive(self) -> int:
        """Return how many numbers of the core are alive."""
        return int(self.rank) ** 2

    def shrunk(self, bucket: int) -> LowRank:
        """Return the kernel with the smallest core of a multiple of `bucket`."""
        size = physical_size(int(self.rank), self.full_rank, bucket)
        return resized(self, min(size, self.size))

    def without_core(self) -> LowRank:
        """Return the frozen part."""
        return dataclasses.replace(self, S=None)

    def with_core(self, core: Any) -> LowRank:
        """Return this kernel with another core."""
        return dataclasses.replace(self, S=core)


class Rotation(NamedTuple):
    """How a core changed: S' = P^H S Q, columns of what is cut off being zeros.

    Attributes:
        P: (p, p) rotation of U's columns.
        Q: (p, p) rotation of V's columns.
    """

    P: Any
    Q: Any


def as_matrix(kernel: Inexact[Array, ...], rows: int) -> Inexact[Array, "m n"]:
    """Return a kernel as a matrix whose rows are its `rows` leading axes together."""
    return kernel.reshape(math.prod(kernel.shape[:rows]), -1)


def physical_size(rank: int, full: int, bucket: int) -> int:
    """Return the smallest multiple of `bucket` that holds `rank`, at most `full`."""
    return min(full, -(-rank // bucket) * bucket)


def factor(
    kernel: Inexact[Array, ...], rows: int = 1, ratio: float = 1.0, bucket: int = 1
) -> LowRank:
    """Return the singular value decomposition of a kernel, S = diag(sigma) as a full matrix.

    Args:
        kernel: an array of two or more dimensions.
        rows: how many of its leading axes make up the rows of the matrix.
        ratio: share of the singular values that is kept: the largest int(ratio min(m, n)), at
            least one.
        bucket: the core's physical size is a multiple of it, or min(m, n).
    """
    matrix = as_matrix(kernel, rows)
    wide = jnp.promote_types(kernel.dtype, jnp.float32)
    u, sigma, vt = jnp.linalg.svd(matrix.astype(wide), full_matrices=False)
    rank = max(1, int(len(sigma) * ratio))
    size = physical_size(rank, len(sigma), bucket)
    whole = LowRank(u, jnp.diag(sigma).astype(wide), vt, jnp.int32(rank), kernel.shape)
    cast = lambda x: x.astype(kernel.dtype)
    U, S, Vt = map(cast, (whole.U[:, :size], whole.S[:size, :size], whole.Vt[:size]))
    return cut(LowRank(U, S, Vt, whole.rank, kernel.shape), whole.rank)


def reconstruct(x: LowRank) -> Inexact[Array, ...]:
    """Return the kernel U S Vt.

    Differentiable: the gradient with respect to S is U^H G V.
    """
    m, n = x.U.shape[0], x.Vt.shape[1]
    # The core goes with the smaller side first: p p min(m, n) + p m n products.
    matrix = _product(_product(x.U, x.S), x.Vt) if m <= n else _product(x.U, _product(x.S, x.Vt))
    return matrix.reshape(x.shape)


def rotate(x: LowRank) -> tuple[LowRank, Rotation, Float[Array, " p"]]:
    """Turn the bases so that the core is diagonal: S = P D Q^H, U <- U P, V <- V Q, S <- D.

    Returns:
        the same kernel in its new bases, the rotation, and the singular values, zeros from `rank`
        on.
    """
    wide = jnp.promote_types(x.S.dtype, jnp.float32)
    alive = jnp.arange(x.size) < x.rank
    S = jnp.where(alive[:, None] & alive, x.S, 0).astype(wide)
    # What is dead gets a singular value above all others: its directions stay the unit vectors that
    # they are, and cannot mix with those of living singular values near zero.
    above = 2 * jnp.linalg.norm(S)
    above = jnp.where(above > 0, above, 1)
    u, sigma, vt = jnp.linalg.svd(S + jnp.diag(jnp.where(alive, 0, above).astype(S.dtype)))
    dead = x.size - x.rank
    P = jnp.where(alive, jnp.roll(u, -dead, axis=1), 0)
    Q = jnp.where(alive, jnp.roll(vt.conj().T, -dead, axis=1), 0)
    sigma = jnp.where(alive, jnp.roll(sigma, -dead), 0)
    U = _product(x.U.astype(wide), P).astype(x.U.dtype)
    Vt = _product(Q.conj().T, x.Vt.astype(wide)).astype(x.Vt.dtype)
    core = jnp.diag(sigma).astype(x.S.dtype)
    return LowRank(U, core, Vt, x.rank, x.shape), Rotation(P, Q), sigma


def cut(x: LowRank, rank: Int[Array, ""] | int) -> LowRank:
    """Put zeros where columns of the bases are at or beyond `rank`, in the core likewise."""
    rank = jnp.asarray(rank, jnp.int32)
    alive = jnp.arange(x.size) < rank
    S = None if x.S is None else jnp.where(alive[:, None] & alive, x.S, 0)
    return LowRank(jnp.where(alive, x.U, 0), S, jnp.where(alive[:, None], x.Vt, 0), rank, x.shape)


def cut_rank(
    x: LowRank, sigma_cutoff_fraction: float
) -> tuple[LowRank, Rotation, Float[Array, " p"]]:
    """Rotate, then cut to the rank that the rule gives (`rank_rule.new_rank`).

    Returns:
        the kernel with zeros outside its new rank, the rotation with zeros likewise, and the
        singular values before the cut. A core with a number that is not finite stays as it is.
    """
    rotated, (P, Q), sigma = rotate(x)
    rank = new_rank(sigma, x.rank, x.full_rank, sigma_cutoff_fraction)
    alive = jnp.arange(x.size) < rank
    keep = jnp.where(alive, jnp.ones((), P.dtype), 0)
    finite = jnp.isfinite(sigma).all()
    unit = jnp.eye(x.size, dtype=P.dtype)
    result = jax.tree.map(lambda a, b: jnp.where(finite, a, b), cut(rotated, rank), x)
    rotation = Rotation(jnp.where(finite, P * keep, unit), jnp.where(finite, Q * keep, unit))
    return result, rotation, sigma


def resized(x: LowRank, size: int) -> LowRank:
    """Return the kernel with cores of physical size `size`, which must hold its rank."""
    S = None if x.S is None else x.S[:size, :size]
    return LowRank(x.U[:, :size], S, x.Vt[:size], x.rank, x.shape)


def transport(
    moment: Inexact[Array, "a b"], P: Inexact[Array, "a p"], Q: Inexact[Array, "b q"]
) -> Inexact[Array, "p q"]:
    """Return P^H m Q: a moment that is linear in gradients, in new bases. Exact."""
    wide = moment.astype(jnp.promote_types(moment.dtype, jnp.float32))
    return _product(_product(P.conj().T, wide), Q).astype(moment.dtype)


def transport_squares(
    moment: Float[Array, "a b"], P: Inexact[Array, "a p"], Q: Inexact[Array, "b q"]
) -> Float[Array, "p q"]:
    """Return |P|^2^T v |Q|^2: a mean of squared gradients in new bases.

    Exact in expectation if the gradient's entries are uncorrelated. The sum over all entries is
    preserved by square P and Q.
    """
    wide = moment.astype(jnp.promote_types(moment.dtype, jnp.float32))
    square = lambda x: x.real**2 + x.imag**2 if jnp.iscomplexobj(x) else x**2
    return _product(_product(square(P).T, wide), square(Q)).astype(moment.dtype)
