"""Running a grid of trainings: resumable, one JSON line per finished run."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorgrad_jax.training.build import build_optimizer
from tensorgrad_jax.training.config import parse
from tensorgrad_jax.training.run import run

KEPT = (
    "steps",
    "seconds",
    "train_loss",
    "tests",
    "validation",
    "optimizer_state_bytes",
    "adamw_state_bytes",
)
Row = dict[str, Any]


def read(results: Path) -> list[Row]:
    """Return the finished runs of a results file, none if it is not there."""
    if not results.exists():
        return []
    return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]


def run_grid(
    runs: Iterable[tuple[Row, list[str]]],
    results: Path,
    optimizers: Mapping[str, Callable] | None = None,
) -> None:
    """Train what is not in the results file yet.

    Args:
        runs: for every run the labels it is known by and the flags of train.py.
        results: a file of JSON lines: the labels, of the run's summary what `KEPT` names, and as
            "curve" the training loss and the score of every epoch.
        optimizers: by the label "setting" what makes the optimizer in place of the flags, see
            `tensorgrad_jax.training.run.run`.
    """
    runs = list(runs)
    for number, (labels, flags) in enumerate(runs, start=1):
        done = [{name: row.get(name) for name in labels} for row in read(results)]
        if labels in done:
            continue
        print(f"\n[{number}/{len(runs)}] {labels}", flush=True)
        build = (optimizers or {}).get(labels["setting"], build_optimizer)
        with tempfile.TemporaryDirectory() as folder:
            run_folder = run(parse([*flags, "--opt.save_dir", folder]), build)
            values = json.loads((run_folder / "summary.json").read_text(encoding="utf-8"))
            epochs = read(run_folder / "metrics.jsonl")
        row = labels | {name: values[name] for name in KEPT}
        row["curve"] = [(e["train_loss"], score(e)) for e in epochs]
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def error(row: Row) -> float:
    """Return the test L2 at the training resolution, the one that a run reports first."""
    return next(iter(row["tests"].values()))["l2"]


def score(row: Row) -> float:
    """Return what a learning rate is chosen by: the validation L2, without any the test L2."""
    return row["validation"]["l2"] if row.get("validation") else error(row)


def runs_of(rows: list[Row], **labels: Any) -> list[Row]:
    """Return the runs with these labels, by seed."""
    own = [r for r in rows if all(r.get(name) == value for name, value in labels.items())]
    return sorted(own, key=lambda r: r["seed"])


def best_rate(rows: list[Row], task: str, setting: str) -> float:
    """Return the learning rate with the lowest score on seed 0."""
    return min(runs_of(rows, task=task, setting=setting, seed=0), key=score)["rate"]


def best_runs(rows: list[Row], task: str, setting: str) -> list[Row]:
    """Return the runs at that rate, by seed."""
    return runs_of(rows, task=task, setting=setting, rate=best_rate(rows, task, setting))


def labelled(
    task: str, setting: str, rate: float, seed: int, flags: Iterable[str]
) -> tuple[Row, list[str]]:
    """Return one run as `run_grid` wants it."""
    labels = {"task": task, "setting": setting, "rate": rate, "seed": seed}
    return labels, [*flags, "--opt.learning_rate", str(rate), "--seed", str(seed)]


def compare(
    tasks: Mapping[str, list[str]],
    settings: Mapping[str, list[str]],
    rates: Sequence[float],
    seeds: Iterable[int],
    results: Path,
) -> list[Row]:
    """Train every setting on every task, and return all rows.

    Args:
        tasks: flags of every task, by its name.
        settings: flags of every setting.
        rates: the learning rates that are tried on seed 0, which every setting has its best of.
        seeds: 0 and those that are run with the best rate.
        results: see `run_grid`.
    """
    for task, of_task in tasks.items():
        for setting, of_setting in settings.items():
            flags = [*of_task, *of_setting]
            run_grid([labelled(task, setting, rate, 0, flags) for rate in rates], results)
            best = best_rate(read(results), task, setting)
            run_grid([labelled(task, setting, best, seed, flags) for seed in seeds], results)
    return read(results)
