"""A local runner: several workers on one machine, then the solution."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tensorgrad_jax.hessian.gathering import ProblemOf
from tensorgrad_jax.hessian.settings import Measure, Run, Solve
from tensorgrad_jax.hessian.solving import solve


class WorkerError(RuntimeError):
    """A worker ended before its columns were measured."""


def run(settings: Run, problem_of: ProblemOf) -> Path:
    """Start workers, wait for them, and solve; the same command continues where it was stopped.

    Returns:
        The log of the solution.

    Raises:
        WorkerError: if a worker failed; what it said stands on stderr.
    """
    shared = _shared(settings, Measure)
    commands = []
    for worker in range(settings.WORKERS):
        numbers = list(range(worker, settings.NUM_INNER, settings.WORKERS))
        if numbers:
            words = [f"{k}={v}" for k, v in shared.items() if v is not None]
            words.append(f"MEASUREMENT_IDXS={json.dumps(numbers)}")
            commands.append([sys.executable, "-m", "tensorgrad_jax.hessian", "measure", *words])
    workers = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands]
    try:
        statuses = [worker.wait() for worker in workers]
    except BaseException:
        for worker in workers:
            worker.terminate()
        raise
    failed = [i for i, status in enumerate(statuses) if status]
    if failed:
        raise WorkerError(
            f"worker {failed[0]} of {len(workers)} ended with status {statuses[failed[0]]}; the "
            "same command continues"
        )
    return solve(Solve(**_shared(settings, Solve)), problem_of)


def _shared(settings: Run, kind: type[Measure | Solve]) -> dict[str, Any]:
    """Return what another step is told of these settings."""
    names = {field.name for field in dataclasses.fields(kind)}
    return {k: v for k, v in vars(settings).items() if k in names}
