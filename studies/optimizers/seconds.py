"""Seconds of one training step, optimizer by optimizer: python studies/optimizers/seconds.py

One model alone, by turns on one machine, refreshes with the share of the steps that they have.
Writes seconds.json, from which report.py draws errors against seconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from flax import nnx

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1] / "benchmarks")]

from interleaved import by_turns, machine, timed  # noqa: E402
from report import CURVES  # noqa: E402
from settings import SETTINGS  # noqa: E402
from tasks import TASKS, Task  # noqa: E402


def steppers(task: Task, data, setting: str):
    """Return functions that do a step without a refresh and one with, and return milliseconds."""
    params = nnx.to_pure_dict(nnx.state(task.model(nnx.Rngs(0)), nnx.Param))
    graphdef = nnx.split(task.model(nnx.Rngs(0)), nnx.Param)[0]
    optimizer = optax.chain(SETTINGS[setting](task), optax.scale(-1e-6))
    x, y = (jnp.asarray(data["train"][name][: task.batch_size]) for name in "xy")

    @jax.jit
    def step(params, state):
        loss = lambda params: task.loss(nnx.merge(graphdef, nnx.State(params))(x), y)
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    # All optimizers that refresh do so at the first step.
    first = optimizer.init(params)
    return timed(step, *step(params, first)), timed(step, params, first)


def main() -> None:
    """Time all of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path("datasets"), help="folder of the data")
    parser.add_argument("--tasks", nargs="+", default=["burgers", "darcy", "navier-stokes"])
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    seconds = {}
    for name in arguments.tasks:
        task = TASKS[name]
        data = task.load(arguments.root)
        runs = {}
        for setting in CURVES:
            runs[setting], runs[setting + ", refresh"] = steppers(task, data, setting)
        medians = {n: statistics.median(v) for n, v in by_turns(runs, arguments.rounds).items()}
        # SOAP chooses bases at every tenth step, whatever the task's gap.
        gap = lambda setting, task=task: 10 if "SOAP" in setting else task.gap
        seconds[name] = {
            s: (medians[s] + (medians[s + ", refresh"] - medians[s]) / gap(s)) / 1e3 for s in CURVES
        }
        print(name, {s: f"{1e3 * v:.1f} ms" for s, v in seconds[name].items()}, flush=True)
    text = json.dumps({"machine": machine(), "seconds": seconds}, indent=1)
    (HERE / "seconds.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
