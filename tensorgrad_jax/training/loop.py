"""Training a model on a device: the loop over epochs and batches.

Between two steps nothing is read back from the device: batches are dispatched, the loss is summed
there, and the host looks at it once per epoch. The state of a run is its parameters, its optimizer
state and its position in the data, and batches depend on seed, epoch and index alone: a run that
was stopped anywhere continues as if it had not been.

The time the host waits for a batch that is not ready is counted as `data_seconds`. Steps run while
the host waits: the device stands idle for want of data at most that long.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float
from tqdm import tqdm

from tensorgrad_jax import oialr
from tensorgrad_jax.data import batches, n_batches
from tensorgrad_jax.training.checkpoints import CheckpointError, Checkpoints, Position, Record
from tensorgrad_jax.training.data_sets import DataSets, TestSet
from tensorgrad_jax.training.losses import LOSSES
from tensorgrad_jax.training.memory import peak_bytes
from tensorgrad_jax.training.records import append_metrics
from tensorgrad_jax.training.step import (
    GradientsOf,
    TrainState,
    finite_leaves,
    make_error_step,
    make_train_step,
    predict,
)
from tensorgrad_jax.training.stops import Interrupts

ArrayLike = Any  # NumPy or JAX


class DivergedError(Exception):
    """The loss, a parameter, the optimizer's state or a test error is not finite any more."""


class InterruptedRunError(Exception):
    """The process was asked to end, and everything is saved."""


def steps_per_epoch(data: DataSets, batch_size: int, max_batches: int | None = None) -> int:
    """Return the number of optimizer steps in an epoch, at most `max_batches`."""
    in_epoch = n_batches(data.train, batch_size)
    return min(in_epoch, max_batches or in_epoch)


class Training:
    """A model, its optimizer and its data, and where their training stands.

        training = Training(model, optimizer, data, schedule, batch_size=16)
        training.fit(n_epochs=10)
        prediction = training.predict(x)

    Attributes:
        state: parameters and optimizer state.
        position: where in the data the run stands.
        rows: one dictionary of metrics per completed epoch.
        data: the data sets.
    """

    def __init__(
        self,
        model: nnx.Module,
        optimizer: optax.GradientTransformation,
        data: DataSets,
        schedule: float | optax.Schedule,
        *,
        batch_size: int = 8,
        max_batches: int | None = None,
        loss: Literal["l2", "h1"] = "l2",
        seed: int = 0,
        stochastic_rounding: bool = True,
        gradients_of: GradientsOf | None = None,
        low_rank: oialr.Controller | None = None,
    ):
        """Prepare the training; nothing is compiled yet.

        Args:
            model: maps (batch, *grid, in_channels) to (batch, *grid, out_channels). `fit` leaves
                the trained parameters in it; until it returns the model cannot be used.
            optimizer: any optimizer.
            data: see `data_sets`.
            schedule: the optimizer's learning rate, which the metrics tell.
            batch_size: samples per step.
            max_batches: steps per epoch at most.
            loss: the relative loss that is minimized, in physical units.
            seed: of the order of the samples and of the rounding.
            stochastic_rounding: of updated bfloat16 parameters; False rounds to the nearest.
            gradients_of: where gradients come from, see `make_train_step`.
            low_rank: makes cores of parameters while they train, with this optimizer.
        """
        self.model, self.data, self.loss = model, data, loss
        self.batch_size, self.seed = batch_size, seed
        self.steps_per_epoch = steps_per_epoch(data, batch_size, max_batches)
        self.schedule = schedule if callable(schedule) else optax.constant_schedule(schedule)
        self._graphdef, variables = nnx.split(model, nnx.Param)
        params = nnx.to_pure_dict(variables)
        self._optimizer, self.low_rank = optimizer, low_rank
        struct = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
        self._dense_structs = jax.tree.map(struct, params)
        bases: Any = ()
        if low_rank is not None:
            params, bases = low_rank.start(params)
        self.state = TrainState(
            params, optimizer.init(params), jnp.zeros((), jnp.int32), jnp.zeros(()), bases
        )
        self.position = Position()
        self.rows: list[dict[str, Any]] = []
        # An optimizer may start from an infinite number, the best loss so far for instance.
        self._never_finite = [name for name, ok in finite_leaves(self.state).items() if not ok]
        self._waited = 0.0  # seconds that were not added to `position` yet
        rounding_seed = seed if stochastic_rounding else None
        self._step = make_train_step(
            self._graphdef,
            optimizer,
            LOSSES[loss],
            data.encoding,
            rounding_seed,
            None,
            gradients_of,
        )
        self._errors = make_error_step(self._graphdef, data.encoding)
        self._predict = jax.jit(lambda params, x: predict(self._graphdef, params, x, data.encoding))
        self._compiled = None

    @property
    def params(self) -> Any:
        """The model's parameters: where cores are trained, the weights made of them."""
        state = self.state
        return _lifted(state.params, state.bases) if state.bases else state.params

    def save(self, checkpoints: Checkpoints) -> None:
        """Write a checkpoint of where the training stands.

        Raises:
            StorageError: if it could not be written.
        """
        state, record = self.state, None
        if self.low_rank is not None:
            record = self.low_rank.record(state.bases)
            if record["previous"]:  # what axes are compared with that have not settled yet
                state = state._replace(bases=(state.bases, self.low_rank.previous))
        checkpoints.save(state, self.position, self.rows, record)

    def restore(self, checkpoints: Checkpoints) -> Record:
        """Bring the state to where the newest intact checkpoint is, and return its record.

        Raises:
            CheckpointError: if there is none that fits, also if it has cores of other parameters.
        """
        state, record = checkpoints.restore(self._struct_of)
        if self.low_rank is not None and self.low_rank.previous:
            bases, self.low_rank.previous = state.bases
            state = state._replace(bases=bases)
        self.state = state
        return record

    def _struct_of(self, record: Record) -> TrainState:
        """Return the shapes and dtypes of a checkpoint's state, whose record this is."""
        if self.low_rank is None or record.low_rank is None:
            return self.state
        try:
            params, bases = self.low_rank.restore(record.low_rank, self._dense_structs)
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"a checkpoint's cores do not fit: {error}") from error
        opt_state = jax.eval_shape(self._optimizer.init, params)
        previous = self.low_rank.previous
        saved: Any = (bases, previous) if previous else bases
        return self.state._replace(params=params, opt_state=opt_state, bases=saved)

    def fit(
        self,
        n_epochs: int,
        folder: Path | None = None,
        checkpoints: Checkpoints | None = None,
        save_every: int = 1,
    ) -> None:
        """Train until `n_epochs` epochs are done, those done before included.

        Args:
            n_epochs: passes over the training data.
            folder: where metrics.jsonl is written to; None writes nothing.
            checkpoints: where checkpoints go; None keeps none.
            save_every: epochs between checkpoints. The last epoch and a stop save in any case.

        Raises:
            DivergedError: if the loss, the state or a test error became NaN or infinite; the last
                checkpoint is from before.
            InterruptedRunError: if the process was asked to end; a checkpoint was saved. Another
                `fit` goes on from there.
        """
        self.compile()
        try:
            with Interrupts() as interrupts:
                while self.position.epoch < n_epochs:
                    self._fit_epoch(n_epochs, folder, checkpoints, save_every, interrupts)
        finally:
            nnx.update(self.model, self.params)

    def predict(self, x: Float[ArrayLike, "batch *grid channels"]) -> Float[Array, ...]:
        """Return the prediction, (batch, *grid, out_channels); both are in physical units."""
        return self._predict(self.params, x)

    def compile(self) -> None:
        """Compile the step before the first epoch: its time and its memory are known then."""
        if self._compiled is not None:
            return
        shape = lambda x: jax.ShapeDtypeStruct((self.batch_size, *x.shape), x.dtype)
        batch = {name: shape(field) for name, field in self.data.train[0].items()}
        self._compiled = self._step.lower(self.state, batch).compile()

    def peak_bytes(self) -> int | None:
        """Return the allocator's peak, or where there is none the compiled step's own count."""
        stats = jax.local_devices()[0].memory_stats()
        if stats and "peak_bytes_in_use" in stats:
            return stats["peak_bytes_in_use"]
        return None if self._compiled is None else peak_bytes(self._compiled)

    def _fit_epoch(self, n_epochs, folder, checkpoints, save_every, interrupts) -> None:
        """Do the rest of an epoch, its tests and its checkpoint."""
        started = time.monotonic()
        finished = self._train_epoch(n_epochs, interrupts)
        self._check_finite()
        if finished:
            self._finish_epoch(n_epochs, folder, started)
        else:
            self._add_seconds(started)
        due = self.position.epoch % save_every == 0
        last = self.position.epoch == n_epochs
        if checkpoints is not None and (due or last or not finished or interrupts.received):
            self.save(checkpoints)
        if interrupts.received and not last:
            raise InterruptedRunError(f"stopped after step {self.position.step}")

    def _change_ranks(self) -> None:
        """Do what is due before a step, mostly nothing; other shapes are another program."""
        if self.low_rank is None:
            return
        state, events = self.state, len(self.low_rank.events)
        trees = self.low_rank.step(state.params, state.bases, state.opt_state)
        if len(self.low_rank.events) == events:
            return
        shapes = lambda tree: jax.tree.map(jnp.shape, tree)
        same = shapes(trees.params) == shapes(state.params)
        self.state = state._replace(
            params=trees.params, opt_state=trees.opt_state, bases=trees.bases
        )
        event = self.low_rank.events[-1]
        tqdm.write(f"step {event.step}: {event.report}")
        if not same:
            self._compiled = None
            self.compile()

    def _train_epoch(self, n_epochs: int, interrupts: Interrupts) -> bool:
        """Do the rest of an epoch's steps; False if it was interrupted."""
        position = self.position
        assert self._compiled is not None
        source = batches(
            self.data.train,
            self.batch_size,
            seed=self.seed,
            epoch=position.epoch,
            start=position.batch,
        )
        bar = tqdm(
            total=self.steps_per_epoch,
            initial=position.batch,
            desc=f"epoch {position.epoch + 1}/{n_epochs}",
            unit="step",
            leave=False,
            disable=not sys.stderr.isatty(),
        )
        done = position.batch
        with bar:
            for batch in self._waiting(source):
                if done == self.steps_per_epoch or interrupts.received:
                    break
                self._change_ranks()
                self.state = self._compiled(self.state, batch)
                done += 1
                bar.update()
        steps = position.step + done - position.batch
        self.position = dataclasses.replace(position, batch=done, step=steps)
        return done == self.steps_per_epoch

    def _finish_epoch(self, n_epochs: int, folder: Path | None, started: float) -> None:
        train_loss = float(self.state.loss_sum) / self.steps_per_epoch
        tests = {str(test.resolution): self._test(test) for test in self.data.tests}
        validation = self.data.validation and self._test(self.data.validation)
        for name, errors in _by_set(tests, validation).items():
            if not all(map(math.isfinite, errors.values())):
                raise self._diverged(f"the error of {name}")
        last_step = self.position.step - 1
        self.state = self.state._replace(loss_sum=jnp.zeros(()))
        self.position = dataclasses.replace(self.position, epoch=self.position.epoch + 1, batch=0)
        self._add_seconds(started)
        row = {
            "epoch": self.position.epoch,
            "step": self.position.step,
            "train_loss": train_loss,
            "learning_rate": float(np.asarray(self.schedule(last_step))),
            **self.position.rounded_seconds(),
            "tests": tests,
            "validation": validation,
        }
        self.rows.append(row)
        if folder is not None:
            append_metrics(folder, row)
        tqdm.write(_epoch_line(row, n_epochs, self.loss))

    def _check_finite(self) -> None:
        """Raise unless the loss and all numbers of the state that were finite at first still are.

        A parameter may be lost in the last step of an epoch, of which no loss tells.
        """
        if not math.isfinite(float(self.state.loss_sum)):
            raise self._diverged("the loss")
        for name, finite in finite_leaves(self.state).items():
            if not finite and name not in self._never_finite:
                raise self._diverged(name)

    def _diverged(self, what: str) -> DivergedError:
        epoch = self.position.epoch + 1
        return DivergedError(f"training diverged in epoch {epoch}: {what} is not finite")

    def _add_seconds(self, started: float) -> None:
        p = self.position
        self.position = dataclasses.replace(
            p,
            seconds=p.seconds + time.monotonic() - started,
            data_seconds=p.data_seconds + self._waited,
        )
        self._waited = 0.0

    def _waiting(self, source: Iterable[Any]) -> Iterator[Any]:
        """Hand batches on and count the time until each one exists."""
        iterator = iter(source)
        while True:
            started = time.monotonic()
            batch = next(iterator, None)
            self._waited += time.monotonic() - started
            if batch is None:
                return
            yield batch

    def _test(self, test: TestSet) -> dict[str, float]:
        """Return the mean relative errors over a test set."""
        errors: dict[str, list[np.ndarray]] = {name: [] for name in LOSSES}
        params = self.params
        for batch in self._waiting(batches(test.source, test.batch_size, seed=0, shuffle=False)):
            for name, values in self._errors(params, batch).items():
                errors[name].append(np.asarray(values))
        n = len(test.source)  # what fills up the last batch does not count
        return {name: float(np.mean(np.concatenate(parts)[:n])) for name, parts in errors.items()}


_lifted = jax.jit(oialr.lift)


def _by_set(
    tests: dict[str, dict[str, float]], validation: dict[str, float] | None
) -> dict[str, dict[str, float]]:
    """Return the errors by the name of their set."""
    sets = {f"test {resolution}": errors for resolution, errors in tests.items()}
    return sets | ({"validation": validation} if validation else {})


def _epoch_line(row: dict[str, Any], n_epochs: int, loss: str) -> str:
    sets = _by_set(row["tests"], row["validation"]).items()
    tests = "  ".join(f"{name}: L2 {e['l2']:.4f} H1 {e['h1']:.4f}" for name, e in sets)
    width = len(str(n_epochs))
    return (
        f"epoch {row['epoch']:>{width}}/{n_epochs}  train {loss.upper()} {row['train_loss']:.4f}  "
        f"{tests}  rate {row['learning_rate']:.1e}  {row['seconds']:.0f} s"
    )
