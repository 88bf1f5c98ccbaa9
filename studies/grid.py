"""Running a grid of trainings: resumable, one JSON line per finished run."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tensorgrad_jax.training.config import parse
from tensorgrad_jax.training.loop import run

KEPT = ("steps", "seconds", "train_loss", "tests", "optimizer_state_bytes", "adamw_state_bytes")


def read(results: Path) -> list[dict[str, Any]]:
    """Return the finished runs of a results file, none if it is not there."""
    if not results.exists():
        return []
    return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]


def run_grid(runs: Iterable[tuple[dict[str, Any], list[str]]], results: Path) -> None:
    """Train what is not in the results file yet.

    Args:
        runs: for every run the labels it is known by and the flags of train.py.
        results: a file of JSON lines: the labels, and of the run's summary what `KEPT` names.
    """
    runs = list(runs)
    for number, (labels, flags) in enumerate(runs, start=1):
        done = [{name: row[name] for name in labels} for row in read(results)]
        if labels in done:
            continue
        print(f"\n[{number}/{len(runs)}] {labels}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            summary = run(parse([*flags, "--opt.save_dir", folder])) / "summary.json"
            values = json.loads(summary.read_text(encoding="utf-8"))
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(labels | {name: values[name] for name in KEPT}) + "\n")
