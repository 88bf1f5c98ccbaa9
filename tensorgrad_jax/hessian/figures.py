"""Pictures of a decomposition: spectrum, scree, and overlap with the largest weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def plot_solution(facts: Mapping[str, Any], stem: Path, title: str) -> list[Path]:
    """Draw what a step logged.

    The error bar of every eigenvalue is the estimated Frobenius norm of what the decomposition
    leaves over: no eigenvalue of the operator's is farther from one of the decomposition's (Weyl).

    Args:
        facts: core_S, num_params, frob_Qtop^2 and, if errors were estimated, norm, error,
            scree_lower, scree_upper.
        stem: of the files' names.
        title: of the pictures.

    Returns:
        The pictures.
    """
    drawn = [_spectrum(facts, stem, title), _overlap(facts, stem, title)]
    if "scree_lower" in facts:
        drawn.append(_scree(facts, stem, title))
    return drawn


def _axes(title: str, xlabel: str, ylabel: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3)
    return figure, axes


def _saved(figure: Figure, stem: Path, name: str) -> Path:
    path = stem.with_name(f"{stem.name}__{name}.png")
    figure.savefig(path, dpi=120)
    return path


def _spectrum(facts: Mapping[str, Any], stem: Path, title: str) -> Path:
    values = np.asarray(facts["core_S"])
    figure, axes = _axes(title, "number, by descending magnitude", "eigenvalue, magnitude")
    numbers, sizes = np.arange(1, len(values) + 1), np.abs(values)
    for of, name, color in ((values >= 0, "positive", "C0"), (values < 0, "negative", "C3")):
        if of.any():
            axes.plot(numbers[of], sizes[of], "o", ms=3, color=color, label=name)
    if "error" in facts:
        error = facts["error"]
        smallest = max(sizes.min(), sizes.max() * 1e-6) * 0.5
        axes.fill_between(
            numbers,
            np.maximum(sizes - error, smallest),
            sizes + error,
            color="0.85",
            label=r"$\pm$ estimated $\|H - H_k\|_F$",
        )
    axes.set_yscale("log")
    axes.legend(fontsize=8)
    return _saved(figure, stem, "spectrum")


def _overlap(facts: Mapping[str, Any], stem: Path, title: str) -> Path:
    inside = np.asarray(facts["frob_Qtop^2"])
    k = np.arange(1, len(inside) + 1)
    figure, axes = _axes(title, "k", "overlap of k largest weights\nand k top eigenvectors")
    axes.plot(k, inside / k, label="measured")
    axes.plot(k, k / facts["num_params"], "--", color="0.4", label="by chance, k / D")
    axes.set_yscale("log")
    axes.legend(fontsize=8)
    return _saved(figure, stem, "overlap")


def _scree(facts: Mapping[str, Any], stem: Path, title: str) -> Path:
    kept = np.arange(len(facts["scree_lower"]))
    figure, axes = _axes(title, "eigenpairs kept", r"share of $\|H\|_F^2$ left over")
    axes.fill_between(kept, facts["scree_lower"], facts["scree_upper"], alpha=0.3)
    axes.plot(kept, facts["scree_lower"], label="lower bound")
    axes.plot(kept, facts["scree_upper"], label="upper bound")
    axes.set_yscale("log")
    axes.legend(fontsize=8)
    return _saved(figure, stem, "scree")
