"""Step 1: train a problem, and record its parameters on the way."""

from __future__ import annotations

import dataclasses
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from tqdm import tqdm

from tensorgrad_jax.hessian.problems import Problem
from tensorgrad_jax.hessian.records import Log, ParameterFile, timestamp
from tensorgrad_jax.hessian.settings import Exhaustive, Gather, SettingError

ProblemOf = Callable[[str, int, "Path | None"], Problem]
_EVALUATED = 1024  # examples at once


def tuned(settings: Gather | Exhaustive, problem: Problem) -> Problem:
    """Return the problem with what TUNING_CONF says of it.

    Raises:
        SettingError: if the file or what it should say is missing.
    """
    if settings.OPTIMIZER != "SGD":
        raise SettingError(f"OPTIMIZER: must be SGD, got {settings.OPTIMIZER}")
    if settings.TUNING_CONF is None:
        return problem
    import yaml

    path = settings.TUNING_CONF
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))[problem.name]
        values = {
            "batch_size": int(found["batch_size"]),
            "epochs": int(found["num_epochs"]),
            "learning_rate": float(found["SGD"]["opt_hpars"]["lr"]),
        }
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise SettingError(
            f"TUNING_CONF: {path} must hold {problem.name}: "
            "{batch_size: ..., num_epochs: ..., SGD: {opt_hpars: {lr: ...}}}; "
            f"{type(error).__name__}: {' '.join(str(error).split())}"
        ) from None
    if min(values["batch_size"], values["epochs"]) < 1 or not 0 < values["learning_rate"] < 1e6:
        raise SettingError(f"TUNING_CONF: {path} must hold positive numbers, got {values}")
    return dataclasses.replace(problem, **values)


def begin(
    settings: Gather | Exhaustive,
    name: str,
    problem_of: ProblemOf,
    check: Callable[[Problem], None] = lambda problem: None,
) -> Begun:
    """Make the folder of a run and its log, and find the problem.

    Args:
        settings: of the step.
        name: of the step in the log's name.
        problem_of: finds a problem by its name, seed and folder of data sets.
        check: raises if the problem will not do, before anything is written.

    Raises:
        SettingError: if a setting does not fit the problem.
        FileExistsError: if the folder is there.
    """
    seed = random.randint(0, 10**7) if settings.RANDOM_SEED is None else settings.RANDOM_SEED
    problem = problem_of(settings.PROBLEM, seed, settings.OBS_DATASETS)
    check(problem)
    problem = tuned(settings, problem)
    splits = {
        part: problem.indices(settings.NUM_HESSIAN_DATAPOINTS, test=part == "test").tolist()
        for part in ("train", "test")
    }
    steps_per_epoch = max(1, len(jax.tree.leaves(problem.train)[0]) // problem.batch_size)
    last = problem.epochs * steps_per_epoch if settings.MAX_STEPS is None else settings.MAX_STEPS
    if problem.step is not None:
        last = problem.step
    record = settings.RECORD_STEPS
    if record is None:
        record = [last] if problem.step is not None else [0, last]
    wrong = [s for s in record if (s != last if problem.step is not None else s > last)]
    if wrong:
        allowed = f"{last}, of its last checkpoint" if problem.step is not None else f"0 to {last}"
        raise SettingError(f"RECORD_STEPS: of {problem.name} there is {allowed}, got {wrong[0]}")
    parts = [timestamp(), Path(problem.name).name, str(seed)]
    parts += [settings.OUTDIR_SUFFIX] if settings.OUTDIR_SUFFIX is not None else []
    folder = settings.OUTPUT_DIR / "__".join(parts)
    folder.mkdir(parents=True)
    log = Log(folder, f"[{name}]")
    log.write("CONFIG", _plain(dataclasses.asdict(settings)) | {"RANDOM_SEED": seed})
    shapes = [list(x.shape) for x in jax.tree.leaves(problem.params)]
    size = sum(int(np.prod(shape)) for shape in shapes)
    facts = {
        "run_dir": str(folder),
        "batch_size": problem.batch_size,
        "num_epochs": problem.epochs,
        "max_steps": last,
        "steps_per_epoch": steps_per_epoch,
        "opt_name": settings.OPTIMIZER,
        "opt_hpars": {"lr": problem.learning_rate},
        "param_shapes": shapes,
        "num_params": size,
        "H_train_idxs": splits["train"],
        "H_test_idxs": splits["test"],
        "record_steps": sorted(record),
    }
    log.write("GLOBALS", facts)
    return Begun(folder, log, problem, seed, size, sorted(record), last)


@dataclasses.dataclass(frozen=True)
class Begun:
    """A run that has begun.

    Attributes:
        folder: of the run.
        log: of it.
        problem: what is trained.
        seed: of it.
        size: number of parameters.
        record_steps: at which steps parameters are recorded.
        last: the last step.
    """

    folder: Path
    log: Log
    problem: Problem
    seed: int
    size: int
    record_steps: list[int]
    last: int


def gather(settings: Gather, problem_of: ProblemOf) -> Path:
    """Train a problem and record its parameters; of a finished run, those of its checkpoint.

    Writes `<run>__params.h5`, with STORE_GRADS `<run>__gradients_{train,test}.h5`, and a log.

    Returns:
        The folder of the run.

    Raises:
        SettingError: if a setting does not fit the problem.
    """
    run = begin(settings, "gather", problem_of)
    problem, log = run.problem, run.log
    files = {"batch_parameters": ParameterFile(run.folder / f"{run.folder.name}__params.h5")}
    if settings.STORE_GRADS:
        for part in ("train", "test"):
            name = f"{run.folder.name}__gradients_{part}.h5"
            files[f"{part}_gradient"] = ParameterFile(run.folder / name)
    dtype = ravel_pytree(problem.params)[0].dtype
    for file in files.values():
        file.create(run.size, dtype)
    subsets = {
        part: problem.examples(settings.NUM_HESSIAN_DATAPOINTS, test=part == "test")
        for part in ("train", "test")
    }
    value_and_grad = jax.jit(jax.value_and_grad(problem.loss))
    for step, epoch, params, loss in trained(problem, run.seed, run.last):
        if settings.WITH_EVAL and epoch is not None:
            log.write(
                "EVAL ROUND", {"epoch": epoch, "global_step": step} | _scores(problem, params)
            )
        if step not in run.record_steps:
            continue
        losses, vectors = {}, {"batch_parameters": ravel_pytree(params)[0]}
        for part, subset in subsets.items():
            value, gradient = value_and_grad(params, subset)
            losses[f"H_{part}_loss"] = float(value)
            vectors[f"{part}_gradient"] = ravel_pytree(gradient)[0]
        for matrix, file in files.items():
            file.append(np.asarray(vectors[matrix]), step)
            saved = {"global_step": step, "matrix": matrix, "split": "batch", "status": "saved"}
            log.write("HDF5", saved)
        about = {"global_step": step, "batch_loss": loss, "lr": problem.learning_rate}
        log.write("TRAINING BATCH", about | losses)
    log.write("FINAL EVALUATION", {"global_step": step} | _scores(problem, params))
    return run.folder


def trained(
    problem: Problem, seed: int, last: int
) -> Iterator[tuple[int, int | None, Any, float | None]]:
    """Yield (step, epoch if one begins, parameters, loss of the step's batch) from 0 to the last.

    Parameters are those before the step. Of a problem that is trained already there is one.
    """
    if problem.step is not None:
        yield problem.step, None, problem.params, None
        return
    rate = problem.learning_rate

    @jax.jit
    def update(params, batch):
        loss, gradient = jax.value_and_grad(problem.loss)(params, batch)
        return jax.tree.map(lambda p, g: p - rate * g, params, gradient), loss

    n, params, step = len(jax.tree.leaves(problem.train)[0]), problem.params, 0
    bar = tqdm(total=last, desc="training", unit="step", disable=not sys.stderr.isatty())
    epoch = 0
    while True:
        epoch += 1
        order = np.random.default_rng((seed, epoch)).permutation(n)
        for i in range(max(1, n // problem.batch_size)):
            chosen = order[i * problem.batch_size : (i + 1) * problem.batch_size]
            after, loss = update(params, jax.tree.map(lambda x: x[chosen], problem.train))  # noqa: B023
            yield step, (epoch if i == 0 else None), params, float(loss)
            if step == last:
                bar.close()
                return
            params, step = after, step + 1
            bar.update()


def _scores(problem: Problem, params: Any) -> dict[str, float]:
    found = {}
    for part, data in (("train", problem.train), ("test", problem.test)):
        found[f"{part}_loss"] = _mean(problem.loss, params, data)
        if problem.accuracy is not None:
            found[f"{part}_acc"] = _mean(problem.accuracy, params, data)
    return found


def _mean(function: Callable[[Any, Any], Any], params: Any, data: Any) -> float:
    n, total = len(jax.tree.leaves(data)[0]), 0.0
    run = jax.jit(function)
    for start in range(0, n, _EVALUATED):
        batch = jax.tree.map(lambda x: x[start : start + _EVALUATED], data)  # noqa: B023
        total += float(run(params, batch)) * len(jax.tree.leaves(batch)[0])
    return total / n


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}
