"""The compiled steps: one update of parameters and optimizer state, one batch of test errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array

import tensorgrad_jax as tg
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
    """

    params: Any
    opt_state: optax.OptState
    step: Array
    loss_sum: Array


class Encoding(NamedTuple):
    """How fields are normalised before and after the model; None leaves them as they are."""

    x: UnitGaussianNormalizer | None
    y: UnitGaussianNormalizer | None


def predict(graphdef: Any, params: Any, x: Array, encoding: Encoding) -> Array:
    """Return the model's prediction in physical units for an input in physical units."""
    x = x if encoding.x is None else encoding.x.encode(x)
    prediction = nnx.merge(graphdef, params)(x)
    return prediction if encoding.y is None else encoding.y.decode(prediction)


def make_train_step(
    graphdef: Any,
    optimizer: optax.GradientTransformation,
    loss: Callable[..., Array],
    encoding: Encoding,
    rounding_seed: int | None = 0,
    batch_parts: int | None = None,
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
    """

    def objective(params, batch):
        parts = batch_parts or independent_parts(params, batch["x"].shape)
        x = jnp.split(batch["x"], parts)
        predictions = jnp.concatenate([predict(graphdef, params, part, encoding) for part in x])
        return loss(predictions, batch["y"])

    def step(state: TrainState, batch: dict[str, Array]) -> TrainState:
        value, gradients = jax.value_and_grad(objective)(state.params, batch)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        key = None
        if rounding_seed is not None:
            key = jax.random.fold_in(jax.random.key(rounding_seed), state.step)
        params = tg.apply_updates(state.params, updates, key)
        loss_sum = state.loss_sum + value.astype(jnp.float32)
        return TrainState(params, opt_state, state.step + 1, loss_sum)

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
