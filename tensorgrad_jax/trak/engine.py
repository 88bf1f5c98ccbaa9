"""The one engine behind all projectors: gradients times a random matrix that nobody holds."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

from tensorgrad_jax.random_matrices import (
    Explicit,
    RandomMatrix,
    key_from,
    multiply_transposed_tree,
)
from tensorgrad_jax.random_matrices.trees import width
from tensorgrad_jax.trak.kinds import ProjectionType, bounded, matrix_of

Scale = Literal["jl"] | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Projector:
    """Features y = P^T g of gradients g, with a matrix P of its own for every checkpoint.

    A pytree: it can be handed to a jitted function.

    Attributes:
        matrix: the kind and shape of P, a row per parameter. Static.
        key: what P is drawn from, a Threefry key (`tensorgrad_jax.random_matrices.key_from(seed)`);
            of an `Explicit` matrix, a dictionary from model_id to P.
        scale: None for E |y|^2 = k |g|^2; "jl" for the factor 1 / sqrt(k), with which y is as long
            as g. Static.

    Raises:
        ValueError: at construction, if `scale` is neither.
    """

    matrix: RandomMatrix = dataclasses.field(metadata={"static": True})
    key: Any
    scale: Scale = dataclasses.field(default=None, metadata={"static": True})

    def __post_init__(self):
        if self.scale not in (None, "jl"):
            raise ValueError(f"Projector: scale must be None or 'jl', got {self.scale!r}")

    def project(self, grads: Any, model_id: int = 0) -> Float[Array, "batch features"]:
        """Return the features of a batch of gradients.

        Args:
            grads: (batch, parameters), or a pytree with leaves (batch, ...) in the order of
                `jax.tree.leaves`; numbers per example of shape (batch,) are one column. A complex
                leaf counts as twice as many columns, all its real before all its imaginary parts.
            model_id: which checkpoint's matrix, an integer of range(2^32).

        Raises:
            ValueError: if an argument is none of these, with its name and what is allowed.
        """
        leaves = checked_leaves(type(self).__name__, grads, self.matrix.rows)
        key = self.key_of(model_id)
        return self._factor(multiply_transposed_tree(self.matrix, key, leaves))

    def adjoint(
        self, features: Inexact[Array, "batch features"], model_id: int = 0
    ) -> Inexact[Array, "batch parameters"]:
        """Return P y: <project(g), y> = <g, adjoint(y)>."""
        return self._factor(self.matrix.multiply(self.key_of(model_id), features))

    def materialise(self, model_id: int = 0) -> Float[Array, "parameters features"]:
        """Return P itself, scaled: for tests."""
        return self._factor(self.matrix.materialise(self.key_of(model_id)))

    def key_of(self, model_id: int) -> Any:
        """Return the key of a checkpoint's matrix."""
        number = bounded(type(self).__name__, "model_id", model_id, 32)
        if not isinstance(self.matrix, Explicit):
            return jax.random.fold_in(self.key, number)
        if number not in self.key:
            raise ValueError(f"Projector: no matrix for model_id {number}, only {list(self.key)}")
        return self.key[number]

    def _factor(self, x):
        return x if self.scale is None else x / self.matrix.columns**0.5


def checked_leaves(owner: str, grads: Any, grad_dim: int | None) -> list[Array]:
    """Return a batch of gradients as a list of arrays (batch, ...).

    Raises:
        ValueError: if they are no such thing, not of floating-point or complex numbers, of
            different leading sizes, or not `grad_dim` numbers per example (None: any number).
    """
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(grads)]
    shapes = [leaf.shape for leaf in leaves]
    if not isinstance(grads, dict | list | tuple) and len(leaves) == 1 and leaves[0].ndim != 2:
        raise ValueError(f"{owner}: grads must have shape (batch, parameters), got {shapes[0]}")
    if not leaves or any(not shape for shape in shapes) or len({s[0] for s in shapes}) > 1:
        raise ValueError(
            f"{owner}: grads must be arrays with one leading size, the batch, got shapes {shapes}"
        )
    for leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise ValueError(
                f"{owner}: grads must be of floating-point or complex numbers, got {leaf.dtype}"
            )
    columns = sum(width(leaf.shape[1:], leaf.dtype) for leaf in leaves)
    if grad_dim is not None and columns != grad_dim:
        raise ValueError(
            f"{owner}: grads must have grad_dim={grad_dim} numbers per example, got {columns} "
            f"(shapes {shapes}; complex numbers are two)"
        )
    return leaves


def jl_project(
    grads: Any,
    key: Any,
    proj_dim: int,
    kind: str | ProjectionType = "rademacher",
    *,
    scale: Scale = None,
) -> Float[Array, "batch features"]:
    """Project a batch of gradients, a matrix or a pytree: `Projector.project` in one call.

    Args:
        grads: as for `Projector.project`.
        key: a Threefry key, or a seed.
        proj_dim: number of features.
        kind: of the random matrix.
        scale: as for `Projector`.

    Raises:
        ValueError: as `Projector` does.
    """
    leaves = checked_leaves("jl_project", grads, None)
    rows = sum(width(leaf.shape[1:], leaf.dtype) for leaf in leaves)
    key = key_from(key) if isinstance(key, int) else key
    return Projector(matrix_of(kind, rows, proj_dim), key, scale).project(leaves)
