"""What becomes of the gradients of all examples: the reductions.

A reduction sees the gradients of a few examples at a time, one parameter at a time, and returns
something small. What it returns is either added over examples (`rows` is False), as squares are,
or holds a row per example (`rows` is True), as features are.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact, Shaped

from tensorgrad_jax.projections import LeafProjection, Projection, TensorSpec


class Leaf(NamedTuple):
    """One parameter.

    Attributes:
        path: its place in the tree, as a string.
        shape: its shape.
        dtype: its dtype.
        offset: how many numbers all parameters before it hold.
    """

    path: str
    shape: tuple[int, ...]
    dtype: Any
    offset: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class Reduction(abc.ABC):
    """A map from the gradients of all examples to something that can be kept.

    Attributes:
        rows: whether the result holds a row per example; otherwise results of several examples
            are added.
        elementwise: whether an entry of the result depends on that entry of the gradients alone,
            so that the reduction of a slice is a slice of the reduction.
        adds_leaves: whether the results of all parameters are of one shape and to be added.
    """

    rows: bool = False
    elementwise: bool = False
    adds_leaves: bool = False

    @property
    def of_terms(self) -> bool:
        """Whether it needs the single terms of a gradient, which rules of primitives alone have."""
        return False

    def weight(self, n: int) -> float:
        """Return what the gradients of n examples are multiplied by before they are reduced.

        A mean of squares is the sum of squares of gradients over sqrt(n): weighting cotangents,
        which are small, costs nothing, where dividing the result is one more pass over it.
        """
        del n
        return 1.0

    def operands(self, leaves: Sequence[Leaf], structure: Any) -> list[Any]:
        """Return the arrays that `reduce` needs, for every leaf.

        Args:
            leaves: the parameters.
            structure: the tree that they are the leaves of.
        """
        del structure
        return [None] * len(leaves)

    @property
    def takes_slabs(self) -> bool:
        """Whether `reduce_slab` takes the gradients of all examples by parts of a parameter."""
        return False

    def takes_outer(self, leaf: Leaf) -> bool:
        """Whether `reduce_outer` can reduce gradients that are sums of outer products."""
        del leaf
        return False

    def prefers_outer(self, leaf: Leaf, positions: int) -> bool:
        """Whether `reduce_outer` is to be preferred to `reduce` for a sum of so many."""
        del leaf, positions
        return True

    def reduce_slab(
        self, leaf: Leaf, operands: Any, gradients: Inexact[Array, "n ..."], axis: int, first: Any
    ) -> Any:
        """Return the part of the reduction that a slab of one parameter has; slabs add up.

        Args:
            leaf: the parameter.
            operands: its arrays.
            gradients: of all examples, with respect to some indices of `axis`.
            axis: of the parameter.
            first: the first of these indices, an integer or a traced one.
        """
        raise NotImplementedError(f"{type(self).__name__} takes no slabs")

    def reduce_outer(
        self,
        leaf: Leaf,
        operands: Any,
        left: Inexact[Array, "n positions rows"],
        right: Inexact[Array, "n positions columns"],
    ) -> Any:
        """Reduce the gradients sum_t left_nt right_nt^T with respect to one matrix."""
        raise NotImplementedError(f"{type(self).__name__} takes no outer products")

    @abc.abstractmethod
    def reduce(self, leaf: Leaf, operands: Any, gradients: Inexact[Array, "n ..."]) -> Any:
        """Reduce the gradients of n examples, with their weight, with respect to one parameter."""

    def combine(self, results: Sequence[Any], structure: Any, n: int) -> Any:
        """Return the reduction of all n examples from those of the leaves.

        Where leaves are added, `results` is their sum alone.
        """
        del n
        return jax.tree.unflatten(structure, results)


def wide(dtype: Any) -> Any:
    """Return the real dtype, float32 or wider, in which squares of this one are taken."""
    return jnp.finfo(jnp.promote_types(dtype, jnp.float32)).dtype


def weighted(gradients: Any, weight: float) -> Any:
    """Return gradients times a weight, in float32 or wider unless it is 1."""
    if weight == 1.0:
        return gradients
    return gradients.astype(jnp.promote_types(gradients.dtype, jnp.float32)) * weight


def summed_squares(gradients: Shaped[Array, "n ..."]) -> Array:
    """Return sum_n |g_n|^2, real, in float32 or wider."""
    g = gradients.astype(jnp.promote_types(gradients.dtype, jnp.float32))
    squares = g.real**2 + g.imag**2 if jnp.iscomplexobj(g) else g * g
    return squares.sum(0)


def _check_choice(owner: str, name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{owner}: {name} must be one of {allowed}, got {value!r}")


@dataclasses.dataclass(frozen=True)
class Squares(Reduction):
    """The mean of squared gradients, S = 1/N sum_n |g_n|^2: the second moment of TrueGrad.

    By Jensen's inequality S is at least the square of the mean gradient; what is more is the
    variance over the examples.

    Attributes:
        granularity: "example" squares the gradient g_n of an example. "token" squares every term
            of it: where a parameter acts at positions t of an example (tokens, pixels), so that
            g_n = sum_t g_nt, the result is 1/N sum_nt |g_nt|^2.
        normalisation: "mean", or "backpack": 1/N^2 sum_n |g_n|^2.

    Raises:
        ValueError: at construction, if an argument is not one of these.
    """

    granularity: Literal["example", "token"] = "example"
    normalisation: Literal["mean", "backpack"] = "mean"
    elementwise = True

    def __post_init__(self):
        _check_choice("Squares", "granularity", self.granularity, ("example", "token"))
        _check_choice("Squares", "normalisation", self.normalisation, ("mean", "backpack"))

    @property
    def of_terms(self) -> bool:
        """Whether terms are squared by themselves."""
        return self.granularity == "token"

    def weight(self, n: int) -> float:
        """Return 1 / sqrt(n), or 1 / n."""
        return 1 / n if self.normalisation == "backpack" else 1 / math.sqrt(n)

    def reduce(self, leaf: Leaf, operands: Any, gradients: Inexact[Array, "n ..."]) -> Array:
        """Return the sum of squares."""
        del leaf, operands
        return summed_squares(gradients)


@dataclasses.dataclass(frozen=True, eq=False)
class InSubspace(Reduction):
    """The mean of squared *projected* gradients, 1/N sum_n |project(g_n)|^2, in compact form.

    What `Squares` is to Adam, this is to Adam on the compact form of a projection.

    Attributes:
        projection: the projection of every parameter that has a basis.
        basis: a tree like the parameters, with a basis of the projection for every one of them,
            or None: the result is then that of `Squares`.
        specs: a tree of `TensorSpec` like the parameters, or None: all are taken as they are.

    Raises:
        ValueError: at construction, if `projection` is not one.
    """

    projection: Projection
    basis: Any
    specs: Any = None

    def __post_init__(self):
        if not isinstance(self.projection, Projection):
            raise ValueError(
                f"InSubspace: projection must be a Projection, got {self.projection!r}"
            )

    def operands(self, leaves: Sequence[Leaf], structure: Any) -> list[Any]:
        """Return the bases, with the specs as static structure."""
        bases = structure.flatten_up_to(self.basis)
        specs = [None] * len(leaves) if self.specs is None else structure.flatten_up_to(self.specs)
        return [
            None if basis is None else _Based(spec or TensorSpec(), basis)
            for basis, spec in zip(bases, specs, strict=True)
        ]

    def weight(self, n: int) -> float:
        """Return 1 / sqrt(n)."""
        return 1 / math.sqrt(n)

    def reduce(self, leaf: Leaf, operands: Any, gradients: Inexact[Array, "n ..."]) -> Any:
        """Return the sum of squared compact gradients."""
        if operands is None:
            return summed_squares(gradients)
        view = LeafProjection(self.projection, operands.spec, leaf.shape, leaf.dtype, leaf.path)
        project = lambda g: view.project(view.to_tensor(g), operands.basis)
        return jax.tree.map(summed_squares, jax.vmap(project)(gradients))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Based:
    spec: TensorSpec = dataclasses.field(metadata={"static": True})
    basis: Any = None


@dataclasses.dataclass(frozen=True)
class Stack(Reduction):
    """The gradients of all examples themselves, along a new axis 0: for tests and small models."""

    rows = True

    def reduce(self, leaf: Leaf, operands: Any, gradients: Inexact[Array, "n ..."]) -> Array:
        """Return the gradients."""
        del leaf, operands
        return gradients
