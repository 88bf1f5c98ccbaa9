"""Tables and pictures of the accuracy study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from grid import Row, best_rate, error, runs_of
from matplotlib.ticker import FixedLocator, FormatStrFormatter, NullLocator
from optimizers import ABLATION, COMPARED, MATCHED

FIRST_SEEDS = 3
TASKS = ("navier-stokes", "darcy", "burgers", "burgers, long")
BASE, OURS = "AdamW", "subspace momentum 5%"


def report(rows: list[Row], folder: Path) -> None:
    """Write table.md, paired.md, ablation.md and the pictures of the runs that are there."""
    rows = [r for r in rows if r["task"] in TASKS]
    table = compared(rows)
    (folder / "table.md").write_text(table, encoding="utf-8")
    pairs = paired(rows)
    (folder / "paired.md").write_text(pairs, encoding="utf-8")
    changes = ablation(rows)
    (folder / "ablation.md").write_text(changes, encoding="utf-8")
    draw(rows, folder / "accuracy.png")
    print(f"\n{table}\n{pairs}\n{changes}")


def compared(rows: list[Row]) -> str:
    """Return every setting at its own best rate, and at AdamW's where that is another one."""
    lines = [
        "| task | optimizer | rate | test L2: mean, deviation (seeds) | of AdamW's | train loss "
        "of AdamW's | state of AdamW's |",
        "|---|---|---|---|---|---|---|",
    ]
    for task in TASKS:
        base = _at_best(rows, task, BASE)
        for setting in (*COMPARED, MATCHED):
            own = _at_best(rows, task, setting)
            if not base or not own:
                continue
            at_base = runs_of(rows, task=task, setting=setting, rate=base[0]["rate"])
            shown = [own]
            if own[0]["rate"] != base[0]["rate"] and len(at_base) == len(own) > 1:
                shown.append(at_base)
            lines += [_line(task, setting, runs, base) for runs in shown]
    return "\n".join(lines) + "\n"


def paired(rows: list[Row]) -> str:
    """Return ours against AdamW seed by seed, both at AdamW's best rate."""
    lines = [
        "| task | seeds | test L2 over AdamW's: mean, standard error | lower in | train loss | "
        "lower in |",
        "|---|---|---|---|---|---|",
    ]
    for task in TASKS:
        base = _at_best(rows, task, BASE)
        if not base:
            continue
        own = _same_seeds(runs_of(rows, task=task, setting=OURS, rate=base[0]["rate"]), base)
        base = _same_seeds(base, own)
        if len(own) < FIRST_SEEDS:
            continue
        cells = [task, str(len(own))]
        for value in (error, _train):
            mean_of_base = _mean(base, value)
            ratios = [
                1 + (value(a) - value(b)) / mean_of_base for a, b in zip(own, base, strict=True)
            ]
            cells.append(f"{mean(ratios):.3f} ± {stdev(ratios) / len(ratios) ** 0.5:.3f}")
            cells.append(f"{sum(r < 1 for r in ratios)} of {len(ratios)}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def ablation(rows: list[Row]) -> str:
    """Return every change of ours at AdamW's best rate; numbers are those over ours."""
    tasks = ("darcy", "burgers")
    header = "".join(f" {t}: test L2 | train loss | state |" for t in tasks)
    lines = [f"| change |{header}", "|---|" + "---|" * 3 * len(tasks)]
    for setting in (BASE, OURS, *ABLATION):
        cells = []
        for task in tasks:
            rate = best_rate(rows, task, BASE)
            own = runs_of(rows, task=task, setting=setting, rate=rate)
            ours = runs_of(rows, task=task, setting=OURS, rate=rate)
            if not own or not ours:
                cells += ["", "", ""]
                continue
            few = "" if len(own) == FIRST_SEEDS else f" ({len(own)})"
            cells.append(f"{_mean(own, error) / _mean(ours, error):.3f}{few}")
            cells.append(f"{_mean(own, _train) / _mean(ours, _train):.3f}")
            cells.append(f"{_state(own[0]):.1%}")
        if any(cells):
            lines.append(f"| {setting} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(rows: list[Row], path: Path) -> None:
    """Draw errors against the bytes of the state, and the curves of the long training."""
    figure, axes = plt.subplots(1, len(TASKS), figsize=(4.2 * len(TASKS), 3.6))
    for axis, task in zip(axes, TASKS, strict=True):
        base = _at_best(rows, task, BASE)
        if not base:
            axis.set_axis_off()
            continue
        for number, setting in enumerate((*COMPARED, MATCHED)):
            own = _at_best(rows, task, setting)
            if len(own) < FIRST_SEEDS:
                continue
            color = f"C{number % 10}"
            mean_of_base = _mean(_same_seeds(base, own), error)
            ratios = [error(r) / mean_of_base for r in own]
            marker = "o" if number < 10 else "s"
            axis.plot([_state(own[0])] * len(own), ratios, ".", color=color, alpha=0.5)
            axis.plot(_state(own[0]), mean(ratios), marker, color=color, label=setting)
        axis.axhline(1, color="0.7", zorder=0)
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(FixedLocator([0.8, 0.9, 1, 1.1, 1.2, 1.5, 2, 2.5]))
        axis.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axis.yaxis.set_minor_locator(NullLocator())
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(FixedLocator([0.025, 0.05, 0.1, 0.25, 0.5, 1]))
        axis.xaxis.set_major_formatter(lambda x, _: f"{100 * x:g}%")
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xlim(0.02, 1.3)
        axis.set_title(task)
        axis.set_xlabel("optimizer state / AdamW's")
    axes[0].set_ylabel("test L2 / AdamW's mean")
    shown = {}
    for axis in axes:
        shown |= dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(
        shown.values(), shown.keys(), loc="lower center", ncol=7, fontsize=8, frameon=False
    )
    figure.tight_layout(rect=(0, 0.13, 1, 1))
    figure.savefig(path, dpi=120)
    plt.close(figure)
    curves(rows, path.with_name("curves.png"))


def curves(rows: list[Row], path: Path) -> None:
    """Draw loss and validation error of the long training, epoch by epoch."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
    for number, setting in enumerate(COMPARED):
        own = [r for r in _at_best(rows, "burgers, long", setting) if r.get("curve")]
        for run in own:
            for axis, values in zip(axes, zip(*run["curve"], strict=True), strict=True):
                label = setting if run is own[0] else None
                axis.plot(range(1, len(values) + 1), values, color=f"C{number}", label=label, lw=1)
    for axis, title in zip(axes, ("training loss", "validation L2"), strict=True):
        axis.set_yscale("log")
        axis.set_xlabel("epoch")
        axis.set_title(f"Burgers, long: {title}")
    if axes[0].get_legend_handles_labels()[0]:
        axes[0].legend(fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _line(task: str, setting: str, own: Sequence[Row], base: Sequence[Row]) -> str:
    base = _same_seeds(base, own)
    errors = [error(r) for r in own]
    spread = f" ± {stdev(errors):.4f}" if len(errors) > 1 else ""
    return (
        f"| {task} | {setting} | {own[0]['rate']:g} | {mean(errors):.4f}{spread} ({len(own)}) | "
        f"{mean(errors) / _mean(base, error):.3f} | {_mean(own, _train) / _mean(base, _train):.3f} "
        f"| {_state(own[0]):.1%} |"
    )


def _at_best(rows: list[Row], task: str, setting: str) -> list[Row]:
    if not runs_of(rows, task=task, setting=setting, seed=0):
        return []
    return runs_of(rows, task=task, setting=setting, rate=best_rate(rows, task, setting))


def _same_seeds(rows: Sequence[Row], other: Sequence[Row]) -> list[Row]:
    """Return the runs that another setting has a run of the same seed beside."""
    seeds = {r["seed"] for r in other}
    return [r for r in rows if r["seed"] in seeds]


def _mean(rows: Sequence[Row], value) -> float:
    return mean(value(r) for r in rows)


def _train(row: Row) -> float:
    return row["train_loss"]


def _state(row: Row) -> float:
    return row["optimizer_state_bytes"] / row["adamw_state_bytes"]
