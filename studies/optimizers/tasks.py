"""The tasks of the study: data, model and training of each, the optimizer left out."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import allen_cahn
import numpy as np
from flax import nnx
from tensorgrad_jax.models import FNO

from tensorgrad_jax.data import open_dataset
from tensorgrad_jax.training.losses import h1_loss, lp_loss


@dataclasses.dataclass(frozen=True)
class Task:
    """One problem.

    Attributes:
        load: (root folder) -> {"train", "validation", "test"} of {"x", "y"}, (N, *grid, channels).
        model: (rngs) -> the operator.
        loss: of predictions and targets in physical units.
        batch_size: samples a step.
        n_epochs: passes over the training set.
        rates: what every optimizer tries.
        gap: steps between refreshes.
    """

    load: Callable[[Path], dict[str, dict[str, np.ndarray]]]
    model: Callable[[nnx.Rngs], FNO]
    loss: Callable[..., Any]
    batch_size: int
    n_epochs: int
    rates: tuple[float, ...]
    gap: int = 50


def from_files(problem: str, resolution: int, n_train: int, n_validation: int, n_test: int):
    """Return the loader of HDF5 files."""

    def load(root: Path) -> dict[str, dict[str, np.ndarray]]:
        parts = {
            "train": ("train", n_train, 0),
            "validation": ("train", n_validation, n_train),
            "test": ("test", n_test, 0),
        }
        sources = {
            name: open_dataset(root / problem, problem, split, resolution, n, start)
            for name, (split, n, start) in parts.items()
        }
        return {name: source.arrays for name, source in sources.items()}

    return load


def of_allen_cahn(n_train: int, n_validation: int, n_test: int):
    """Return the loader of the three-dimensional task, which is solved anew every time."""

    def load(root: Path) -> dict[str, dict[str, np.ndarray]]:
        del root
        samples = allen_cahn.generate(n_train + n_validation + n_test)
        bounds = np.cumsum([0, n_train, n_validation, n_test])
        names = ("train", "validation", "test")
        return {
            name: {"x": samples.x[a:b], "y": samples.y[a:b]}
            for name, a, b in zip(names, bounds[:-1], bounds[1:], strict=True)
        }

    return load


def operator(n_modes: tuple[int, ...], channels: int) -> Callable[[nnx.Rngs], FNO]:
    """Return what makes an FNO of four layers, one field in and one out."""
    return lambda rngs: FNO(n_modes, 1, 1, channels, 4, rngs=rngs)


l2 = functools.partial(lp_loss, p=2, relative=True)
h1 = functools.partial(h1_loss, relative=True)
_BURGERS = Task(
    from_files("burgers", 128, 700, 100, 200),
    operator((32,), 48),
    l2,
    16,
    12,
    (2.5e-3, 5e-3, 1e-2, 2e-2),
)
_FLOW = Task(
    from_files("nsforcing", 64, 448, 64, 64),
    operator((16, 16), 32),
    l2,
    8,
    6,
    (5e-3, 1e-2, 2e-2, 4e-2),
)
TASKS: dict[str, Task] = {
    "burgers": _BURGERS,
    "darcy": Task(
        from_files("darcy", 16, 900, 100, 50),
        operator((8, 8), 24),
        h1,
        64,
        20,
        (1e-2, 2e-2, 4e-2, 8e-2),
    ),
    "navier-stokes": _FLOW,
    "allen-cahn 3d": Task(
        of_allen_cahn(320, 64, 64),
        operator((12, 12, 12), 20),
        l2,
        8,
        8,
        (5e-3, 1e-2, 2e-2, 4e-2),
    ),
    "navier-stokes 128": dataclasses.replace(
        _FLOW,
        load=from_files("nsforcing", 128, 192, 32, 32),
        model=operator((32, 32), 32),
        n_epochs=10,
    ),
    "burgers, long": dataclasses.replace(
        _BURGERS, n_epochs=120, rates=(1.25e-3, 2.5e-3, 5e-3, 1e-2)
    ),
    "navier-stokes, long": dataclasses.replace(
        _FLOW, n_epochs=60, rates=(2.5e-3, 5e-3, 1e-2, 2e-2)
    ),
    "burgers, batch 64": dataclasses.replace(_BURGERS, batch_size=64, n_epochs=48),
    "burgers, batch 8": dataclasses.replace(_BURGERS, batch_size=8, n_epochs=6),
}
