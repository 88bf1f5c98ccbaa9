"""What does it cost an operator to train a quarter of its spectral weights? Three tasks.

    python studies/oialr/operators.py --root datasets --tasks darcy burgers ns

OIALR, dense training, a Tucker-factorised operator and LoRA of equal size, each with AdamW and
with the polar factor of the momentum. Every setting is trained at every rate of the task with every
seed, see studies/rates.py. One JSON line per run in operators.jsonl; what is there is not run
again. Writes operators.md and operators.png.

Files under --root: darcy/, burgers/, ns/, as `python -m tensorgrad_jax.data` makes them; what is
missing is made.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from statistics import mean, stdev

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from copies import Copies  # noqa: E402
from grid import Row, read  # noqa: E402
from rates import TASKS, best, markdown, over, parser, rate_cell, spread, sweep  # noqa: E402
from reduced import Lora, Tucker  # noqa: E402

from tensorgrad_jax import oialr  # noqa: E402

ADAMW = ["--opt.tensorgrad", "False", "--opt.optimizer_type", "adamw"]
MUON = ["--opt.optimizer_type", "tensor_muon"]
# tensor_muon without a projection of its own, as train.py has it where weights become cores.
WHOLE = [*MUON, "--fno.low_rank", "oialr"]
# Of the steps, those of dense training, and those between checks of ranks.
DELAY, BETWEEN = 0.3, 0.1


def controller(optimizer, steps: int, delay: float = DELAY, **options) -> oialr.Controller:
    """Return what makes cores of half the channels."""
    config = oialr.Config(
        delay=int(delay * steps),
        stability_frequency=int(BETWEEN * steps),
        keep_last_layer=False,
        network_layer_perc_step=1.0,
        bucket=4,
        **options,
    )
    return oialr.Controller(optimizer, config, oialr.spectral(0.5))


def axis_by_axis(optimizer, steps: int) -> oialr.Controller:
    """Return what makes them axis by axis, when each has settled."""
    return controller(optimizer, steps, BETWEEN, freeze="stability")


def lora(optimizer, steps: int) -> Lora:
    """Return what adds adapters at the same step."""
    return Lora(optimizer, int(DELAY * steps))


def tucker(optimizer, steps: int) -> Tucker:
    """Return what factorises from the start."""
    del optimizer, steps
    return Tucker()


SETTINGS = {
    "dense, AdamW": (ADAMW, None),
    "dense, tensor_muon": (MUON, None),
    "dense, tensor_muon, whole": (WHOLE, None),
    "OIALR, tensor_muon": (WHOLE, controller),
    "OIALR, tensor_muon, axis by axis": (WHOLE, axis_by_axis),
    "OIALR, AdamW": (ADAMW, controller),
    "Tucker, tensor_muon": (WHOLE, tucker),
    "Tucker, AdamW": (ADAMW, tucker),
    "LoRA, tensor_muon": (WHOLE, lora),
    "LoRA, AdamW": (ADAMW, lora),
}
BASES = ("dense, AdamW", "dense, tensor_muon", "dense, tensor_muon, whole")


def prepare(task: str, setting: str, flags: list[str]):
    """Return what trains a setting."""
    del task
    options, method = SETTINGS[setting]
    return Copies([*flags, *options], method).train


def table(rows: list[Row]) -> str:
    """Return a row per task and setting, with all that training holds in memory."""
    head = (
        "task", "setting", "rate", "test L2",
        "seed by seed over dense AdamW", "over dense tensor_muon", "over the same, whole",
        "spectral numbers trained", "memory at the end", "at most", "seeds",
    )  # fmt: skip
    lines = []
    for task, setting in itertools.product(TASKS, SETTINGS):
        runs, dense = best(rows, task, setting), best(rows, task, BASES[0])
        if not runs:
            continue
        whole = dense[0]["memory"]
        held = [
            mean(r[what]["total"] for r in runs) / whole["total"]
            for what in ("memory", "largest_memory")
        ]
        trained = mean(r["memory"]["spectral"] for r in runs) / whole["spectral"]
        lines.append([
            task, setting, rate_cell(rows, task, setting),
            spread([r["test"] for r in runs], 4),
            *(spread(over(runs, best(rows, task, base))) for base in BASES),
            f"{trained:.0%}", *(f"{share:.0%}" for share in held),
            len(runs),
        ])  # fmt: skip
    note = (
        "\nMemory: parameters, bases, gradients and optimizer state, over those of dense AdamW. "
        "Whole: tensor_muon without a subspace of its own, as in all that is not dense.\n"
    )
    return markdown(head, lines) + note


def draw(rows: list[Row], path: Path) -> None:
    """Draw test errors over dense AdamW's against all that training holds at the end."""
    tasks = [t for t in TASKS if best(rows, t, BASES[0])]
    figure, axes = plt.subplots(1, len(tasks), figsize=(4.4 * len(tasks), 4), squeeze=False)
    methods = list(dict.fromkeys(s.partition(",")[0] for s in SETTINGS))
    for axis, task in zip(axes[0], tasks, strict=True):
        base = best(rows, task, BASES[0])
        for setting in SETTINGS:
            runs = best(rows, task, setting)
            if not runs:
                continue
            values = over(runs, base)
            error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0
            share = mean(r["memory"]["total"] for r in runs) / base[0]["memory"]["total"]
            color = f"C{methods.index(setting.partition(',')[0])}"
            marker = "s" if "AdamW" in setting else "^" if setting.count(",") > 1 else "o"
            axis.errorbar(
                share, mean(values), error, fmt=marker, color=color, capsize=3, label=setting
            )
        axis.axhline(1, color="black", linewidth=0.6)
        axis.set(title=task, xlabel="memory of training / dense AdamW's", xlim=(0, 1.1))
    axes[0][0].set_ylabel("test error / dense AdamW's")
    axes[0][-1].legend(*axes[0][0].get_legend_handles_labels(), fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    """Run what is missing, then report."""
    arguments = parser((__doc__ or "").splitlines()[0], HERE / "operators.jsonl").parse_args()
    sweep(arguments, list(SETTINGS), prepare)
    rows = read(arguments.out)
    text = table(rows)
    arguments.out.with_suffix(".md").write_text(text, encoding="utf-8")
    draw(rows, arguments.out.with_suffix(".png"))
    print(f"\n{text}")


if __name__ == "__main__":
    main()
