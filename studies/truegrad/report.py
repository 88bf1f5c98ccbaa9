"""The table and the picture of the study: python studies/truegrad/report.py"""

from __future__ import annotations

import math
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

TASKS = ("darcy", "burgers", "ns")
SETTINGS = (
    "AdamW",
    "AdamW, squares of samples",
    "TensorGRaD",
    "TensorGRaD, squares of samples",
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
    runs = by_rate(rows, task, setting).values()
    return min(runs, key=lambda r: mean(x["validation"] for x in r), default=[])


def over(runs: list[Row], base: list[Row], name: str) -> list[float]:
    """Return what `runs` have over what `base` has, seed by seed."""
    of_seed = {r["seed"]: r[name] for r in base}
    return [r[name] / of_seed[r["seed"]] for r in runs if r["seed"] in of_seed]


def spread(values: list[float], digits: int = 3) -> str:
    """Return mean and standard error."""
    error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else math.nan
    return f"{mean(values):.{digits}f} ± {error:.{digits}f}"


def table(rows: list[Row]) -> str:
    """Return a row per task and setting; ratios are over the setting without squares."""
    lines = [
        "| task | setting | rate | test L2 | over the same without squares, seed by seed | "
        "train loss, likewise | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for task in TASKS:
        for setting in SETTINGS:
            runs = best(rows, task, setting)
            base = best(rows, task, setting.partition(",")[0])
            if not runs:
                continue
            rates = by_rate(rows, task, setting)
            edge = "" if min(rates) < runs[0]["rate"] < max(rates) else " (edge)"
            names = ("test", "train_loss") if base and "," in setting else ()
            ratios = [spread(over(runs, base, name)) for name in names] or ["", ""]
            cells = [
                task,
                setting,
                f"{runs[0]['rate']:g}{edge}",
                spread([r["test"] for r in runs], 4),
                *ratios,
                str(len(runs)),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def shares(rows: list[Row]) -> str:
    """Return how much of the squares of samples is the square of the mean, epoch by epoch."""
    lines = [
        "| task | squared mean gradient over mean squared gradient, after the first epoch | "
        "half of them | all |",
        "|---|---|---|---|",
    ]
    for task in TASKS:
        runs = [r["mean_share"] for r in best(rows, task, SETTINGS[1])]
        if runs:
            n = len(runs[0])
            cells = [f"{mean(r[i] for r in runs):.3f}" for i in (0, n // 2 - 1, n - 1)]
            lines.append(f"| {task} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


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
