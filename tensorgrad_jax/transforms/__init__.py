"""Optax transformations built on projections."""

from tensorgrad_jax.transforms.accounting import state_bytes as state_bytes
from tensorgrad_jax.transforms.moments import ScaleByAdamState as ScaleByAdamState
from tensorgrad_jax.transforms.moments import scale_by_adam as scale_by_adam
from tensorgrad_jax.transforms.subspace import InSubspaceState as InSubspaceState
from tensorgrad_jax.transforms.subspace import in_subspace as in_subspace
