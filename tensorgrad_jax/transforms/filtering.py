"""A filter in the full space: what of the gradient lies in the subspace, and nothing else."""

from __future__ import annotations

import optax

from tensorgrad_jax.projections.base import Projection
from tensorgrad_jax.transforms.leaves import Specs
from tensorgrad_jax.transforms.subspace import Gap, in_subspace


def filter_by(
    projection: Projection, update_proj_gap: Gap = 200, specs: Specs = None, seed: int = 0
) -> optax.GradientTransformationExtraArgs:
    """Replace every compressed leaf G by lift(project(G)); chain it with any optimizer.

    It saves no optimizer state: the moments of what follows live in the full space. It shows
    what a projection keeps, and it is the low-rank part of a gradient for methods that need one.

    Args:
        projection: what is kept.
        update_proj_gap: steps between refreshes, see `in_subspace`.
        specs: which leaves to filter, see `in_subspace`; the others pass as they are.
        seed: of random projections.

    Returns:
        A transformation whose state holds the bases.

    Raises:
        ValueError: if an argument is not one of these.
    """
    return in_subspace(
        optax.identity(), projection, update_proj_gap, on_refresh="keep", specs=specs, seed=seed
    )
