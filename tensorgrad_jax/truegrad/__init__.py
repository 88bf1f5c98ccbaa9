"""TrueGrad: Adam's second moment from the gradients of single examples.

What question does it answer? Adam divides a step by the root of a mean of squared *batch*
gradients. What if it were divided by the root of the mean of squared gradients of *examples*? The
two differ by the variance over examples, so that entries whose gradient is mostly noise take
smaller steps, whatever the size of the batch.

    import jax, optax
    from tensorgrad_jax import truegrad

    def loss(params, batch):                       # the mean over the examples of a batch
        x, y = batch
        return optax.l2_loss(apply(params, x), y).mean()

    optimizer = truegrad.tg_adamw(1e-3)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, batch):
        value, gradient, squares = truegrad.value_and_grads(loss)(params, batch)
        updates, state = optimizer.update(gradient, state, params, sum_grad_squared=squares)
        return optax.apply_updates(params, updates), state, value

Any function will do: plain JAX, Flax, with `jax.jit`, `jax.checkpoint`, scans over layers and
derivatives of its own. Nothing is patched, and no layer has to be exchanged. `coverage(loss,
params, batch)` prints how each parameter is done.

What it costs: one backward pass in which a parameter that acts once per example (a dense layer of
a multilayer perceptron) takes one more product of matrices, and one that acts at many positions
(tokens, pixels) has the gradients of a few examples formed at a time in place of their sum. S is
as large as the parameters, the optimizer keeps up to three moments instead of two. A parameter
that is used twice (tied weights, a layer called twice) is done by a second, slower pass.

When not to use it: where examples are not independent, as under batch normalisation in training
or a contrastive loss. Then there is no gradient of an example, and this raises ValueError. Where
the batch is one example, it is Adam.

Differences from the original (releases 1.0 and 2.0, and the optimizers of those until 5.0):
S is the mean of squared gradients of *examples* for every layer; the original sums squares of
*positions* in dense layers on sequences, convolutions, norms and biases, which is
`granularity="token"`. BackPACK's sum of squared gradients of a mean is
`normalisation="backpack"`. A parameter without S falls back to Adam under `default_to_adam`
(there it is a KeyError; later releases say `default_to_baseline`), the example with
LayerNorm([1, 10]) runs, zero gradients give zero updates and not NaN, weight decay is applied once
per step (in 4.0 and later once per parameter), and it and learning rates take schedules.

    original                                 here
    truegrad.nn.X                            flax.nnx.X, or truegrad.nn.X: the same
    utils.patch_torch, utils.patch_model     not needed; coverage tells what they would have done
    BackPACK's SumGradSquared                value_and_grads(..., method="exact") for any function
    parameter.sum_grad_squared               the third result of value_and_grads
    optim.TGAdamW(params, lr, betas, eps,    tg_adamw(learning_rate, betas, eps, weight_decay,
      weight_decay, graft, decay_to_init,      graft, decay_to_init, default_to_adam)
      default_to_adam)
    optim.TGLaProp, TGRMSProp, Graft, Sign   tg_laprop, tg_rmsprop, graft, sign
    zero_grad, .grad                         no state outside the optimizer's: nothing to reset

Source: L. Nestler, TrueGrad, https://github.com/ClashLuke/TrueGrad.
"""

from tensorgrad_jax.truegrad.adam import add_decay_to_init as add_decay_to_init
from tensorgrad_jax.truegrad.adam import scale_by_true_adam as scale_by_true_adam
from tensorgrad_jax.truegrad.adam import tg_adamw as tg_adamw
from tensorgrad_jax.truegrad.family import graft as graft
from tensorgrad_jax.truegrad.family import scale_by_true_rms as scale_by_true_rms
from tensorgrad_jax.truegrad.family import sign as sign
from tensorgrad_jax.truegrad.family import tg_laprop as tg_laprop
from tensorgrad_jax.truegrad.family import tg_rmsprop as tg_rmsprop
from tensorgrad_jax.truegrad.gradients import coverage as coverage
from tensorgrad_jax.truegrad.gradients import value_and_grads as value_and_grads
from tensorgrad_jax.truegrad.subspace import (
    value_and_grads_in_subspace as value_and_grads_in_subspace,
)


def __getattr__(name: str):
    """Import the Flax modules when they are asked for."""
    if name == "nn":
        import importlib

        return importlib.import_module("tensorgrad_jax.truegrad.nn")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
