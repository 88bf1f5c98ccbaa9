"""python -m tensorgrad_jax.trak --run runs/NAME: what do predictions of a trained operator rest on?

Writes scores and pictures of some test samples to runs/NAME/attribution. With several runs, of
different seeds and one training set, scores are averaged, and are worth more.

Exit status: 0 done; 2 wrong option, missing or damaged run or data (one line on stderr); 130 after
SIGINT: the same command continues.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from tensorgrad_jax.command_line import OneLineParser


def _number(kind, at_least):
    expected = f"{'an integer' if kind is int else 'a number'} of at least {at_least}"

    def convert(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (value >= at_least and math.isfinite(value)):
            raise argparse.ArgumentTypeError(f"must be {expected}, got {text}")
        return value

    return convert


def _parser() -> OneLineParser:
    parser = OneLineParser(
        prog="python -m tensorgrad_jax.trak",
        description=(__doc__ or "").split("\n\n", 1)[0].split(": ", 1)[1],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--run", required=True, nargs="+", type=Path, help="folders of finished runs of train.py")
    add("--test_samples", nargs="+", type=_number(int, 0), default=[0], help="their numbers")
    add("--resolution", type=_number(int, 1), help="of the test set; the training set's without it")
    add("--out", type=Path, help="folder to write to; attribution in that of the run without it")
    add("--data_root", help="folder of the data; that of the run without it")
    kinds = ["normal", "rademacher", "sjlt", "srft", "kron"]
    add("--proj_type", choices=kinds, default="rademacher", help="kind of random matrix")
    add("--proj_dim", type=_number(int, 1), default=1024, help="features per gradient")
    add("--seed", type=_number(int, 0), default=0, help="of the random matrix")
    add(
        "--damping",
        type=_number(float, 0),
        default=0.1,
        help="added to the kernel's diagonal, as a part of its mean eigenvalue",
    )
    add("--chunk_size", type=_number(int, 1), default=32, help="samples per backward pass")
    add("--shown", type=_number(int, 1), default=5, help="helpful and harmful samples to show")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    given = vars(_parser().parse_args(argv))
    # The options are checked before JAX is imported: a wrong one is told at once.
    from tensorgrad_jax.data import DataError
    from tensorgrad_jax.training.attribution import (
        AttributionOptions,
        load_run,
        write_attribution,
    )

    names = ("proj_dim", "proj_type", "seed", "damping", "chunk_size", "shown")
    options = AttributionOptions(**{name: given[name] for name in names})
    try:
        runs = [load_run(folder, given["data_root"]) for folder in given["run"]]
        folder = given["out"] or runs[0].folder / "attribution"
        written = write_attribution(
            runs, given["resolution"], given["test_samples"], folder, options
        )
    except (DataError, ValueError, OSError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 130
    print((folder / "attribution.jsonl").read_text(encoding="utf-8"), end="")
    print(f"Written to {folder}: {', '.join(written)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
