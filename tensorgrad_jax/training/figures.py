"""Figures of a run: the loss over the epochs, and one prediction beside its target.

They are drawn without pyplot, whose global state would leak between runs of one process.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

ArrayLike = Any  # NumPy or JAX: anything that np.asarray takes

_DPI = 150
_FIELD_COLORS, _ERROR_COLORS = "viridis", "RdBu_r"
_INPUT_LINE, _TARGET_LINE, _PREDICTION_LINE, _ERROR_LINE = "0.25", "black", "tab:orange", "tab:red"


def plot_loss(metrics: Sequence[Mapping[str, Any]], path: str | os.PathLike) -> None:
    """Draws the training loss and the test errors over the epochs, on a logarithmic scale.

    Args:
        metrics: one mapping per epoch with `epoch`, `train_loss` and `tests`, the latter from the
            resolution to the errors by name: {"16": {"l2": 0.1, "h1": 0.2}}. A test set or error
            that an epoch lacks leaves a gap.
        path: the file to write; its ending selects the format.

    Raises:
        ValueError: there is no epoch.
    """
    if not metrics:
        raise ValueError("plot_loss: expected at least one epoch, got none")
    epochs = [entry["epoch"] for entry in metrics]
    figure, (axes,) = _figure(6.4, 4.0, 1, 1)
    style = {"marker": "o", "markersize": 3, "linewidth": 1.5}
    axes.plot(epochs, _positive(e["train_loss"] for e in metrics), "k", label="training", **style)
    resolutions = {r: None for entry in metrics for r in entry.get("tests", {})}
    for i, resolution in enumerate(sorted(resolutions, key=lambda r: (len(str(r)), str(r)))):
        tests = [entry.get("tests", {}).get(resolution, {}) for entry in metrics]
        for error, dashes in (("l2", "-"), ("h1", "--")):
            if any(error in test for test in tests):
                values = _positive(test.get(error) for test in tests)
                label = f"test {resolution}, {error.upper()}"
                axes.plot(epochs, values, dashes, color=f"C{i}", label=label, **style)
    axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
    axes.set_yscale("log")
    if not any(np.isfinite(line.get_ydata()).any() for line in axes.get_lines()):
        axes.set_ylim(0.1, 1)  # a run that diverged at once: a logarithmic axis needs a range
    low, high = axes.get_ylim()
    # Within one decade, ticks at 1, 2 and 5 alone leave the axis nearly without numbers.
    subs = (1.0, 2.0, 5.0) if high > 10 * low else tuple(float(i) for i in range(1, 10))
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("epoch")
    axes.set_ylabel("relative error")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(which="major", alpha=0.4)
    axes.grid(which="minor", alpha=0.15)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=_DPI, bbox_inches="tight")


def plot_prediction(
    x: Float[ArrayLike, "*grid in_channels"],
    y: Float[ArrayLike, "*grid channels"],
    prediction: Float[ArrayLike, "*grid channels"],
    path: str | os.PathLike,
) -> None:
    """Draws input, target, prediction and error of one sample; one row per output channel.

    A 1-D field is drawn as lines, a 2-D field as an image, of a field of more axes the middle slice
    along all axes but the first two. Target and prediction share their scale; that of the error is
    symmetric. Row i shows channel i of the input, or its last one. The title has the relative L2
    error of the whole sample.

    Args:
        x: the input of one sample, channels last.
        y: the target.
        prediction: the prediction, of the target's shape.
        path: the file to write; its ending selects the format.

    Raises:
        ValueError: the shapes do not match, or there is no grid axis.
    """
    x, y, prediction = (np.asarray(field, dtype=np.float64) for field in (x, y, prediction))
    if y.shape != prediction.shape or x.shape[:-1] != y.shape[:-1]:
        raise ValueError(
            f"plot_prediction: got shapes {x.shape}, {y.shape}, {prediction.shape} for input, "
            "target and prediction, expected the same grid and channels last"
        )
    dimension = y.ndim - 1
    if dimension < 1:
        raise ValueError(f"plot_prediction: expected at least one grid axis, got shape {y.shape}")
    norm = float(np.linalg.norm(y))
    relative = float(np.linalg.norm(prediction - y)) / norm if norm > 0 else math.inf
    title = f"relative L2 error {relative:.3g}"
    if dimension > 2:
        sizes = y.shape[2:-1]
        names = "z" if dimension == 3 else [f"x{i}" for i in range(3, dimension + 1)]
        places = (f"{a} = {n // 2 / n:.3g}" for a, n in zip(names, sizes, strict=True))
        title += f", slice {', '.join(places)}"
        middle = (slice(None), slice(None), *(n // 2 for n in sizes))
        x, y, prediction = (field[middle] for field in (x, y, prediction))
    rows, columns = y.shape[-1], 3 if dimension == 1 else 4
    figure, panels = _figure(3.5 * columns if dimension == 1 else 3.2 * columns, 3.1, rows, columns)
    figure.suptitle(title)
    draw = _draw_lines if dimension == 1 else _draw_images
    for i in range(rows):
        row = panels[i * columns : (i + 1) * columns]
        draw(figure, row, x[..., min(i, x.shape[-1] - 1)], y[..., i], prediction[..., i])
        if rows > 1:
            row[0].set_ylabel(f"channel {i}\n{row[0].get_ylabel()}".strip())
    figure.savefig(path, dpi=_DPI, bbox_inches="tight")


def _figure(width: float, height: float, rows: int, columns: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _positive(values) -> list[float]:
    """Values for a logarithmic axis; a gap where there is none."""
    return [float(v) if v is not None and math.isfinite(v) and v > 0 else math.nan for v in values]


def _draw_images(figure, row, x, y, prediction):
    finite = np.concatenate([field[np.isfinite(field)] for field in (y, prediction)])
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    error = prediction - y
    bound = np.abs(error[np.isfinite(error)]).max(initial=0.0) or 1.0
    scales = [(None, None), (low, high), (low, high), (-bound, bound)]
    names = ["input", "target", "prediction", "prediction − target"]
    for axes, name, field, (vmin, vmax) in zip(
        row, names, (x, y, prediction, error), scales, strict=True
    ):
        colors = _ERROR_COLORS if field is error else _FIELD_COLORS
        # The first axis of the array runs to the right, the second upwards.
        image = axes.imshow(
            field.T, origin="lower", extent=(0, 1, 0, 1), cmap=colors, vmin=vmin, vmax=vmax
        )
        # Placed by hand: the automatic place makes the bar taller or shorter than the image.
        figure.colorbar(image, cax=axes.inset_axes((1.04, 0, 0.05, 1)))
        axes.set_title(name, fontsize="medium")
        axes.set_xticks([0, 0.5, 1])
        axes.set_yticks([0, 0.5, 1])
        axes.set_xlabel("x")
        axes.set_ylabel("y")


def _draw_lines(_, row, x, y, prediction):
    grid = np.arange(len(y)) / len(y)
    row[0].plot(grid, x, color=_INPUT_LINE)
    row[0].set_title("input", fontsize="medium")
    row[1].plot(grid, y, color=_TARGET_LINE, label="target")
    row[1].plot(grid, prediction, "--", color=_PREDICTION_LINE, label="prediction")
    row[1].set_title("target and prediction", fontsize="medium")
    row[1].legend(frameon=False)
    error = prediction - y
    bound = np.abs(error[np.isfinite(error)]).max(initial=0.0) or 1.0
    row[2].axhline(0, color="0.7", linewidth=0.8)
    row[2].plot(grid, error, color=_ERROR_LINE)
    row[2].set_ylim(-1.05 * bound, 1.05 * bound)
    row[2].set_title("prediction − target", fontsize="medium")
    for axes in row:
        axes.set_xlim(0, 1)
        axes.set_xlabel("x")
