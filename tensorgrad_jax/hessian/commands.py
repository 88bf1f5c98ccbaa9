"""python -m tensorgrad_jax.hessian COMMAND: from a training run to the overlap of its top
eigenspace with its largest weights, in steps that many machines can share.

  gather KEY=VALUE ...          train a problem, record its parameters
  create_hdf5_layout --hdf5dir DIR --shape H,W --outer K --inner S [--dtype D] [--sym]
  reset_hdf5 --hdf5dir DIR [--only_damaged]      make the columns anew, for another Hessian
  measure KEY=VALUE ...         fill columns of the sketch; any number of workers
  merge_hdf5 --in_path F --out_path F [--ok_flag measured] [--delete_subfiles]
  solve KEY=VALUE ...           eigenpairs, errors, overlap; pictures
  run KEY=VALUE ...             measure with WORKERS processes on this machine, then solve
  exhaustive KEY=VALUE ...      the sketch beside the exact decomposition, small problems
  check KEY=VALUE ...           can the Hessian of a problem be measured?
  post_bounds [--apost_n N] [--apost_err E]      what an estimate of the error is worth
  prio_hpars --shape H,W --budget B [--sym]      how many columns fit into so many numbers

`COMMAND --help` lists its options or keys. PROBLEM is mnist_mini, or the folder of a run of
train.py. Exit status: 0 done; 1 check found fault, or a worker ended; 2 wrong option, missing or
damaged file (one line on stderr); 130 after SIGINT: the same command continues.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tensorgrad_jax.command_line import OneLineParser
from tensorgrad_jax.hessian.settings import (
    Check,
    Exhaustive,
    Gather,
    Measure,
    Run,
    SettingError,
    Solve,
    parse,
)

_OPTIONS = ("create_hdf5_layout", "reset_hdf5", "merge_hdf5", "post_bounds", "prio_hpars")
_STEPS = {
    "gather": Gather,
    "measure": Measure,
    "solve": Solve,
    "run": Run,
    "exhaustive": Exhaustive,
    "check": Check,
}


def main(argv: Sequence[str], problem_of: Callable[..., Any]) -> int:
    """Run a command and return its exit status.

    Args:
        argv: the arguments.
        problem_of: finds a problem by its name, seed and folder of data sets.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(inspect.cleandoc(__doc__ or ""))
        return 0 if argv else 2
    command, *arguments = argv
    if command not in (*_STEPS, *_OPTIONS):
        names = ", ".join((*_STEPS, *_OPTIONS))
        print(f"error: COMMAND must be one of {names}, got {command}", file=sys.stderr)
        return 2
    try:
        if command in _OPTIONS:
            return _with_options(command, arguments)
        if "-h" in arguments or "--help" in arguments:
            print(_help(command))
            return 0
        return _step(command, parse(_STEPS[command], arguments), problem_of)
    except (ValueError, OSError) as error:
        where = getattr(error, "filename", None)
        text = f"{where}: {error.strerror}" if where else str(error)  # type: ignore[union-attr]
        print("error:", " ".join(text.split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 130


def _step(command: str, settings: Any, problem_of: Callable[..., Any]) -> int:
    if command == "gather":
        from tensorgrad_jax.hessian.gathering import gather

        print(gather(settings, problem_of))
    elif command == "measure":
        from tensorgrad_jax.hessian.measuring import measure

        measure(settings, problem_of)
    elif command == "solve":
        from tensorgrad_jax.hessian.solving import solve

        print(solve(settings, problem_of))
    elif command == "exhaustive":
        from tensorgrad_jax.hessian.exhaustive import exhaustive

        print(exhaustive(settings, problem_of))
    elif command == "check":
        from tensorgrad_jax.hessian.checking import check

        return int(not check(settings, problem_of))
    else:
        from tensorgrad_jax.hessian.workers import WorkerError, run

        try:
            print(run(settings, problem_of))
        except WorkerError as error:
            print("error:", error, file=sys.stderr)
            return 1
    return 0


def _help(command: str) -> str:
    kinds = [k for k in reversed(_STEPS[command].__mro__) if k is not object]
    return "\n\n".join(inspect.cleandoc(kind.__doc__ or "") for kind in reversed(kinds))


def _shape(text: str) -> tuple[int, int]:
    parts = text.split(",")
    if len(parts) != 2 or not all(p.strip().isdecimal() and int(p) > 0 for p in parts):
        raise argparse.ArgumentTypeError(f"must be two positive integers, H,W, got {text}")
    return int(parts[0]), int(parts[1])


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text}")
    return int(text)


def _parser(command: str) -> OneLineParser:
    parser = OneLineParser(
        prog=f"python -m tensorgrad_jax.hessian {command}",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    if command in ("create_hdf5_layout", "prio_hpars"):
        add("--shape", type=_shape, required=True, help="of the operator: height,width")
        add("--sym", action="store_true", help="the operator is symmetric")
    if command in ("create_hdf5_layout", "reset_hdf5"):
        add("--hdf5dir", type=Path, required=True, help="folder of the layout; to be made: empty")
    if command == "create_hdf5_layout":
        add("--outer", type=_count, required=True, help="number of outer columns")
        add("--inner", type=_count, required=True, help="number of inner columns")
        add("--dtype", default="float32", help="of the measurements")
    elif command == "reset_hdf5":
        add("--only_damaged", action="store_true", help="columns that cannot be read alone")
    elif command == "merge_hdf5":
        add("--in_path", type=Path, required=True, help="virtual file, ..._ALL.h5")
        add("--out_path", type=Path, help="file to write; without it the virtual one is replaced")
        add("--ok_flag", help="what the flags of all columns must be")
        add("--delete_subfiles", action="store_true", help="delete the columns' files afterwards")
    elif command == "post_bounds":
        add("--apost_n", type=_count, default=30, help="number of products")
        add("--apost_err", type=float, default=0.5, help="relative error, from 0 to 1")
    else:
        add("--budget", type=_count, default=10_000, help="how many numbers may be stored")
    return parser


def _with_options(command: str, arguments: Sequence[str]) -> int:
    given = _parser(command).parse_args(arguments)
    if command == "post_bounds":
        from tensorgrad_jax.hessian.errors import post_bounds

        e = given.apost_err
        low, high = post_bounds(given.apost_n, e)
        print({f"P(err<={1 - e}x)": low, f"P(err>={1 + e}x)": high})
        return 0
    if command == "prio_hpars":
        from tensorgrad_jax.hessian.errors import prio_hpars

        outer, inner = prio_hpars(given.shape, given.budget, symmetric=given.sym)
        rows = given.shape[0] if given.sym else sum(given.shape)
        print(f"Shape: {given.shape}\nBudget: {given.budget}\nHermitian: {given.sym}")
        print(f"  Outer measurements: {outer}\n  Inner measurements: {inner}")
        print(f"[CHECK]: {outer} * {rows} + {inner}**2 = {outer * rows + inner**2}")
        return 0
    from tensorgrad_jax.hessian import layout

    if command == "create_hdf5_layout":
        numbers = (given.shape, given.dtype, given.outer, given.inner)
        made = layout.create(given.hdf5dir, *numbers, symmetric=given.sym)
        print(given.hdf5dir, *numbers, f"symmetric {given.sym}", *made.values(), sep="\n")
    elif command == "reset_hdf5":
        from tensorgrad_jax.hessian.measuring import reset

        print(reset(given.hdf5dir, only_damaged=given.only_damaged), "files made anew")
    else:
        out = given.out_path or given.in_path
        print(
            layout.merge(given.in_path, out, given.ok_flag, delete_subfiles=given.delete_subfiles)
        )
    return 0


__all__ = ["SettingError", "main"]
