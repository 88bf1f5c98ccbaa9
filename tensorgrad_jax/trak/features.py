"""Features of examples: their gradients, projected, none of which is held."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensorgrad_jax.per_example import per_example
from tensorgrad_jax.trak.outputs import ModelOutput
from tensorgrad_jax.trak.sources import Make


def selected(params: Any, grad_wrt: Callable[[str], bool] | None) -> tuple[bool, ...]:
    """Return which leaves of the parameters gradients are taken of.

    Args:
        params: a pytree.
        grad_wrt: a function of a leaf's path ("layers/0/kernel"), or None for all leaves.

    Raises:
        ValueError: if it selects no leaf.
    """
    paths = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(params)
    ]
    chosen = tuple(grad_wrt is None or bool(grad_wrt(path)) for path in paths)
    if not any(chosen):
        raise ValueError(f"grad_wrt selects none of the parameters {paths}")
    return chosen


def number_of(params: Any, chosen: tuple[bool, ...]) -> int:
    """Return how many real numbers the selected leaves hold."""
    leaves = [x for x, c in zip(jax.tree.leaves(params), chosen, strict=True) if c]
    return sum(np.size(x) * (2 if jnp.iscomplexobj(x) else 1) for x in leaves)


def projected_gradients(
    output: ModelOutput,
    params: Any,
    examples: Any,
    projector: Any,
    model_id: int,
    chosen: tuple[bool, ...],
    chunk_size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return P^T grad f of every example, (n, k), and its weight Q, (n,).

    Of a projector with a random matrix features come from one backward pass per chunk, in which
    no gradient of an example is held (`tensorgrad_jax.per_example`); one that only has a `project`
    gets the gradients of a chunk. The last chunk is filled up with its last example, so that one
    program serves all.

    Args:
        output: what is attributed.
        params: a pytree of parameters.
        examples: a pytree of arrays with one leading axis.
        projector: what makes features.
        model_id: of these parameters.
        chosen: which leaves, from `selected`.
        chunk_size: examples at a time.
    """
    n = len(jax.tree.leaves(examples)[0])
    source = projector.source(model_id)
    features, weights = [], []
    for start in range(0, n, chunk_size):
        rows = np.minimum(np.arange(start, start + chunk_size), n - 1)
        chunk = jax.tree.map(lambda x: np.asarray(x)[rows], examples)  # noqa: B023
        if projector.device is not None:
            chunk = jax.device_put(chunk, projector.device)
        kept = min(chunk_size, n - start)
        if source is None:
            gradients, weight = _gradients(output, chosen, params, chunk)
            projected = projector.project(_as_asked(projector, gradients), model_id)
        else:
            projected, weight = _features(output, chosen, source.make, params, chunk, source.key)
        features.append(np.asarray(projected, np.float32)[:kept])
        weights.append(np.asarray(weight, np.float32)[:kept])
    return np.concatenate(features), np.concatenate(weights)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _features(output: ModelOutput, chosen, make: Make, params, examples, key):
    """Return features and weights; `make(key)` is the reduction."""
    of_selected, parts = _selected_output(output, chosen, params)
    pairs = [_as_pair(leaf) for leaf in parts]

    def of_one(pairs, batch):
        given = [_from_pair(x, leaf) for x, leaf in zip(pairs, parts, strict=True)]
        return of_selected(given, jax.tree.map(lambda x: x[0], batch))

    # A function of one example: nothing to prove.
    features = per_example(of_one, make(key), check_independence=False)(pairs, examples)[2]
    return features, jax.vmap(output.weight, (None, 0))(params, examples)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _gradients(output: ModelOutput, chosen, params, examples):
    of_selected, parts = _selected_output(output, chosen, params)
    gradients = jax.vmap(jax.grad(of_selected), (None, 0))(parts, examples)
    return gradients, jax.vmap(output.weight, (None, 0))(params, examples)


def _selected_output(output, chosen, params):
    """Return the output as a function of the selected leaves, and these."""
    leaves, structure = jax.tree.flatten(params)

    def of_selected(parts, example):
        rest = iter(parts)
        merged = [next(rest) if c else leaf for leaf, c in zip(leaves, chosen, strict=True)]
        return output.output(jax.tree.unflatten(structure, merged), example)

    return of_selected, [leaf for leaf, c in zip(leaves, chosen, strict=True) if c]


def _as_pair(leaf):
    # The gradient of a real function with respect to x + i y is d/dx - i d/dy.
    return jnp.stack([leaf.real, -leaf.imag]) if jnp.iscomplexobj(leaf) else leaf


def _from_pair(pair, leaf):
    return jax.lax.complex(pair[0], -pair[1]) if jnp.iscomplexobj(leaf) else pair


def _as_asked(projector, gradients):
    # A projector that returns gradients as they are makes one matrix of a dictionary alone.
    return gradients if projector.proj_dim else dict(enumerate(gradients))
