"""The compiled steps: one update of parameters and optimizer state, one batch of test errors."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array

import tensorgrad_jax as tg
from tensorgrad_jax import oialr
from tensorgrad_jax.backend.batches import independent_parts
from tensorgrad_jax.data.normalizers import UnitGaussianNormalizer
from tensorgrad_jax.training.losses import LOSSES


class TrainState(NamedTuple):
    """Everything that changes from step to step; what a checkpoint holds.

    Attributes:
        params: the model's `nnx.Param` variables.
        opt_state: the optimizer's state.
        step: int32 (), number of updates so far.
        loss_sum: float32 (), sum of the training losses of this epoch's batches so far. It stays
            on the device, so that no step waits for the host.
        bases: of the parameters that are cores by now, see `oialr.lift`; empty without such.
    """

    params: Any
    opt_state: optax.OptState
    step: Array
    loss_sum: Array
    bases: Any = ()


class Encoding(NamedTuple):
    """How fields are normalised before and after the model; None leaves them as they are."""

    x: UnitGaussianNormalizer | None
    y: UnitGaussianNormalizer | None


def predict(graphdef: Any, params: Any, x: Array, encoding: Encoding) -> Array:
    """Return the model's prediction in physical units for an input in physical units."""
    x = x if encoding.x is None else encoding.x.encode(x)
    prediction = nnx.merge(graphdef, params)(x)
    return prediction if encoding.y is None else encoding.y.decode(prediction)


GradientsOf = Callable[[Callable[..., Array]], Callable[..., tuple[Array, Any, dict[str, Any]]]]


def _plain_gradients(objective):
    return lambda params, batch, _: (*jax.value_and_grad(objective)(params, batch), {})


def make_train_step(
    graphdef: Any,
    optimizer: optax.GradientTransformation,
    loss: Callable[..., Array],
    encoding: Encoding,
    rounding_seed: int | None = 0,
    batch_parts: int | None = None,
    gradients_of: GradientsOf | None = None,
) -> Callable[..., TrainState]:
    """Return the jitted function (state, batch) -> state; the given state's buffers are reused.

    The loss is taken in physical units: it is the error that will be reported.

    Args:
        graphdef: the model without its parameters.
        optimizer: what makes updates of gradients.
        loss: of predictions and targets.
        encoding: the normalizers.
        rounding_seed: of the stochastic rounding of bfloat16 parameters, see `tg.apply_updates`;
            None rounds to the nearest.
        batch_parts: into how many parts a batch is cut, each with a computation of its own; None:
            two on CPUs where that is faster, otherwise one. Sums of floating-point numbers apart,
            the step is the same.
        gradients_of: maps the objective, a function of parameters and batch, to one of (parameters,
            batch, optimizer state) that returns (value, gradients, further arguments of the
            optimizer's update); None: `jax.value_and_grad`, and none.
    """
    if gradients_of is None:
        gradients_of = _plain_gradients
    else:
        batch_parts = 1  # it takes the batch apart by itself
    with_extra = optax.with_extra_args_support(optimizer)

    def objective(params, batch, bases=()):
        params = oialr.lift(params, bases, in_parts=True) if bases else params
        parts = batch_parts or independent_parts(params, batch["x"].shape)
        apply = lambda x: predict(graphdef, params, x, encoding)
        if parts == 1:
            return loss(apply(batch["x"]), batch["y"])
        predictions = [apply(x) for x in jnp.split(batch["x"], parts)]
        return loss(jnp.concatenate(predictions), batch["y"])

    def step(state: TrainState, batch: dict[str, Array]) -> TrainState:
        # An objective without bases is handed on as it is: what takes it apart knows its parts.
        of = functools.partial(objective, bases=state.bases) if state.bases else objective
        value, gradients, extra = gradients_of(of)(state.params, batch, state.opt_state)
        updates, opt_state = with_extra.update(gradients, state.opt_state, state.params, **extra)
        key = None
        if rounding_seed is not None:
            key = jax.random.fold_in(jax.random.key(rounding_seed), state.step)
        params = tg.apply_updates(state.params, updates, key)
        loss_sum = state.loss_sum + value.astype(jnp.float32)
        return TrainState(params, opt_state, state.step + 1, loss_sum, state.bases)

    return jax.jit(step, donate_argnums=0)


def make_error_step(graphdef: Any, encoding: Encoding) -> Callable[..., dict[str, Array]]:
    """Return the jitted function (params, batch) -> {"l2", "h1"}, relative, (batch,) each.

    A sample's error is the mean over its channels.
    """

    def errors(params, batch):
        prediction = predict(graphdef, params, batch["x"], encoding)
        return {
            name: loss(prediction, batch["y"], reduction="none").mean(axis=-1)
            for name, loss in LOSSES.items()
        }

    return jax.jit(errors)


def finite_leaves(state: TrainState) -> dict[str, bool]:
    """Return by name of every parameter and of the optimizer's arrays whether it is finite."""
    named = {
        f"{what} {jax.tree_util.keystr(path)}": leaf
        for what, tree in (("parameter", state.params), ("optimizer state", state.opt_state))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    }
    finite = jax.device_get(_all_finite(list(named.values())))
    return dict(zip(named, map(bool, finite), strict=True))


@jax.jit
def _all_finite(leaves: list[Array]) -> list[Array]:
    return [jnp.isfinite(leaf).all() for leaf in leaves]
