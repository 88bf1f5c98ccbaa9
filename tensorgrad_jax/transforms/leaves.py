"""Which parameters are compressed, and under which names the inner optimizer sees them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from tensorgrad_jax.projections.base import LeafProjection, Projection, TensorSpec

Specs = PyTree | Callable[[PyTree], PyTree] | None

# The default rule, the reference's.
_MIN_DIMENSIONS = 3
_MIN_SIZE = 1000


class Leaves(NamedTuple):
    """A tree of parameters or gradients taken apart.

    Attributes:
        arrays: every leaf by its name.
        compressed: the projections of the leaves that are to be compressed, by name.
        treedef: puts the leaves together again.
    """

    arrays: dict[str, Any]
    compressed: dict[str, LeafProjection]
    treedef: Any

    def compact_structs(self) -> dict[str, Any]:
        """Return what the inner optimizer sees as parameters: shapes and dtypes by name."""
        return {
            name: self.compressed[name].compact_struct()
            if name in self.compressed
            else jax.ShapeDtypeStruct(x.shape, x.dtype)
            for name, x in self.arrays.items()
        }


def default_specs(params: PyTree) -> PyTree:
    """Return a spec for every leaf of 3 or more dimensions and more than 1,000 elements."""

    def spec(leaf):
        large = leaf.ndim >= _MIN_DIMENSIONS and leaf.size > _MIN_SIZE
        return TensorSpec() if large else None

    return jax.tree.map(spec, params)


def take_apart(tree: PyTree, projection: Projection, specs: Specs) -> Leaves:
    """Name every leaf of `tree` and attach the projection to those that have a spec.

    Raises:
        ValueError: if the specs do not fit the tree or one of them its leaf.
    """
    paths, treedef = jax.tree_util.tree_flatten_with_path(tree)
    names = _names([path for path, _ in paths])
    arrays = {name: leaf for name, (_, leaf) in zip(names, paths, strict=True)}
    compressed = {
        name: LeafProjection(projection, spec, tuple(jnp.shape(leaf)), leaf.dtype, name)
        for (name, leaf), spec in zip(
            arrays.items(), _resolve_specs(specs, tree, treedef), strict=True
        )
        if spec is not None
    }
    return Leaves(arrays, compressed, treedef)


def _resolve_specs(specs: Specs, tree, treedef) -> list[TensorSpec | None]:
    given = default_specs(tree) if specs is None else specs(tree) if callable(specs) else specs
    try:
        chosen = treedef.flatten_up_to(given)
    except (ValueError, TypeError) as error:
        raise ValueError(f"specs do not fit the parameters: {error}") from error
    for spec in chosen:
        if spec is not None and not isinstance(spec, TensorSpec):
            raise ValueError(f"specs must hold TensorSpec or None for every leaf, got {spec!r}")
    return chosen


def _names(paths) -> list[str]:
    """Return one name per path: its keys joined by dots."""
    names = [jax.tree_util.keystr(p, simple=True, separator=".") or "params" for p in paths]
    if len(set(names)) == len(names):
        return names
    return [jax.tree_util.keystr(p) for p in paths]  # {"a.b": x, "a": {"b": y}}
