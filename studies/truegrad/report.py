"""The table and the picture of the study: python studies/truegrad/report.py"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator, NullLocator

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from grid import Row, read  # noqa: E402
from rates import best, by_rate, markdown, over, rate_cell, spread  # noqa: E402

TASKS = ("darcy", "burgers", "ns")
SETTINGS = (
    "AdamW",
    "AdamW, squares of samples",
    "TensorGRaD",
    "TensorGRaD, squares of samples",
)


def table(rows: list[Row]) -> str:
    """Return a row per task and setting; ratios are over the setting without squares."""
    head = (
        "task", "setting", "rate", "test L2", "over the same without squares, seed by seed",
        "train loss, likewise", "seeds",
    )  # fmt: skip
    lines = []
    for task, setting in itertools.product(TASKS, SETTINGS):
        runs = best(rows, task, setting)
        base = best(rows, task, setting.partition(",")[0])
        if not runs:
            continue
        names = ("test", "train_loss") if base and "," in setting else ()
        ratios = [spread(over(runs, base, name)) for name in names] or ["", ""]
        tests = spread([r["test"] for r in runs], 4)
        rate = rate_cell(rows, task, setting)
        lines.append([task, setting, rate, tests, *ratios, len(runs)])
    return markdown(head, lines)


def shares(rows: list[Row]) -> str:
    """Return how much of the squares of samples is the square of the mean, epoch by epoch."""
    what = "squared mean gradient over mean squared gradient, after the first epoch"
    lines = []
    for task in TASKS:
        runs = [r["mean_share"] for r in best(rows, task, SETTINGS[1])]
        if runs:
            n = len(runs[0])
            epochs = (0, n // 2 - 1, n - 1)
            lines.append([task, *(f"{mean(r[i] for r in runs):.3f}" for i in epochs)])
    return markdown(("task", what, "half of them", "all"), lines)


def draw(rows: list[Row], path: Path) -> None:
    """Draw validation errors against the rate and, at a setting's own rate, the epoch."""
    tasks = [t for t in TASKS if best(rows, t, SETTINGS[0])]
    figure, axes = plt.subplots(2, len(tasks), figsize=(4 * len(tasks), 6.2), squeeze=False)
    values_of: Callable[[list[Row]], list[float]] = lambda runs: [r["validation"] for r in runs]
    for (upper, lower), task in zip(axes.T, tasks, strict=True):
        for number, setting in enumerate(SETTINGS):
            style = {"color": f"C{number // 2}", "ls": "--" if "," in setting else "-"}
            rates = by_rate(rows, task, setting)
            points = [values_of(runs) for runs in rates.values()]
            errors = [stdev(v) / len(v) ** 0.5 if len(v) > 1 else 0 for v in points]
            means = [mean(v) for v in points]
            upper.errorbar(list(rates), means, errors, label=setting, capsize=3, **style)
            curves = [[point[1] for point in r["curve"]] for r in best(rows, task, setting)]
            means = [mean(values) for values in zip(*curves, strict=True)]
            lower.plot(range(1, len(means) + 1), means, **style)
        upper.set(title=task, xscale="log", xlabel="learning rate")
        tried = sorted({r["rate"] for r in rows if r["task"] == task})
        upper.set_xticks(tried, [f"{rate:g}" for rate in tried])
        upper.xaxis.set_minor_locator(NullLocator())
        lower.set(yscale="log", xlabel="epoch, at the setting's own rate")
        lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axis in axes[:, 0]:
        axis.set_ylabel("relative L2 on validation samples")
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def report(rows: list[Row], folder: Path) -> None:
    """Write table.md and squares.png of the runs that are there."""
    if not rows:
        return
    text = f"{table(rows)}\n{shares(rows)}"
    (folder / "table.md").write_text(text, encoding="utf-8")
    draw(rows, folder / "squares.png")
    print(f"\n{text}")


if __name__ == "__main__":
    report(read(HERE / "results.jsonl"), HERE)
