"""The training method over a run: warm-up, cores, checks, with the optimizer's moments.

The controller lives on the host, between the compiled training steps, because shapes change: it is
asked before every step and mostly only counts.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from tensorgrad_jax.oialr.config import Config
from tensorgrad_jax.oialr.kernels import (
    Kernels,
    by_shape,
    kernels_of,
    named,
    renamed,
    to_be_factored,
    working_layers,
)
from tensorgrad_jax.oialr.low_rank import LowRank, cut_rank
from tensorgrad_jax.oialr.moments import Change, carried
from tensorgrad_jax.oialr.observables import polar_factor, stability
from tensorgrad_jax.oialr.tensors import ModesChange, change_of_factoring
from tensorgrad_jax.oialr.trees import Bases, Node, ParamReport, empty, factored, param_report
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
        self.previous: dict[str, Any] = {}  # bases of dense layers at the last look at them
        self._kernels, self._order = kernels, order
        self._trial: list[Any] | None = None  # of the optimizer, made once
        self._next = self.config.delay or self.config.stability_frequency

    def start(self, params: PyTree) -> tuple[PyTree, Bases]:
        """Return the parameters to begin with: low-rank at once if there is no warm-up.

        Raises:
            ValueError: if no kernel can become low-rank.
        """
        names = self._names(params)
        if self.config.full_rank_warmup and self.config.delay > 0:
            return params, {}
        trees = self._factor(Trees(params, {}, None), names)
        return trees.params, trees.bases

    def step(self, params: PyTree, bases: Bases, opt_state: Any) -> Trees:
        """Count a step that is about to be made, and do what is due before it."""
        self.steps += 1
        trees = Trees(params, bases, opt_state)
        return self.update(*trees) if self.config.step_on_forward else trees

    def due(self, bases: Bases) -> bool:
        """Whether something is to be done before the step that was counted last."""
        waiting = self.config.freeze == "delay" and not bases
        return self.steps >= self._next or (waiting and self.steps >= self.config.delay)

    def record(self, bases: Bases) -> dict[str, Any]:
        """Return what a run needs beside its arrays to go on: plain numbers, for JSON.

        Bases that dense layers are compared with (`previous`) are arrays, to be saved as such.
        """
        sizes = {name: x.size for name, x in bases.items()}
        return {
            "steps": self.steps, "checks": self.checks, "next": self._next,
            "skips": dict(self.skips), "sizes": sizes,
        }  # fmt: skip

    def restore(self, record: dict[str, Any], params: PyTree) -> tuple[PyTree, Bases]:
        """Take over a record, and return trees of the shapes that the run had then.

        Args:
            record: what `record` returned.
            params: parameters of the dense model, or their shapes.

        Returns:
            parameters and bases as `jax.ShapeDtypeStruct`, into which arrays are to be read.

        Raises:
            ValueError: if the record is of another model.
        """
        self._names(params)
        for name in record["sizes"]:
            if name not in self._found:
                raise ValueError(f"oialr: the record's {shown(name)} is no kernel of this model")
        self.steps, self.checks = int(record["steps"]), int(record["checks"])
        self._next, self.skips = int(record["next"]), dict(record["skips"])
        return empty(params, self._found, record["sizes"])

    def update(self, params: PyTree, bases: Bases, opt_state: Any, force: bool = False) -> Trees:
        """Do what is due at this step; `force`: check now, whatever the step.

        Raises:
            ValueError: if kernels are to become low-rank but no optimizer is known.
        """
        trees, config = Trees(params, bases, opt_state), self.config
        due = self.steps >= self._next
        if not (force or self.due(bases)):
            return trees
        names = self._names(params, bases)
        missing = [n for n in names if n not in bases]
        if config.freeze == "stability":
            if (due or force) and missing:
                trees = self._factor(trees, self._settled(trees.params, missing))
        elif missing and self.steps >= config.delay and (due or not trees.bases):
            trees = self._factor(trees, missing)
        if due:
            late = (self.steps - self._next) // config.stability_frequency
            self._next += config.stability_frequency * (1 + late)
        if not (due or force) or config.fixed_inner_dim:
            return trees
        return self._check(trees, [n for n in names if n in trees.bases])

    def _names(self, params, bases=None) -> list[str]:
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
        shapes = {name: shaped[name].shape for name in kernels}
        config = self.config
        return to_be_factored(shapes, kernels, config.keep_first_layer, config.keep_last_layer)

    def _settled(self, params, names) -> list[str]:
        """Return the layers whose basis has settled since the last look, and look at all."""
        leaves, settled = named(params), []
        for name in names:
            basis = _polar_factor(leaves[name], self._found[name].rows)
            before = self.previous.pop(name, None)
            if before is not None and float(_stability(before, basis)) >= self.config.uvhthreshold:
                settled.append(name)
            else:
                self.previous[name] = basis
        return settled

    def _factor(self, trees: Trees, names: Sequence[str]) -> Trees:
        config, leaves = self.config, named(trees.params)
        finite = [n for n in names if bool(jnp.isfinite(leaves[n]).all())]
        if spared := [n for n in names if n not in finite]:
            warnings.warn(
                f"oialr: {spared[0]!r} is not finite and stays dense ({len(spared)} such)",
                RuntimeWarning,
                stacklevel=4,
            )
        ratio, bucket = config.inner_dim_init_ratio, config.bucket
        made = {n: _factored(leaves[n], self._found[n], ratio, bucket) for n in finite}
        if not made:
            return trees
        after = renamed(trees.params, {name: x.S for name, x in made.items()})
        changes = {n: self._change(n, x) for n, x in made.items()}
        opt_state = self._carried(trees, after, changes, factoring=True)
        bases = trees.bases | {name: x.without_core() for name, x in made.items()}
        return self._noted("factored", made, Trees(after, bases, opt_state))

    def _change(self, name: str, x: Node) -> Change | ModesChange:
        if isinstance(x, LowRank):
            return Change(x.U, x.Vt.conj().T, self._found[name].rows)
        return change_of_factoring(x)

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
        found = self._cut([trees.bases[n].with_core(leaves[n]) for n in working])
        checked, changes = {}, {}
        for name, (x, change) in zip(working, found, strict=True):
            checked[name] = x.shrunk(config.bucket) if config.reinit_shapes else x
            changes[name] = Change(*change) if isinstance(x, LowRank) else change
        after = renamed(trees.params, {name: x.S for name, x in checked.items()})
        opt_state = self._carried(trees, after, changes, factoring=False)
        bases = trees.bases | {name: x.without_core() for name, x in checked.items()}
        return self._noted("checked", checked, Trees(after, bases, opt_state))

    def _cut(self, layers: list[Any]) -> list[tuple[Any, Any]]:
        """Rotate and cut layers, each on a device of its own where the parameters lie on several.

        Nothing waits in between: devices work at the same time.
        """
        config, found = self.config, []
        divided = config.use_ddp and config.distributed_updates
        for number, x in enumerate(layers):
            sharding = x.S.sharding
            devices = sorted(sharding.addressable_devices, key=lambda d: d.id)
            if divided and len(devices) > 1 and sharding.is_fully_replicated:
                moved = jax.device_put(x, devices[number % len(devices)])
                y, change = _cut_rank(moved, config.sigma_cutoff_fraction)
                y = jax.device_put(y, jax.tree.map(lambda a: a.sharding, x))
                found.append((y, jax.device_put(change, sharding)))
            else:
                found.append(_cut_rank(x, config.sigma_cutoff_fraction))
        return found

    def _carried(self, trees, after, changes, factoring):
        if trees.opt_state is None:
            return None
        if self.optimizer is None:
            raise ValueError("oialr: the controller knows no optimizer, whose state is to change")
        if self._trial is None:
            self._trial = [tried(self.optimizer, trees.params)]
        args = (self.optimizer, trees.opt_state, trees.params, after, changes)
        return carried(*args, self.config.moments, factoring, self._trial[0])

    def _noted(self, what, layers, trees: Trees) -> Trees:
        report = param_report(trees.params, trees.bases)
        ranks = {name: report.ranks[name] for name in layers}
        self.events.append(Event(self.steps, what, ranks, report))
        return trees


@functools.partial(jax.jit, static_argnums=1)
def _cut_rank(x, fraction):
    if isinstance(x, LowRank):
        y, rotation, _ = cut_rank(x, fraction)
        return y, rotation
    return x.cut_rank(fraction)


_factored = jax.jit(factored, static_argnums=(1, 2, 3))
_polar_factor = jax.jit(polar_factor, static_argnums=1)
_stability = jax.jit(stability)
