"""The small run that is attacked, and how it is started, continued and compared."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import jax
import numpy as np
import orbax.checkpoint as ocp

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, str(ROOT / "train.py"))

# Three epochs of three steps on a small problem whose data are generated first; refreshed at steps
# 0, 4 and 8.
OPTIONS = {
    "data.problem": "burgers", "data.viscosity": 0.1, "data.t_end": 0.2, "data.dt": 0.02,
    "data.solver_resolution": 32, "data.n_train": 12, "data.batch_size": 4,
    "data.train_resolution": 16, "data.test_resolutions": "[16]", "data.n_tests": "[3]",
    "fno.n_modes": "[4]", "fno.hidden_channels": 6, "fno.n_layers": 2, "opt.n_epochs": 3,
    "opt.update_proj_gap": 4, "opt.scheduler": "constant",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Case:
    """An attack: its kind, what was done, whether it was held, what was seen if not, how often."""

    kind: str
    what: str
    held: bool
    seen: str = ""
    times: int = 1


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a process ended."""

    status: int
    out: str
    error: str

    @property
    def one_line(self) -> bool:
        """Whether stderr is one line."""
        return self.error.count("\n") == 1 and self.error.endswith("\n")

    def __str__(self) -> str:
        """Status and the end of stderr."""
        return f"status {self.status}, {self.error.count(chr(10))} lines: {self.error[-300:]!r}"


def arguments(folder: Path, name: str = "run", **changed: object) -> list[str]:
    """The command line of the run in `folder`: its data in data/, its own folder in runs/."""
    given = OPTIONS | {"data.root": folder / "data", "opt.save_dir": folder / "runs", "name": name}
    given |= {key.replace("__", "."): value for key, value in changed.items()}
    return [str(x) for key, value in given.items() for x in (f"--{key}", value)]


def environment(cache: Path | None = None) -> dict[str, str]:
    """The environment of the processes; compiled programs are kept, if given, in `cache`."""
    given = os.environ | {"PYTHONUNBUFFERED": "1"}
    if cache is not None:
        given |= {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        }
    return given


def start(
    argv: list[str], cache: Path | None = None, closing: str = "", **options
) -> subprocess.Popen:
    """Start train.py; `closing` is what a shell is told about its streams."""
    shell = ["sh", "-c", f'exec "$@" {closing}', "sh"] if closing else []
    given: dict[str, Any] = {
        "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL,
        "env": environment(cache), "text": True,
    }  # fmt: skip
    return subprocess.Popen([*shell, *COMMAND, *argv], **given | options)


def ended(process: subprocess.Popen) -> Ended:
    """Wait for a process."""
    out, error = process.communicate(timeout=600)
    return Ended(process.returncode, out or "", error or "")


def run(argv: list[str], cache: Path | None = None, **options) -> Ended:
    """Run train.py to its end."""
    return ended(start(argv, cache, **options))


def go_on(folder: Path, cache: Path | None = None, **changed: object) -> Ended:
    """Continue the run in `folder`, or begin it again where it left nothing."""
    run_folder = folder / "runs" / "run"
    if run_folder.exists():
        return run(["--opt.resume_from_dir", str(run_folder)], cache)
    return run(arguments(folder, **changed), cache)


def result(folder: Path, name: str = "run") -> dict:
    """What must be the same bits: the arrays of the last checkpoint, metrics and data."""
    run_folder = folder / "runs" / name
    steps = [int(p.name) for p in (run_folder / "checkpoints").iterdir() if p.name.isdecimal()]
    with ocp.StandardCheckpointer() as checkpointer:
        state = checkpointer.restore(run_folder / "checkpoints" / str(max(steps)) / "state")
    arrays = {
        jax.tree_util.keystr(path): np.asarray(leaf).tobytes()
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    rows = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row.pop("seconds"), row.pop("data_seconds")
    data = {}
    for path in sorted((folder / "data").glob("*.hdf5")):
        with h5py.File(path) as file:
            data[path.name] = [np.asarray(file[key]).tobytes() for key in ("x", "y")]
    return {
        "step": max(steps),
        "arrays": arrays,
        "rows": rows,
        "data": data,
        "summary": (run_folder / "summary.json").is_file(),
    }


def within(argv: list[str]) -> Ended:
    """Run train.main in this process; an exception that leaves it has the status -1."""
    import train  # at the root of the repository

    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            status = train.main(argv)
        except SystemExit as end:
            status = int(end.code or 0)
        except BaseException as escaped:
            text = f"{type(escaped).__name__}: {escaped}".splitlines()[0]
            return Ended(-1, out.getvalue(), f"{error.getvalue()}{text}")
    return Ended(status, out.getvalue(), error.getvalue())
