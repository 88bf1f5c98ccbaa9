"""Tables and pictures of the study: python studies/optimizers/report.py

Writes table.md (every setting at its own best rate, against AdamW seed by seed), ablation.md (one
change of `tensor_muon` each), bytes.png (error against the state) and curves.png.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from statistics import mean, stdev

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from grid import Row, read  # noqa: E402
from rates import best, over, rate_cell, spread  # noqa: E402
from settings import ABLATION, COMPARED, MIXED  # noqa: E402
from tasks import TASKS  # noqa: E402

BASE, OURS = "AdamW", "tensor_muon"
CURVES = (BASE, OURS, "tensor_muon, whole", "subspace momentum", "TensorGRaD", "SOAP, shared bases")


def table(rows: list[Row], settings: list[str], base: str = BASE) -> str:
    """Return a table of every task: test errors and their ratios to those of `base`."""
    lines = [
        f"| task | optimizer | rate | test L2 | over {base}, seed by seed | seeds | train loss "
        "over AdamW's | state of AdamW's |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for task in TASKS:
        against, adamw = best(rows, task, base), best(rows, task, BASE)
        shown = [(s, best(rows, task, s)) for s in settings]
        shown = sorted(((s, r) for s, r in shown if r), key=lambda x: mean(q["test"] for q in x[1]))
        for setting, runs in shown:
            tests = [r["test"] for r in runs]
            lines.append(
                f"| {task} | {setting} | {rate_cell(rows, task, setting)} | "
                f"{mean(tests):.4f} | {spread(over(runs, against))} | {len(runs)} | "
                f"{mean(over(runs, adamw, 'train_loss')):.3f} | "
                f"{runs[0]['state_bytes'] / adamw[0]['state_bytes']:.1%} |"
            )
    return "\n".join(lines) + "\n"


def draw_bytes(rows: list[Row], path: Path) -> None:
    """Draw test errors over AdamW's against the bytes of the state."""
    tasks = [t for t in TASKS if len({r["setting"] for r in rows if r["task"] == t}) > 3]
    figure, axes = plt.subplots(1, len(tasks), figsize=(4.4 * len(tasks), 3.8), squeeze=False)
    for axis, task in zip(axes[0], tasks, strict=True):
        base, points = best(rows, task, BASE), []
        for setting in COMPARED:
            runs = best(rows, task, setting)
            if not runs or "scale" in setting:
                continue
            x = runs[0]["state_bytes"] / base[0]["state_bytes"]
            values = over(runs, base)
            error = stdev(values) / len(values) ** 0.5
            ours = setting.startswith(OURS)
            axis.errorbar(x, mean(values), error, fmt="o", color="tab:red" if ours else "tab:gray")
            points.append((mean(values), x, setting))
        # Names keep a distance, so that they can be read.
        low, high = axis.get_ylim()
        place = -math.inf
        for y, x, setting in sorted(points):
            place = max(y, place + 0.035 * (high - low))
            axis.annotate(setting, (x, y), (x * 1.12, place), size=6.5, va="center")
        axis.axhline(1, color="black", linewidth=0.6)
        axis.set(xscale="log", xlim=(0.04, 6), title=task, xlabel="optimizer state / AdamW's")
    axes[0][0].set_ylabel("test error / AdamW's")
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_curves(rows: list[Row], path: Path) -> None:
    """Draw validation errors of all seeds' mean against the epoch."""
    tasks = [t for t in TASKS if best(rows, t, OURS)]
    figure, axes = plt.subplots(1, len(tasks), figsize=(4.4 * len(tasks), 3.6), squeeze=False)
    for axis, task in zip(axes[0], tasks, strict=True):
        for setting in CURVES:
            runs = best(rows, task, setting)
            if runs:
                epochs = range(1, len(runs[0]["curve"]) + 1)
                values = [mean(c[1] for c in point) for point in zip(*(r["curve"] for r in runs))]  # noqa: B905
                axis.plot(epochs, values, label=setting, linewidth=2 if setting == OURS else 1)
        axis.set(yscale="log", title=task, xlabel="epoch")
    axes[0][0].set_ylabel("relative L2 on validation samples")
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    """Write all of it beside the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results.jsonl")
    path = parser.parse_args().results
    rows = read(path)
    compared = table(rows, list(COMPARED))
    ablation = table(rows, [OURS, *ABLATION], OURS)
    mixed = table(rows, ["subspace_muon", *MIXED], "subspace_muon")
    (path.parent / "table.md").write_text(compared, encoding="utf-8")
    (path.parent / "ablation.md").write_text(ablation, encoding="utf-8")
    draw_bytes(rows, path.parent / "bytes.png")
    draw_curves(rows, path.parent / "curves.png")
    print(compared, ablation, mixed, sep="\n")


if __name__ == "__main__":
    main()
