"""The learning rate over the training: constant within an epoch, changed between epochs."""

from __future__ import annotations

import jax.numpy as jnp
import optax

from tensorgrad_jax.training.options import OptConfig


def learning_rate_schedule(opt: OptConfig, steps_per_epoch: int) -> optax.Schedule:
    """The learning rate as a function of the step.

    With e = step // steps_per_epoch the epoch and a the option `learning_rate`:

        constant             a
        StepLR               a gamma^(e // step_size)
        CosineAnnealingLR    a (1 + cos(pi e / T)) / 2,   T = scheduler_T_max or n_epochs

    Beyond epoch T the cosine rises again, with period 2T.

    Args:
        opt: the options `learning_rate`, `scheduler` and those of that scheduler.
        steps_per_epoch: optimizer steps per epoch.

    Returns:
        A function of the step, a Python integer or an integer array, to a float32 array of the
        same shape.

    Raises:
        ValueError: steps_per_epoch is not positive.

    Source: the schedulers of the same names of PyTorch; the cosine is Loshchilov and Hutter, SGDR
    (2017), equation 5, without restarts.
    """
    if steps_per_epoch < 1:
        raise ValueError(f"steps_per_epoch must be an integer >= 1, got {steps_per_epoch!r}")
    t_max = opt.scheduler_T_max or opt.n_epochs

    def schedule(count):
        epoch = jnp.asarray(count) // steps_per_epoch
        if opt.scheduler == "StepLR":
            factor = jnp.power(jnp.float32(opt.gamma), epoch // opt.step_size)
        elif opt.scheduler == "CosineAnnealingLR":
            # Reduced first: a large float32 angle has lost the digits that the cosine needs.
            factor = (1 + jnp.cos(jnp.pi / t_max * (epoch % (2 * t_max)))) / 2
        else:
            factor = jnp.ones(epoch.shape)
        return (opt.learning_rate * factor).astype(jnp.float32)

    return schedule
