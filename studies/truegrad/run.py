"""Do squares of single samples help an operator? Adam with and without them, three tasks.

    python studies/truegrad/run.py --root datasets --tasks darcy burgers ns

Every setting is trained at every rate of the task with every seed. The rate with the lowest mean
validation error, of samples that are split off the training set, is a setting's own; where it is
the lowest or the highest, half or twice of it is tried too. The test set is looked at once, at the
end of a run, and chooses nothing. One JSON line per run in results.jsonl; what is there is not
run again. Then report.py writes the table and the picture.

Files under --root: darcy/, burgers/, ns/, as `python -m tensorgrad_jax.data` makes them; what is
missing is made.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import sys
import time
from pathlib import Path

import jax

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from copies import Copies  # noqa: E402
from grid import read  # noqa: E402
from report import SETTINGS, best, report  # noqa: E402

from tensorgrad_jax.backend.allocator import keep_freed_memory  # noqa: E402

SAMPLES = ["--opt.second_moment", "per_example"]
ADAMW = ["--opt.tensorgrad", "False", "--opt.optimizer_type", "adamw"]
TENSORGRAD = ["--opt.optimizer_type", "tensorgrad", "--opt.update_proj_gap", "50"]
FLAGS = dict(
    zip(SETTINGS, (ADAMW, [*ADAMW, *SAMPLES], TENSORGRAD, [*TENSORGRAD, *SAMPLES]), strict=True)
)


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


def main() -> None:
    """Run what is missing, then report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path("datasets"), help="folder of the data")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0")
    parser.add_argument("--rates", type=float, nargs="+", help="other rates than the task's")
    parser.add_argument("--out", type=Path, default=HERE / "results.jsonl", help="file of results")
    arguments = parser.parse_args()
    keep_freed_memory()
    for task in arguments.tasks:
        flags = [*TASKS[task], "--data.root", str(arguments.root / task)]
        for setting in SETTINGS:
            rates = list(arguments.rates or RATES[task])
            copies = functools.cache(
                lambda setting=setting, flags=flags: Copies([*flags, *FLAGS[setting]])
            )
            for _ in range(1 + EXTENSIONS):
                for seed, rate in itertools.product(range(arguments.seeds), rates):
                    labels = {"task": task, "setting": setting, "rate": rate, "seed": seed}
                    if not any(labels.items() <= row.items() for row in read(arguments.out)):
                        _run(copies(), labels, arguments.out)
                rates += _further(best(read(arguments.out), task, setting)[0]["rate"], rates)
    report(read(arguments.out), arguments.out.parent)


def _further(rate: float, rates: list[float]) -> list[float]:
    """Return what to try beside the best rate if it is the lowest or the highest."""
    return [rate / 2] if rate == min(rates) else [2 * rate] if rate == max(rates) else []


def _run(copies: Copies, labels: dict, out: Path) -> None:
    """Train one copy and write its line."""
    started = time.monotonic()
    share = labels["setting"] == "AdamW, squares of samples"
    row = labels | copies.train(labels["rate"], labels["seed"], share)
    row["device"] = jax.devices()[0].device_kind
    with out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(
        f"{labels['task']}, {labels['setting']}, rate {labels['rate']:g}, seed {labels['seed']}: "
        f"validation {row['validation']:.4f}, {1e3 * row['seconds']:.1f} ms a step, "
        f"{time.monotonic() - started:.0f} s",
        flush=True,
    )


if __name__ == "__main__":
    main()
