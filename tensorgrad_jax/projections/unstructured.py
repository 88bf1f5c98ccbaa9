"""Sparse projection: single entries of a tensor."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact, PRNGKeyArray

from tensorgrad_jax.backend.entries import cleared_entries
from tensorgrad_jax.projections.base import Leaf, Projection
from tensorgrad_jax.projections.pairs import Pair, Tensor, as_array
from tensorgrad_jax.projections.plain import check_scale, make_plain
from tensorgrad_jax.projections.selection import (
    SELECTIONS,
    Selection,
    check_size,
    kept_count,
    stratified,
    top_k,
    weighted,
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeptEntries:
    """The basis of a sparse projection: which entries of the flattened tensor are kept.

    Attributes:
        choice: int32 (k,), the ascending indices themselves ("topk", "probability"); or uint32
            (), the seed they are drawn from ("randk").
        shape: the tensor's shape. Static: lifting needs it, and no array tells it.
    """

    choice: Any  # any leaf: JAX puts structs, shardings and its own markers in a node's place
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})


@dataclasses.dataclass(frozen=True)
class UnstructuredSparse(Projection):
    """Keep k = max(1, int(ratio * size)) single entries; the compact form is the vector of them.

    Attributes:
        ratio: share of the entries to keep, in (0, 1].
        select: "randk", one random entry out of each of k consecutive blocks (nothing but a seed
            is kept in the state); "topk", the entries of largest magnitude at the refresh;
            "probability", entries drawn without replacement in proportion to their magnitudes
            (both: 4 bytes per kept entry in the state).
        scale_by_mask_ratio: lift with the factor sqrt(size / k), which gives random choices the
            expected squared norm of the whole.
        scale: further factor of what is lifted.

    Raises:
        ValueError: at construction, if an argument is not one of these.

    References:
        S. Loeschcke et al., TensorGRaD, arXiv 2501.02379, section 3.
    """

    ratio: float = 0.05
    select: Selection = "randk"
    scale_by_mask_ratio: bool = False
    scale: float = 1.0

    def __post_init__(self):
        make_plain(self)
        if not isinstance(self.ratio, int | float) or not 0 < self.ratio <= 1:
            raise ValueError(
                f"UnstructuredSparse: ratio must be a number in (0, 1], got {self.ratio!r}"
            )
        if self.select not in SELECTIONS:
            raise ValueError(
                f"UnstructuredSparse: select must be one of {SELECTIONS}, got {self.select!r}"
            )
        check_scale("UnstructuredSparse", self.scale)

    def count(self, shape: tuple[int, ...]) -> int:
        """Return the number of entries kept of a tensor of this shape."""
        return kept_count(self.ratio, check_size("UnstructuredSparse", shape))

    def init(self, leaf: Leaf) -> KeptEntries:
        """Return a valid choice that no tensor has been asked for.

        Raises:
            ValueError: if int32 cannot index the entries, of a complex tensor those of both parts.
        """
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            check_size("UnstructuredSparse", (2, *leaf.shape))
        shape, k = tuple(leaf.shape), self.count(leaf.shape)
        if self.select == "randk":
            return KeptEntries(jnp.zeros((), jnp.uint32), shape)
        return KeptEntries(jnp.arange(k, dtype=jnp.int32), shape)

    def compact_struct(self, leaf: Leaf) -> jax.ShapeDtypeStruct:
        """Return the struct of the vector of kept entries."""
        return jax.ShapeDtypeStruct((self.count(leaf.shape),), leaf.dtype)

    def refresh(
        self, key: PRNGKeyArray, tensor: Inexact[Array, ...], basis: KeptEntries
    ) -> KeptEntries:
        """Choose the entries anew."""
        if self.select == "randk":
            return KeptEntries(jax.random.bits(key, (), jnp.uint32), basis.shape)
        magnitudes, k = jnp.abs(as_array(tensor)).ravel(), self.count(tensor.shape)
        if self.select == "probability":
            return KeptEntries(weighted(key, magnitudes, k), basis.shape)
        return KeptEntries(top_k(magnitudes, k), basis.shape)

    @property
    def takes_pairs(self) -> bool:
        """Entries are picked from the parts as they are."""
        return True

    def indices(self, basis: KeptEntries) -> Array:
        """Return the ascending int32 indices of the kept entries in the flattened tensor."""
        if self.select == "randk":
            return stratified(basis.choice, math.prod(basis.shape), self.count(basis.shape))
        return basis.choice

    def project(self, tensor: Tensor, basis: KeptEntries) -> Inexact[Array, " k"]:
        """Gather the kept entries."""
        return _kept(tensor, self.indices(basis))

    def lift(self, compact: Inexact[Array, " k"], basis: KeptEntries) -> Inexact[Array, ...]:
        """Scatter the entries into zeros."""
        return self.add_lifted(jnp.zeros(basis.shape, compact.dtype), compact, basis)

    def lift_pair(self, compact: Inexact[Array, " k"], basis: KeptEntries) -> Pair:
        """Scatter the entries into a pair of zeros."""
        zeros = jnp.zeros((2, *basis.shape), compact.real.dtype)
        return self.add_lifted(Pair(zeros), compact, basis)

    def add_lifted(
        self,
        tensor: Tensor,
        compact: Inexact[Array, " k"],
        basis: KeptEntries,
        weight: float = 1.0,
    ) -> Tensor:
        """Scatter-add the entries to a tensor: only k entries are touched."""
        factor = weight * self.lift_factor(basis.shape)
        entries = compact if factor == 1.0 else factor * compact
        indices = self.indices(basis)
        if not isinstance(tensor, Pair):
            return _scatter_add(tensor, entries, indices)
        entries = jnp.concatenate([entries.real, entries.imag])
        return Pair(_scatter_add(tensor.parts, entries, _of_parts(indices, tensor.size)))

    def complement(
        self, tensor: Tensor, compact: Inexact[Array, " k"], basis: KeptEntries
    ) -> Tensor:
        """Return the tensor with zeros in the place of the kept entries."""
        del compact
        return _without(tensor, self.indices(basis))

    def split(self, tensor: Tensor, basis: KeptEntries) -> tuple[Inexact[Array, " k"], Tensor]:
        """Gather the kept entries and put zeros in their place; the indices are drawn once."""
        indices = self.indices(basis)
        return _kept(tensor, indices), _without(tensor, indices)

    def lift_factor(self, shape: tuple[int, ...]) -> float:
        """Return `scale`, times sqrt(size / kept) where that is asked for."""
        if not self.scale_by_mask_ratio:
            return self.scale
        return self.scale * math.sqrt(math.prod(shape) / self.count(shape))

    def transport(
        self, compact: Inexact[Array, " k"], old: KeptEntries, new: KeptEntries
    ) -> Inexact[Array, " k"]:
        """Entries that stay kept keep their value; new ones start at zero."""
        before, after = self.indices(old), self.indices(new)
        if self.select == "randk":
            # Block i's entry can only be found in block i.
            stays, found = before == after, compact
        else:
            place = jnp.minimum(jnp.searchsorted(before, after), before.size - 1)
            stays, found = before[place] == after, compact[place]
        return jnp.where(stays, found, 0)

    def transport_squares(
        self, compact: Inexact[Array, " k"], old: KeptEntries, new: KeptEntries
    ) -> Inexact[Array, " k"]:
        """As for first moments: an entry's variance belongs to that entry."""
        return self.transport(compact, old, new)


_SELECTED = {"indices_are_sorted": True, "unique_indices": True, "mode": "promise_in_bounds"}


def _gather(x, indices):
    return x.ravel().at[indices].get(**_SELECTED)


def _scatter_add(x, entries, indices):
    return x.ravel().at[indices].add(entries.astype(x.dtype), **_SELECTED).reshape(x.shape)


def _of_parts(indices, size):
    """Return the indices within real and imaginary parts, one behind the other."""
    return jnp.concatenate([indices, indices + size])


def _kept(tensor, indices):
    if not isinstance(tensor, Pair):
        return _gather(tensor, indices)
    entries = _gather(tensor.parts, _of_parts(indices, tensor.size))
    wide = entries.astype(jnp.promote_types(entries.dtype, jnp.float32))
    return jax.lax.complex(*wide.reshape(2, -1))


def _without(tensor, indices):
    cleared = lambda x: cleared_entries(x.reshape(-1, tensor.size), indices).reshape(x.shape)
    return jax.tree.map(cleared, tensor)
