"""Memory-efficient training of tensor-weighted networks: compressed gradients for Optax.

    import tensorgrad_jax as tg

    optimizer = tg.tensorgrad(1e-3, rank=0.20, sparse_ratio=0.05)

The public names are listed here; `tensorgrad_jax.models` holds the Flax modules.
"""

from tensorgrad_jax.muon import subspace_muon as subspace_muon
from tensorgrad_jax.muon import tensor_muon as tensor_muon
from tensorgrad_jax.optimizers import projected_adamw as projected_adamw
from tensorgrad_jax.optimizers import subspace_momentum as subspace_momentum
from tensorgrad_jax.optimizers import tensorgrad as tensorgrad
from tensorgrad_jax.projections import MatrixLowRank as MatrixLowRank
from tensorgrad_jax.projections import Projection as Projection
from tensorgrad_jax.projections import RandomProjection as RandomProjection
from tensorgrad_jax.projections import Residual as Residual
from tensorgrad_jax.projections import StructuredSparse as StructuredSparse
from tensorgrad_jax.projections import Sum as Sum
from tensorgrad_jax.projections import TensorSpec as TensorSpec
from tensorgrad_jax.projections import Tucker as Tucker
from tensorgrad_jax.projections import UnstructuredSparse as UnstructuredSparse
from tensorgrad_jax.projections import plan_ranks as plan_ranks
from tensorgrad_jax.transforms import apply_updates as apply_updates
from tensorgrad_jax.transforms import explain as explain
from tensorgrad_jax.transforms import exponential2_gap as exponential2_gap
from tensorgrad_jax.transforms import exponential_gap as exponential_gap
from tensorgrad_jax.transforms import filter_by as filter_by
from tensorgrad_jax.transforms import in_subspace as in_subspace
from tensorgrad_jax.transforms import linear_gap as linear_gap
from tensorgrad_jax.transforms import orthogonalize as orthogonalize
from tensorgrad_jax.transforms import reference_adamw as reference_adamw
from tensorgrad_jax.transforms import scale_by_adam as scale_by_adam
from tensorgrad_jax.transforms import scale_by_factored_rms as scale_by_factored_rms
from tensorgrad_jax.transforms import state_bytes as state_bytes
