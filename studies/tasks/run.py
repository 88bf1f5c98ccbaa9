"""What compression costs on Darcy flow and on Burgers' equation: AdamW beside TensorGRaD.

    python studies/tasks/run.py --darcy datasets/darcy --burgers datasets/burgers

Every optimizer gets the best of the same learning rates on seed 0, then seeds 1 and 2 follow.
Missing files are generated. Results: results.jsonl, one line per run (a second call continues), and
table.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from grid import best_runs, compare  # noqa: E402

SETTINGS = {
    "AdamW": ["--opt.tensorgrad", "False"],
    "5% random + 20% Tucker": ["--opt.match_update_size", "False"],
}
RATES = (5e-3, 1e-2, 2e-2, 4e-2)
SEEDS = (0, 1, 2)


def report(rows: list[dict], folder: Path) -> None:
    """Write the table: one row per task, resolution and optimizer."""
    lines = [
        "| task | points per axis | optimizer | rate | test L2, seeds 0, 1, 2 | mean | state |"
    ]
    lines.append("|---|---|---|---|---|---|---|")
    for task in sorted({r["task"] for r in rows}, reverse=True):
        for resolution in next(r for r in rows if r["task"] == task)["tests"]:
            for setting in SETTINGS:
                runs = best_runs(rows, task, setting)
                errors = [r["tests"][resolution]["l2"] for r in runs]
                share = runs[0]["optimizer_state_bytes"] / runs[0]["adamw_state_bytes"]
                shown = " ".join(f"{e:.4f}" for e in errors)
                mean = sum(errors) / len(errors)
                lines.append(
                    f"| {task} | {resolution} | {setting} | {runs[0]['rate']:g} | {shown} | "
                    f"{mean:.4f} | {share:.1%} |"
                )
    (folder / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n" + "\n".join(lines))


def main() -> None:
    """Run what is missing, then report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--darcy", default="datasets/darcy", help="folder of the Darcy files")
    parser.add_argument("--burgers", default="datasets/burgers", help="folder of the Burgers files")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the results")
    arguments = parser.parse_args()
    tasks = {
        name: ["--config_file", f"{name}_tensorgrad_config.yaml", "--data.root", root]
        for name, root in (("darcy", arguments.darcy), ("burgers", arguments.burgers))
    }
    rows = compare(tasks, SETTINGS, RATES, SEEDS, arguments.out / "results.jsonl")
    report(rows, arguments.out)


if __name__ == "__main__":
    main()
