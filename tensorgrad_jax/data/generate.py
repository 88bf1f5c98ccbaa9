"""Generating data sets into a folder."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tensorgrad_jax.data.burgers import burgers_samples
from tensorgrad_jax.data.darcy import darcy_samples
from tensorgrad_jax.data.hdf5 import file_name
from tensorgrad_jax.data.navier_stokes import navier_stokes_samples
from tensorgrad_jax.data.samples import DataError
from tensorgrad_jax.data.writing import write_resumably

# Samples made at a time: at most so many, of at most so many grid points of the solver together,
# which bounds the memory: 8 samples of 512x512, 2 of 1024x1024.
_CHUNK = 32
_CHUNK_POINTS = 2**21


def generate_navier_stokes(
    out: str | Path,
    *,
    n_train: int,
    n_test: int,
    resolution: int,
    viscosity: float = 1 / 500,
    t_end: float = 5.0,
    dt: float = 0.05,
    solver_resolution: int | None = None,
    seed: int = 0,
    float64: bool = False,
) -> list[Path]:
    """Write `nsforcing_{train,test}_<resolution>.hdf5`: forcings x and vorticities y.

    Files that are there already and were made with the same options are left as they are; a
    generation that was killed continues. A progress bar shows on a terminal.

    Args:
        out: the folder.
        n_train: number of training samples.
        n_test: number of test samples.
        resolution: grid points per axis.
        viscosity: kinematic viscosity; the Reynolds number is its inverse.
        t_end: the time of the target.
        dt: largest time step.
        solver_resolution: grid points per axis of the solver, a multiple of resolution; None for
            the same.
        seed: of the forcings.
        float64: whether to compute in double precision.

    Returns:
        The paths of the two files.

    Raises:
        DataError: if an option is out of range, a file is there that was made with other options,
            or the time step is too large.
    """
    options = {
        "viscosity": viscosity,
        "t_end": t_end,
        "dt": dt,
        "solver_resolution": solver_resolution or resolution,
        "seed": seed,
        "float64": float64,
    }
    sizes = {"train": n_train, "test": n_test}
    return _generate(out, "nsforcing", 2, sizes, resolution, options, navier_stokes_samples)


def generate_darcy(
    out: str | Path,
    *,
    n_train: int,
    n_test: int,
    resolution: int,
    tolerance: float = 1e-4,
    solver_resolution: int | None = None,
    seed: int = 0,
    float64: bool = False,
) -> list[Path]:
    """Write `darcy_{train,test}_<resolution>.hdf5`: media of two phases x and pressures y.

    Args:
        out: the folder; see `generate_navier_stokes` for what becomes of files in it.
        n_train: number of training samples.
        n_test: number of test samples.
        resolution: grid points per axis.
        tolerance: of the solver, see `solve_darcy`.
        solver_resolution: cells per axis of the solver, a multiple of resolution. None for the
            least multiple that is at least 128. Files of several resolutions hold the same samples
            where this number is the same.
        seed: of the media.
        float64: whether to compute in double precision.

    Returns:
        The paths of the two files.

    Raises:
        DataError: if an option is out of range, a file is there that was made with other options,
            or the solver did not reach its tolerance.
    """
    options = {
        "tolerance": tolerance,
        "solver_resolution": solver_resolution or _least_multiple(resolution, 128),
        "seed": seed,
        "float64": float64,
    }
    sizes = {"train": n_train, "test": n_test}
    return _generate(out, "darcy", 2, sizes, resolution, options, darcy_samples)


def generate_burgers(
    out: str | Path,
    *,
    n_train: int,
    n_test: int,
    resolution: int,
    viscosity: float = 0.005,
    t_end: float = 1.0,
    dt: float = 0.005,
    solver_resolution: int | None = None,
    seed: int = 0,
    float64: bool = False,
) -> list[Path]:
    """Write `burgers_{train,test}_<resolution>.hdf5`: initial functions x and solutions y.

    Args:
        out: the folder; see `generate_navier_stokes` for what becomes of files in it.
        n_train: number of training samples.
        n_test: number of test samples.
        resolution: grid points.
        viscosity: the lower, the steeper the fronts.
        t_end: the time of the target.
        dt: largest time step.
        solver_resolution: grid points of the solver, a multiple of resolution; None for the least
            multiple that is at least 256.
        seed: of the initial functions.
        float64: whether to compute in double precision.

    Returns:
        The paths of the two files.

    Raises:
        DataError: if an option is out of range, a file is there that was made with other options,
            the time step is too large or the solver's grid too coarse.
    """
    options = {
        "viscosity": viscosity,
        "t_end": t_end,
        "dt": dt,
        "solver_resolution": solver_resolution or _least_multiple(resolution, 256),
        "seed": seed,
        "float64": float64,
    }
    sizes = {"train": n_train, "test": n_test}
    return _generate(out, "burgers", 1, sizes, resolution, options, burgers_samples)


def _least_multiple(of: int, at_least: int) -> int:
    return of * math.ceil(at_least / of)


def _generate(
    out: str | Path,
    problem: str,
    dimension: int,
    sizes: Mapping[str, int],
    resolution: int,
    options: Mapping[str, Any],
    samples: Callable[..., tuple[np.ndarray, np.ndarray]],
) -> list[Path]:
    """Write one file per split; `samples` gets the split, the resolution and the options."""
    if resolution < 4:
        raise DataError(f"resolution: got {resolution}, expected at least 4")
    fine = options["solver_resolution"]
    if fine % resolution:
        raise DataError(
            f"solver_resolution: got {fine}, expected a multiple of the resolution, {resolution}"
        )
    if not 0 <= options["seed"] < 2**32:
        raise DataError(f"seed: got {options['seed']}, expected an integer from 0 to 2^32 - 1")
    chunk = max(1, min(_CHUNK, _CHUNK_POINTS // fine**dimension))
    paths = []
    for split, n in sizes.items():
        path = Path(out) / file_name(problem, split, resolution)
        paths.append(path)
        with tqdm(
            total=n,
            desc=f"generating {path.name}",
            unit="sample",
            leave=False,
            disable=not sys.stderr.isatty(),
        ) as bar:
            try:
                made = write_resumably(
                    path,
                    n,
                    (resolution,) * dimension,
                    options,
                    functools.partial(samples, split=split, resolution=resolution, **options),
                    chunk,
                    lambda done, bar=bar: bar.update(done - bar.n),
                )
            except DataError:
                raise
            except ValueError as error:  # of the solver: an option, or what it could not solve
                raise DataError(f"{path}: {error}") from error
        if made:
            print(f"generated {path}: {n} samples of {'x'.join([str(resolution)] * dimension)}")
    return paths
