r"""Low-rank Tucker projection of an N-dimensional tensor (HOSVD, HOOI).

    core = G x_1 U_1^H x_2 U_2^H ... x_n U_n^H,        lift(core) = core x_1 U_1 ... x_n U_n,

with orthonormal U_i of shape (d_i, r_i). The compact form is the core of shape (r_1, ..., r_n).

The products are those of `mode_products`, as is the sequentially truncated HOSVD.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact, PRNGKeyArray

from tensorgrad_jax.projections import averaged, mode_products
from tensorgrad_jax.projections.averaged import factors_of
from tensorgrad_jax.projections.base import Basis, Leaf, Projection
from tensorgrad_jax.projections.leading import (
    PRECISION,
    leading_by_gram,
    leading_by_sketch,
    leading_by_svd,
    overlap,
    scaled_to_one,
    squared,
)
from tensorgrad_jax.projections.pairs import Pair, Tensor, as_array, as_pair
from tensorgrad_jax.projections.plain import check_scale, make_plain, shown
from tensorgrad_jax.projections.ranks import RankSpec, check_rank, resolve_ranks, whole_modes

_METHODS = ("gram", "svd", "randomized")
# HOOI stops when the relative error changes by less (Kolda and Bader 2009, Fig. 4.4).
_HOOI_TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Tucker(Projection):
    """Keep the part of a tensor that lies in one leading subspace per mode.

    Attributes:
        rank: how much to keep. A float is a budget: the largest uniform shares r_i / d_i whose
            core has at most `rank * size` elements. An int is the rank of every mode; a tuple
            gives one int (rank) or one float (share of the mode) per mode; `...` stands for modes
            that stay whole, so that (..., 0.5, 0.5) halves the last two.
        n_iter: sweeps over the modes. "gram": the first sweep is the sequentially truncated
            HOSVD, further ones are HOOI. "svd": HOOI sweeps after the start. From the third on,
            these sweeps stop once the relative error changes by less than 1e-4. "randomized":
            rounds of subspace iteration for each mode.
        method: "gram" finds each factor as leading eigenvectors of a d_i x d_i Gram matrix
            (fastest; singular values below about 3e-4 of the largest are not told apart in
            float32). "svd" takes singular vectors of the unfoldings: exact, slow, the
            reference's way. "randomized" takes the range of a random sketch, one mode after the
            other: approximate, for modes so long that d_i^3 is too much.
        warm_restart: start from the previous basis: "svd" instead of a HOSVD, "randomized"
            instead of random columns. "gram" needs no start, so that a warm one cannot help it.
        scale: factor of what is lifted.
        gram_decay: average the Gram matrices over refreshes with this decay, in [0, 1); 0 takes
            that of the present gradient alone. For "gram" with n_iter=1. A mode that `...` stands
            for is left alone; with real factors one of full rank, given as such, gets the whole
            eigenbasis. Adam within then is SOAP with shared bases, see `averaged`.
        factors: of a complex tensor: "complex", or "real" ones, which treat real and imaginary
            parts alike: half the operations and half the basis. A mode of full rank then is left
            alone, without a factor, so that ranks like (13, 8, 64, 64) cost two products.

    Raises:
        ValueError: at construction, if an argument is not one of these.

    References:
        L. De Lathauwer et al., A multilinear singular value decomposition, 2000; On the best
        rank-(R1, ..., RN) approximation, 2000 (HOOI). N. Vannieuwenhoven et al., A new
        truncation strategy for the higher-order singular value decomposition, 2012.
        S. Loeschcke et al., TensorGRaD, arXiv 2501.02379, section 3.
    """

    rank: RankSpec = 0.25
    n_iter: int = 1
    method: Literal["gram", "svd", "randomized"] = "gram"
    warm_restart: bool = True
    scale: float = 1.0
    factors: Literal["complex", "real"] = "complex"
    gram_decay: float = 0.0

    def __post_init__(self):
        make_plain(self)
        check_rank("Tucker", self.rank)
        if not isinstance(self.n_iter, int) or self.n_iter < 1:
            raise ValueError(f"Tucker: n_iter must be a positive integer, got {self.n_iter!r}")
        if self.method not in _METHODS:
            raise ValueError(f"Tucker: method must be one of {_METHODS}, got {self.method!r}")
        check_scale("Tucker", self.scale)
        if self.factors not in ("complex", "real"):
            raise ValueError(f"Tucker: factors must be 'complex' or 'real', got {self.factors!r}")
        if self.factors == "real" and (self.method != "gram" or self.n_iter != 1):
            raise ValueError(
                "Tucker: factors='real' needs method='gram' and n_iter=1, got "
                f"method={self.method!r} and n_iter={self.n_iter!r}"
            )

        decay = self.gram_decay
        if not isinstance(decay, int | float) or isinstance(decay, bool) or not 0 <= decay < 1:
            raise ValueError(f"Tucker: gram_decay must be a number in [0, 1), got {shown(decay)}")
        if self.gram_decay and (self.method != "gram" or self.n_iter != 1):
            raise ValueError(
                "Tucker: gram_decay needs method='gram' and n_iter=1, got "
                f"method={self.method!r} and n_iter={self.n_iter!r}"
            )

    def ranks(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the rank of every mode of a tensor of this shape."""
        return resolve_ranks("Tucker", self.rank, tuple(shape))

    def init(self, leaf: Leaf) -> Basis:
        """Return leading unit vectors: orthonormal factors that no tensor has been asked for."""
        real = self.factors == "real"
        dtype = jnp.finfo(leaf.dtype).dtype if real else leaf.dtype
        if self.gram_decay:
            left_alone = whole_modes(self.rank, len(leaf.shape))
            has_factor = [i not in left_alone for i in range(len(leaf.shape))]
            return averaged.start(leaf.shape, self.ranks(leaf.shape), has_factor, dtype)
        return tuple(
            None if real and d == r else jnp.asarray(np.eye(d, r), dtype)
            for d, r in zip(leaf.shape, self.ranks(leaf.shape), strict=True)
        )

    def compact_struct(self, leaf: Leaf) -> jax.ShapeDtypeStruct:
        """Return the struct of the core."""
        return jax.ShapeDtypeStruct(self.ranks(leaf.shape), leaf.dtype)

    @property
    def takes_pairs(self) -> bool:
        """A pair is widened where it is multiplied."""
        return True

    def refresh(self, key: PRNGKeyArray, tensor: Tensor, basis: Basis) -> Basis:
        """Return factors of leading left singular vectors of `tensor`'s unfoldings."""
        ranks, real = self.ranks(tensor.shape), self.factors == "real"
        if self.gram_decay:
            return averaged.refreshed(tensor, basis, ranks, self.gram_decay)
        if self.method == "randomized":
            start = basis if self.warm_restart else [None] * len(ranks)

            def by_sketch(mode, unfolding):
                own = jax.random.fold_in(key, mode)
                return leading_by_sketch(own, unfolding, ranks[mode], self.n_iter, start[mode])

            return mode_products.sequentially_truncated(tensor, ranks, leading=by_sketch)
        if self.method == "svd":
            tensor = scaled_to_one(as_array(tensor))
            factors = self._start(tensor, ranks, basis)
            return _hooi(tensor, factors, ranks, self.n_iter, leading_by_svd)
        factors = mode_products.sequentially_truncated(tensor, ranks, real)
        if self.n_iter == 1:
            return factors
        tensor = scaled_to_one(as_array(tensor))
        return _hooi(tensor, factors, ranks, self.n_iter - 1, leading_by_gram)

    def _start(self, tensor, ranks, basis):
        def hosvd():
            return tuple(leading_by_svd(_unfold(tensor, i), r) for i, r in enumerate(ranks))

        if not self.warm_restart:
            return hosvd()
        # The unit vectors of `init` carry no information to start from.
        untouched = jnp.all(jnp.array([jnp.all(u == np.eye(*u.shape)) for u in basis]))
        return jax.lax.cond(untouched, hosvd, lambda: tuple(basis))

    def project(self, tensor: Tensor, basis: Basis) -> Inexact[Array, ...]:
        """Return the core."""
        return mode_products.project(tensor, factors_of(basis))

    def lift_pair(self, compact: Inexact[Array, ...], basis: Basis) -> Pair:
        """Return the tensor of a core as a pair of real arrays."""
        parts = self._lift_to_parts(compact, basis)
        return Pair(parts) if len(parts) == 2 else as_pair(parts[0])

    def lift(self, compact: Inexact[Array, ...], basis: Basis) -> Inexact[Array, ...]:
        """Return the tensor of a core."""
        parts = self._lift_to_parts(compact, basis)
        return Pair(parts).array() if len(parts) == 2 else parts[0]

    def _lift_to_parts(self, compact, basis):
        core = compact if self.scale == 1.0 else self.scale * compact
        return mode_products.lift_to_parts(core, factors_of(basis))

    def lift_factor(self, shape: tuple[int, ...]) -> float:
        """Return `scale`."""
        del shape
        return self.scale

    def transport(
        self, compact: Inexact[Array, ...], old: Basis, new: Basis
    ) -> Inexact[Array, ...]:
        """Multiply every mode of the core by the overlaps U_new^H U_old."""
        return _core_times(compact, map(overlap, factors_of(new), factors_of(old)))

    def transport_squares(
        self, compact: Inexact[Array, ...], old: Basis, new: Basis
    ) -> Inexact[Array, ...]:
        """Multiply every mode by the squared overlaps |U_new^H U_old|^2."""
        overlaps = map(overlap, factors_of(new), factors_of(old))
        return _core_times(compact, map(squared, overlaps))


def _core_times(core, matrices):
    """Multiply every mode of a core by a matrix, or by none. Each axis 0 becomes the last axis."""
    for matrix in matrices:
        if matrix is None:
            core = jnp.moveaxis(core, 0, -1)
        else:
            core = jnp.tensordot(core, matrix, axes=(0, 1), precision=PRECISION)
    return core


def _unfold(tensor, mode):
    """Return the mode-i unfolding, of shape (d_i, product of the other sizes)."""
    return jnp.moveaxis(tensor, mode, 0).reshape(tensor.shape[mode], -1)


def _hooi(tensor, factors, ranks, sweeps, leading):
    """Improve the factors by alternating sweeps, each mode's with all others fixed."""

    def sweep(factors):
        factors = list(factors)
        for mode, r in enumerate(ranks):
            others = [None if i == mode else u for i, u in enumerate(factors)]
            factors[mode] = leading(_unfold(mode_products.project(tensor, others), mode), r)
        return tuple(factors)

    # The first two sweeps are never the last by the stopping rule.
    for _ in range(min(sweeps, 2)):
        factors = sweep(factors)
    if sweeps <= 2:
        return factors

    norm = jnp.linalg.norm(tensor)

    def error(factors):
        core = mode_products.project(tensor, factors)
        squared = jnp.maximum(norm**2 - jnp.linalg.norm(core) ** 2, 0)
        return jnp.sqrt(squared) / jnp.where(norm > 0, norm, 1)

    def go_on(carry):
        n, _, previous, current = carry
        return (n < sweeps) & ((n < 3) | (jnp.abs(previous - current) >= _HOOI_TOLERANCE))

    def body(carry):
        n, factors, _, current = carry
        factors = sweep(factors)
        return n + 1, factors, current, error(factors)

    start = (jnp.int32(2), factors, error(factors), error(factors))
    return jax.lax.while_loop(go_on, body, start)[1]
