"""Which optimizer for neural operators? AdamW, ours and those of others on several tasks.

    python studies/optimizers/run.py --root datasets --tasks burgers darcy navier-stokes

Every setting is trained at every rate of the task with every seed, all of them at once (see
`replicas`). The rate with the lowest mean validation error is a setting's own; the test set is
looked at once, at the end of a run. One JSON line per run in results.jsonl; a seed and rate that
are there are not run again. `python studies/optimizers/report.py` makes tables and pictures.

Files under --root: burgers/, darcy/, nsforcing/, as `python -m tensorgrad_jax.data` makes them.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from grid import read  # noqa: E402
from replicas import train  # noqa: E402
from settings import SETTINGS  # noqa: E402
from tasks import TASKS, Task  # noqa: E402


def main() -> int:
    """Run what is missing; return how many settings failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path("datasets"), help="folder of the data")
    parser.add_argument("--out", type=Path, default=HERE / "results.jsonl", help="file of results")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--seeds", type=int, default=10, help="number of seeds, from 0")
    parser.add_argument("--rates", type=float, nargs="+", help="other rates than the task's")
    parser.add_argument("--threads", type=int, default=1, help="settings compiled at a time")
    parser.add_argument("--epochs", type=int, help="other length than the task's")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin nothing after this time")
    arguments = parser.parse_args()
    jax.config.update("jax_default_matmul_precision", "highest")
    begin, lock, failed = time.time(), threading.Lock(), []
    done = {(r["task"], r["setting"], r["seed"], r["rate"]) for r in read(arguments.out)}

    def work(name: str, task: Task, data, setting: str, pairs: list[tuple[int, float]]) -> None:
        if time.time() - begin > arguments.seconds:
            return
        started = time.time()
        try:
            rows = train(task, data, SETTINGS[setting](task), pairs)
        except Exception:  # the other settings go on
            with lock:
                failed.append((name, setting))
            traceback.print_exc()
            return
        labels = {"task": name, "setting": setting, "device": jax.devices()[0].device_kind}
        with lock, arguments.out.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(labels | row) + "\n" for row in rows)
        best = min(r["validation"] for r in rows if r["validation"] == r["validation"])
        took, each = time.time() - started, rows[0]["step_seconds"] * 1e3
        print(
            f"{time.time() - begin:6.0f} s  {name}: {setting}  ({took:.0f} s, {each:.2f} ms a step "
            f"and copy, best validation {best:.4f})",
            flush=True,
        )

    with ThreadPoolExecutor(arguments.threads) as pool:
        for name in arguments.tasks:
            task = TASKS[name]
            if arguments.epochs:
                task = dataclasses.replace(task, n_epochs=arguments.epochs)
            data = task.load(arguments.root)
            for setting in arguments.settings:
                all_pairs = itertools.product(range(arguments.seeds), arguments.rates or task.rates)
                pairs = [pair for pair in all_pairs if (name, setting, *pair) not in done]
                if pairs:
                    pool.submit(work, name, task, data, setting, pairs)
    print(f"failed: {failed}" if failed else "nothing failed", flush=True)
    return len(failed)


if __name__ == "__main__":
    raise SystemExit(main())
