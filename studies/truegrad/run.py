"""Do squares of single samples help an operator? Adam with and without them, three tasks.

    python studies/truegrad/run.py --root datasets --tasks darcy burgers ns

Every setting is trained at every rate of the task with every seed, see studies/rates.py. One JSON
line per run in results.jsonl; what is there is not run again. Then report.py writes the table and
the picture.

Files under --root: darcy/, burgers/, ns/, as `python -m tensorgrad_jax.data` makes them; what is
missing is made.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from copies import Copies  # noqa: E402
from grid import read  # noqa: E402
from rates import parser, sweep  # noqa: E402
from report import SETTINGS, report  # noqa: E402

SAMPLES = ["--opt.second_moment", "per_example"]
ADAMW = ["--opt.tensorgrad", "False", "--opt.optimizer_type", "adamw"]
TENSORGRAD = ["--opt.optimizer_type", "tensorgrad", "--opt.update_proj_gap", "50"]
FLAGS = dict(
    zip(SETTINGS, (ADAMW, [*ADAMW, *SAMPLES], TENSORGRAD, [*TENSORGRAD, *SAMPLES]), strict=True)
)


def prepare(task: str, setting: str, flags: list[str]):
    """Return what trains a setting."""
    del task
    share = setting == "AdamW, squares of samples"
    return functools.partial(Copies([*flags, *FLAGS[setting]]).train, share=share)


def main() -> None:
    """Run what is missing, then report."""
    arguments = parser((__doc__ or "").splitlines()[0], HERE / "results.jsonl").parse_args()
    sweep(arguments, SETTINGS, prepare)
    report(read(arguments.out), arguments.out.parent)


if __name__ == "__main__":
    main()
