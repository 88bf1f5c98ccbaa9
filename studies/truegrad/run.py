"""Do squares of single samples help an operator? Adam with and without them, three tasks.

    python studies/truegrad/run.py --tasks darcy burgers ns

Every setting gets the best of the same learning rates on seed 0, then seeds 1 and 2 follow. Missing
files are generated. Results: results.jsonl, one line per run (a second call continues), and
table.md, which says what was run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from grid import best_runs, compare, error, read  # noqa: E402

SAMPLES = ["--opt.second_moment", "per_example"]
SETTINGS = {
    "AdamW": ["--opt.tensorgrad", "False"],
    "AdamW, squares of samples": ["--opt.tensorgrad", "False", *SAMPLES],
    "TensorGRaD": ["--opt.optimizer_type", "tensorgrad"],
    "TensorGRaD, squares of samples": ["--opt.optimizer_type", "tensorgrad", *SAMPLES],
}
CONFIGS = {
    "darcy": "darcy_tensorgrad_config.yaml",
    "burgers": "burgers_tensorgrad_config.yaml",
    "ns": "ns_small.yaml",
}
RATES = (5e-3, 1e-2, 2e-2)
SEEDS = (0, 1, 2)


def report(rows: list[dict], folder: Path) -> None:
    """Write the table: a row per task and setting of which every seed was run."""
    lines = [
        "| task | setting | rate | test L2, seeds 0, 1, 2 | mean | beside it without | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    means: dict[tuple[str, str], float] = {}
    for task in CONFIGS:
        for setting in SETTINGS:
            if not any(r["task"] == task and r["setting"] == setting for r in rows):
                continue
            runs = best_runs(rows, task, setting)
            if len(runs) < len(SEEDS):
                continue
            errors = [error(r) for r in runs]
            means[task, setting] = mean = sum(errors) / len(errors)
            without = means.get((task, setting.partition(",")[0]))
            beside = f"{mean / without - 1:+.1%}" if without and "," in setting else ""
            seconds = sorted(r["seconds"] for r in runs)[len(runs) // 2]
            lines.append(
                f"| {task} | {setting} | {runs[0]['rate']:g} | "
                f"{' '.join(f'{e:.4f}' for e in errors)} | {mean:.4f} | {beside} | {seconds:.0f} |"
            )
    missing = [t for t in CONFIGS if not any(task == t for task, _ in means)]
    if missing:
        lines += ["", f"Not run: {', '.join(missing)}."]
    (folder / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n" + "\n".join(lines))


def main() -> None:
    """Run what is missing, then report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", nargs="*", default=list(CONFIGS), choices=list(CONFIGS))
    parser.add_argument("--data", nargs="*", default=[], help="folders of the tasks' files")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the results")
    arguments = parser.parse_args()
    roots = dict(zip(arguments.tasks, arguments.data, strict=False))
    tasks = {
        name: [
            "--config_file",
            CONFIGS[name],
            *(["--data.root", roots[name]] if name in roots else []),
        ]
        for name in arguments.tasks
    }
    results = arguments.out / "results.jsonl"
    if tasks:
        compare(tasks, SETTINGS, RATES, SEEDS, results)
    report(read(results), arguments.out)


if __name__ == "__main__":
    main()
