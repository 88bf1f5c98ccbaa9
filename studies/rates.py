"""Every setting at its own best rate: three small tasks, a grid of rates, seeds, one line a run.

The rate with the lowest mean validation error is a setting's own; where it is the lowest or the
highest that was tried, half or twice of it is tried too. The test set is looked at once, at the
end of a run, and chooses nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import jax
from grid import Row, read

from tensorgrad_jax.backend.allocator import keep_freed_memory


def _task(config: str, resolution: int, n_train: int, n_validation: int, n_test: int) -> list[str]:
    """Return the flags of a task: its file, and the sizes of its sets."""
    sizes = {
        "n_train": n_train,
        "n_validation": n_validation,
        "test_resolutions": [resolution],
        "n_tests": [n_test],
        "test_batch_sizes": [min(n_test, 64)],
    }
    options = [x for name, value in sizes.items() for x in (f"--data.{name}", json.dumps(value))]
    return ["--config_file", config, *options]


TASKS = {
    "darcy": _task("darcy_tensorgrad_config.yaml", 16, 900, 100, 50),
    "burgers": _task("burgers_tensorgrad_config.yaml", 128, 700, 100, 200),
    # Half of the epochs of the file, which a comparison on two CPU cores has time for.
    "ns": [*_task("ns_small.yaml", 64, 448, 64, 64), "--opt.n_epochs", "3"],
}
RATES = {
    "darcy": (1e-2, 2e-2, 4e-2),
    "burgers": (2.5e-3, 5e-3, 1e-2),
    "ns": (5e-3, 1e-2, 2e-2),
}
EXTENSIONS = 2
"""How many rates beyond these are tried at most."""


def parser(description: str, out: Path) -> argparse.ArgumentParser:
    """Return the parser of what studies of this kind have in common."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--root", type=Path, default=Path("datasets"), help="folder of the data")
    result.add_argument("--tasks", nargs="*", default=list(TASKS), choices=list(TASKS))
    result.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0")
    result.add_argument("--rates", type=float, nargs="+", help="other rates than the task's")
    result.add_argument("--out", type=Path, default=out, help="file of results")
    return result


Train = Callable[[float, int], Row]


def sweep(
    arguments: argparse.Namespace,
    settings: Sequence[str],
    prepare: Callable[[str, str, list[str]], Train],
) -> None:
    """Train what is missing in the file of results.

    Args:
        arguments: of the parser.
        settings: by name.
        prepare: (task, setting, flags of the task) to what trains at a rate with a seed. It is
            called where something is to be trained.
    """
    keep_freed_memory()
    for task in arguments.tasks:
        flags = [*TASKS[task], "--data.root", str(arguments.root / task)]
        for setting in settings:
            rates, train = list(arguments.rates or RATES[task]), None
            for _ in range(1 + EXTENSIONS):
                for seed, rate in itertools.product(range(arguments.seeds), rates):
                    labels = {"task": task, "setting": setting, "rate": rate, "seed": seed}
                    if any(labels.items() <= row.items() for row in read(arguments.out)):
                        continue
                    train = train or prepare(task, setting, flags)
                    _run(train, labels, arguments.out)
                rates += _further(best(read(arguments.out), task, setting)[0]["rate"], rates)


def _further(rate: float, rates: list[float]) -> list[float]:
    """Return what to try beside the best rate if it is the lowest or the highest."""
    return [rate / 2] if rate == min(rates) else [2 * rate] if rate == max(rates) else []


def _run(train: Train, labels: Row, out: Path) -> None:
    """Train once and write the line."""
    started = time.monotonic()
    row = labels | train(labels["rate"], labels["seed"])
    row["device"] = jax.devices()[0].device_kind
    with out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(
        f"{labels['task']}, {labels['setting']}, rate {labels['rate']:g}, seed {labels['seed']}: "
        f"validation {row['validation']:.4f}, {1e3 * row['seconds']:.1f} ms a step, "
        f"{time.monotonic() - started:.0f} s",
        flush=True,
    )


def by_rate(rows: list[Row], task: str, setting: str) -> dict[float, list[Row]]:
    """Return the runs of a setting, by seed, of every rate."""
    runs: dict[float, list[Row]] = {}
    for row in sorted(rows, key=lambda r: (r["rate"], r["seed"])):
        if (row["task"], row["setting"]) == (task, setting):
            runs.setdefault(row["rate"], []).append(row)
    return runs


def best(rows: list[Row], task: str, setting: str) -> list[Row]:
    """Return the runs at the rate with the lowest mean validation error."""
    finite = lambda v: v if math.isfinite(v) else math.inf
    runs = by_rate(rows, task, setting).values()
    return min(runs, key=lambda r: mean(finite(x["validation"]) for x in r), default=[])


def rate_cell(rows: list[Row], task: str, setting: str) -> str:
    """Return a setting's own rate, with a mark where it is the lowest or highest tried."""
    rates, rate = by_rate(rows, task, setting), best(rows, task, setting)[0]["rate"]
    return f"{rate:g}" if min(rates) < rate < max(rates) else f"{rate:g} (edge)"


def over(runs: list[Row], base: list[Row], name: str = "test") -> list[float]:
    """Return what `runs` have over what `base` has, seed by seed."""
    of_seed = {r["seed"]: r[name] for r in base}
    return [r[name] / of_seed[r["seed"]] for r in runs if r["seed"] in of_seed]


def spread(values: list[float], digits: int = 3) -> str:
    """Return mean and standard error; nothing of no values."""
    if not values:
        return ""
    error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else math.nan
    return f"{mean(values):.{digits}f} ± {error:.{digits}f}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table."""
    lines = [f"| {' | '.join(map(str, cells))} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]]) + "\n"
