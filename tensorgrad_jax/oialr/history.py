"""Observables over a training run: rows while it lasts, tables and pictures behind it."""

from __future__ import annotations

import collections
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree

from tensorgrad_jax.oialr.kernels import Kernels, by_shape, kernels_of, named
from tensorgrad_jax.oialr.observables import Observation, axis_labels, compare, observe
from tensorgrad_jax.oialr.trees import Bases, lift
from tensorgrad_jax.projections.plain import shown, whole

OBSERVABLES = ("stability", "r_similarity", "r_distance")


class Row(NamedTuple):
    """What the kernels did since an earlier record.

    Attributes:
        step: of this record.
        stability: of every kernel by name, in [-1, 1]; of axes the overlap, in [0, 1].
        r_similarity: likewise, in (0, 1].
        r_distance: likewise, of the norm's size.
        axes: which of the names are labels of tensors' axes.
    """

    step: int
    stability: dict[str, float]
    r_similarity: dict[str, float]
    r_distance: dict[str, float]
    axes: tuple[str, ...] = ()


class History:
    """Stability and similarity of R of all kernels of a model, record by record.

    Works with any model and optimizer: `record` is given the parameters. A tensor, which is no
    matrix (`kernels=oialr.spectral(0.5)`), is looked at axis by axis: for every axis with a share
    below 1 there is a column "name axis 3" with the overlap of its leading subspaces, and what R is
    of its unfolding. Between records it keeps
    the bases and mixing matrices of the last `lag` ones, each as large as the kernels and more.

    Args:
        kernels: which parameters are kernels, see `kernels.Kernels`.
        lag: records are compared with those so many before.
        order: names of kernels in the order of the network, in which tables and pictures have
            them; default: that of the tree's leaves.

    Attributes:
        rows: one `Row` for every record that has a predecessor.

    Raises:
        ValueError: if `lag` is below 1.

    Examples:
        >>> import jax.numpy as jnp
        >>> history = History()
        >>> for step, sign in enumerate((1, 1, -1)):
        ...     row = history.record(step, {"kernel": sign * jnp.eye(3)})
        >>> [row.stability["kernel"] for row in history.rows]
        [1.0, -1.0]
    """

    def __init__(
        self, kernels: Kernels = by_shape, lag: int = 1, order: Sequence[str] | None = None
    ):
        self._kernels = kernels
        self._order = None if order is None else list(order)
        self._lag = whole("History", "lag", lag, 1, 2**31)
        self._last: collections.deque[Observation] = collections.deque(maxlen=self._lag)
        self._shapes: dict[str, Any] = {}
        self.rows: list[Row] = []

    def record(self, step: int, params: PyTree, bases: Bases | None = None) -> Row | None:
        """Look at the parameters, of a model with low-rank kernels with their bases.

        Returns:
            the new row; None if there are not yet `lag` records before this one.

        Raises:
            ValueError: if no parameter is a kernel, or if one has changed its shape.
        """
        dense = lift(params, bases) if bases else params
        rows = kernels_of(dense, self._kernels)
        if not rows:
            raise ValueError("history: no parameter is a kernel")
        if self._order is not None:
            if sorted(self._order) != sorted(rows):
                raise ValueError(
                    f"history: order must name the {len(rows)} kernels, got {shown(self._order)}"
                )
            rows = {name: rows[name] for name in self._order}
        leaves = named(dense)
        for name in rows:
            before, now = self._shapes.setdefault(name, leaves[name].shape), leaves[name].shape
            if before != now:
                raise ValueError(f"history: parameter {name!r} had shape {before}, and now {now}")
        observed = _observed({n: leaves[n] for n in rows}, tuple(rows.items()))
        row = None
        if len(self._last) == self._lag:
            found = jax.device_get(_compared(self._last[0], observed))
            # In the order of the network: a compiled function returns dictionaries sorted.
            names: list[str] = []
            axes: list[str] = []
            for name, kernel in rows.items():
                labels = [name]
                if kernel.shares is not None:
                    labels = list(axis_labels(name, leaves[name].shape, kernel))
                    axes += labels
                names += labels
            of = lambda what: {n: float(found[what][n]) for n in names}
            row = Row(step, of("stability"), of("r_similarity"), of("r_distance"), tuple(axes))
            self.rows.append(row)
        self._last.append(observed)
        return row


@functools.partial(jax.jit, static_argnums=1)
def _observed(leaves, kernels):
    return observe(leaves, dict(kernels))


_compared = jax.jit(compare)


def stability_report(
    history: History | list[Row], folder: str | os.PathLike, title: str = "", images: bool = True
) -> list[Path]:
    """Write what a history has: tables, and heat maps of layer by step with their mean curves.

    `stability.csv`, `r_similarity.csv` and `r_distance.csv` have a line per record, a column per
    layer (of a tensor one per axis, "name axis 3") and one of their mean; the first two are also
    drawn, as `.png`.

    Args:
        history: a `History`, or its rows.
        folder: is made if it is missing.
        title: of the pictures.
        images: whether to draw; matplotlib is needed then.

    Returns:
        the files.

    Raises:
        ValueError: if there is no row.
        ImportError: if matplotlib is missing.
    """
    rows = history.rows if isinstance(history, History) else history
    if not rows:
        raise ValueError(f"stability_report: the history has no rows, got {shown(rows)}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for what in OBSERVABLES:
        files.append(folder / f"{what}.csv")
        files[-1].write_text(_table(rows, what), encoding="utf-8")
    if images:
        from tensorgrad_jax.oialr.heat_map import draw

        names, axes = rows[0].stability.keys(), set(rows[0].axes)
        overlap = "overlap of leading subspaces"
        both = f"stability of U V^T; {overlap}"
        stable = both if axes and names - axes else overlap if axes else "stability of U V^T"
        for what, label in (("stability", stable), ("r_similarity", "similarity of R")):
            files.append(folder / f"{what}.png")
            draw([r.step for r in rows], [getattr(r, what) for r in rows], label, title, files[-1])
    return files


def _table(rows: list[Row], what: str) -> str:
    names = list(getattr(rows[0], what))
    lines = [",".join(["step", *names, "mean"])]
    for row in rows:
        values = [getattr(row, what)[name] for name in names]
        mean = sum(values) / len(values)
        lines.append(",".join([str(row.step), *(f"{x:.6g}" for x in [*values, mean])]))
    return "\n".join(lines) + "\n"
