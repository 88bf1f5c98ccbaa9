"""python -m tensorgrad_jax.data PROBLEM --out DIR [options]: generate or convert data sets."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tensorgrad_jax.command_line import OneLineParser
from tensorgrad_jax.data.convert import convert
from tensorgrad_jax.data.generate import (
    generate_burgers,
    generate_darcy,
    generate_navier_stokes,
)
from tensorgrad_jax.data.samples import DataError

_FLOW_EXAMPLE = """\
Reynolds number 1e5 on 128x128 points, as in the TensorGRaD paper:

  python -m tensorgrad_jax.data navier-stokes --out datasets/ns --n_train 10000 --n_test 2000 \\
      --resolution 128 --solver_resolution 256 --viscosity 1e-5 --dt 0.008

A time step of 2 / solver_resolution is stable with a margin, whatever the viscosity; one that is
too large ends in an error. Two samples solved on 256x256 points with dt 0.01 differ from those on
512x512 by 3e-4, on two CPU cores 400 steps took 6 s a sample: such a set is one for a GPU. A
command that was stopped continues when it is given again.
"""


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults in the help; texts below it as they are written."""


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


def _generator(commands, name, make, help, *, n_train, n_test, resolution, fine, **described):
    """Add the command of a generator: the options that all have, and its own numbers."""
    parser = commands.add_parser(
        name,
        help=help,
        formatter_class=_Help,
        epilog=_FLOW_EXAMPLE if name == "navier-stokes" else None,
    )
    parser.set_defaults(make=make)
    parser.add_argument("--out", required=True, help="folder for the files")
    parser.add_argument("--n_train", type=_positive(int), default=n_train, help="training samples")
    parser.add_argument("--n_test", type=_positive(int), default=n_test, help="test samples")
    parser.add_argument(
        "--resolution", type=_positive(int), default=resolution, help="points per axis in the file"
    )
    parser.add_argument(
        "--solver_resolution",
        type=_positive(int),
        default=argparse.SUPPRESS,
        help=f"points per axis of the solver, a multiple of resolution; {fine} without it",
    )
    for option, (default, text) in described.items():
        parser.add_argument(f"--{option}", type=_positive(float), default=default, help=text)
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    parser.add_argument("--float64", type=_truth, default=False, help="double precision")


def _parse(argv: Sequence[str] | None) -> dict:
    parser = OneLineParser(prog="python -m tensorgrad_jax.data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=OneLineParser)
    _generator(
        commands,
        "navier-stokes",
        generate_navier_stokes,
        "forced 2-D Navier-Stokes on the torus: forcing to vorticity",
        n_train=512,
        n_test=64,
        resolution=64,
        fine="resolution",
        viscosity=(1 / 500, "1 / Reynolds number"),
        t_end=(5.0, "time of the target"),
        dt=(0.05, "largest time step"),
    )
    _generator(
        commands,
        "darcy",
        generate_darcy,
        "2-D Darcy flow on the unit square: medium of two phases, 0 and 1, to pressure",
        n_train=1000,
        n_test=100,
        resolution=32,
        fine="the least multiple from 128 on",
        tolerance=(1e-4, "relative residual of the solver"),
    )
    _generator(
        commands,
        "burgers",
        generate_burgers,
        "1-D Burgers' equation with period 1: initial function to solution",
        n_train=1000,
        n_test=200,
        resolution=128,
        fine="the least multiple from 256 on",
        viscosity=(0.005, "the lower, the steeper the fronts"),
        t_end=(1.0, "time of the target"),
        dt=(0.005, "largest time step"),
    )
    files = commands.add_parser("convert", help="neuraloperator's .pt data file to HDF5")
    files.set_defaults(make=convert)
    files.add_argument("source", metavar="FILE.pt", help="dictionary with the tensors x and y")
    files.add_argument("target", metavar="FILE.hdf5", help="<problem>_{train,test}_<res>.hdf5")
    return vars(parser.parse_args(argv))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    arguments = _parse(argv)
    make, command = arguments.pop("make"), arguments.pop("command")
    try:
        made = make(**arguments)
    except DataError as error:
        print("error:", error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 130
    if command == "convert":
        print(f"written {made}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
