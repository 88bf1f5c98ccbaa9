"""What a sample may be: which of its axes are the grid, and which numbers it may hold.

A sample in a file is a field (*grid) or several of them, (C, *grid), with as many points on every
axis of the grid as the file's name says. A field of C x n points looks like C fields of n points,
and one of n x n like n of them. Where nobody says the dimension, an axis before the grid is taken
for channels only if they are fewer than the points of an axis, and an axis of n points never.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32

FIELDS = ("x", "y")


class DataError(ValueError):
    """A file is missing, damaged, or does not hold what was asked for. The message is one line."""


def grid_dimension(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    resolution: int,
    dimension: int | None = None,
) -> int:
    """Return the number of grid axes of a file's samples.

    With R the resolution, samples of dimension d have the shape (R, ..., R), d times, or
    (C, R, ..., R). Where d is not given, it is the number of axes at the end that have R points,
    and there may be C < R channels before them: as many channels as points, or more, need d. Only
    a given d tells a field of fewer than R x R points from channels.

    Args:
        path: the file, for the messages.
        shapes: shape of one sample of each field.
        resolution: points per axis, as the file's name says.
        dimension: number of grid axes where it is known.

    Raises:
        DataError: if a shape is of neither kind, or the fields differ in dimension.
    """
    if dimension is not None:
        grid = (resolution,) * dimension
        for name, shape in shapes.items():
            if shape != grid and (len(shape) != dimension + 1 or shape[1:] != grid):
                channels = ", ".join(map(str, ("C", *grid)))
                raise DataError(
                    f"{path}: {name} has samples of shape {shape}, expected {grid} or ({channels}):"
                    f" the dimension is {dimension}, the file's name says {resolution} points per "
                    "axis"
                )
        return dimension
    found = {name: _trailing(shape, resolution) for name, shape in shapes.items()}
    for name, shape in shapes.items():
        channels = shape[: len(shape) - found[name]]
        if found[name] == 0 or len(channels) > 1 or any(c >= resolution for c in channels):
            raise DataError(
                f"{path}: {name} has samples of shape {shape}, expected (*grid) or (C, *grid) with "
                f"{resolution} points on every axis of the grid, as the file's name says, and "
                f"C < {resolution} channels; for more channels give the dimension (data.dimension)"
            )
    if len(set(found.values())) > 1:
        raise DataError(
            f"{path}: x and y have grids of different dimension: {dict(shapes)}; where an axis of "
            f"{resolution} holds channels, give the dimension (data.dimension)"
        )
    return found[FIELDS[0]]


def _trailing(shape: tuple[int, ...], resolution: int) -> int:
    n = 0
    while n < len(shape) and shape[-1 - n] == resolution:
        n += 1
    return n


def as_float32(
    path: Path, name: str, values: Float[np.ndarray, "*samples"], first: int
) -> Float32[np.ndarray, "*samples"]:
    """Return samples in float32, in which every number must be finite.

    A double such as 1e39, or the fill value -1.797e308, is infinite in float32.

    Args:
        path: the file they are from or for, for the message.
        name: the data set, x or y.
        values: the samples.
        first: number of the first of them in the file.

    Raises:
        DataError: if a number is not finite; the message names file, data set and sample.
    """
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32, copy=False)
    finite = np.isfinite(narrow)
    if not finite.all():
        index = np.unravel_index(np.argmin(finite), finite.shape)
        raise DataError(
            f"{path}: {name} holds values that are not finite in float32: {values[index]:.4g} in "
            f"sample {first + int(index[0])}"
        )
    return narrow
