"""Does bfloat16 cost accuracy? Test errors of three precisions, on two tasks.

    python studies/precision/run.py --darcy datasets/darcy

trains the default Navier-Stokes task and the Darcy task with the default optimizer, in float32 and
with bfloat16 weights and activations, with and without stochastic rounding of the weights. For
every setting the better of two learning rates on seed 0 is taken, then seeds 1 and 2 follow.
Results: results.jsonl, one line per run (a second call continues), table.md, precision.png.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from grid import best_runs, compare, error  # noqa: E402

PUBLISHED = ["--opt.match_update_size", "False"]
HALF = [
    *PUBLISHED,
    "--fno.fno_block_precision",
    "mixed",
    "--fno.fno_block_weights_precision",
    "half",
]
SETTINGS = {
    "full": PUBLISHED,
    "mixed, half weights": HALF,
    "the same, rounded to nearest": [*HALF, "--opt.stochastic_rounding", "False"],
}
RATES = (1e-2, 2e-2)
SEEDS = (0, 1, 2)


def tasks(darcy: str) -> dict[str, list[str]]:
    """Return the flags of every task."""
    darcy_flags = ["--config_file", "darcy_tensorgrad_config.yaml", "--data.root", darcy]
    return {"navier-stokes": ["--opt.tensorgrad", "True"], "darcy": darcy_flags}


def report(rows: list[dict], folder: Path) -> None:
    """Write the table and the picture."""
    names = sorted({r["task"] for r in rows}, reverse=True)
    lines = ["| task | precision | rate | test L2, seeds 0, 1, 2 | mean | against full |"]
    lines.append("|---|---|---|---|---|---|")
    figure, axes = plt.subplots(1, len(names), figsize=(4.5 * len(names), 3.2), squeeze=False)
    for axis, task in zip(axes[0], names, strict=True):
        means = {}
        for place, setting in enumerate(SETTINGS):
            own = best_runs(rows, task, setting)
            rate, errors = own[0]["rate"], [error(r) for r in own]
            means[setting] = sum(errors) / len(errors)
            ratio = means[setting] / means["full"]
            shown = " ".join(f"{e:.4f}" for e in errors)
            lines.append(
                f"| {task} | {setting} | {rate:g} | {shown} | {means[setting]:.4f} | {ratio:.3f} |"
            )
            axis.plot(errors, [place] * len(errors), "o", alpha=0.6)
            axis.plot(means[setting], place, "k|", markersize=18)
        axis.set_yticks(range(len(SETTINGS)), list(SETTINGS) if task == names[0] else [])
        axis.set_ylim(len(SETTINGS) - 0.5, -0.5)
        axis.set_xlabel(f"{task}: relative test L2")
    figure.tight_layout()
    figure.savefig(folder / "precision.png", dpi=120)
    (folder / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n" + "\n".join(lines))


def main() -> None:
    """Run what is missing, then report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--darcy", default="datasets/darcy", help="folder of the Darcy files")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the results")
    arguments = parser.parse_args()
    results = arguments.out / "results.jsonl"
    rows = compare(tasks(arguments.darcy), SETTINGS, RATES, SEEDS, results)
    report(rows, arguments.out)


if __name__ == "__main__":
    main()
