"""Composites: two projections as one, whose compact form is a tuple.

`Residual` is TensorGRaD: the second projection sees what the first left over of the tensor. In
`Sum` both see the tensor itself.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
from jaxtyping import Array, Inexact, PRNGKeyArray

from tensorgrad_jax.projections.base import Basis, Compact, Leaf, Projection
from tensorgrad_jax.projections.pairs import Pair, Tensor
from tensorgrad_jax.projections.plain import make_plain, shown
from tensorgrad_jax.projections.unstructured import UnstructuredSparse


@dataclasses.dataclass(frozen=True)
class _Composite(Projection):
    """What both ways of combining two projections share: everything but what `second` sees."""

    first: Projection
    second: Projection
    weights: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self):
        make_plain(self)
        owner = type(self).__name__
        for name in ("first", "second"):
            if not isinstance(part := getattr(self, name), Projection):
                raise ValueError(f"{owner}: {name} must be a Projection, got {shown(part)}")
        w = self.weights
        real = lambda x: isinstance(x, int | float) and not isinstance(x, bool)
        pair = isinstance(w, tuple) and len(w) == 2 and all(map(real, w))
        if not pair or not all(map(math.isfinite, w)):
            raise ValueError(
                f"{owner}: weights must be a tuple of two finite numbers, got {shown(w)}"
            )

    def _lift_weights(self, compact):
        """Return the weights of the lifted parts; the compact forms tell their sizes."""
        del compact
        return self.weights

    def _split(self, tensor, basis):
        """Return the compact form of `first`, whose basis is given, and what `second` sees."""
        raise NotImplementedError

    @property
    def takes_pairs(self) -> bool:
        """Pairs are taken if both parts take them."""
        return self.first.takes_pairs and self.second.takes_pairs

    def init(self, leaf: Leaf) -> Basis:
        """Return the bases of both parts."""
        return (self.first.init(leaf), self.second.init(leaf))

    def compact_struct(self, leaf: Leaf) -> Any:
        """Return the structs of both parts."""
        return (self.first.compact_struct(leaf), self.second.compact_struct(leaf))

    def refresh(self, key: PRNGKeyArray, tensor: Tensor, basis: Basis) -> Basis:
        """Refresh the first, then the second on what it sees."""
        keys = jax.random.split(key)
        first = self.first.refresh(keys[0], tensor, basis[0])
        seen = self._split(tensor, first)[1]
        return (first, self.second.refresh(keys[1], seen, basis[1]))

    def project(self, tensor: Tensor, basis: Basis) -> Compact:
        """Return the compact forms of both parts."""
        first, seen = self._split(tensor, basis[0])
        return (first, self.second.project(seen, basis[1]))

    def lift(self, compact: Compact, basis: Basis) -> Inexact[Array, ...]:
        """Return the weighted sum of both lifted parts."""
        return self._lift(compact, basis, lambda part: part.lift)

    def lift_pair(self, compact: Compact, basis: Basis) -> Pair:
        """Return the same as a pair."""
        return self._lift(compact, basis, lambda part: part.lift_pair)

    def _lift(self, compact, basis, lift_of):
        weights = self._lift_weights(compact)
        parts = list(zip((self.first, self.second), compact, basis, weights, strict=True))
        # The part that writes every entry goes first: adding a sparse one to it touches few.
        if isinstance(self.first, UnstructuredSparse):
            parts.reverse()
        (part, c, b, weight), (other, other_c, other_b, other_weight) = parts
        lifted = lift_of(part)(c, b)
        if weight != 1.0:
            lifted = jax.tree.map(lambda x: weight * x, lifted)
        return other.add_lifted(lifted, other_c, other_b, other_weight)

    def transport(self, compact: Compact, old: Basis, new: Basis) -> Compact:
        """Transport within each part."""
        return (
            self.first.transport(compact[0], old[0], new[0]),
            self.second.transport(compact[1], old[1], new[1]),
        )

    def transport_squares(self, compact: Compact, old: Basis, new: Basis) -> Compact:
        """Transport within each part."""
        return (
            self.first.transport_squares(compact[0], old[0], new[0]),
            self.second.transport_squares(compact[1], old[1], new[1]),
        )


@dataclasses.dataclass(frozen=True)
class Residual(_Composite):
    """Compress with `first`, then compress what is left over with `second`.

        c1 = first(G),   c2 = second(G - lift1(c1)),   lift(c1, c2) = w1 lift1(c1) + w2 lift2(c2)

    The weights multiply what is lifted, never the part that is subtracted to form the residual.
    Moments are transported within each part alone.

    Attributes:
        first: the projection of the tensor; may be composite itself.
        second: the projection of what is left over; may be composite itself.
        weights: (w1, w2).

    Raises:
        ValueError: at construction, if an argument is not one of these.

    References:
        S. Loeschcke et al., TensorGRaD, arXiv 2501.02379, section 3 and algorithm 1.
    """

    def complement(self, tensor: Tensor, compact: Compact, basis: Basis) -> Tensor:
        """Return what the second part leaves over of what the first does, whatever the weights."""
        residual = self.first.complement(tensor, compact[0], basis[0])
        return self.second.complement(residual, compact[1], basis[1])

    def _split(self, tensor, basis):
        return self.first.split(tensor, basis)


@dataclasses.dataclass(frozen=True)
class Sum(_Composite):
    """Compress with both projections, each on its own.

        c1 = first(G),   c2 = second(G),   lift(c1, c2) = w1 lift1(c1) + w2 lift2(c2)

    What both parts keep is lifted twice: unlike the parts, their sum is not an orthogonal
    projection, and `complement` (G - lift1(c1) - lift2(c2)) has lost it twice.

    Attributes:
        first: a projection of the tensor; may be composite itself.
        second: another one.
        weights: (w1, w2).

    Raises:
        ValueError: at construction, if an argument is not one of these.

    References:
        S. Loeschcke et al., TensorGRaD, arXiv 2501.02379.
    """

    def complement(self, tensor: Tensor, compact: Compact, basis: Basis) -> Tensor:
        """Return the tensor without what either part keeps, whatever the weights."""
        first = self.first.complement(tensor, compact[0], basis[0])
        second = self.second.complement(tensor, compact[1], basis[1])
        return jax.tree.map(lambda a, b, g: a + b - g, first, second, tensor)

    def _split(self, tensor, basis):
        return self.first.project(tensor, basis), tensor
