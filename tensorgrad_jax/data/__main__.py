"""python -m tensorgrad_jax.data navier-stokes --out DIR [options]: generate data sets."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from tensorgrad_jax.data.generate import generate_navier_stokes
from tensorgrad_jax.data.hdf5 import DataError


class _Parser(argparse.ArgumentParser):
    """A parser whose mistakes are one line and exit status 2."""

    def error(self, message: str) -> NoReturn:
        """Print one line and exit."""
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(2)


def _positive(kind):
    def convert(text: str):
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"must be positive, got {text}")
        return value

    convert.__name__ = kind.__name__  # argparse names it where the text is no number
    return convert


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"must be True or False, got {text}")
    return text.lower() == "true"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = _Parser(prog="python -m tensorgrad_jax.data", description=__doc__)
    problems = parser.add_subparsers(dest="problem", required=True, parser_class=_Parser)
    flow = problems.add_parser(
        "navier-stokes",
        help="forced 2-D Navier-Stokes on the torus: forcing to vorticity",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    flow.add_argument("--out", required=True, help="folder for the files")
    flow.add_argument("--n_train", type=_positive(int), default=512, help="training samples")
    flow.add_argument("--n_test", type=_positive(int), default=64, help="test samples")
    flow.add_argument("--resolution", type=_positive(int), default=64, help="points per axis")
    flow.add_argument(
        "--viscosity", type=_positive(float), default=1 / 500, help="1 / Reynolds number"
    )
    flow.add_argument("--t_end", type=_positive(float), default=5.0, help="time of the target")
    flow.add_argument("--dt", type=_positive(float), default=0.05, help="largest time step")
    flow.add_argument("--seed", type=int, default=0, help="of the forcings")
    flow.add_argument("--float64", type=_truth, default=False, help="double precision")
    arguments = vars(parser.parse_args(argv))
    del arguments["problem"]
    try:
        generate_navier_stokes(**arguments)
    except DataError as error:
        print("error:", error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
