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


def error(row: dict[str, Any]) -> float:
    """Return the test L2 at the training resolution, the one that a run reports first."""
    return next(iter(row["tests"].values()))["l2"]


def best_rate(rows: list[dict[str, Any]], task: str, setting: str) -> float:
    """Return the learning rate with the lowest test error on seed 0."""
    own = [r for r in rows if r["task"] == task and r["setting"] == setting and r["seed"] == 0]
    return min(own, key=error)["rate"]


def best_runs(rows: list[dict[str, Any]], task: str, setting: str) -> list[dict[str, Any]]:
    """Return the runs at that rate, by seed."""
    rate = best_rate(rows, task, setting)
    own = [r for r in rows if (r["task"], r["setting"], r["rate"]) == (task, setting, rate)]
    return sorted(own, key=lambda r: r["seed"])


def compare(
    tasks: dict[str, list[str]],
    settings: dict[str, list[str]],
    rates: Iterable[float],
    seeds: Iterable[int],
    results: Path,
) -> list[dict[str, Any]]:
    """Train every setting on every task, and return all rows.

    Args:
        tasks: flags of every task, by its name.
        settings: flags of every setting.
        rates: the learning rates that are tried on seed 0, which every setting has its best of.
        seeds: 0 and those that are run with the best rate.
        results: see `run_grid`.
    """

    def one(task, setting, rate, seed):
        labels = {"task": task, "setting": setting, "rate": rate, "seed": seed}
        own = ["--opt.learning_rate", str(rate), "--seed", str(seed)]
        return labels, [*tasks[task], *settings[setting], *own]

    pairs = [(task, setting) for task in tasks for setting in settings]
    run_grid([one(*pair, rate, 0) for pair in pairs for rate in rates], results)
    rows = read(results)
    best = {pair: best_rate(rows, *pair) for pair in pairs}
    run_grid([one(*pair, best[pair], seed) for pair in pairs for seed in seeds], results)
    return read(results)
