"""Operators of lineax as operators of this package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tensorgrad_jax.hessian.operators import Function, LinearOperator


def from_lineax(operator: Any) -> LinearOperator:
    """Return an operator of lineax as one of ours.

    Inputs and outputs that are pytrees become vectors, leaf after leaf. Its own tags say whether
    it is symmetric.

    Args:
        operator: a `lineax.AbstractLinearOperator`.
    """
    from importlib import import_module

    lineax = import_module("lineax")
    given, made = operator.in_structure(), operator.out_structure()

    def columns(of: Any, struct: Any) -> Callable[[Any], Any]:
        leaves, treedef = jax.tree.flatten(struct)
        sizes = [leaf.size for leaf in leaves]

        def one(x):
            parts = jnp.split(x, [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)])
            shaped = [
                part.reshape(leaf.shape).astype(leaf.dtype)
                for part, leaf in zip(parts, leaves, strict=True)
            ]
            out = of.mv(treedef.unflatten(shaped))
            return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(out)])

        return jax.jit(jax.vmap(one, in_axes=1, out_axes=1))

    def conjugate(function):
        # lineax transposes; the adjoint of a complex operator is conjugate beside.
        return lambda X: jnp.conj(function(jnp.conj(X)))

    size = lambda struct: sum(leaf.size for leaf in jax.tree.leaves(struct))
    dtype = jnp.result_type(*(leaf.dtype for leaf in jax.tree.leaves(given)))
    real = not jnp.issubdtype(dtype, jnp.complexfloating)
    return Function(
        columns(operator, given),
        (size(made), size(given)),
        dtype,
        bool(lineax.is_symmetric(operator)) and real,
        conjugate(columns(operator.T, made)),
    )
