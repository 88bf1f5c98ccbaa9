"""Optax transformations built on projections."""

from tensorgrad_jax.transforms.accounting import state_bytes as state_bytes
from tensorgrad_jax.transforms.explanation import Explanation as Explanation
from tensorgrad_jax.transforms.explanation import explain as explain
from tensorgrad_jax.transforms.factored import (
    ScaleByFactoredRmsState as ScaleByFactoredRmsState,
)
from tensorgrad_jax.transforms.factored import scale_by_factored_rms as scale_by_factored_rms
from tensorgrad_jax.transforms.filtering import filter_by as filter_by
from tensorgrad_jax.transforms.moments import ScaleByAdamState as ScaleByAdamState
from tensorgrad_jax.transforms.moments import scale_by_adam as scale_by_adam
from tensorgrad_jax.transforms.orthogonalize import orthogonalize as orthogonalize
from tensorgrad_jax.transforms.precision import apply_updates as apply_updates
from tensorgrad_jax.transforms.reference import reference_adamw as reference_adamw
from tensorgrad_jax.transforms.reference import reference_ranks as reference_ranks
from tensorgrad_jax.transforms.reference import (
    reference_slice_counts as reference_slice_counts,
)
from tensorgrad_jax.transforms.schedules import exponential2_gap as exponential2_gap
from tensorgrad_jax.transforms.schedules import exponential_gap as exponential_gap
from tensorgrad_jax.transforms.schedules import linear_gap as linear_gap
from tensorgrad_jax.transforms.subspace import InSubspaceState as InSubspaceState
from tensorgrad_jax.transforms.subspace import in_subspace as in_subspace
