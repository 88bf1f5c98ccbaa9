"""Generating data sets into a folder."""

from __future__ import annotations

import sys
from pathlib import Path

from tqdm import tqdm

from tensorgrad_jax.data.hdf5 import DataError, file_name
from tensorgrad_jax.data.navier_stokes import navier_stokes_samples
from tensorgrad_jax.data.writing import write_resumably

_CHUNK = 32


def generate_navier_stokes(
    out: str | Path,
    *,
    n_train: int,
    n_test: int,
    resolution: int,
    viscosity: float = 1 / 500,
    t_end: float = 5.0,
    dt: float = 0.05,
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
        seed: of the forcings.
        float64: whether to compute in double precision.

    Returns:
        The paths of the two files.

    Raises:
        DataError: if an option is out of range, a file is there that was made with other options,
            or the time step is too large.
    """
    if resolution < 4:
        raise DataError(f"resolution: got {resolution}, expected at least 4")
    if not 0 <= seed < 2**32:
        raise DataError(f"seed: got {seed}, expected an integer from 0 to 2^32 - 1")
    options = {
        "viscosity": viscosity,
        "t_end": t_end,
        "dt": dt,
        "seed": seed,
        "float64": float64,
    }
    paths = []
    for split, n in (("train", n_train), ("test", n_test)):
        path = Path(out) / file_name("nsforcing", split, resolution)
        paths.append(path)

        def make(numbers, split=split):
            return navier_stokes_samples(numbers, split=split, resolution=resolution, **options)

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
                    (resolution, resolution),
                    options,
                    make,
                    _CHUNK,
                    lambda done, bar=bar: bar.update(done - bar.n),
                )
            except DataError:
                raise
            except ValueError as error:  # of the solver: an option, or an unstable solution
                raise DataError(f"{path}: {error}") from error
        if made:
            print(f"generated {path}: {n} samples of {resolution}x{resolution}")
    return paths
