"""Is accuracy kept? AdamW, its relatives and compressed optimizers, on three tasks.

    python studies/accuracy/run.py --darcy datasets/darcy --burgers datasets/burgers

Every optimizer gets the best of the same learning rates, chosen on validation samples with seed 0;
seeds 1 and 2 follow at that rate (1 to 9 for AdamW and ours where runs are cheap), and at AdamW's
best rate for those that are meant to take it over. Then the ablation, at AdamW's best rate, and
Burgers with ten times the steps. The test samples choose nothing. Missing data are generated.

Results: results.jsonl, one line per run (a second call continues), table.md, paired.md,
ablation.md and pictures. `--part 0/2` and `--part 1/2` share the work between two processes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import jax

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from grid import best_rate, labelled, read, run_grid  # noqa: E402
from optimizers import ABLATION, COMPARED, MATCHED  # noqa: E402
from report import report  # noqa: E402

from tensorgrad_jax.backend.allocator import keep_freed_memory  # noqa: E402

SEEDS = (0, 1, 2)
MORE_SEEDS = tuple(range(10))
RATES = {
    "navier-stokes": (5e-3, 1e-2, 2e-2),
    "darcy": (1e-2, 2e-2, 4e-2),
    "burgers": (2.5e-3, 5e-3, 1e-2),
    "burgers, long": (2.5e-3, 5e-3),
}
CLOSE = ("AdamW", "subspace momentum 5%")
OURS = ("subspace momentum 5%", "subspace momentum 25%")
LONG = ("AdamW", "subspace momentum 5%", "TensorGRaD 5% + 20%", "no momentum", "Adafactor")


def tasks(arguments: argparse.Namespace) -> dict[str, list[str]]:
    """Return the flags of every task. The optimizer is not theirs."""

    def flags(root, n_train, n_validation, *more):
        sizes = ["--data.n_train", str(n_train), "--data.n_validation", str(n_validation)]
        return [*more, "--data.root", root, *sizes, "--opt.tensorgrad", "False"]

    config = lambda name: ("--config_file", f"{name}_tensorgrad_config.yaml")
    burgers = flags(arguments.burgers, 700, 100, *config("burgers"))
    return {
        "navier-stokes": flags(arguments.navier_stokes, 448, 64),
        "darcy": flags(arguments.darcy, 900, 100, *config("darcy")),
        "burgers": burgers,
        "burgers, long": [*burgers, "--opt.n_epochs", "120"],
    }


def main() -> None:
    """Run what is missing, then report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--navier_stokes", default="datasets/ns_small", help="folder of the files")
    parser.add_argument("--darcy", default="datasets/darcy", help="folder of the Darcy files")
    parser.add_argument("--burgers", default="datasets/burgers", help="folder of the Burgers files")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the results")
    parser.add_argument("--part", default="0/1", help="i/n: every n-th piece of work from the i-th")
    parser.add_argument("--report", action="store_true", help="only report what is there")
    arguments = parser.parse_args()
    results = arguments.out / "results.jsonl"
    if not arguments.report:
        part, parts = map(int, arguments.part.split("/"))
        train(tasks(arguments), results, slice(part, None, parts))
    report(read(results), arguments.out)


def train(tasks: dict[str, list[str]], results: Path, part: slice) -> None:
    """Train what is missing of a part of the work."""
    jax.config.update("jax_compilation_cache_dir", str(results.parent / "compiled"))
    keep_freed_memory()
    optimizers = COMPARED | ABLATION

    def at(task, setting, rates, seeds):
        own = [labelled(task, setting, r, s, tasks[task]) for r in rates for s in seeds]
        run_grid(own, results, optimizers)

    def best(task, setting):
        at(task, setting, RATES[task], SEEDS[:1])
        return best_rate(read(results), task, setting)

    for task, setting in pieces()[part]:
        if setting in COMPARED:
            rates = {best(task, setting)}
            if setting in OURS:
                rates.add(best(task, "AdamW"))
            at(task, setting, sorted(rates), MORE_SEEDS if _more(task, setting) else SEEDS)
        else:
            at(task, setting, [best(task, "AdamW")], SEEDS)


def _more(task: str, setting: str) -> bool:
    """Return whether three seeds leave open which of the two is better, and more are cheap."""
    return setting in CLOSE and task in ("darcy", "burgers")


def pieces() -> list[tuple[str, str]]:
    """Return task and setting of every piece of work, what matters most first."""
    short, cheap = ("navier-stokes", "darcy", "burgers"), ("darcy", "burgers")
    first, later = list(COMPARED)[:4], list(COMPARED)[4:]
    changes, more_changes = list(ABLATION)[:9], list(ABLATION)[9:]
    return [
        *((task, setting) for setting in first for task in short),
        *(("burgers, long", setting) for setting in LONG[:2]),
        *((task, setting) for setting in changes for task in cheap),
        *((task, setting) for setting in later for task in cheap),
        *((task, setting) for setting in more_changes for task in cheap),
        *(("burgers, long", setting) for setting in LONG[2:]),
        *(("navier-stokes", setting) for setting in (MATCHED, *later)),
    ]


if __name__ == "__main__":
    main()
