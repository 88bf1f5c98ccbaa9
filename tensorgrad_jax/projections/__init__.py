"""How one tensor is made small."""

from tensorgrad_jax.projections.base import Projection as Projection
from tensorgrad_jax.projections.composite import Residual as Residual
from tensorgrad_jax.projections.composite import Sum as Sum
from tensorgrad_jax.projections.leaf import LeafProjection as LeafProjection
from tensorgrad_jax.projections.leaf import TensorSpec as TensorSpec
from tensorgrad_jax.projections.matrix import MatrixLowRank as MatrixLowRank
from tensorgrad_jax.projections.planning import plan_ranks as plan_ranks
from tensorgrad_jax.projections.random import RandomProjection as RandomProjection
from tensorgrad_jax.projections.structured import StructuredSparse as StructuredSparse
from tensorgrad_jax.projections.tucker import Tucker as Tucker
from tensorgrad_jax.projections.tucker_weight import TuckerWeight as TuckerWeight
from tensorgrad_jax.projections.unstructured import UnstructuredSparse as UnstructuredSparse
