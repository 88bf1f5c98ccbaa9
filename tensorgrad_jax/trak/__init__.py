"""TRAK: which training examples does a prediction rest on?

    python -m tensorgrad_jax.trak --run runs/NAME      # of a run of train.py

    from tensorgrad_jax import trak

    projector = trak.BasicProjector(grad_dim=p, proj_dim=4096, seed=0, proj_type="rademacher")
    features = projector.project(per_example_gradients, model_id=0)

For people doing data attribution. Gradients of single examples, of as many numbers as a model has
parameters, are multiplied by a random matrix: inner products survive in a few thousand features,
and the attribution scores of TRAK are inner products of features. The random matrix is never held
(`tensorgrad_jax.random_matrices`), and features do not depend on batches, blocks, the number of
devices or the make of the GPU.

The method: S. M. Park, K. Georgiev, A. Ilyas, G. Leclerc, A. Madry, TRAK: Attributing Model
Behavior at Scale, ICML 2023, arXiv 2303.14186. The original: traker 0.3.2.

| traker                      | here                | what differs                           |
|-----------------------------|---------------------|----------------------------------------|
| `ProjectionType`            | the same            | also sjlt and srft; strings anywhere   |
| `AbstractProjector`         | the same            | devices of JAX and PyTorch, shardings  |
| `NoOpProjector`             | the same            | the default device is not a GPU        |
| `BasicSingleBlockProjector` | the same            | its matrix is that of `BasicProjector` |
| `BasicProjector`            | the same            | features do not depend on block_size   |
| `CudaProjector`             | the same            | any proj_dim and batch; float32        |
| `ChunkedCudaProjector`      | the same            | no buffer; any batch; checked sizes    |
| -                           | `Projector`         | the engine: a pytree, with adjoint     |
| -                           | `KroneckerProjector`| a Kronecker product per parameter      |
| -                           | `ExplicitProjector` | given matrices, to replay others'      |

Different on purpose. Seeds, checkpoints and blocks are folded into a key, not added: in traker
block 100 of model 0 is block 0 of model 1, and chunks can share a matrix. A matrix depends on no
hardware. `free_memory` may be followed by `project`. There is one engine for all devices, hence no
compiled extension that can be missing and nothing to fall back to. Numbers are therefore not those
of traker for the same seed, but for the same matrix they are.
"""

from tensorgrad_jax.trak.attributor import Attributor as Attributor
from tensorgrad_jax.trak.chunked import ChunkedCudaProjector as ChunkedCudaProjector
from tensorgrad_jax.trak.engine import Projector as Projector
from tensorgrad_jax.trak.engine import jl_project as jl_project
from tensorgrad_jax.trak.kinds import ProjectionType as ProjectionType
from tensorgrad_jax.trak.kinds import UnknownProjectionTypeError as UnknownProjectionTypeError
from tensorgrad_jax.trak.outputs import ModelOutput as ModelOutput
from tensorgrad_jax.trak.outputs import classification as classification
from tensorgrad_jax.trak.outputs import margin as margin
from tensorgrad_jax.trak.outputs import sample_loss as sample_loss
from tensorgrad_jax.trak.projectors import AbstractProjector as AbstractProjector
from tensorgrad_jax.trak.projectors import BasicProjector as BasicProjector
from tensorgrad_jax.trak.projectors import BasicSingleBlockProjector as BasicSingleBlockProjector
from tensorgrad_jax.trak.projectors import CudaProjector as CudaProjector
from tensorgrad_jax.trak.projectors import ExplicitProjector as ExplicitProjector
from tensorgrad_jax.trak.projectors import KroneckerProjector as KroneckerProjector
from tensorgrad_jax.trak.projectors import NoOpProjector as NoOpProjector
