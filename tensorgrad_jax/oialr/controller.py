"""The training method over a run: warm-up, cores, checks, with the optimizer's moments.

The controller lives on the host, between the compiled training steps, because shapes change: it is
asked before every step and mostly only counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import PyTree

from tensorgrad_jax.oialr.checking import check_kernels
from tensorgrad_jax.oialr.config import Config
from tensorgrad_jax.oialr.factoring import Axes, factor_kernels, look_struct, settled, unfrozen
from tensorgrad_jax.oialr.kernels import (
    Kernels,
    by_shape,
    kernels_of,
    named,
    renamed,
    to_be_factored,
    working_layers,
)
from tensorgrad_jax.oialr.moments import Change, carried, check_carriable
from tensorgrad_jax.oialr.tensors import ModesChange
from tensorgrad_jax.oialr.trees import Bases, Node, ParamReport, empty, param_report
from tensorgrad_jax.oialr.trial import tried
from tensorgrad_jax.projections.plain import shown


class Trees(NamedTuple):
    """What a controller changes.

    Attributes:
        params: parameters, with cores where kernels have become low-rank.
        bases: their bases by name.
        opt_state: the optimizer's state.
    """

    params: Any
    bases: Bases
    opt_state: Any


class Event(NamedTuple):
    """Something that happened between two training steps.

    Attributes:
        step: the number of the step that came next.
        what: "factored" or "checked".
        ranks: of the layers concerned, behind it.
        report: parameters of the whole model, behind it.
    """

    step: int
    what: str
    ranks: dict[str, int]
    report: ParamReport


class Controller:
    """Warm-up, conversion and checks of a model given as a tree of parameters.

    Call `step` before every training step; train on what it returns, with a loss of
    `oialr.lift(params, bases)`:

        controller = oialr.Controller(optimizer, oialr.Config(delay=1000))
        trees = oialr.Trees(params, {}, optimizer.init(params))
        for batch in batches:
            trees = controller.step(*trees)
            params, opt_state = train_step(trees, batch)
            trees = trees._replace(params=params, opt_state=opt_state)

    Models of Flax NNX are wrapped by `oialr.wrap`, which holds one of these.

    Args:
        optimizer: whose state is carried along; None only where no layer changes while it trains.
        config: the options.
        kernels: which parameters are kernels, see `kernels.Kernels`.
        order: names of the kernels in the order of the network, which says what is first and last;
            default: the order of the tree's leaves.

    Attributes:
        steps: number of steps begun.
        checks: number of checks made.
        skips: how many checks a layer still skips, by name.
        events: what happened when.
        previous: under `freeze="stability"` what the last look saw of kernels that are not
            low-rank yet, or not along all axes: arrays, which belong into a checkpoint.
    """

    def __init__(
        self,
        optimizer: optax.GradientTransformation | None = None,
        config: Config | None = None,
        kernels: Kernels = by_shape,
        order: Sequence[str] | None = None,
    ):
        self.optimizer, self.config = optimizer, config or Config()
        self.steps = self.checks = 0
        self.skips: dict[str, int] = {}
        self.events: list[Event] = []
        self.previous: dict[str, Any] = {}
        self._kernels, self._order = kernels, order
        self._trial: list[Any] | None = None  # of the optimizer, made once
        self._carriable = False  # whether the optimizer's state has been looked at
        self._next = self.config.delay or self.config.stability_frequency

    def start(self, params: PyTree) -> tuple[PyTree, Bases]:
        """Return the parameters to begin with: low-rank at once if there is no warm-up.

        Raises:
            ValueError: if no kernel can become low-rank.
        """
        names = self.names(params)
        if self.config.full_rank_warmup and self.config.delay > 0:
            return params, {}
        trees = self._factor(Trees(params, {}, None), self._unfrozen(names, {}))
        return trees.params, trees.bases

    def step(self, params: PyTree, bases: Bases, opt_state: Any) -> Trees:
        """Count a step that is about to be made, and do what is due before it.

        Raises:
            ValueError: at once if the optimizer keeps moments that cores cannot take over; see
                also `update`.
        """
        self.steps += 1
        if not self._carriable:
            self.check_optimizer(params, bases, opt_state)
        trees = Trees(params, bases, opt_state)
        return self.update(*trees) if self.config.step_on_forward else trees

    def due(self, bases: Bases) -> bool:
        """Whether something is to be done before the step that was counted last."""
        waiting = self.config.freeze == "delay" and not bases
        return self.steps >= self._next or (waiting and self.steps >= self.config.delay)

    def record(self, bases: Bases) -> dict[str, Any]:
        """Return what a run needs beside its arrays to go on: plain numbers, for JSON.

        The arrays are parameters, bases, the optimizer's state and `previous`.
        """
        sizes = {name: x.size for name, x in bases.items()}
        return {
            "steps": self.steps, "checks": self.checks, "next": self._next,
            "skips": dict(self.skips), "sizes": sizes, "previous": sorted(self.previous),
        }  # fmt: skip

    def restore(self, record: dict[str, Any], params: PyTree) -> tuple[PyTree, Bases]:
        """Take over a record, and return trees of the shapes that the run had then.

        Args:
            record: what `record` returned.
            params: parameters of the dense model, or their shapes.

        Returns:
            parameters and bases as `jax.ShapeDtypeStruct`, into which arrays are to be read, as
            into those that `previous` then holds.

        Raises:
            ValueError: if the record is of another model.
        """
        names, looked = self.names(params), record.get("previous", [])
        for name in [*record["sizes"], *looked]:
            if name not in self._found:
                raise ValueError(f"oialr: the record's {shown(name)} is no kernel of this model")
        cores, bases = empty(params, self._found, record["sizes"])
        leaves, waiting = named(cores), self._unfrozen(names, bases)
        if gone := [name for name in looked if name not in waiting]:
            raise ValueError(f"oialr: nothing of {shown(gone[0])} is left to settle")
        self.steps, self.checks = int(record["steps"]), int(record["checks"])
        self._next, self.skips = int(record["next"]), dict(record["skips"])
        self.previous = {n: look_struct(leaves[n], self._found[n], waiting[n]) for n in looked}
        return cores, bases

    def update(self, params: PyTree, bases: Bases, opt_state: Any, force: bool = False) -> Trees:
        """Do what is due at this step; `force`: check now, whatever the step.

        Raises:
            ValueError: if kernels are to become low-rank but no optimizer is known.
        """
        trees, config = Trees(params, bases, opt_state), self.config
        due = self.steps >= self._next
        if not (force or self.due(bases)):
            return trees
        names = self.names(params, bases)
        waiting = self._unfrozen(names, bases)
        if config.freeze == "stability":
            if (due or force) and waiting:
                args = named(params), self._found, waiting, self.previous, config
                ready, self.previous = settled(*args)
                trees = self._factor(trees, ready)
        elif waiting and self.steps >= config.delay and (due or not trees.bases):
            trees = self._factor(trees, waiting)
        if due:
            late = (self.steps - self._next) // config.stability_frequency
            self._next += config.stability_frequency * (1 + late)
        if not (due or force) or config.fixed_inner_dim:
            return trees
        return self._check(trees, [n for n in names if n in trees.bases])

    def names(self, params: PyTree, bases: Bases | None = None) -> list[str]:
        """Return the names of all kernels that are or will be low-rank, in network order."""
        known = {name: x.shape for name, x in (bases or {}).items()}
        leaves = named(params)
        shaped = {
            name: jax.ShapeDtypeStruct(known.get(name, x.shape), x.dtype)
            for name, x in leaves.items()
        }
        kernels = kernels_of(renamed(params, shaped), self._kernels)
        if self._order is not None:
            if unknown := [n for n in self._order if n not in kernels]:
                raise ValueError(f"order: {shown(unknown[0])} is no kernel of these parameters")
            kernels = {name: kernels[name] for name in self._order}
        self._found = kernels
        self._shapes = {name: shaped[name].shape for name in kernels}
        config = self.config
        return to_be_factored(
            self._shapes, kernels, config.keep_first_layer, config.keep_last_layer
        )

    def _unfrozen(self, names, bases) -> dict[str, Axes]:
        return unfrozen(names, self._found, self._shapes, bases)

    def check_optimizer(self, params: PyTree, bases: Bases, opt_state: Any) -> None:
        """Refuse an optimizer whose state cannot be carried over, before anything is trained.

        Raises:
            ValueError: if it keeps moments of kernels in a form that cores cannot take over.
        """
        check_carriable(opt_state, self.names(params, bases))
        self._carriable = True

    def _factor(self, trees: Trees, meant: dict[str, Axes]) -> Trees:
        leaves = named(trees.params)
        made = factor_kernels(leaves, self._found, trees.bases, meant, self.config)
        return self._changed("factored", trees, made) if made else trees

    def _check(self, trees: Trees, names: Sequence[str]) -> Trees:
        config = self.config
        self.checks += 1
        taken = working_layers(
            names, self.checks, config.network_layer_perc_step, config.legacy_selection
        )
        working = [n for n in taken if self.skips.get(n, 0) == 0]
        # The original counts a skipped check in the pass that begins the skipping.
        begun = max(0, config.stable_update_delay - config.legacy_selection)
        for name in taken:
            self.skips[name] = begun if name in working else self.skips[name] - 1
        if not working:
            return trees
        leaves = named(trees.params)
        found = check_kernels([trees.bases[n].with_core(leaves[n]) for n in working], config)
        return self._changed("checked", trees, dict(zip(working, found, strict=True)))

    def _changed(
        self, what: str, trees: Trees, made: dict[str, tuple[Node, Change | ModesChange]]
    ) -> Trees:
        """Return the trees with kernels in their new forms, and note it as an event."""
        after = renamed(trees.params, {name: x.S for name, (x, _) in made.items()})
        changes = {name: change for name, (_, change) in made.items()}
        opt_state = self._carried(trees, after, changes, factoring=what == "factored")
        bases = trees.bases | {name: x.without_core() for name, (x, _) in made.items()}
        report = param_report(after, bases)
        ranks = {name: report.ranks[name] for name in made}
        self.events.append(Event(self.steps, what, ranks, report))
        return Trees(after, bases, opt_state)

    def _carried(self, trees, after, changes, factoring):
        if trees.opt_state is None:
            return None
        if self.optimizer is None:
            raise ValueError("oialr: the controller knows no optimizer, whose state is to change")
        if self._trial is None:
            self._trial = [tried(self.optimizer, trees.params)]
        args = (self.optimizer, trees.opt_state, trees.params, after, changes)
        return carried(*args, self.config.moments, factoring, self._trial[0])
