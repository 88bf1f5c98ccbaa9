"""Features on disk: one slab per block of examples, and a flag that it is there."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np


class FeatureStore:
    """An HDF5 file with the features of data sets at checkpoints.

    For every data set and checkpoint it holds `features` (n, k) and `weights` (n,) in float32, and
    `done`, a flag per block of examples that is set after the block has been written. The file is
    closed between blocks: a run that is stopped loses the block it was at.

    Attributes:
        path: the file.

    Raises:
        ModuleNotFoundError: at construction, if h5py is not installed.
    """

    def __init__(self, path: str | Path):
        try:
            self._h5py: Any = importlib.import_module("h5py")
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "features are kept in HDF5 files by h5py: pip install 'tensorgrad-jax[train]'"
            ) from error
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def create(
        self, name: str, model_id: int, n: int, k: int, block_size: int, description: str
    ) -> None:
        """Make room for a data set's features; if they have been begun, check that they fit.

        Raises:
            ValueError: if they were begun for other sizes or with another `description`.
        """
        wanted = {"n": n, "k": k, "block_size": block_size, "description": description}
        with self._h5py.File(self.path, "a") as file:
            if (where := _group(name, model_id)) in file:
                found = {key: file[where].attrs[key] for key in wanted}
                for key, value in wanted.items():
                    if found[key] != value:
                        raise ValueError(
                            f"{self.path}: features of {name!r} at model_id {model_id} were begun "
                            f"with {key}={found[key]}, not {value}; use another file"
                        )
                return
            group = file.create_group(where)
            group.create_dataset("features", (n, k), np.float32)
            group.create_dataset("weights", (n,), np.float32)
            group.create_dataset("done", (-(-n // block_size),), np.uint8)
            group.attrs.update(wanted)

    def missing(self, name: str, model_id: int) -> list[slice]:
        """Return the blocks that have not been written."""
        with self._h5py.File(self.path, "r") as file:
            group = file[_group(name, model_id)]
            n, size = int(group.attrs["n"]), int(group.attrs["block_size"])
            done = group["done"][:]
        return [slice(i * size, min(n, (i + 1) * size)) for i in np.flatnonzero(done == 0)]

    def write(
        self, name: str, model_id: int, block: slice, features: np.ndarray, weights: np.ndarray
    ) -> None:
        """Write one block, then its flag."""
        with self._h5py.File(self.path, "r+") as file:
            group = file[_group(name, model_id)]
            group["features"][block], group["weights"][block] = features, weights
            file.flush()
            group["done"][block.start // int(group.attrs["block_size"])] = 1

    def models(self, name: str) -> list[int]:
        """Return the checkpoints at which a data set has features."""
        with self._h5py.File(self.path, "r") as file:
            return sorted(int(key) for key in file.get(name, {}))

    def size(self, name: str, model_id: int) -> tuple[int, int]:
        """Return the numbers of examples and features.

        Raises:
            ValueError: if there are no such features, or blocks of them are missing.
        """
        with self._h5py.File(self.path, "r") as file:
            if (where := _group(name, model_id)) not in file:
                raise ValueError(f"{self.path}: no features of {name!r} at model_id {model_id}")
            shape = file[where]["features"].shape
        if blocks := self.missing(name, model_id):
            raise ValueError(
                f"{self.path}: {len(blocks)} blocks of features of {name!r} at model_id "
                f"{model_id} are missing: featurize again, which goes on where it stopped"
            )
        return shape

    def read(self, name: str, model_id: int, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """Return features and weights of some examples."""
        with self._h5py.File(self.path, "r") as file:
            group = file[_group(name, model_id)]
            return group["features"][rows], group["weights"][rows]


def _group(name, model_id):
    return f"{name}/{model_id}"
