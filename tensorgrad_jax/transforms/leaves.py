"""Which parameters are compressed, and under which names the inner optimizer sees them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from tensorgrad_jax.projections.base import Projection
from tensorgrad_jax.projections.leaf import LeafProjection, TensorSpec
from tensorgrad_jax.projections.plain import shown

Specs = PyTree | Callable[[PyTree], PyTree] | None

# The default rule, the reference's.
MIN_DIMENSIONS = 3
MIN_SIZE = 1000


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
        shape = getattr(leaf, "shape", ())  # a Python number has none
        large = len(shape) >= MIN_DIMENSIONS and math.prod(shape) > MIN_SIZE
        return TensorSpec() if large else None

    return jax.tree.map(spec, params)


def named_leaves(
    tree: PyTree, specs: Specs
) -> tuple[dict[str, Any], dict[str, TensorSpec | None], Any]:
    """Return the leaves of `tree` by name, the spec of each, and what puts leaves together again.

    Raises:
        ValueError: if the specs do not fit the tree.
    """
    arrays, treedef = _named_arrays(tree)
    names = list(arrays)
    return arrays, dict(zip(names, _resolve_specs(specs, tree, names), strict=True)), treedef


def take_apart(tree: PyTree, projection: Projection | PyTree, specs: Specs) -> Leaves:
    """Name every leaf of `tree` and attach its projection to those that have a spec.

    Args:
        tree: parameters or gradients.
        projection: one for all, or a tree like the parameters of projections or None.
        specs: see `in_subspace`.

    Raises:
        ValueError: if the specs do not fit the tree or one of them its leaf.
    """
    arrays, treedef = _named_arrays(tree)
    names = list(arrays)
    if isinstance(projection, Projection):
        projections: list[Any] = [projection] * len(names)
        chosen = _resolve_specs(specs, tree, names)
    else:
        projections = _by_name(projection, "projection", Projection, tree, names)
        # Without specs the projections say themselves which leaves are meant.
        if specs is None:
            chosen = [TensorSpec()] * len(names)
        else:
            chosen = _resolve_specs(specs, tree, names)
        chosen = [s if p is not None else None for s, p in zip(chosen, projections, strict=True)]
    compressed = {
        name: LeafProjection(own, spec, tuple(jnp.shape(leaf)), leaf.dtype, name)
        for (name, leaf), spec, own in zip(arrays.items(), chosen, projections, strict=True)
        if spec is not None
    }
    return Leaves(arrays, compressed, treedef)


def check_fits(owner: str, what: str, tree: PyTree, params: PyTree | None) -> None:
    """Raise a ValueError that names the leaf where a tree is not like the parameters.

    Args:
        owner: whose argument the tree is.
        what: it holds, "gradient" or "update".
        tree: of arrays; None where it holds nothing on purpose.
        params: the parameters; None where they are not known.
    """
    if params is None:
        return
    given, wanted = _with_names(tree), _with_names(params)
    for name, leaf in wanted.items():
        if name not in given:
            raise ValueError(f"{owner}: no {what} for the parameter {name}")
        if given[name] is not None and leaf is not None:
            found, expected = jnp.shape(given[name]), jnp.shape(leaf)
            if found != expected:
                raise ValueError(
                    f"{owner}: the {what} of {name} has shape {found}, the parameter {expected}"
                )
    for name in given:
        if name not in wanted:
            raise ValueError(f"{owner}: {name} has the {what} of a parameter that there is not")


def _with_names(tree):
    """Return every leaf, None too, by its name."""
    paths = _with_holes(tree)
    return dict(zip(_names([path for path, _ in paths]), (x for _, x in paths), strict=True))


def _with_holes(tree):
    return jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: x is None)


def _named_arrays(tree: PyTree) -> tuple[dict[str, Any], Any]:
    paths, treedef = jax.tree_util.tree_flatten_with_path(tree)
    names = _names([path for path, _ in paths])
    plain = (int, float, complex, np.generic, np.ndarray)
    leaves = (jnp.asarray(leaf) if isinstance(leaf, plain) else leaf for _, leaf in paths)
    return dict(zip(names, leaves, strict=True)), treedef


def _resolve_specs(specs: Specs, tree, names: list[str]) -> list[TensorSpec | None]:
    if specs is None:
        given = default_specs(tree)
    elif callable(specs) and jax.tree_util.all_leaves([specs]):
        given = specs(tree)
    else:
        given = specs  # A tree; that of an Equinox module is callable too.
    return _by_name(given, "specs", TensorSpec, tree, names)


def _by_name(given: PyTree, argument: str, kind: type, tree: PyTree, names: list[str]) -> list[Any]:
    """Return what a tree of `kind` or None holds for every leaf, found by the leaves' names."""
    is_entry = lambda x: x is None or isinstance(x, kind)
    paths, _ = jax.tree_util.tree_flatten_with_path(given, is_leaf=is_entry)
    by_name = dict(zip(_names([p for p, _ in paths]), (entry for _, entry in paths), strict=True))
    for entry in by_name.values():
        if not is_entry(entry):
            raise ValueError(
                f"{argument} must hold {kind.__name__} or None for every leaf, got {shown(entry)}"
            )
    missing = [name for name in names if name not in by_name]
    # Where parameters have a hole (None, as Equinox leaves where a module has no bias), a tree of
    # specs may have one too.
    holes = _holes(tree)
    unknown = [n for n, x in by_name.items() if n not in names and not (x is None and n in holes)]
    # Under optax.masked and optax.partition some parameters are not there, but their entries are.
    if missing or (unknown and not _has_masked_parts(tree)):
        raise ValueError(
            f"{argument} do not fit the parameters: nothing for {missing}, no parameter for "
            f"{unknown}"
        )
    return [by_name[name] for name in names]


def _holes(tree) -> set[str]:
    return {name for name, leaf in _with_names(tree).items() if leaf is None}


def _has_masked_parts(tree) -> bool:
    is_masked = lambda x: isinstance(x, optax.MaskedNode)
    return any(is_masked(x) for x in jax.tree.leaves(tree, is_leaf=is_masked))


def _names(paths) -> list[str]:
    """Return one name per path: its keys joined by dots.

    Flax NNX gives parameters as variables, whose array is their attribute `value`, and gradients
    as plain arrays: the attribute is left out, so that both have one name.
    """
    is_value = lambda key: isinstance(key, jax.tree_util.GetAttrKey) and key.name == "value"
    paths = [path[:-1] if path and is_value(path[-1]) else path for path in paths]
    names = [jax.tree_util.keystr(p, simple=True, separator=".") or "params" for p in paths]
    if len(set(names)) == len(names):
        return names
    return [jax.tree_util.keystr(p) for p in paths]  # {"a.b": x, "a": {"b": y}}
