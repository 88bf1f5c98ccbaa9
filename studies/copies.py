"""Many trainings of train.py that differ in seed and learning rate alone, compiled once.

The step is the one that train.py takes with the same options. Its rate is 1, and a factor that
stands in the optimizer's state gives every epoch its own: the program does not depend on it.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import tensorgrad_jax as tg
from tensorgrad_jax import oialr, truegrad
from tensorgrad_jax.data import batches
from tensorgrad_jax.training.build import (
    build_data,
    build_gradients,
    build_model,
    build_optimizer,
)
from tensorgrad_jax.training.config import parse
from tensorgrad_jax.training.data_sets import DataSets, TestSet
from tensorgrad_jax.training.loop import steps_per_epoch
from tensorgrad_jax.training.losses import LOSSES
from tensorgrad_jax.training.step import TrainState, make_error_step, make_train_step, predict


class Method(Protocol):
    """What gives parameters another form, before or while they are trained: `oialr.Controller`."""

    def start(self, params: Any) -> tuple[Any, Any]:
        """Return the parameters to begin with, and their bases."""
        ...

    def step(self, params: Any, bases: Any, opt_state: Any) -> oialr.Trees:
        """Do what is due before a step."""
        ...


class Dense:
    """Parameters stay as they are."""

    def start(self, params: Any) -> tuple[Any, Any]:
        """Return them, and no bases."""
        return params, {}

    def step(self, params: Any, bases: Any, opt_state: Any) -> oialr.Trees:
        """Change nothing."""
        return oialr.Trees(params, bases, opt_state)


class Copies:
    """What all copies share: options, data, and the compiled step."""

    def __init__(
        self,
        flags: list[str],
        method: Callable[[optax.GradientTransformation, int], Method] | None = None,
    ):
        """Open the data and prepare the step.

        Args:
            flags: options of train.py; `opt.learning_rate`, `opt.scheduler` and `seed` are those
                of a copy.
            method: (optimizer, number of steps) to what a copy's parameters are given to.
        """
        self._method = method or (lambda optimizer, steps: Dense())
        self.config = parse([*flags, "--opt.learning_rate", "1", "--opt.scheduler", "constant"])
        self.data: DataSets = build_data(self.config)
        self.steps = steps_per_epoch(self.data, self.config.data.batch_size)
        self.optimizer = optax.chain(
            build_optimizer(self.config, self.steps),
            optax.inject_hyperparams(optax.scale)(step_size=jnp.float32(1)),
        )
        graphdef = nnx.split(nnx.eval_shape(lambda: self._model(0)), nnx.Param)[0]
        loss, encoding = LOSSES[self.config.opt.training_loss], self.data.encoding
        self._step = make_train_step(
            graphdef, self.optimizer, loss, encoding, gradients_of=build_gradients(self.config)
        )
        self._errors = make_error_step(graphdef, encoding)
        objective = lambda p, b: loss(predict(graphdef, p, b["x"], encoding), b["y"])
        self._mean_share = jax.jit(functools.partial(_mean_share, objective))

    def train(self, rate: float, seed: int, share: bool = False) -> dict[str, Any]:
        """Train one copy.

        Args:
            rate: the learning rate of the first epoch; a cosine over the epochs follows.
            seed: of the parameters and the order of the samples. Random projections have one seed
                for all copies.
            share: whether to measure after every epoch how much of the squares of samples is the
                square of their mean.

        Returns:
            "validation" and "test" (relative L2 after the last epoch; the test samples are looked
            at this once), "train_loss" of the last epoch, "curve" of (train loss, validation) per
            epoch, "mean_share" per epoch or None, "seconds" of a step (the median epoch's mean),
            "steps", "state_bytes", "memory" at the end (see `memory_of`) and "largest_memory" of
            all steps. After numbers that are not finite all errors are infinite.
        """
        opt, n_batch = self.config.opt, self.config.data.batch_size
        method = self._method(self.optimizer, self.steps * opt.n_epochs)
        params, bases = method.start(nnx.to_pure_dict(nnx.state(self._model(seed), nnx.Param)))
        opt_state = jax.jit(self.optimizer.init)(params)
        state = TrainState(params, opt_state, jnp.zeros((), jnp.int32), jnp.zeros(()), bases)
        memory = largest = memory_of(state)
        curve, shares, seconds = [], [], []
        for epoch in range(opt.n_epochs):
            size = rate * (1 + math.cos(math.pi * epoch / opt.n_epochs)) / 2
            state.opt_state[-1].hyperparams["step_size"] = jnp.float32(size)
            started, batch = time.perf_counter(), {}
            for batch in batches(self.data.train, n_batch, seed=seed, epoch=epoch):
                trees = method.step(state.params, state.bases, state.opt_state)
                if trees.params is not state.params:
                    state = state._replace(**trees._asdict())
                    memory = memory_of(state)
                    largest = max(largest, memory, key=lambda m: m["total"])
                state = self._step(state, batch)
            train_loss = float(state.loss_sum) / self.steps
            seconds.append((time.perf_counter() - started) / self.steps)
            state = state._replace(loss_sum=jnp.zeros(()))
            assert self.data.validation is not None
            curve.append((_finite(train_loss), self._error(state, self.data.validation)))
            if share:
                shares.append(round(float(self._mean_share(state.params, batch)), 4))
        last_loss, validation = curve[-1]
        return {
            "validation": validation,
            "test": self._error(state, self.data.tests[0]),
            "train_loss": last_loss,
            "curve": curve,
            "mean_share": shares or None,
            "seconds": round(float(np.median(seconds)), 5),
            "steps": self.steps * opt.n_epochs,
            "state_bytes": tg.state_bytes(state.opt_state[0])["total"],
            "memory": memory,
            "largest_memory": largest,
        }

    def _model(self, seed: int) -> nnx.Module:
        config = self.config.model_copy(update={"seed": seed})
        return build_model(config, self.data.in_channels, self.data.out_channels)

    def _error(self, state: TrainState, test: TestSet) -> float:
        params = _lifted(state.params, state.bases)
        parts = batches(test.source, test.batch_size, seed=0, shuffle=False)
        values = [np.asarray(self._errors(params, batch)["l2"]) for batch in parts]
        return _finite(float(np.mean(np.concatenate(values)[: len(test.source)])))


def memory_of(state: TrainState) -> dict[str, int]:
    """Return the bytes of what training holds from step to step, and of the gradients.

    Spectral weights are counted alone too: "spectral" is how many numbers of them are trained.
    """
    size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
    named = jax.tree_util.tree_leaves_with_path(state.params)
    spectral = [x for path, x in named if "spectral_weight" in jax.tree_util.keystr(path)]
    parts = {
        "parameters": size(state.params),
        "bases": size(state.bases),
        "gradients": size(state.params),
        "state": tg.state_bytes(state.opt_state[0])["total"],
    }
    return parts | {"total": sum(parts.values()), "spectral": sum(x.size for x in spectral)}


_lifted = jax.jit(oialr.lift)


def _mean_share(objective: Callable[..., Any], params: Any, batch: Any) -> jax.Array:
    """Return sum |mean_n g_n|^2 / sum mean_n |g_n|^2, over all parameters."""
    _, gradient, squares = truegrad.value_and_grads(objective)(params, batch)
    total = lambda tree: sum(jnp.sum(x) for x in jax.tree.leaves(tree))
    return total(jax.tree.map(lambda g: jnp.abs(g) ** 2, gradient)) / total(squares)


def _finite(value: float) -> float:
    return round(value, 6) if math.isfinite(value) else math.inf
