"""What a run leaves behind for the reader: figures, a table of bytes, a summary."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import tensorgrad_jax as tg
from tensorgrad_jax import oialr
from tensorgrad_jax.oialr.kernels import named
from tensorgrad_jax.training.figures import plot_loss, plot_prediction
from tensorgrad_jax.training.records import write_text

__all__ = [
    "MemoryRow",
    "memory_table",
    "picture_names",
    "plot_loss",
    "plot_prediction",
    "write_report",
    "write_summary",
]


def write_report(training: Any, folder: Path) -> None:
    """Write the pictures and the summary of a `Training`, and print the table of bytes."""
    plot_loss(training.rows, folder / "loss.png")
    trained = training.data.train[0]["x"].shape[0]
    names = picture_names([test.resolution for test in training.data.tests], trained)
    for test, name in zip(training.data.tests, names, strict=True):
        sample = test.source[0]  # the first one of every test set
        prediction = np.asarray(training.predict(sample["x"][None])[0])
        plot_prediction(sample["x"], sample["y"], prediction, folder / name)
    params, position = training.params, training.position
    ours = tg.state_bytes(training.state.opt_state)
    # float32 moments, whatever the precision of the parameters.
    adamw = tg.state_bytes(jax.eval_shape(tg.scale_by_adam().init, params))
    last = training.rows[-1]
    at_training = last["tests"].get(str(trained), {})
    waiting = position.data_seconds / position.seconds if position.seconds else 0.0
    write_summary(
        folder / "summary.json",
        {
            "n_params": sum(x.size for x in jax.tree.leaves(params)),
            "steps": position.step,
            **position.rounded_seconds(),
            "waiting_fraction": round(waiting, 4),
            "train_loss": last["train_loss"],
            "test_l2": at_training.get("l2"),
            "test_h1": at_training.get("h1"),
            "tests": last["tests"],
            "validation": last["validation"],
            "optimizer_state_bytes": ours["total"],
            "adamw_state_bytes": adamw["total"],
            "peak_bytes": training.peak_bytes(),
            **_low_rank(training),
        },
    )
    n_bytes = sum(x.nbytes for x in jax.tree.leaves(params))
    row = lambda name, counts: MemoryRow(
        name, n_bytes, counts["moments"], counts["basis"], counts["other"], adamw["total"]
    )
    print("\nOptimizer state, bytes")
    print(memory_table([row("this run", ours), row("optax.adamw", adamw)]))
    metrics = ["metrics.jsonl"] if (folder / "metrics.jsonl").exists() else []
    written = ["summary.json", *metrics, "loss.png", *names]
    print(f"\nWritten to {folder}: {', '.join(written)}")


def _low_rank(training: Any) -> dict[str, Any]:
    if training.low_rank is None:
        return {}
    params, bases = training.state.params, training.state.bases
    report = oialr.param_report(params, bases)
    spectral = training.low_rank.names(params, bases)
    whole = sum(x.size for n, x in named(params).items() if n in spectral and n not in bases)
    dense = whole + sum(math.prod(x.shape) for x in bases.values())
    trained = whole + sum(x.alive() for x in bases.values())
    return {
        "low_rank": {
            "trainable_params": report.trainable,
            "stored_params": report.stored,
            "trainable_spectral_share": trained / dense,
            "ranks": report.ranks,
        }
    }


def picture_names(resolutions: Sequence[int], trained: int) -> list[str]:
    """The files of the predictions, one per test set.

    prediction.png is at the training resolution, or the first one where that is not tested; the
    others carry their resolution in the name.
    """
    main = trained if trained in resolutions else next(iter(resolutions), trained)
    return ["prediction.png" if r == main else f"prediction_{r}.png" for r in resolutions]


class MemoryRow(NamedTuple):
    """The bytes of one training state.

    Attributes:
        name: what is trained, for instance the name of the optimizer.
        parameters: bytes of the parameters.
        moments: bytes of the optimizer's moments.
        basis: bytes of what the projections remember of their subspaces.
        other: the remaining bytes of the optimizer state.
        adamw: bytes of AdamW's state for the same parameters.
    """

    name: str
    parameters: int
    moments: int
    basis: int
    other: int
    adamw: int

    @property
    def total(self) -> int:
        """Bytes of the optimizer state, without the parameters."""
        return self.moments + self.basis + self.other


def memory_table(rows: Sequence[MemoryRow]) -> str:
    """A plain-text table of bytes, with the state's share of AdamW's in the last column."""
    header: tuple[str, ...] = ("", "parameters", "moments", "basis", "other", "total", "of AdamW")
    lines: list[tuple[str, ...]] = [header]
    for row in rows:
        counts = (row.parameters, row.moments, row.basis, row.other, row.total)
        share = f"{row.total / row.adamw:.1%}" if row.adamw else "-"
        lines.append((row.name, *(f"{count:,}" for count in counts), share))
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def write_summary(path: str | os.PathLike, summary: Mapping[str, Any]) -> None:
    """Writes a mapping as JSON. A reader sees the old file or the new one, never half of it.

    Scalars of NumPy and JAX become numbers. JSON has no NaN and no infinity: they become null.

    Raises:
        TypeError: a value has no JSON form.
    """
    text = json.dumps(_jsonable(summary), indent=2, allow_nan=False) + "\n"
    write_text(Path(path), text)


def _jsonable(value):
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if hasattr(value, "tolist"):
        return _jsonable(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
