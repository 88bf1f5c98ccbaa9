"""Data sets in HDF5 files: finding, checking and reading them.

A file holds two data sets, `x` and `y`, of shape (N, *grid) or (N, C, *grid), float32, chunked by
sample. Read, a sample is {"x": (*grid, C), "y": (*grid, C)}: channels last, as the models want it.
`tensorgrad_jax.data.samples` tells which axes are the grid.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import h5py
import numpy as np
from jaxtyping import Float

from tensorgrad_jax.data.samples import FIELDS, DataError, as_float32, grid_dimension

# What h5py raises where a file is damaged.
_UNREADABLE = (OSError, RuntimeError, ValueError, LookupError, TypeError)

# Files up to this size are read at once; of larger ones a sample is read when it is asked for.
IN_MEMORY_BYTES = 2**30


def file_name(problem: str, split: str, resolution: int) -> str:
    """Return `<problem>_<split>_<resolution>.hdf5`."""
    return f"{problem}_{split}_{resolution}.hdf5"


@dataclasses.dataclass(frozen=True)
class FieldSource:
    """Random access to the samples of a file.

    Attributes:
        path: the file.
        start: the first of its samples that is used.
        n_samples: how many are used from there on.
        stride: every stride-th grid point per axis is used.
        shapes: shape of one sample of each field in the file, channels first where it has them.
        dimension: number of grid axes.
        arrays: the samples themselves where they fit into memory, else None.
    """

    path: Path
    start: int
    n_samples: int
    stride: int
    shapes: Mapping[str, tuple[int, ...]]
    dimension: int
    arrays: Mapping[str, np.ndarray] | None

    def __len__(self) -> int:
        """Return the number of samples."""
        return self.n_samples

    def __getitem__(self, index: int) -> dict[str, Float[np.ndarray, "*grid channels"]]:
        """Return one sample."""
        if not 0 <= index < self.n_samples:
            raise IndexError(f"sample {index} of {self.n_samples}")
        if self.arrays is not None:
            return {name: self.arrays[name][index] for name in FIELDS}
        # Opened anew: handles are not shared between the loader's threads.
        with open_file(self.path) as file:
            for name, shape in self.shapes.items():
                if _checked_shape(self.path, file, name) != shape:
                    raise DataError(f"{self.path}: was changed while it was in use")
            raw = _read(self.path, file, slice(self.start + index, self.start + index + 1))
        return {name: self._laid_out(samples)[0] for name, samples in raw.items()}

    def _laid_out(self, samples: np.ndarray) -> np.ndarray:
        """Return samples as (N, *grid, C), strided."""
        if samples.ndim == self.dimension + 1:
            samples = samples[:, None]
        strided = samples[
            (slice(None), slice(None)) + (slice(None, None, self.stride),) * self.dimension
        ]
        return np.ascontiguousarray(np.moveaxis(strided, 1, -1))


def open_dataset(
    root: str | Path,
    problem: str,
    split: str,
    resolution: int,
    n_samples: int | None = None,
    start: int = 0,
    dimension: int | None = None,
) -> FieldSource:
    """Open `<root>/<problem>_<split>_<resolution>.hdf5`, or a finer file every few points of it.

    Args:
        root: folder of the files.
        problem: first part of the name.
        split: train or test.
        resolution: grid points per axis that are wanted. Without a file of that resolution the
            coarsest finer one that it divides is read with a stride.
        n_samples: how many samples are wanted; None for all from `start` on.
        start: how many samples of the file are left out before them.
        dimension: number of grid axes, where it is known: the shapes must then agree with it. None
            finds it from them, by the rule of `grid_dimension`.

    Returns:
        A random-access source of samples.

    Raises:
        DataError: if there is no such file, it is damaged, has another layout or too few samples,
            or holds numbers that are not finite in float32. Those of a file that is not read at
            once are found when their sample is read.
    """
    root = Path(root)
    wanted = root / file_name(problem, split, resolution)
    if not root.is_dir():
        raise DataError(f"data.root: no folder {root} (looked for {wanted.name} in it)")
    path = find_file(root, problem, split, resolution)
    if path is None:
        present = [file_name(problem, split, r) for r in _resolutions(root, problem, split)]
        raise DataError(
            f"no {wanted.name} in {root}, and none of a multiple of that resolution; found "
            + (", ".join(present) or "no file of that kind")
        )
    finer = int(path.stem.rpartition("_")[2])
    with open_file(path) as file:
        shapes = {name: _checked_shape(path, file, name) for name in FIELDS}
        counts = {name: field_of(file, name).shape[0] for name in FIELDS}
    if len(set(counts.values())) > 1:
        raise DataError(f"{path}: x has {counts['x']} samples, y has {counts['y']}")
    available = counts["x"]
    n_samples = available - start if n_samples is None else n_samples
    if not 1 <= n_samples <= available - start:
        before = f" after the first {start}" if start else ""
        raise DataError(f"{path}: {n_samples} samples wanted{before}, it has {available}")
    dimension = grid_dimension(path, shapes, finer, dimension)
    source = FieldSource(path, start, n_samples, finer // resolution, shapes, dimension, None)
    n_bytes = 4 * n_samples * sum(int(np.prod(s)) for s in shapes.values())
    if n_bytes > IN_MEMORY_BYTES:
        return source
    with open_file(path) as file:
        raw = _read(path, file, slice(start, start + n_samples))
    arrays = {name: source._laid_out(samples) for name, samples in raw.items()}
    return dataclasses.replace(source, arrays=arrays)


def find_file(root: str | Path, problem: str, split: str, resolution: int) -> Path | None:
    """Return the coarsest file of a multiple of the wanted resolution, None without one."""
    root = Path(root)
    present = _resolutions(root, problem, split) if root.is_dir() else []
    finer = [r for r in present if r % resolution == 0]
    return root / file_name(problem, split, finer[0]) if finer else None


def _resolutions(root: Path, problem: str, split: str) -> list[int]:
    pattern = re.compile(re.escape(f"{problem}_{split}_") + r"([1-9][0-9]*)\.hdf5")
    matches = (pattern.fullmatch(path.name) for path in root.iterdir())
    return sorted(int(m.group(1)) for m in matches if m)


def open_file(path: Path) -> h5py.File:
    """Open a file for reading."""
    try:
        return h5py.File(path, "r")
    except _UNREADABLE as error:
        raise DataError(f"{path}: not a readable HDF5 file ({error})") from error


def _read(path: Path, file: h5py.File, samples: slice) -> dict[str, np.ndarray]:
    """Return samples of x and y as they are in the file, in float32."""
    fields = {}
    for name in FIELDS:
        try:
            values = np.asarray(field_of(file, name)[samples])
        except _UNREADABLE as error:
            raise DataError(f"{path}: damaged, its samples cannot be read ({error})") from error
        if len(values) != samples.stop - samples.start:
            raise DataError(f"{path}: was changed while it was in use")
        fields[name] = as_float32(path, name, values, samples.start)
    return fields


def field_of(file: h5py.File, name: str) -> h5py.Dataset:
    """Return the data set of that name, which must be there."""
    return cast(h5py.Dataset, file[name])


def _checked_shape(path: Path, file: h5py.File, name: str) -> tuple[int, ...]:
    try:
        # A link may lead in a circle, or to another file.
        linked = not isinstance(file.get(name, getlink=True), h5py.HardLink | None)
        field = None if linked else file.get(name)
        found = sorted(file)
    except _UNREADABLE as error:
        raise DataError(f"{path}: damaged, {name} cannot be read ({error})") from error
    if not isinstance(field, h5py.Dataset):
        what = "a link" if linked else "no data set"
        raise DataError(f"{path}: {what} {name!r}; expected data sets x and y, found {found}")
    if field.external or field.is_virtual:
        # Where one of those is missing, zeros would be read.
        raise DataError(f"{path}: the numbers of {name} are in other files, expected them in it")
    if field.dtype.kind != "f" or field.ndim < 2:
        raise DataError(
            f"{path}: {name} has shape {field.shape} and type {field.dtype}, expected floating-"
            "point numbers of shape (N, *grid) or (N, C, *grid)"
        )
    return tuple(field.shape[1:])


def sample_count(path: Path, file: h5py.File) -> int:
    """Return the number of samples of a file that holds x and y."""
    for name in FIELDS:
        _checked_shape(path, file, name)
    return field_of(file, "x").shape[0]
