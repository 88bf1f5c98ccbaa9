"""A heat map of layers by steps with the mean over layers as a curve above it."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

try:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError(
        "pictures need matplotlib: pip install 'tensorgrad-jax[train]', or images=False"
    ) from error


def draw(
    steps: Sequence[int],
    rows: Sequence[dict[str, float]],
    label: str,
    title: str,
    path: str | os.PathLike,
) -> None:
    """Draw one observable.

    Args:
        steps: of the records.
        rows: the observable of every layer, one dictionary per record.
        label: what it is.
        title: of the picture; may be empty.
        path: the file to write; its ending selects the format.
    """
    names = list(rows[0])
    values = np.array([[row[name] for name in names] for row in rows]).T
    height = 2.4 + 0.22 * len(names)
    figure = Figure(figsize=(7, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title or label)
    above, below = figure.subplots(
        2, 1, sharex=True, height_ratios=[1.6, max(1.0, 0.22 * len(names))]
    )
    positions = np.arange(len(steps))
    above.plot(positions, values.mean(axis=0), color="black", marker="o", markersize=3)
    above.set_ylabel(f"mean of\n{label}", fontsize="small")
    above.grid(alpha=0.3)
    low = float(values.min())
    image = below.imshow(
        values, aspect="auto", cmap="viridis", vmin=low if low < 1 else 0.0, vmax=1.0,
        interpolation="nearest",
    )  # fmt: skip
    # Every name once the rows have room, always the first and the last layer.
    shown = range(0, len(names), max(1, len(names) // 40))
    short = lambda name: name.removesuffix(".kernel").replace(".spectral_weight axis", " axis")
    below.set_yticks(list(shown), [short(names[i]) for i in shown])
    ticks = range(0, len(steps), max(1, len(steps) // 8))
    below.set_xticks(list(ticks), [str(steps[i]) for i in ticks])
    below.tick_params(labelsize="x-small")
    below.set_xlabel("step")
    below.set_ylabel("layer, first on top", fontsize="small")
    figure.colorbar(image, ax=below, label=label)
    figure.savefig(path, dpi=150)
