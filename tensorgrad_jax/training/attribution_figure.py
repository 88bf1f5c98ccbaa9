"""A picture of a test sample beside the training samples that help and harm it most."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# The number of a training sample, its score, and its fields x and y.
Scored = tuple[int, float, Mapping[str, Any]]

_COLORS = {"input": "viridis", "target": "viridis", "error": "RdBu_r"}


def plot_attribution(
    sample: Mapping[str, Any],
    prediction: Any,
    helpful: Sequence[Scored],
    harmful: Sequence[Scored],
    path: str | os.PathLike,
    title: str,
) -> None:
    """Draws a sample with its prediction in the first column, training samples to the right of it.

    The two upper rows are inputs and targets of the most helpful, the two lower ones of the most
    harmful samples. All inputs share one scale, all targets and the prediction another. Of fields
    with several channels the first is drawn, of more than two axes the middle slice.

    Args:
        sample: x and y, (*grid, channels).
        prediction: of y.
        helpful: training samples, the most helpful first.
        harmful: training samples, the most harmful first.
        path: the file to write; its ending selects the format.
        title: of the picture.
    """
    first = lambda field: _drawable(np.asarray(field, np.float64))
    target, predicted = first(sample["y"]), first(prediction)
    rows = [
        [("input", "test input", first(sample["x"]))],
        [("target", "test target", target)],
        [("target", "prediction", predicted)],
        [("error", "prediction − target", predicted - target)],
    ]
    for above, name, samples in ((0, "helpful", helpful), (2, "harmful", harmful)):
        for number, score, fields in samples:
            label = f"{name}: sample {number}\nscore {score:.3g}"
            rows[above].append(("input", label, first(fields["x"])))
            rows[above + 1].append(("target", "its target", first(fields["y"])))
    columns = max(len(row) for row in rows)
    figure = Figure(figsize=(2.1 * columns, 8.4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    scales = _scales([panel for row in rows for panel in row])
    panels = figure.subplots(4, columns, squeeze=False)
    for axes_row, row in zip(panels, rows, strict=True):
        for axes in axes_row[len(row) :]:
            axes.set_axis_off()
        for axes, (kind, label, field) in zip(axes_row, row, strict=False):
            axes.set_title(label, fontsize="small")
            _draw(axes, field, kind, scales[kind])
    figure.savefig(path, dpi=150, bbox_inches="tight")


def _drawable(field: np.ndarray) -> np.ndarray:
    """Return the first channel on at most two axes."""
    field = field[..., 0]
    middle = tuple(n // 2 for n in field.shape[2:])
    return field[(slice(None), slice(None), *middle)] if field.ndim > 1 else field


def _scales(panels) -> dict[str, tuple[float, float]]:
    found = {}
    for kind in _COLORS:
        values = np.concatenate([f[np.isfinite(f)].ravel() for k, _, f in panels if k == kind])
        low, high = (values.min(), values.max()) if values.size else (0.0, 1.0)
        bound = max(abs(low), abs(high)) or 1.0
        found[kind] = (-bound, bound) if kind == "error" else (low, high if high > low else low + 1)
    return found


def _draw(axes, field, kind, scale) -> None:
    low, high = scale
    if field.ndim == 1:
        axes.plot(np.arange(len(field)) / len(field), field, color="black", linewidth=1)
        margin = 0.05 * (high - low)
        axes.set_ylim(low - margin, high + margin)
        axes.set_xlim(0, 1)
        axes.tick_params(labelsize="x-small")
        return
    # The first axis of the array runs to the right, the second upwards.
    axes.imshow(field.T, origin="lower", cmap=_COLORS[kind], vmin=low, vmax=high)
    axes.set_xticks([])
    axes.set_yticks([])
