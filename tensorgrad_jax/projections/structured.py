"""Structured sparse projection: whole slices of every mode."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact, PRNGKeyArray

from tensorgrad_jax.projections.base import Leaf, Projection
from tensorgrad_jax.projections.leading import scaled_to_one
from tensorgrad_jax.projections.plain import check_scale, make_plain
from tensorgrad_jax.projections.ranks import RankSpec, check_rank, resolve_ranks
from tensorgrad_jax.projections.selection import SELECTIONS, Selection, select_of_few


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeptSlices:
    """The basis of a structured sparse projection.

    Attributes:
        slices: for every mode, the ascending int32 indices of the slices that are kept.
        shape: the tensor's shape; static, as no array tells it.
    """

    slices: Any
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})


@dataclasses.dataclass(frozen=True)
class StructuredSparse(Projection):
    """Keep the block of entries that lie in k_i kept slices of every mode i.

    The compact form is the block, of shape (k_1, ..., k_n). It costs sum_i k_i indices.

    Attributes:
        ratio: how much to keep: a float is a budget for the block's size, rounded as that of
            `Tucker`; an int is the number of slices of every mode; a tuple has one int (number of
            slices) or one float (share of the slices) per mode.
        select: "topk" keeps the slices of largest Frobenius norm, "randk" uniformly random ones,
            "probability" random ones without replacement, in proportion to their norms.
        scale_by_mask_ratio: lift with the factor sqrt(size / kept), which gives random choices
            the expected squared norm of the whole.
        scale: further factor of what is lifted.

    Raises:
        ValueError: at construction, if an argument is not one of these.

    References:
        S. Loeschcke et al., TensorGRaD, arXiv 2501.02379, section 3.
    """

    ratio: RankSpec = 0.25
    select: Selection = "topk"
    scale_by_mask_ratio: bool = False
    scale: float = 1.0

    def __post_init__(self):
        make_plain(self)
        check_rank("StructuredSparse", self.ratio, "ratio")
        if self.select not in SELECTIONS:
            raise ValueError(
                f"StructuredSparse: select must be one of {SELECTIONS}, got {self.select!r}"
            )
        check_scale("StructuredSparse", self.scale)

    def counts(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the number of slices kept of every mode of a tensor of this shape."""
        return resolve_ranks("StructuredSparse", self.ratio, tuple(shape), "ratio")

    def init(self, leaf: Leaf) -> KeptSlices:
        """Return the first slices of every mode."""
        counts = self.counts(leaf.shape)
        return KeptSlices(tuple(jnp.arange(k, dtype=jnp.int32) for k in counts), tuple(leaf.shape))

    def compact_struct(self, leaf: Leaf) -> jax.ShapeDtypeStruct:
        """Return the struct of the block."""
        return jax.ShapeDtypeStruct(self.counts(leaf.shape), leaf.dtype)

    def refresh(
        self, key: PRNGKeyArray, tensor: Inexact[Array, ...], basis: KeptSlices
    ) -> KeptSlices:
        """Choose the slices anew."""
        squares = jnp.abs(scaled_to_one(tensor)) ** 2
        slices = []
        for mode, k in enumerate(self.counts(tensor.shape)):
            others = tuple(i for i in range(tensor.ndim) if i != mode)
            norms = jnp.sqrt(squares.sum(axis=others))
            slices.append(select_of_few(self.select, jax.random.fold_in(key, mode), norms, k))
        return KeptSlices(tuple(slices), basis.shape)

    def project(self, tensor: Inexact[Array, ...], basis: KeptSlices) -> Inexact[Array, ...]:
        """Gather the block."""
        for mode, kept in enumerate(basis.slices):
            tensor = jnp.take(
                tensor, kept, axis=mode, unique_indices=True, indices_are_sorted=True, mode="clip"
            )
        return tensor

    def lift(self, compact: Inexact[Array, ...], basis: KeptSlices) -> Inexact[Array, ...]:
        """Put the block into zeros."""
        return self.add_lifted(jnp.zeros(basis.shape, compact.dtype), compact, basis)

    def add_lifted(
        self,
        tensor: Inexact[Array, ...],
        compact: Inexact[Array, ...],
        basis: KeptSlices,
        weight: float = 1.0,
    ) -> Inexact[Array, ...]:
        """Add the block in its place."""
        factor = weight * self.lift_factor(basis.shape)
        block = compact if factor == 1.0 else factor * compact
        if not basis.slices:
            return tensor + block
        return tensor.at[jnp.ix_(*basis.slices)].add(
            block, indices_are_sorted=True, unique_indices=True
        )

    def lift_factor(self, shape: tuple[int, ...]) -> float:
        """Return `scale`, times sqrt(size / kept) where that is asked for."""
        if not self.scale_by_mask_ratio:
            return self.scale
        return self.scale * math.sqrt(math.prod(shape) / math.prod(self.counts(shape)))

    def transport(
        self, compact: Inexact[Array, ...], old: KeptSlices, new: KeptSlices
    ) -> Inexact[Array, ...]:
        """Entries that stay kept keep their value; new ones start at zero."""
        for mode, (before, after) in enumerate(zip(old.slices, new.slices, strict=True)):
            place = jnp.minimum(jnp.searchsorted(before, after), before.size - 1)
            stays = (before[place] == after).reshape((-1,) + (1,) * (compact.ndim - mode - 1))
            compact = jnp.where(stays, jnp.take(compact, place, axis=mode), 0)
        return compact

    def transport_squares(
        self, compact: Inexact[Array, ...], old: KeptSlices, new: KeptSlices
    ) -> Inexact[Array, ...]:
        """As for first moments: an entry's variance belongs to that entry."""
        return self.transport(compact, old, new)
