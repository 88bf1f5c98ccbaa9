"""Top eigenspaces of Hessians by sketching, and whether weights' magnitudes know of them.

What question does it answer? Which curvature does a trained network have, and do its largest
weights lie in the directions of largest curvature? A Hessian of D parameters is known by its
products with vectors alone; a few hundred of them give its leading eigenpairs, with an error
that can be estimated, and the overlap of their span with that of any choice of weights.

    import jax
    from tensorgrad_jax import hessian, subspaces

    H = hessian.hvp_operator(loss, params, data, chunk_size=64)     # loss(params, batch): a mean
    top = hessian.block_lanczos(H, jax.random.key(0), k=50)
    error = hessian.a_posteriori_error(H, top, jax.random.key(1))
    largest = jax.numpy.argsort(-abs(H.params))[:50]
    overlap = subspaces.overlap_with_mask(top.vectors(), largest)   # by chance 50 / D

Any loss of real parameters will do: plain JAX, Flax, an FNO. `python -m tensorgrad_jax.hessian`
does the same in steps that many machines share: train and record parameters, measure columns of a
sketch into HDF5 files, solve, compare; see docs/hessian.md.

What it costs: a product with the Hessian costs two to four gradients; a block of them is computed
at once. Memory: D times the number of columns that are kept.

When not to use it: `seigh` needs decaying eigenvalues, its error is at best that of cutting them
off. "nystrom" and "singlepass" are for positive operators; a Hessian is not.

Differences from the originals: the core of a sketch is symmetrised (a twelfth less error for
nothing); `block_lanczos` (about the best error there is at the same number of products) stands
beside the sketch; random columns do not depend on the block in which they are drawn; one block of
products estimates the errors of all ranks; eigenvectors are compared after they were put in one
order and sign.

    original                                        here
    skerch.seigh(op, device, dtype, outer, inner)   seigh(operator, key, outer, inner)
    skerch.ssvd                                     ssvd
    skerch.a_posteriori.a_posteriori_error          a_posteriori_error(..., ranks=...)
    skerch.a_posteriori_error_bounds, scree_bounds  post_bounds, scree
    skerch.a_priori.a_priori_hyperparams            prio_hpars
    skerch.distributed_measurements.DistributedHDF5 layout.create, read_column, write_column, ...
    python -m skerch COMMAND                        python -m tensorgrad_jax.hessian COMMAND
    curvlinops.HessianLinearOperator, GGN           hvp_operator, gauss_newton_operator
    10a_gather_params_grads.py                      python -m tensorgrad_jax.hessian gather
    10b (slurm), 10c_hessian_hdf5_measurements.py   ... create_hdf5_layout, measure
    10d_core_and_analysis.py                        ... solve
    11a, 11b (shell, slurm)                         ... run, examples/hessian/
    12a_mnist_mini_exhaustive_test.py               ... exhaustive
    20a_curvlinops_checks.py                        ... check
    00a_grassmannian_metrics.ipynb                  tensorgrad_jax.subspaces

References:
    A. Fernandez, F. Dangel, P. Hennig, F. Schneider, What apples tell about oranges: connecting
    pruning masks and Hessian eigenspaces, 2024.
    J. Tropp, A. Yurtsever, M. Udell, V. Cevher, Streaming low-rank matrix approximation with an
    application to scientific simulation, SIAM J. Sci. Comput. 41, 2019.
"""

from tensorgrad_jax.hessian.curvature import Curvature as Curvature
from tensorgrad_jax.hessian.curvature import gauss_newton_operator as gauss_newton_operator
from tensorgrad_jax.hessian.curvature import hvp_operator as hvp_operator
from tensorgrad_jax.hessian.decompositions import seigh as seigh
from tensorgrad_jax.hessian.decompositions import ssvd as ssvd
from tensorgrad_jax.hessian.eigenpairs import Eigh as Eigh
from tensorgrad_jax.hessian.eigenpairs import Svd as Svd
from tensorgrad_jax.hessian.errors import PosteriorError as PosteriorError
from tensorgrad_jax.hessian.errors import a_posteriori_error as a_posteriori_error
from tensorgrad_jax.hessian.errors import post_bounds as post_bounds
from tensorgrad_jax.hessian.errors import prio_hpars as prio_hpars
from tensorgrad_jax.hessian.errors import scree as scree
from tensorgrad_jax.hessian.lanczos import block_lanczos as block_lanczos
from tensorgrad_jax.hessian.lineax_operators import from_lineax as from_lineax
from tensorgrad_jax.hessian.noise import Noise as Noise
from tensorgrad_jax.hessian.operators import Dense as Dense
from tensorgrad_jax.hessian.operators import Diagonal as Diagonal
from tensorgrad_jax.hessian.operators import Function as Function
from tensorgrad_jax.hessian.operators import LinearOperator as LinearOperator
from tensorgrad_jax.hessian.operators import LowRank as LowRank
from tensorgrad_jax.subspaces import overlap as overlap
