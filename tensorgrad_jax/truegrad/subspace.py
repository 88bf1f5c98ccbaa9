"""Squares of examples in the compact space of a projection, for Adam that runs there.

    projection = tg.Tucker(0.25)
    optimizer = tg.projected_adamw(
        1e-3, projection, inner=truegrad.scale_by_true_adam(default_to_adam=True))
    state = optimizer.init(params)
    grads = truegrad.value_and_grads_in_subspace(loss, projection)

    value, gradient, squares = grads(state, params, batch)
    updates, state = optimizer.update(gradient, state, params, sum_grad_squared=squares)

What is squared is the *projected* gradient of an example: S = 1/N sum_n |project(g_n)|^2 has the
size of the compact form. At a step that chooses a new subspace there is no S in it yet: the square
of the mean gradient stands in for it, at one of `update_proj_gap` steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp

from tensorgrad_jax.per_example import InSubspace, Method, per_example
from tensorgrad_jax.per_example.engine import LossReduction
from tensorgrad_jax.projections import LeafProjection, Projection
from tensorgrad_jax.projections.pairs import is_pair
from tensorgrad_jax.transforms.leaves import Specs, take_apart
from tensorgrad_jax.transforms.subspace import InSubspaceState
from tensorgrad_jax.truegrad.adam import ScaleByTrueAdamState


def value_and_grads_in_subspace(
    fun: Callable[..., Any],
    projection: Projection,
    specs: Specs = None,
    batch_argnums: int | Sequence[int] = 1,
    *,
    method: Method = "auto",
    microbatch_size: int | None = None,
    loss_reduction: LossReduction = "mean",
    check_independence: bool = True,
) -> Callable[..., tuple[Any, Any, Any]]:
    """`value_and_grads` with squares in the subspaces of an optimizer.

    Args:
        fun: its argument 0 is parameters, see `per_example`.
        projection: that of the optimizer, one for all parameters.
        specs: those of the optimizer, see `in_subspace`.
        batch_argnums: which arguments of `fun` hold examples.
        method: see `per_example`.
        microbatch_size: see `per_example`.
        loss_reduction: see `per_example`.
        check_independence: see `per_example`.

    Returns:
        A function of the optimizer's state and the arguments of `fun` that returns (value,
        gradient, squares); the optimizer takes the squares as `sum_grad_squared`.

    Raises:
        ValueError: see `per_example`; if the state is not that of an `in_subspace` of this
            projection around `scale_by_true_adam`.
    """

    def with_squares(state, *arguments):
        subspace = _state_of(state)
        leaves = take_apart(arguments[0], projection, specs)
        if subspace.basis.keys() != leaves.compressed.keys():
            raise ValueError(
                "value_and_grads_in_subspace: the state belongs to other parameters or specs: it "
                f"compresses {sorted(subspace.basis)}, not {sorted(leaves.compressed)}"
            )
        by_name = lambda of: leaves.treedef.unflatten(
            [of(n) if n in leaves.compressed else None for n in leaves.arrays]
        )
        basis = by_name(lambda n: leaves.compressed[n].basis_of(subspace.basis[n]))
        reduction = InSubspace(
            projection, basis, by_name(lambda name: leaves.compressed[name].spec)
        )
        value, gradient, compact = per_example(
            fun,
            reduction,
            0,
            batch_argnums,
            microbatch_size,
            method,
            loss_reduction=loss_reduction,
            check_independence=check_independence,
        )(*arguments)
        squares = dict(zip(leaves.arrays, leaves.treedef.flatten_up_to(compact), strict=True))
        for name, leaf in leaves.compressed.items():
            is_due = subspace.count >= subspace.next_refresh[name]
            squares[name] = _of_numbers(leaf, squares[name], is_due)
        moments = cast(ScaleByTrueAdamState, subspace.inner).mu
        # The samples of entries that sizes are matched with have none.
        return value, gradient, {name: squares.get(name) for name in moments}

    return with_squares


def _state_of(state: Any) -> InSubspaceState:
    """Return the one state of `in_subspace` within an optimizer's, or raise."""
    is_one = lambda x: isinstance(x, InSubspaceState)
    found = [x for x in jax.tree.leaves(state, is_leaf=is_one) if is_one(x)]
    if len(found) != 1 or not isinstance(found[0].inner, ScaleByTrueAdamState):
        raise ValueError(
            "value_and_grads_in_subspace: the optimizer's state must hold that of one in_subspace "
            f"around scale_by_true_adam, holds {[type(x.inner).__name__ for x in found]}"
        )
    return found[0]


def _of_numbers(leaf: LeafProjection, squares: Any, is_due: Any) -> Any:
    """Return squares as the inner transformation is to see them: of a pair the mean of both."""
    zeros = lambda: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), leaf.compact_struct())
    struct = jax.eval_shape(lambda: leaf.to_numbers(zeros()))
    kinds, structure = jax.tree.flatten(struct, is_leaf=is_pair)

    def one(kind, s):
        if is_pair(kind):
            s = (s.parts.sum(0) if is_pair(s) else s) / 2
        return jnp.where(is_due, 0, s)

    flat = jax.tree.leaves(squares, is_leaf=is_pair)
    return structure.unflatten([one(k, s) for k, s in zip(kinds, flat, strict=True)])
