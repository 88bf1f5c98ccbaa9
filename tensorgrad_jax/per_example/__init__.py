"""Reductions of the gradients of all examples of a batch, without keeping them.

What question does it answer? A gradient is a mean over examples. What else can be known of the
gradients that it is the mean of: their second moment, their features under a random projection,
their share in a subspace? N gradients do not fit into memory, but such reductions do.

    import jax.numpy as jnp
    from tensorgrad_jax.per_example import Squares, per_example

    def loss(params, batch):                       # the mean over the examples of a batch
        x, y = batch
        return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)

    value, gradient, squares = per_example(loss, Squares())(params, batch)

`Squares` is the mean of squared gradients, `Project` a random projection of every gradient by one
matrix, `ProjectLayers` by a Kronecker product per parameter, `InSubspace` the mean of squares in
the compact form of a projection, `Stack` the gradients themselves; a reduction of your own is a
frozen dataclass with one method (`reductions.Reduction`).

What it costs. The method "fast" traces the function to a list of operations (`program`), finds
where each parameter is used (`uses`), and reduces in one backward pass, at each use, from the
other input of the operation and the cotangent of its result (`fast`). Where a parameter acts once
per example a rule of the primitive (`rules`) gives squares at the price of one more such
operation; features come from slabs of a parameter (`slabs`) or from the factors of its gradient;
everywhere else the operation alone is differentiated for a few examples at a time. A function with
a derivative of its own is one operation, unless it is marked as one whose derivative is that of
what it computes (`same_derivative`). "exact" differentiates the whole function for a few examples
at a time (`exact`). "auto" is "fast", with "exact" for the parameters that are used more than once;
`report` tells which.

When not to use it: where an example's gradient depends on others. Before anything is computed the
examples are followed through the function (`independence`, `batch_axis`), and what mixes them, or
is not known not to, is refused by name.
"""

from tensorgrad_jax.backend.derivatives import same_derivative as same_derivative
from tensorgrad_jax.per_example.engine import Method as Method
from tensorgrad_jax.per_example.engine import Row as Row
from tensorgrad_jax.per_example.engine import per_example as per_example
from tensorgrad_jax.per_example.engine import report as report
from tensorgrad_jax.per_example.features import Project as Project
from tensorgrad_jax.per_example.features import ProjectLayers as ProjectLayers
from tensorgrad_jax.per_example.reductions import InSubspace as InSubspace
from tensorgrad_jax.per_example.reductions import Leaf as Leaf
from tensorgrad_jax.per_example.reductions import Reduction as Reduction
from tensorgrad_jax.per_example.reductions import Squares as Squares
from tensorgrad_jax.per_example.reductions import Stack as Stack
