r"""Complex tensors between frozen Tucker factors: spectral weights of neural operators.

A weight W of complex numbers with axes d_1, ..., d_n, stored as real and imaginary part along an
axis 0, is held as

    W = S x_1 U_1 ... x_n U_n,      U_i (d_i, p_i) real, orthonormal and frozen,

and the complex core S is trained, as real and imaginary part like W. Axes may stay whole:
frequencies usually do, and the two axes of channels have factors. A check turns each factor into
the left singular vectors of the core's unfolding of that axis (HOSVD of the core), and cuts its
rank by the rule for matrices. Ranks are per axis, the same for real and imaginary part.

Axes get their factors together or each at its own time (`with_factors`): a core is a tensor like
the weight, and its unfolding along an axis without factor has the weight's left singular vectors.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tensorgrad_jax.oialr import axes
from tensorgrad_jax.oialr.rank_rule import new_rank
from tensorgrad_jax.projections import mode_products
from tensorgrad_jax.projections.leading import PRECISION
from tensorgrad_jax.projections.pairs import Pair
from tensorgrad_jax.projections.tucker_weight import TuckerWeight


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("factors", "S", "rank"), meta_fields=("shape",)
)
@dataclasses.dataclass(frozen=True)
class LowRankTensor:
    """A complex tensor in Tucker form: a node of a tree of parameters.

    Attributes:
        factors: for every axis (d_i, p_i), zeros from its rank on; None: the axis is whole.
        S: (2, p_1, ..., p_n), the core's real and imaginary part; None where it is kept elsewhere.
        rank: int32 (n,), how many columns are alive.
        shape: of the weight, (2, d_1, ..., d_n).
    """

    factors: Any
    S: Any
    rank: Any
    shape: tuple[int, ...]

    @property
    def size(self) -> list[int]:
        """Physical sizes p_1, ..., p_n of the core."""
        pairs = zip(self.factors, self.shape[1:], strict=True)
        return [d if u is None else u.shape[1] for u, d in pairs]

    def without_core(self) -> LowRankTensor:
        """Return the frozen part."""
        return dataclasses.replace(self, S=None)

    def with_core(self, core: Any) -> LowRankTensor:
        """Return this tensor with another core."""
        return dataclasses.replace(self, S=core)

    def parts(self) -> TuckerWeight:
        """Return core and factors, for layers that multiply by them."""
        return TuckerWeight(self.S, tuple(self.factors))

    def weight(self) -> Float[Array, "2 ..."]:
        """Return the weight. Differentiable."""
        return self.parts().array()

    def ranks(self) -> tuple[int, ...]:
        """Return the ranks of the axes that have factors."""
        pairs = zip(self.factors, jax.device_get(self.rank).tolist(), strict=True)
        return tuple(r for u, r in pairs if u is not None)

    def alive(self) -> int:
        """Return how many numbers of the core are alive."""
        return 2 * math.prod(jax.device_get(self.rank).tolist())

    def cut_rank(self, sigma_cutoff_fraction: float) -> tuple[LowRankTensor, ModesChange]:
        """Rotate every factor, and cut its rank by the rule, see `low_rank.cut_rank`."""
        finite = jnp.isfinite(self.S).all()
        turns, ranks = [], []
        for axis, u in enumerate(self.factors):
            rank = self.rank[axis]
            if u is None:
                turns.append(None)
                ranks.append(rank)
                continue
            turn, sigma = _turn(self.S, axis, rank)
            kept = jnp.where(finite, new_rank(sigma, rank, u.shape[0], sigma_cutoff_fraction), rank)
            turn = jnp.where(jnp.arange(u.shape[1]) < kept, turn, 0)
            turns.append(jnp.where(finite, turn, jnp.eye(u.shape[1], dtype=turn.dtype)))
            ranks.append(kept)
        change = ModesChange(tuple(turns))
        times = lambda u, p: None if u is None else jnp.matmul(u, p, precision=PRECISION)
        factors = tuple(map(times, self.factors, turns))
        core = jnp.where(finite, change.linear(jnp.where(finite, self.S, 0)), self.S)
        return LowRankTensor(factors, core, jnp.stack(ranks), self.shape), change

    def shrunk(self, bucket: int) -> LowRankTensor:
        """Return the tensor with the smallest core of multiples of `bucket`."""
        ranks = jax.device_get(self.rank).tolist()
        fit = lambda r, p: min(p, -(-r // bucket) * bucket)
        sizes = [
            p if u is None else fit(r, p)
            for u, r, p in zip(self.factors, ranks, self.size, strict=True)
        ]
        factors = tuple(
            None if u is None else u[:, :p] for u, p in zip(self.factors, sizes, strict=True)
        )
        core = None if self.S is None else self.S[(slice(None), *(slice(p) for p in sizes))]
        return LowRankTensor(factors, core, self.rank, self.shape)


class ModesChange(NamedTuple):
    """How the coordinates of a tensor change: matrices (d_i, p_i) per axis behind the first.

    Attributes:
        matrices: one per axis; None leaves it.
    """

    matrices: tuple[Any, ...]

    def linear(self, moment: Any) -> Any:
        """Return a linear moment in the new coordinates: every axis times P_i^T."""
        return _times_each(moment, self.matrices)

    def squares(self, moment: Any) -> Any:
        """Return a mean of squares in the new coordinates: every axis times (P_i^2)^T."""
        return _times_each(moment, [None if p is None else p**2 for p in self.matrices])


def factor_tensor(weight: Float[Array, "2 ..."], shares: Sequence[float]) -> LowRankTensor:
    """Return the truncated HOSVD of a weight of real and imaginary part.

    Args:
        weight: (2, d_1, ..., d_n).
        shares: for every axis the share of its size that is kept, at least one; 1: it stays whole.
    """
    x = whole(weight)
    return with_factors(x, axes.without_factor(x.shape, shares))[0]


def whole(weight: Any) -> LowRankTensor:
    """Return a weight in which no axis has a factor: it is its own core."""
    dims = tuple(weight.shape[1:])
    return LowRankTensor(
        (None,) * len(dims), weight, jnp.array(dims, jnp.int32), tuple(weight.shape)
    )


def with_factors(
    x: LowRankTensor, ranks: Sequence[int | None]
) -> tuple[LowRankTensor, ModesChange]:
    """Give some axes that are whole their factors, and leave the others what they are.

    A factor is made of the leading left singular vectors of the core's unfolding; where several
    axes get theirs, one after the other, of the core that the one before has left.

    Args:
        x: with its core.
        ranks: for every axis the rank that it gets; None: it stays as it is.

    Returns:
        the tensor, and how moments of its core become those of the new core.
    """
    wide = x.S.astype(jnp.promote_types(x.S.dtype, jnp.float32))
    sizes = [p if r is None else r for r, p in zip(ranks, x.S.shape[1:], strict=True)]
    made = mode_products.sequentially_truncated(Pair(wide), sizes, real_factors=True)
    change = ModesChange(tuple(made))
    factors = tuple(u if v is None else v for u, v in zip(x.factors, made, strict=True))
    new = [x.rank[i] if r is None else r for i, r in enumerate(ranks)]
    rank = jnp.stack([jnp.asarray(r, jnp.int32) for r in new])
    return LowRankTensor(factors, change.linear(x.S), rank, x.shape), change


def _times_each(x: Array, matrices: Sequence[Any]) -> Array:
    result = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    for axis, p in enumerate(matrices, start=1):
        if p is not None:
            moved = jnp.tensordot(result, p, axes=(axis, 0), precision=PRECISION)
            result = jnp.moveaxis(moved, -1, axis)
    return result.astype(x.dtype)


def _turn(core: Array, axis: int, rank: Array) -> tuple[Array, Array]:
    """Return the left singular vectors of an unfolding, and the singular values, in order."""
    unfolded = axes.unfolding(core, axis)
    largest = jnp.max(jnp.abs(unfolded))  # squares leave float32's range before cores do
    scale = jnp.where(largest > 0, largest, 1)
    unfolded = unfolded / scale
    gram = jnp.matmul(unfolded, unfolded.T, precision=PRECISION)
    alive = jnp.arange(len(gram)) < rank
    gram = jnp.where(alive[:, None] & alive, gram, 0)
    # What is dead comes first in the order and stays the unit vectors that it is.
    above = 2 * jnp.trace(gram) + 1
    values, vectors = jnp.linalg.eigh(gram + jnp.diag(jnp.where(alive, 0, above)))
    dead = len(gram) - rank
    inward = lambda x: jnp.where(alive, jnp.roll(jnp.flip(x, -1), -dead, axis=-1), 0)
    return inward(vectors), scale * jnp.sqrt(jnp.maximum(inward(values), 0))
