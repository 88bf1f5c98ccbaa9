"""Step 2: fill columns of a sketch, one worker among many that know nothing of each other."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from tqdm import tqdm

from tensorgrad_jax.hessian import layout
from tensorgrad_jax.hessian.curvature import Curvature, hvp_operator
from tensorgrad_jax.hessian.gathering import ProblemOf
from tensorgrad_jax.hessian.layout import LayoutError
from tensorgrad_jax.hessian.noise import Noise
from tensorgrad_jax.hessian.records import Log, ParameterFile, read_log
from tensorgrad_jax.hessian.settings import Measure, Run, SettingError, Solve


@dataclasses.dataclass(frozen=True)
class Recorded:
    """What `gather` recorded of a step.

    Attributes:
        folder: of the run.
        problem: its name.
        seed: of it.
        size: number of parameters.
        params: a vector of them.
        operator: the Hessian at them.
        split: "train" or "test".
    """

    folder: Path
    problem: str
    seed: int
    size: int
    params: np.ndarray
    operator: Curvature
    split: str

    def keys(self) -> tuple[Any, Any]:
        """Return the keys of the right and the left noise."""
        key = jax.random.key(self.seed)
        return jax.random.fold_in(key, 2), jax.random.fold_in(key, 1)

    def name(self, step: int, noise: str, inner: int) -> str:
        """Return a text that tells this sketch from those of other Hessians."""
        digest = hashlib.sha256(self.params.tobytes()).hexdigest()[:12]
        return (
            f"{self.problem}, seed {self.seed}, step {step}, {self.split} set, parameters "
            f"{digest}, {inner} columns of {noise}"
        )


def recorded(settings: Measure | Solve | Run, problem_of: ProblemOf) -> Recorded:
    """Return the Hessian that a step is of.

    Raises:
        LayoutError: if what `gather` wrote is missing or damaged, or STEP was not recorded.
    """
    entries = dict(read_log(settings.TRAINING_LOGPATH, ("CONFIG", "GLOBALS")))
    try:
        config, facts = entries["CONFIG"], entries["GLOBALS"]
        seed, size = int(config["RANDOM_SEED"]), int(facts["num_params"])
        name, n = config["PROBLEM"], int(config["NUM_HESSIAN_DATAPOINTS"])
        datasets, split = settings.OBS_DATASETS, "test" if settings.TEST_HESSIAN else "train"
        datasets = datasets or (Path(config["OBS_DATASETS"]) if config["OBS_DATASETS"] else None)
    except (KeyError, TypeError, ValueError) as error:
        raise LayoutError(
            f"TRAINING_LOGPATH: {settings.TRAINING_LOGPATH} is no log of gather "
            f"({type(error).__name__}: {error})"
        ) from None
    vector = ParameterFile(settings.PARAMS_PATH).read(settings.STEP)
    problem = problem_of(name, seed, datasets)
    flat, unravel = ravel_pytree(problem.params)
    if not flat.size == size == vector.size:
        raise LayoutError(
            f"PARAMS_PATH: {settings.PARAMS_PATH} has {vector.size} parameters, the log {size}, "
            f"the problem {name} {flat.size}"
        )
    if not np.all(np.isfinite(vector)):
        raise LayoutError(f"PARAMS_PATH: parameters of step {settings.STEP} are not finite")
    subset = problem.examples(n, test=settings.TEST_HESSIAN)
    operator = hvp_operator(
        problem.loss,
        unravel(jnp.asarray(vector, flat.dtype)),
        subset,
        chunk_size=settings.CHUNK_SIZE,
    )
    folder = settings.TRAINING_LOGPATH.parent
    return Recorded(folder, name, seed, size, vector, operator, split)


def measure(settings: Measure, problem_of: ProblemOf) -> int:
    """Measure columns, unless they are finished or another process is at them.

    A column's outer part is written before its inner one; it is finished when both are. Who is
    killed leaves columns finished or not; the same command goes on with those that are not.

    Returns:
        How many columns were measured.

    Raises:
        LayoutError: if a file is missing, damaged, of another shape, or holds a finished
            measurement of another Hessian.
        SettingError: if there is no such column.
    """
    folder, inner = settings.MEASUREMENTS_DIR, settings.NUM_INNER
    if inner < settings.NUM_OUTER:
        raise SettingError(
            f"NUM_OUTER: must not exceed NUM_INNER {inner}, got {settings.NUM_OUTER}"
        )
    wrong = [i for i in settings.MEASUREMENT_IDXS if i >= inner]
    if wrong:
        raise SettingError(f"MEASUREMENT_IDXS: must be below NUM_INNER {inner}, got {wrong[0]}")
    what = recorded(settings, problem_of)
    _check_layout(folder, what.size, inner, settings.NUM_OUTER)
    of = what.name(settings.STEP, settings.NOISE, inner)
    ends = f"{settings.MEASUREMENT_IDXS[0]}...{settings.MEASUREMENT_IDXS[-1]}"
    log = Log(what.folder, f"[measure]__idxs=<{ends}>")
    log.write("CONFIG", json.loads(json.dumps(dataclasses.asdict(settings), default=str)))
    right, left = (Noise(settings.NOISE, what.size, inner) for _ in range(2))
    key_right, key_left = what.keys()
    done = 0
    starts = range(0, len(settings.MEASUREMENT_IDXS), settings.BLOCK_SIZE)
    for start in tqdm(starts, "blocks of columns", disable=not sys.stderr.isatty()):
        block = settings.MEASUREMENT_IDXS[start : start + settings.BLOCK_SIZE]
        with layout.claimed(folder, block) as mine:
            todo = [i for i in mine if not finished(folder, i, settings, of)]
            for i in todo:
                for path in _files(folder, i, settings.NUM_OUTER):
                    layout.write_column(path, None, layout.PROCESSING, of)
            if not todo:
                continue
            Y = what.operator.mm(right.block(key_right, todo, what.operator.dtype))
            M = np.asarray(left.adjoint_times(key_left, Y))
            Y = np.asarray(Y)
            if not np.all(np.isfinite(Y)):
                raise LayoutError(
                    f"STEP: products with the Hessian of step {settings.STEP} are not finite"
                )
            for column, i in enumerate(todo):
                *outer, inside = _files(folder, i, settings.NUM_OUTER)
                for path in outer:
                    layout.write_column(path, Y[:, column], settings.SUCCESS_FLAG, of)
                layout.write_column(inside, M[:, column], settings.SUCCESS_FLAG, of)
                about = {"step": settings.STEP, "idx": i, "H_test": settings.TEST_HESSIAN}
                log.write("INFO", ["Performed measurement", about])
            done += len(todo)
    log.write("RESULT", {"measured": done, "of": len(settings.MEASUREMENT_IDXS)})
    return done


def _files(folder: Path, i: int, outer: int) -> list[Path]:
    kinds = (layout.LEFT, layout.INNER) if i < outer else (layout.INNER,)
    return [layout.path_of(folder, kind, i) for kind in kinds]


def finished(folder: Path, i: int, settings: Measure | Run, of: str) -> bool:
    """Return whether all files of a column are measured.

    Raises:
        LayoutError: if a file is missing or damaged, or measured of another Hessian.
    """
    flags = []
    for path in _files(folder, i, settings.NUM_OUTER):
        flag, owner = layout.flag_of(path)
        if flag == settings.SUCCESS_FLAG and owner not in (None, of):
            raise LayoutError(
                f"{path}: holds a finished measurement of {owner}; to make room: "
                f"python -m tensorgrad_jax.hessian reset_hdf5 --hdf5dir {folder}"
            )
        flags.append(flag)
    return all(flag == settings.SUCCESS_FLAG for flag in flags)


def _check_layout(folder: Path, size: int, inner: int, outer: int) -> None:
    for kind, rows, count in ((layout.LEFT, size, outer), (layout.INNER, inner, inner)):
        path = layout.path_of(folder, kind, layout.ALL)
        with layout.opened(path) as file:
            layout.check_columns(path, file[layout.DATA])
            shape = file[layout.DATA].shape
        if shape != (rows, count):
            raise LayoutError(
                f"MEASUREMENTS_DIR: {path} is of shape {shape}, these parameters, NUM_OUTER and "
                f"NUM_INNER need {(rows, count)}"
            )


def reset(folder: Path, *, only_damaged: bool = False) -> int:
    """Make columns of a layout anew, with the flag "initialized".

    Args:
        folder: of the layout.
        only_damaged: those alone whose file is missing or cannot be read.

    Returns:
        How many.

    Raises:
        LayoutError: if the folder holds no layout, or one that is not split by columns.
    """
    count, kinds = 0, (layout.LEFT, layout.RIGHT, layout.INNER)
    found = [kind for kind in kinds if layout.path_of(folder, kind, layout.ALL).exists()]
    if not found:
        raise LayoutError(f"--hdf5dir: there is no layout in {folder}")
    for kind in found:
        with layout.opened(layout.path_of(folder, kind, layout.ALL)) as file:
            layout.check_columns(layout.path_of(folder, kind, layout.ALL), file[layout.DATA])
            (rows, columns), dtype = file[layout.DATA].shape, str(file[layout.DATA].dtype)
        for i in range(columns):
            path = layout.path_of(folder, kind, i)
            if only_damaged and _is_intact(path):
                continue
            layout.make_column(path, rows, dtype)
            count += 1
    return count


def _is_intact(path: Path) -> bool:
    try:
        layout.read_column(path, None)
    except LayoutError:
        return False
    return True
