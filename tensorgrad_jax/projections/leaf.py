"""How a parameter is presented to a projection.

A parameter is not always the tensor that should be projected. Complex weights are stored as pairs
of real numbers (one axis of size 2), and some axes only stack independent tensors. `TensorSpec`
says so; `LeafProjection` turns such a leaf into the tensors that a projection sees and turns the
result back.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from tensorgrad_jax.projections.base import Basis, Compact, Projection
from tensorgrad_jax.projections.pairs import Pair, Tensor, as_array, as_pair, is_pair
from tensorgrad_jax.projections.plain import make_plain


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """What an optimizer must know of one parameter to treat it as a tensor.

    Attributes:
        complex_axis: the axis, of size 2, along which real and imaginary part of a complex
            tensor lie. None for a leaf that is taken as it is.
        batch_axes: axes that only stack independent tensors (stacked layers, experts); each
            slice gets a basis of its own.
        groups: groups of axes over which `scale_by_factored_rms` factors the second moment; each
            axis but those above is in one of them, or in all: then it is factored at every index
            of that axis. None: the two largest axes are factored, at every index of the others.
        matrix_axes: rows and columns of the matrices whose polar factors `orthogonalize` takes, one
            for every index of the other axes. None: the two largest, the last ones among equals.
    """

    complex_axis: int | None = None
    batch_axes: tuple[int, ...] = ()
    groups: tuple[tuple[int, ...], ...] | None = None
    matrix_axes: tuple[int, int] | None = None

    def __post_init__(self):
        make_plain(self)
        if self.complex_axis is not None and not _is_int(self.complex_axis):
            raise ValueError(
                f"TensorSpec: complex_axis must be an integer or None, got {self.complex_axis!r}"
            )
        axes = self.batch_axes
        if not isinstance(axes, tuple) or not all(_is_int(a) for a in axes):
            raise ValueError(f"TensorSpec: batch_axes must be a tuple of integers, got {axes!r}")
        axes = self.matrix_axes
        if axes is not None and not (
            isinstance(axes, tuple) and len(axes) == 2 and all(_is_int(a) for a in axes)
        ):
            raise ValueError(f"TensorSpec: matrix_axes must be two integers or None, got {axes!r}")
        if self.groups is not None and not (
            isinstance(self.groups, tuple)
            and all(
                isinstance(group, tuple) and group and all(_is_int(a) for a in group)
                for group in self.groups
            )
        ):
            raise ValueError(
                f"TensorSpec: groups must be a tuple of tuples of integers, got {self.groups!r}"
            )


def _is_int(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclasses.dataclass(frozen=True)
class LeafProjection:
    """A projection applied to one parameter: the view that its `TensorSpec` asks for, and back.

    The methods are those of `Projection` with leaves in the place of tensors. Basis and compact
    form of a leaf with batch axes carry one leading axis, the product of the batch axes.

    Raises:
        ValueError: if the spec does not fit the leaf's shape and dtype.
    """

    projection: Projection
    spec: TensorSpec
    shape: tuple[int, ...]
    dtype: Any
    name: str = "leaf"

    def __post_init__(self):
        ndim, axis = len(self.shape), self.spec.complex_axis
        where = f"parameter {self.name!r} of shape {self.shape} and dtype {self.dtype}"
        if not jnp.issubdtype(self.dtype, jnp.inexact):
            raise ValueError(f"{where}: only floating-point and complex leaves can be projected")
        if math.prod(self.shape) == 0:
            raise ValueError(f"{where}: a leaf without elements cannot be projected")
        used = self.spec.batch_axes + (() if axis is None else (axis,))
        if any(not -ndim <= a < ndim for a in used) or len({a % ndim for a in used}) < len(used):
            raise ValueError(f"{where}: the axes of {self.spec} must be distinct axes of the leaf")
        if axis is not None:
            if jnp.issubdtype(self.dtype, jnp.complexfloating):
                raise ValueError(f"{where}: a complex leaf takes no complex_axis, got {axis}")
            if self.shape[axis] != 2:
                raise ValueError(
                    f"{where}: complex_axis={axis} must have size 2, has {self.shape[axis]}"
                )

    @property
    def _batch_axes(self) -> tuple[int, ...]:
        return tuple(a % len(self.shape) for a in self.spec.batch_axes)

    @property
    def _kept_axes(self) -> tuple[int, ...]:
        ndim = len(self.shape)
        axis = self.spec.complex_axis
        gone = self._batch_axes + (() if axis is None else (axis % ndim,))
        return tuple(a for a in range(ndim) if a not in gone)

    @property
    def _tensor_dtype(self):
        # bfloat16 and float16 are widened: bases and compact forms are float32.
        dtype = jnp.promote_types(self.dtype, jnp.float32)
        return dtype if self.spec.complex_axis is None else jnp.promote_types(dtype, jnp.complex64)

    @property
    def nbytes(self) -> int:
        """Bytes of the leaf in float32 or wider, the precision in which it is projected."""
        wide = jnp.promote_types(self.dtype, jnp.float32)
        return math.prod(self.shape) * wide.itemsize

    @property
    def tensor_struct(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of one tensor as the projection sees it."""
        return jax.ShapeDtypeStruct(
            tuple(self.shape[a] for a in self._kept_axes), self._tensor_dtype
        )

    def _over_batch(self, function):
        return jax.vmap(function) if self.spec.batch_axes else function

    def _stacked(self, tree):
        """Give every array of `tree` the leading axis of the batch."""
        if not self.spec.batch_axes:
            return tree
        n = math.prod(self.shape[a] for a in self._batch_axes)
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (n, *x.shape)), tree)

    @property
    def _order(self) -> list[int]:
        """The axes of the leaf: batches, the complex axis, what remains."""
        axis = self.spec.complex_axis
        parts = () if axis is None else (axis % len(self.shape),)
        return [*self._batch_axes, *parts, *self._kept_axes]

    @property
    def takes_as_stored(self) -> bool:
        """Whether `to_tensor` is another view of the same numbers, neither widened nor moved."""
        if self.spec.complex_axis is None:
            is_read = self.dtype == self._tensor_dtype
        else:
            is_read = self.projection.takes_pairs
        return is_read and self._order == sorted(self._order)

    def to_tensor(self, leaf: Array) -> Tensor:
        """Return the tensor, or the stack of tensors, that `leaf` holds.

        A complex one is a `Pair` of what is stored if the projection takes pairs, else an array.
        """
        stacked = (-1,) if self.spec.batch_axes else ()
        shape = self.tensor_struct.shape
        if self.spec.complex_axis is None:
            leaf = leaf.astype(jnp.promote_types(self.dtype, jnp.float32))
            return leaf.transpose(self._order).reshape(*stacked, *shape)
        tensor = Pair(leaf.transpose(self._order).reshape(*stacked, 2, *shape))
        return tensor if self.projection.takes_pairs else self._over_batch(as_array)(tensor)

    def to_leaf(self, tensor: Tensor) -> Array:
        """Undo `to_tensor` (up to the dtype, which stays that of `tensor`)."""
        if isinstance(tensor, Pair):
            tensor = tensor.parts
        elif self.spec.complex_axis is not None:
            tensor = self._over_batch(as_pair)(tensor).parts
        inverse = sorted(range(len(self._order)), key=self._order.__getitem__)
        return tensor.reshape([self.shape[a] for a in self._order]).transpose(inverse)

    def init(self) -> Basis:
        """Return a valid basis."""
        return self._stacked(self.projection.init(self.tensor_struct))

    def compact_struct(self) -> Any:
        """Return shapes and dtypes of the compact form."""
        return jax.eval_shape(
            lambda: self._stacked(
                jax.tree.map(
                    lambda s: jnp.zeros(s.shape, s.dtype),
                    self.projection.compact_struct(self.tensor_struct),
                )
            )
        )

    @property
    def budget(self) -> float:
        """Entries of the compact form / entries of the leaf; complex numbers are one entry."""
        n = math.prod(self.shape) // (1 if self.spec.complex_axis is None else 2)
        return sum(math.prod(s.shape) for s in jax.tree.leaves(self.compact_struct())) / n

    def basis_arrays(self, basis: Basis) -> tuple[Array, ...]:
        """Return the arrays of a basis, which are all of it that a state must hold.

        What else it says (a shape, that a mode has no factor) follows from the leaf.
        """
        return tuple(jax.tree.leaves(basis))

    def basis_of(self, arrays: Sequence[Array]) -> Basis:
        """Undo `basis_arrays`."""
        return jax.tree.structure(jax.eval_shape(self.init)).unflatten(arrays)

    def to_numbers(self, compact: Compact) -> Compact:
        """Return a compact form as an optimizer is to see it: in numbers of the leaf's own kind.

        The leaf of a complex tensor stored as a pair holds real numbers. Then so does this form, a
        `Pair` in the place of every complex array: whatever Optax makes of the real numbers of an
        uncompressed pair, it makes of these. Real and imaginary part lie along axis 0, also where
        tensors are stacked.
        """
        if self.spec.complex_axis is None:
            return compact
        return jax.tree.map(lambda x: as_pair(x) if jnp.iscomplexobj(x) else x, compact)

    def from_numbers(self, compact: Compact) -> Compact:
        """Undo `to_numbers`."""
        return jax.tree.map(as_array, compact, is_leaf=is_pair)

    def refresh(self, key: PRNGKeyArray, tensor: Tensor, basis: Basis) -> Basis:
        """Choose the subspace of every stacked tensor anew."""
        if not self.spec.batch_axes:
            return self.projection.refresh(key, tensor, basis)
        n = math.prod(self.shape[a] for a in self._batch_axes)
        return jax.vmap(self.projection.refresh)(jax.random.split(key, n), tensor, basis)

    def project(self, tensor: Tensor, basis: Basis) -> Compact:
        """Return the compact form of every stacked tensor."""
        return self._over_batch(self.projection.project)(tensor, basis)

    def lift(self, compact: Compact, basis: Basis) -> Tensor:
        """Return the tensors that compact forms stand for, of the kind of `to_tensor`'s."""
        pairs = self.spec.complex_axis is not None and self.projection.takes_pairs
        lift = self.projection.lift_pair if pairs else self.projection.lift
        return self._over_batch(lift)(compact, basis)

    def lift_onto_complement(
        self, tensor: Tensor, update: Compact, compact: Compact, basis: Basis, weight: float = 1.0
    ) -> Tensor:
        """Return lift(update) + weight * (what `compact` leaves over of `tensor`, its origin)."""

        def both(tensor, update, compact, basis):
            lifted = self.projection.lift(update, basis)
            complement = as_array(self.projection.complement(tensor, compact, basis))
            return lifted + (complement if weight == 1.0 else weight * complement)

        return self._over_batch(both)(tensor, update, compact, basis)

    def transport(self, compact: Compact, old: Basis, new: Basis) -> Compact:
        """Carry linear moments over to a new basis."""
        return self._over_batch(self.projection.transport)(compact, old, new)

    def transport_squares(self, compact: Compact, old: Basis, new: Basis) -> Compact:
        """Carry variances over to a new basis."""
        return self._over_batch(self.projection.transport_squares)(compact, old, new)
