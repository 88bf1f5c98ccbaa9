"""What `in_subspace` asks of the transformation inside, checked when it is initialised."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax

from tensorgrad_jax.projections.leaf import LeafProjection
from tensorgrad_jax.projections.pairs import is_pair
from tensorgrad_jax.projections.plain import shown
from tensorgrad_jax.transforms.moment_dicts import MomentDicts
from tensorgrad_jax.transforms.packing import is_stored, unpacked
from tensorgrad_jax.transforms.roles import Role


def check_transformation(owner: str, name: str, value: Any) -> None:
    """Raise ValueError unless the argument is an Optax transformation."""
    if not (hasattr(value, "init") and hasattr(value, "update")):
        raise ValueError(f"{owner}: {name} must be an Optax transformation, got {shown(value)}")


def check_needs_no_parameters(
    inner: optax.GradientTransformationExtraArgs, compact: dict[str, Any], state: Any
) -> None:
    """Raise ValueError if `inner` can update with parameters only."""

    def works(params) -> bool:
        try:
            jax.eval_shape(lambda g, s, p: inner.update(g, s, p), compact, state, params)
        except Exception:
            return False
        return True

    # What fails in both ways fails for a reason of its own, which the first update tells.
    if compact and not works(None) and works(compact):
        raise ValueError(
            f"in_subspace: the inner transformation {transformation_name(inner)} needs parameters, "
            "which have no compact form; chain it behind in_subspace instead"
        )


def transformation_name(inner: optax.GradientTransformation) -> str:
    """Return the name of the function that made a transformation."""
    return getattr(inner.init, "__qualname__", repr(inner)).split(".")[0]


def check_found(moments: MomentDicts, on_refresh: Any) -> None:
    """Raise ValueError if the inner state holds arrays that belong to no parameter by name."""
    for path, leaf in moments.others():
        if np.ndim(leaf) > 0:
            rule = on_refresh if isinstance(on_refresh, str) else "function"
            raise ValueError(
                f"in_subspace: on_refresh={rule!r} does not find the moments of single parameters "
                f"in the inner state's {path!r}, an array of shape {np.shape(leaf)}; use 'keep'"
            )


def check_transportable(
    moments: MomentDicts,
    compressed: dict[str, LeafProjection],
    roles: dict[str, Role | None],
    inner: optax.GradientTransformation,
) -> None:
    """Raise ValueError if some moment of a compressed parameter cannot be carried over."""
    for name, leaf in compressed.items():
        struct = leaf.compact_struct()
        for (label, stored), owner in zip(moments.of(name).items(), moments.owners, strict=True):
            if jax.tree.leaves(stored) and (roles[label] is None or not _fits(stored, struct)):
                raise ValueError(
                    f"in_subspace: on_refresh='transport' cannot carry {label!r} of "
                    f"{transformation_name(inner)} ({owner}, parameter {name!r}) to a new basis: "
                    "it is neither linear in the gradients nor a mean or sum of their squares; "
                    "use 'keep' or 'reset'"
                )


def _fits(stored, struct) -> bool:
    arrays, treedef = jax.tree.flatten(stored, is_leaf=is_stored)
    shape = lambda x, s: x.shape if is_pair(x) else unpacked(x, s).shape
    return treedef == jax.tree.structure(struct) and all(
        shape(x, s) == s.shape for x, s in zip(arrays, jax.tree.leaves(struct), strict=True)
    )
