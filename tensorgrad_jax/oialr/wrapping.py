"""Wrapping a model of Flax NNX: its layers become low-rank while it trains."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx

from tensorgrad_jax.oialr.config import Config
from tensorgrad_jax.oialr.controller import Controller, Event
from tensorgrad_jax.oialr.kernels import Kernel, named
from tensorgrad_jax.oialr.layers import (
    is_low_rank,
    kernel_of,
    low_rank_of,
    make_low_rank,
)
from tensorgrad_jax.oialr.low_rank import LowRank
from tensorgrad_jax.oialr.trees import Bases, ParamReport, param_report


def wrap(
    model: nnx.Module, config: Config | None = None, optimizer: nnx.Optimizer | None = None
) -> Wrapped:
    """Wrap a model, so that its layers become low-rank while it trains.

    Layers are those of type `nnx.Linear`, `nnx.LinearGeneral` (the projections of
    `nnx.MultiHeadAttention` are such) and `nnx.Conv` and of classes that derive from them. They
    change in place: the model is the one that was given.

        model = ViT(rngs=nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, optax.adamw(3e-4), wrt=nnx.Param)
        wrapped = oialr.wrap(model, oialr.Config(delay=2500), optimizer)
        for batch in batches:
            wrapped.step()
            train_step(model, optimizer, batch)           # under nnx.jit, as ever

    Args:
        model: the dense model.
        config: the options; without warm-up the layers become low-rank at once.
        optimizer: whose state is to be carried along; may follow by `set_optimizer`.

    Raises:
        ValueError: if no layer can become low-rank.
    """
    return Wrapped(model, config or Config(), optimizer)


class Wrapped:
    """A model with the controller of its layers.

    Attributes:
        model: the model.
        controller: when what happens, see `Controller`.
        kernels: of parameters' names, which are kernels of layers; for `History`.
    """

    def __init__(self, model: nnx.Module, config: Config, optimizer: nnx.Optimizer | None = None):
        self.model, self._optimizer = model, None
        found = _layers(model)
        self.layers = {name: layer for name, (layer, _) in found.items()}
        known = {name: kernel for name, (_, kernel) in found.items()}
        self.kernels = lambda name, leaf: known.get(name)
        self.controller = Controller(None, config, self.kernels, list(known))
        params, bases = self.controller.start(self.params)
        self._write(params, bases)
        if optimizer is not None:
            self.set_optimizer(optimizer)

    @property
    def params(self) -> Any:
        """The parameters that are trained, as arrays: cores where layers are low-rank."""
        return nnx.as_pure(nnx.state(self.model, nnx.Param))

    @property
    def bases(self) -> Bases:
        """The bases of the low-rank layers, by the names of their kernels."""
        return {
            name: low_rank_of(layer).without_core()
            for name, layer in self.layers.items()
            if is_low_rank(layer)
        }

    @property
    def events(self) -> list[Event]:
        """What happened when."""
        return self.controller.events

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Call the model."""
        return self.model(*args, **options)

    def set_optimizer(self, optimizer: nnx.Optimizer) -> None:
        """Say which optimizer trains the model, with `wrt=nnx.Param`.

        If it was made of the dense model, and layers are low-rank from the beginning, its state is
        made anew.

        Raises:
            ValueError: if it keeps moments of kernels in a form that cores cannot take over.
        """
        state = nnx.as_pure(optimizer.opt_state)
        self.controller.check_optimizer(self.params, self.bases, state)
        self._optimizer, self.controller.optimizer = optimizer, optimizer.tx
        if self.controller.steps == 0 and self.bases:
            self._begin_state()

    def step(self) -> bool:
        """Count a training step that is about to be made, and do what is due before it.

        Returns:
            whether layers have changed.
        """
        self.controller.steps += 1
        return self.update() if self.controller.config.step_on_forward else False

    def update(self, force: bool = False) -> bool:
        """Do what is due at this step; `force`: check now, whatever the step.

        Returns:
            whether layers have changed.

        Raises:
            ValueError: if layers are to change but no optimizer is known.
        """
        controller = self.controller
        if not (force or controller.due(self.bases)):
            return False
        if self._optimizer is None:
            raise ValueError(
                "oialr: no optimizer is known, whose state is to change: set_optimizer"
            )
        state, before = nnx.as_pure(self._optimizer.opt_state), len(controller.events)
        trees = controller.update(self.params, self.bases, state, force)
        if len(controller.events) == before:
            return False
        self._write(trees.params, trees.bases)
        nnx.update(self._optimizer.opt_state, nnx.state(trees.opt_state))
        return True

    def report(self) -> ParamReport:
        """Return how many parameters are trained and stored, and all ranks."""
        return param_report(self.params, self.bases)

    def record(self) -> dict[str, Any]:
        """Return what a run needs beside `nnx.state` of model and optimizer to go on."""
        return self.controller.record(self.bases)

    def restore(self, record: dict[str, Any]) -> None:
        """Give a freshly wrapped model, and its optimizer, the shapes that a run had.

        Then `nnx.update` puts in the arrays of the checkpoint.

        Raises:
            ValueError: if the record is of another model.
        """
        params, bases = self.controller.restore(record, self.params)
        zeros = lambda tree: jax.tree.map(lambda x: jax.numpy.zeros(x.shape, x.dtype), tree)
        params, bases = zeros(params), zeros(bases)
        self._write(params, bases)
        if self._optimizer is not None:
            self._begin_state()

    def _begin_state(self) -> None:
        assert self._optimizer is not None
        state = self._optimizer.tx.init(self.params)
        nnx.update(self._optimizer.opt_state, nnx.state(state))

    def _write(self, params, bases: Bases) -> None:
        cores = named(params)
        for name, x in bases.items():
            assert isinstance(x, LowRank)  # layers have no tensors
            make_low_rank(self.layers[name], x.with_core(cores[name]))


def _layers(model: nnx.Module) -> dict[str, tuple[Any, Kernel]]:
    """Return the layers by the names of their kernels, in the order of their definition."""
    # Of a layer that is used twice, the path under which `nnx.state` knows it.
    paths: dict[int, tuple[Any, ...]] = {}
    for path, module in nnx.iter_modules(model):
        paths.setdefault(id(module), path)
    found: dict[str, tuple[Any, Kernel]] = {}
    seen: set[int] = set()

    def visit(node):
        if id(node) in seen:
            return
        seen.add(id(node))
        kernel = kernel_of(node)
        if kernel is not None and id(node) in paths:
            name = ".".join(map(str, (*paths[id(node)], "kernel")))
            found[name] = (node, kernel)
        if isinstance(node, nnx.Module):
            children = [v for k, v in vars(node).items() if not k.startswith("_pytree__")]
        elif isinstance(node, dict):
            children = list(node.values())
        elif isinstance(node, list | tuple):
            children = list(node)
        else:
            return
        for child in children:
            visit(child)

    visit(model)
    return found
