"""Tables and pictures of the study: python studies/optimizers/report.py

Writes table.md (every setting at its own best rate, against AdamW seed by seed), overview.md (the
same, a row an optimizer), noise.md (long training and batches of other sizes), ablation.md and
tensor_muon.md (one change each of `subspace_muon` and of `tensor_muon`), bytes.png (error against
the state), curves.png (against steps) and seconds.png.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from grid import Row, read  # noqa: E402
from rates import best, markdown, over, rate_cell, spread  # noqa: E402
from settings import ABLATION, COMPARED, OF_TENSOR_MUON, SETTINGS  # noqa: E402
from tasks import TASKS  # noqa: E402

BASE, OURS = "AdamW", "subspace_muon"
CURVES = (BASE, OURS, "tensor_muon", "Muon (Optax)", "SOAP, shared bases", "TensorGRaD")
OF_BYTES = (
    *CURVES,
    "tensor_muon, whole",
    "subspace momentum, polar matrices",
    "subspace momentum",
    "TensorGRaD as published",
    "Muon (Optax), per frequency, rms .2",
    "Adam in averaged bases, whole",
    "SNSM",
    "Adafactor, momentum",
    "Adam-mini",
    "8-bit AdamW",
)
MAIN = ("burgers", "darcy", "navier-stokes", "allen-cahn 3d")
BY_NOISE = (
    "burgers, long",
    "burgers, batch 64",
    "burgers",
    "burgers, batch 8",
    "navier-stokes, long",
    "navier-stokes",
)
OF_NOISE = [
    BASE,
    OURS,
    "momentum b .95",
    "momentum b .98",
    "both b .95",
    "polar factor of all channels, b .95",
    "SOAP for matrices",
    "SOAP, shared bases",
    "SOAP, shared bases, polar matrices",
    "Adam in averaged bases, as SOAP",
    "Adam in averaged bases, as SOAP, channels halved",
    "tensor_muon",
    "tensor_muon, whole",
    "Muon (Optax)",
]


def table(rows: list[Row], settings: list[str], base: str = BASE) -> str:
    """Return a table of every task: test errors and their ratios to those of `base`."""
    lines = [
        f"| task | optimizer | rate | test L2 | over {base}, seed by seed | seeds | train loss "
        "over AdamW's | state of AdamW's |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for task in TASKS:
        against, adamw = best(rows, task, base), best(rows, task, BASE)
        if not (against and adamw):
            continue
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


def overview(
    rows: list[Row], settings: list[str], base: str, tasks: Sequence[str], n_first: int
) -> str:
    """Return a table with a row per setting: ratios to `base` on every task.

    The lowest mean over the first three comes first, of settings that were run on the first
    `n_first`; then come the others.
    """
    cells = {}
    for setting in settings:
        ratios, states = [], []
        for task in tasks:
            runs, against = best(rows, task, setting), best(rows, task, base)
            ratios.append(over(runs, against) if runs else [])
            if runs:
                states.append(runs[0]["state_bytes"] / best(rows, task, BASE)[0]["state_bytes"])
        if any(ratios):
            low, high = min(states), max(states)
            state = f"{low:.1%}" if f"{low:.1%}" == f"{high:.1%}" else f"{low:.1%} to {high:.1%}"
            cells[setting] = ratios, state
    of_three = lambda ratios: mean(mean(r) for r in ratios[:3] if r)
    order = sorted(cells, key=lambda s: (not all(cells[s][0][:n_first]), of_three(cells[s][0])))
    body = [[s, *(spread(r) for r in cells[s][0]), cells[s][1]] for s in order]
    return markdown(["", *tasks, "state of AdamW's"], body)


def draw_bytes(rows: list[Row], path: Path) -> None:
    """Draw test errors over AdamW's against the bytes of the state."""
    figure, axes = plt.subplots(2, 2, figsize=(13, 9))
    for axis, task in zip(axes.flat, MAIN, strict=True):
        base, points = best(rows, task, BASE), []
        for setting in OF_BYTES:
            runs = best(rows, task, setting)
            if not runs:
                continue
            x = runs[0]["state_bytes"] / base[0]["state_bytes"]
            values = over(runs, base)
            error = stdev(values) / len(values) ** 0.5
            color = "tab:red" if setting == OURS else "tab:gray"
            axis.errorbar(x, mean(values), error, fmt="o", color=color)
            points.append((mean(values), x, setting))
        axis.set(xscale="log", xlim=(0.025, 300), title=task, xlabel="optimizer state / AdamW's")
        # Names stand in a column of their own, evenly, each tied to its point.
        low, high = axis.get_ylim()
        for number, (y, x, setting) in enumerate(sorted(points)):
            place = low + (number + 0.5) / len(points) * (high - low)
            line = {"arrowstyle": "-", "linewidth": 0.4, "color": "tab:gray"}
            axis.annotate(setting, (x, y), (2.6, place), size=8, va="center", arrowprops=line)
        axis.axhline(1, color="black", linewidth=0.6, xmax=0.5)
        axis.set_ylabel("test error / AdamW's")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_curves(rows: list[Row], path: Path, seconds: dict[str, dict[str, float]] | None) -> None:
    """Draw validation errors of all seeds' mean against epochs, or against seconds."""
    tasks = [t for t in seconds or TASKS if best(rows, t, OURS)]
    n_rows = -(-len(tasks) // 3)
    figure, axes = plt.subplots(n_rows, 3, figsize=(13, 3.6 * n_rows), squeeze=False)
    for axis in axes.flat[len(tasks) :]:
        axis.set_visible(False)
    for axis, task in zip(axes.flat, tasks, strict=False):
        for number, setting in enumerate(seconds[task] if seconds else CURVES):
            runs = best(rows, task, setting)
            if not runs:
                continue
            n_epochs = len(runs[0]["curve"])
            of_epoch = seconds[task][setting] * runs[0]["steps"] / n_epochs if seconds else 1
            values = [mean(c[1] for c in point) for point in zip(*(r["curve"] for r in runs))]  # noqa: B905
            x = [of_epoch * i for i in range(1, n_epochs + 1)]
            width = 2 if setting == OURS else 1
            axis.plot(x, values, f"C{number}", label=setting, linewidth=width)
        axis.set(yscale="log", title=task, xlabel="seconds" if seconds else "epoch")
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
    tables = {
        "table": table(rows, list(SETTINGS)),
        "overview": overview(rows, list(COMPARED), BASE, MAIN, 3),
        "noise": overview(rows, OF_NOISE, BASE, BY_NOISE, 2),
        "ablation": overview(rows, [OURS, *ABLATION], OURS, MAIN, 2),
        "tensor_muon": overview(rows, ["tensor_muon", *OF_TENSOR_MUON], "tensor_muon", MAIN[:3], 1),
    }
    for name, text in tables.items():
        (path.parent / f"{name}.md").write_text(text, encoding="utf-8")
    draw_bytes(rows, path.parent / "bytes.png")
    draw_curves(rows, path.parent / "curves.png", None)
    measured = HERE / "seconds.json"
    if measured.exists():
        of_steps = json.loads(measured.read_text(encoding="utf-8"))["seconds"]
        draw_curves(rows, path.parent / "seconds.png", of_steps)
    print(*tables.values(), sep="\n")


if __name__ == "__main__":
    main()
