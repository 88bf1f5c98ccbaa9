"""Random matrices that are functions of a key, a row and a column, and are never held.

    from tensorgrad_jax.random_matrices import Rademacher, key_from

    matrix = Rademacher(rows=10**9, columns=4096)
    features = matrix.multiply_transposed(key_from(0), gradients, row_offset=0)

Random features, sketches and random subspaces are products with such a matrix P. What an entry is
does not depend on how the product is computed: not on batches, slabs of rows, tiles or devices;
so parts of a vector can be multiplied where they lie, two runs on different machines can be
compared, and the transpose costs nothing.

| kind         | entries                             | work per row   | good for              |
|--------------|-------------------------------------|----------------|-----------------------|
| `Rademacher` | independent signs                   | k              | the default           |
| `Normal`     | independent normal numbers          | k, each dearer | rotational invariance |
| `SJLT`       | s signs per row                     | s              | speed                 |
| `SRFT`       | signs, cosine transform, selection  | log(block)     | orthogonal columns    |
| `Kron`       | A[i, a] B[j, b]: a different matrix | see there      | outer products        |
| `Explicit`   | a given array                       | k              | replaying others      |
"""

from tensorgrad_jax.random_matrices.base import RandomMatrix as RandomMatrix
from tensorgrad_jax.random_matrices.counters import key_from as key_from
from tensorgrad_jax.random_matrices.dense import Normal as Normal
from tensorgrad_jax.random_matrices.dense import Rademacher as Rademacher
from tensorgrad_jax.random_matrices.explicit import Explicit as Explicit
from tensorgrad_jax.random_matrices.kron import Kron as Kron
from tensorgrad_jax.random_matrices.sjlt import SJLT as SJLT
from tensorgrad_jax.random_matrices.srft import SRFT as SRFT
from tensorgrad_jax.random_matrices.trees import (
    multiply_transposed_tree as multiply_transposed_tree,
)
