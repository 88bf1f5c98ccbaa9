"""Optax's own small-state optimizers, set up for operators as small as those of the studies."""

from __future__ import annotations

from typing import Any

import jax
import optax
from optax.contrib import GaLoreDimensionNumbers, scale_by_galore
from tensorgrad_jax.models import tensor_specs


def spectral(params) -> Any:
    """Return a tree like the parameters: whether a leaf is a spectral weight."""
    treedef = jax.tree.structure(params)
    return treedef.unflatten([s is not None for s in treedef.flatten_up_to(tensor_specs(params))])


def adafactor(momentum: float | None = None) -> optax.GradientTransformation:
    """Return optax.adafactor's update; channels are far narrower than its default of 128."""
    return optax.chain(
        optax.scale_by_factored_rms(min_dim_size_to_factor=2),
        optax.clip_by_block_rms(1.0),
        optax.identity() if momentum is None else optax.ema(momentum, debias=False),
    )


def galore(gap: int) -> optax.GradientTransformation:
    """Return optax.contrib's on matrix views (in, everything else) of a quarter of the rank."""

    def numbers(params):
        def of(leaf):
            others = (*range(leaf.ndim - 2), leaf.ndim - 1)
            return GaLoreDimensionNumbers(reduction_axis=leaf.ndim - 2, output_axis=others)

        return jax.tree.map(of, params)

    def with_rank(params):
        leaves = zip(jax.tree.leaves(params), jax.tree.leaves(spectral(params)), strict=True)
        rank = min(x.shape[-2] for x, spectral in leaves if spectral) // 4
        compressed = scale_by_galore(
            rank, gap, 1.0, optax.scale_by_adam(), weight_dimension_numbers=numbers
        )
        # Apart from the others: it would keep empty arrays for them, which are not saved.
        return optax.partition({True: compressed, False: optax.scale_by_adam()}, spectral)

    return optax.GradientTransformation(
        lambda params: with_rank(params).init(params),
        lambda updates, state, params=None: with_rank(updates).update(updates, state, params),
    )
