"""A training run from its configuration to its folder.

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
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tqdm import tqdm

import tensorgrad_jax as tg
from tensorgrad_jax.data import batches, n_batches
from tensorgrad_jax.training import report
from tensorgrad_jax.training.build import LOSSES, build_model, build_optimizer
from tensorgrad_jax.training.checkpoints import Checkpoints, Position
from tensorgrad_jax.training.data_sets import DataSets, TestSet, load_data_sets
from tensorgrad_jax.training.interrupts import InterruptedRunError, Interrupts
from tensorgrad_jax.training.memory import peak_bytes, profile
from tensorgrad_jax.training.options import Config
from tensorgrad_jax.training.run_folder import (
    append_metrics,
    make_run_folder,
    new_run_folder,
    read_metrics,
)
from tensorgrad_jax.training.schedules import learning_rate_schedule
from tensorgrad_jax.training.step import TrainState, make_error_step, make_train_step, predict


class DivergedError(Exception):
    """The training loss is not finite any more."""


OptimizerBuilder = Callable[[Config, int], optax.GradientTransformation]


def run(config: Config, build_optimizer: OptimizerBuilder = build_optimizer) -> Path:
    """Train as the configuration says and return the folder of the run.

    Args:
        config: the configuration.
        build_optimizer: makes the optimizer of the configuration and the steps per epoch; to try
            one that no option describes.

    Raises:
        ConfigError: if an option is wrong; nothing was written.
        DataError: if the data are missing or damaged; nothing was written.
        DivergedError: if the loss became NaN or infinite; the last checkpoint is from before that.
        InterruptedRunError: if the process was asked to end; a checkpoint was saved.
    """
    data = load_data_sets(config)
    training = Training(config, data, build_optimizer)
    if config.opt.resume_from_dir is None:
        new_run_folder(config)  # a name that is taken is told before the time of compiling ...
        training._compile()  # ... and what cannot be compiled leaves no folder behind
        folder = make_run_folder(config)
    else:
        folder = Path(config.opt.resume_from_dir)
    checkpoints = Checkpoints(folder / "checkpoints")
    try:
        if config.opt.resume_from_dir is not None:
            training.state, training.position = checkpoints.restore(training.state)
            training.rows = read_metrics(folder, training.position.epoch)
        if config.opt.profiling:
            profile(config, data.in_channels, data.out_channels, folder)
        training.fit(folder, checkpoints)
    finally:
        checkpoints.close()
    training.report(folder)
    return folder


class Training:
    """A run in memory.

    Attributes:
        state: parameters and optimizer state.
        position: where in the data the run stands.
        rows: one dictionary of metrics per completed epoch.
        waited: seconds this process has waited for batches that were not added to `position` yet.
    """

    def __init__(
        self,
        config: Config,
        data: DataSets,
        build_optimizer: OptimizerBuilder = build_optimizer,
    ):
        self.config, self.data = config, data
        in_epoch = n_batches(data.train, config.data.batch_size)
        self.batches_per_epoch = min(in_epoch, config.opt.max_batches or in_epoch)
        self.schedule = learning_rate_schedule(config.opt, self.batches_per_epoch)
        optimizer = build_optimizer(config, self.batches_per_epoch)
        model = build_model(config, data.in_channels, data.out_channels)
        self.graphdef, variables = nnx.split(model, nnx.Param)
        params = nnx.to_pure_dict(variables)
        self.state = TrainState(
            params, optimizer.init(params), jnp.zeros((), jnp.int32), jnp.zeros(())
        )
        self.position = Position()
        self.rows: list[dict[str, Any]] = []
        self.waited = 0.0
        loss = LOSSES[config.opt.training_loss]
        rounding_seed = config.seed if config.opt.stochastic_rounding else None
        self._step = make_train_step(self.graphdef, optimizer, loss, data.encoding, rounding_seed)
        self._errors = make_error_step(self.graphdef, data.encoding)
        self._compiled = None

    def fit(self, folder: Path, checkpoints: Checkpoints) -> None:
        """Train to the last epoch."""
        config = self.config
        self._compile()
        with Interrupts() as interrupts:
            while self.position.epoch < config.opt.n_epochs:
                started = time.monotonic()
                finished = self._train_epoch(interrupts)
                if not math.isfinite(float(self.state.loss_sum)):
                    raise DivergedError(
                        f"training diverged in epoch {self.position.epoch + 1}: the loss is not "
                        f"finite; lower opt.learning_rate ({config.opt.learning_rate})"
                    )
                if finished:
                    self._finish_epoch(folder, started)
                else:
                    self._add_seconds(started)
                due = self.position.epoch % config.opt.save_every == 0
                last = self.position.epoch == config.opt.n_epochs
                if due or last or not finished or interrupts.received:
                    checkpoints.save(self.state, self.position)
                if interrupts.received and not last:
                    raise InterruptedRunError(
                        f"stopped after step {self.position.step}; continue with "
                        f"--opt.resume_from_dir {folder}"
                    )

    def _compile(self) -> None:
        """Compile the step before the first epoch: its time and its memory are known then."""
        if self._compiled is not None:
            return
        batch = self.data.train[0]
        shape = lambda x: jax.ShapeDtypeStruct((self.config.data.batch_size, *x.shape), x.dtype)
        self._compiled = self._step.lower(
            self.state, {k: shape(v) for k, v in batch.items()}
        ).compile()

    def _train_epoch(self, interrupts: Interrupts) -> bool:
        """Do the rest of an epoch; False if it was interrupted."""
        config, position = self.config, self.position
        assert self._compiled is not None
        source = batches(
            self.data.train,
            config.data.batch_size,
            seed=config.seed,
            epoch=position.epoch,
            start=position.batch,
        )
        bar = tqdm(
            total=self.batches_per_epoch,
            initial=position.batch,
            desc=f"epoch {position.epoch + 1}/{config.opt.n_epochs}",
            unit="step",
            leave=False,
            disable=not sys.stderr.isatty(),
        )
        done = position.batch
        with bar:
            for batch in self._waiting(source):
                if done == self.batches_per_epoch or interrupts.received:
                    break
                self.state = self._compiled(self.state, batch)
                done += 1
                bar.update()
        steps = position.step + done - position.batch
        self.position = dataclasses.replace(position, batch=done, step=steps)
        return done == self.batches_per_epoch

    def _finish_epoch(self, folder: Path, started: float) -> None:
        train_loss = float(self.state.loss_sum) / self.batches_per_epoch
        tests = {str(test.resolution): self._test(test) for test in self.data.tests}
        last_step = self.position.step - 1
        self.state = self.state._replace(loss_sum=jnp.zeros(()))
        self.position = dataclasses.replace(self.position, epoch=self.position.epoch + 1, batch=0)
        self._add_seconds(started)
        row = {
            "epoch": self.position.epoch,
            "step": self.position.step,
            "train_loss": train_loss,
            "learning_rate": float(np.asarray(self.schedule(last_step))),
            **self._seconds(),
            "tests": tests,
            "validation": self.data.validation and self._test(self.data.validation),
        }
        self.rows.append(row)
        append_metrics(folder, row)
        tqdm.write(_epoch_line(row, self.config))

    def _add_seconds(self, started: float) -> None:
        p = self.position
        self.position = dataclasses.replace(
            p,
            seconds=p.seconds + time.monotonic() - started,
            data_seconds=p.data_seconds + self.waited,
        )
        self.waited = 0.0

    def _seconds(self) -> dict[str, float]:
        p = self.position
        return {"seconds": round(p.seconds, 3), "data_seconds": round(p.data_seconds, 3)}

    def _waiting(self, source: Iterable[Any]) -> Iterator[Any]:
        """Hand batches on and count the time until each one exists."""
        iterator = iter(source)
        while True:
            started = time.monotonic()
            batch = next(iterator, None)
            self.waited += time.monotonic() - started
            if batch is None:
                return
            yield batch

    def _test(self, test: TestSet) -> dict[str, float]:
        """Return the mean relative errors over a test set."""
        errors: dict[str, list[np.ndarray]] = {name: [] for name in LOSSES}
        for batch in self._waiting(batches(test.source, test.batch_size, seed=0, shuffle=False)):
            for name, values in self._errors(self.state.params, batch).items():
                errors[name].append(np.asarray(values))
        n = len(test.source)  # what fills up the last batch does not count
        return {name: float(np.mean(np.concatenate(parts)[:n])) for name, parts in errors.items()}

    def report(self, folder: Path) -> None:
        """Write the pictures and the summary, and print the table of bytes."""
        report.plot_loss(self.rows, folder / "loss.png")
        pictures = self._plot_predictions(folder)
        params = self.state.params
        ours = tg.state_bytes(self.state.opt_state)
        # float32 moments, whatever the precision of the parameters.
        adamw = tg.state_bytes(jax.eval_shape(tg.scale_by_adam().init, params))
        last = self.rows[-1]
        at_training = last["tests"].get(str(self.config.data.train_resolution), {})
        report.write_summary(
            folder / "summary.json",
            {
                "n_params": sum(x.size for x in jax.tree.leaves(params)),
                "steps": self.position.step,
                **self._seconds(),
                "waiting_fraction": _share(self.position),
                "train_loss": last["train_loss"],
                "test_l2": at_training.get("l2"),
                "test_h1": at_training.get("h1"),
                "tests": last["tests"],
                "validation": last["validation"],
                "optimizer_state_bytes": ours["total"],
                "adamw_state_bytes": adamw["total"],
                "peak_bytes": self._peak_bytes(),
            },
        )
        n_bytes = sum(x.nbytes for x in jax.tree.leaves(params))
        row = lambda name, counts: report.MemoryRow(
            name, n_bytes, counts["moments"], counts["basis"], counts["other"], adamw["total"]
        )
        names = ["this run", "optax.adamw"]
        print("\nOptimizer state, bytes")
        print(report.memory_table([row(n, c) for n, c in zip(names, (ours, adamw), strict=True)]))
        written = ["summary.json", "metrics.jsonl", "loss.png", *pictures]
        print(f"\nWritten to {folder}: {', '.join(written)}")

    def _plot_predictions(self, folder: Path) -> list[str]:
        """Draw the first sample of every test set; return the names of the files."""
        predicted = jax.jit(lambda params, x: predict(self.graphdef, params, x, self.data.encoding))
        trained, tests = self.config.data.train_resolution, self.data.tests
        names = report.picture_names([test.resolution for test in tests], trained)
        for test, name in zip(tests, names, strict=True):
            sample = test.source[0]
            prediction = np.asarray(predicted(self.state.params, sample["x"][None])[0])
            report.plot_prediction(sample["x"], sample["y"], prediction, folder / name)
        return names

    def _peak_bytes(self) -> int | None:
        """Return the allocator's peak, or where there is none the compiled step's own count."""
        stats = jax.local_devices()[0].memory_stats()
        if stats and "peak_bytes_in_use" in stats:
            return stats["peak_bytes_in_use"]
        return None if self._compiled is None else peak_bytes(self._compiled)


def _epoch_line(row: dict[str, Any], config: Config) -> str:
    sets = {f"test {resolution}": errors for resolution, errors in row["tests"].items()}
    sets |= {"validation": row["validation"]} if row["validation"] else {}
    tests = "  ".join(f"{name}: L2 {e['l2']:.4f} H1 {e['h1']:.4f}" for name, e in sets.items())
    width = len(str(config.opt.n_epochs))
    return (
        f"epoch {row['epoch']:>{width}}/{config.opt.n_epochs}  "
        f"train {config.opt.training_loss.upper()} {row['train_loss']:.4f}  {tests}  "
        f"rate {row['learning_rate']:.1e}  {row['seconds']:.0f} s"
    )


def _share(position: Position) -> float:
    """Return the share of the time so far that was spent waiting for batches."""
    return round(position.data_seconds / position.seconds, 4) if position.seconds else 0.0
