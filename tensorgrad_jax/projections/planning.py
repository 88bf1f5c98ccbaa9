"""Planning Tucker ranks from gradients: where energy is, not the same share of every mode."""

from __future__ import annotations

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from tensorgrad_jax.projections.leaf import LeafProjection, TensorSpec
from tensorgrad_jax.projections.pairs import as_array
from tensorgrad_jax.projections.plain import check_choice, number, shown
from tensorgrad_jax.projections.tucker import Tucker


def plan_ranks(
    gradients: PyTree,
    budget: float,
    specs: PyTree | None = None,
    factors: Literal["complex", "real"] = "complex",
) -> Any:
    """Return Tucker ranks for every tensor, chosen by the energy of its singular values.

    Starting from full ranks, the mode that loses the least energy (squared singular value of its
    unfolding) per log of the core's size is shortened by one, until the core has at most
    `budget * size` elements. On the host: call it once, on a gradient of the first steps.

    Args:
        gradients: arrays.
        budget: elements of the core / elements of the tensor, in (0, 1], for every tensor.
        specs: a pytree like `gradients` of `TensorSpec` or None. Default: every leaf of 2 or more
            dimensions, as it is. Stacked tensors (batch axes) share their ranks.
        factors: those that `Tucker` will be asked for.

    Returns:
        A pytree like `gradients` of tuples of ranks, None where there is no spec. For
        `in_subspace`, turn it into projections:

            jax.tree.map(tg.Tucker, ranks, is_leaf=lambda r: isinstance(r, tuple))

    Raises:
        ValueError: if the budget is not in (0, 1] or a spec does not fit its leaf.
    """
    budget = number("plan_ranks", "budget", budget, "a number in (0, 1]", lambda x: 0 < x <= 1)
    check_choice("plan_ranks", "factors", factors, ("complex", "real"))
    for path, g in jax.tree_util.tree_leaves_with_path(gradients):
        name = f"gradients{jax.tree_util.keystr(path)}"
        if not hasattr(g, "ndim"):
            raise ValueError(f"plan_ranks: {name} must be an array, got {shown(g)}")
        if not bool(jnp.isfinite(jnp.asarray(g)).all()):
            raise ValueError(f"plan_ranks: {name} has entries that are not finite")
    if specs is None:
        specs = jax.tree.map(lambda g: TensorSpec() if g.ndim >= 2 else None, gradients)

    def plan(gradient, spec):
        if spec is None:
            return None
        leaf = LeafProjection(Tucker(), spec, gradient.shape, gradient.dtype)
        tensors = np.asarray(as_array(leaf.to_tensor(gradient)))
        if not spec.batch_axes:
            tensors = tensors[None]
        return _greedy(_energies(tensors, factors == "real"), tensors.shape[1:], budget)

    treedef = jax.tree.structure(gradients)
    try:
        of_leaves = treedef.flatten_up_to(specs)
    except ValueError as error:
        raise ValueError(
            f"plan_ranks: specs must be a tree like the gradients, got {shown(specs)}"
        ) from error
    planned = [plan(g, s) for g, s in zip(jax.tree.leaves(gradients), of_leaves, strict=True)]
    return treedef.unflatten(planned)


def _energies(tensors: np.ndarray, real: bool) -> list[np.ndarray]:
    """Return the squared singular values of every unfolding, descending, summed over the stack."""
    wide = tensors.astype(np.complex128 if np.iscomplexobj(tensors) else np.float64)
    energies = []
    for mode in range(1, tensors.ndim):
        unfolded = np.moveaxis(wide, mode, 1).reshape(len(wide), wide.shape[mode], -1)
        gram = np.einsum("bin,bjn->ij", unfolded, unfolded.conj())
        gram = gram.real if real else gram
        energies.append(np.maximum(np.linalg.eigvalsh(gram)[::-1], 0))
    return energies


def _greedy(energies: list[np.ndarray], shape: tuple[int, ...], budget: float) -> tuple[int, ...]:
    ranks, allowed = list(shape), budget * math.prod(shape)
    while math.prod(ranks) > allowed and max(ranks) > 1:
        cost = {i: energies[i][r - 1] / math.log(r / (r - 1)) for i, r in enumerate(ranks) if r > 1}
        ranks[min(cost, key=cost.__getitem__)] -= 1
    return tuple(ranks)
