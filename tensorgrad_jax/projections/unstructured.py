"""Sparse projection: single entries of a tensor."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact, PRNGKeyArray

from tensorgrad_jax.projections.base import Leaf, Projection, check_scale
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
        """Return a valid choice that no tensor has been asked for."""
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
        magnitudes, k = jnp.abs(tensor).ravel(), self.count(tensor.shape)
        if self.select == "probability":
            return KeptEntries(weighted(key, magnitudes, k), basis.shape)
        return KeptEntries(top_k(magnitudes, k), basis.shape)

    def indices(self, basis: KeptEntries) -> Array:
        """Return the ascending int32 indices of the kept entries in the flattened tensor."""
        if self.select == "randk":
            return stratified(basis.choice, math.prod(basis.shape), self.count(basis.shape))
        return basis.choice

    def project(self, tensor: Inexact[Array, ...], basis: KeptEntries) -> Inexact[Array, " k"]:
        """Gather the kept entries."""
        return _by_parts(lambda x: _at(x.ravel(), self.indices(basis)), tensor)

    def lift(self, compact: Inexact[Array, " k"], basis: KeptEntries) -> Inexact[Array, ...]:
        """Scatter the entries into zeros."""
        return self.add_lifted(jnp.zeros(basis.shape, compact.dtype), compact, basis)

    def add_lifted(
        self,
        tensor: Inexact[Array, ...],
        compact: Inexact[Array, " k"],
        basis: KeptEntries,
        weight: float = 1.0,
    ) -> Inexact[Array, ...]:
        """Scatter-add the entries to a tensor: only k entries are touched."""
        indices = self.indices(basis)
        factor = weight * self._factor(basis.shape)

        def scatter(x, entries):
            return (
                x.ravel()
                .at[indices]
                .add(
                    entries if factor == 1.0 else factor * entries,
                    indices_are_sorted=True,
                    unique_indices=True,
                    mode="promise_in_bounds",
                )
                .reshape(x.shape)
            )

        return _by_parts(scatter, tensor, compact)

    def _factor(self, shape: tuple[int, ...]) -> float:
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


def _at(flat, indices):
    return flat.at[indices].get(
        indices_are_sorted=True, unique_indices=True, mode="promise_in_bounds"
    )


def _by_parts(function, *arrays):
    """Apply a linear function to real and imaginary parts: XLA gathers complex numbers slowly."""
    if not jnp.iscomplexobj(arrays[0]):
        return function(*arrays)
    return jax.lax.complex(function(*(a.real for a in arrays)), function(*(a.imag for a in arrays)))
