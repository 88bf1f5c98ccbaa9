"""Timing several things by turns, so that a slow minute of the machine meets all of them."""

from __future__ import annotations

import json
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from tensorgrad_jax.backend.allocator import keep_freed_memory

HERE = Path(__file__).resolve().parent
# As train.py does; PyTorch's caching is left as it is.
KEEPS_MEMORY = keep_freed_memory()


class Peers:
    """PyTorch peers in a process of their own; without them if there is no `python` for it."""

    def __init__(self, python: str | None, reference: str | None, names: list[str]):
        self.facts: dict[str, Any] = {}
        self.names: list[str] = []
        if python is None:
            return
        command = [python, str(HERE / "peers.py")]
        command += ["--reference", reference] if reference else []
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.facts = self._read()
        self.names = [name for name in names if name in self.facts["ready"]]

    def runs(self) -> dict[str, Callable[[], float]]:
        """Return for every peer a function that runs it once and returns milliseconds."""
        return {name: lambda name=name: self._measure(name) for name in self.names}

    def _measure(self, name: str) -> float:
        assert self._process.stdin is not None
        print(name, file=self._process.stdin, flush=True)
        return self._read()["ms"]

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit("error: the process of the PyTorch peers ended; see its message above")
        return json.loads(line)


def timed(function: Callable[..., Any], *arguments: Any) -> Callable[[], float]:
    """Return a function that runs `function(*arguments)` once and returns milliseconds."""

    def run() -> float:
        started = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        return 1e3 * (time.perf_counter() - started)

    return run


def by_turns(
    runs: dict[str, Callable[[], float]], rounds: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Run everything once per round, after `warm_up` rounds that do not count.

    In another order every round: who comes next finds the caches of who went before, and for a
    while threads that still wait for work.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    shuffle = random.Random(0)
    for number in range(rounds + warm_up):
        for name in shuffle.sample(list(runs), len(runs)):
            milliseconds = runs[name]()
            if number >= warm_up:
                times[name].append(milliseconds)
    return times


def summary(times: dict[str, list[float]], baseline: str) -> dict[str, dict[str, float]]:
    """Return medians, and median and range of the ratios to the baseline, round by round."""
    rows = {}
    for name, values in times.items():
        ratios = sorted(a / b for a, b in zip(values, times[baseline], strict=True))
        rows[name] = {
            "ms": statistics.median(values),
            "ratio": statistics.median(ratios),
            "low": ratios[0],
            "high": ratios[-1],
        }
    return rows


def table(rows: dict[str, dict[str, float]], baseline: str) -> str:
    """Return the summary as a Markdown table."""
    lines = [f"| | ms | times {baseline} | range |", "|---|---|---|---|"]
    for name, row in rows.items():
        ms, ratio, low, high = (row[k] for k in ("ms", "ratio", "low", "high"))
        lines.append(f"| {name} | {ms:.1f} | {ratio:.2f} | {low:.2f} to {high:.2f} |")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Return what the numbers were measured on."""
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        cpu = f"{models[0].split(':')[1].strip()}, {len(models)} cores" if models else cpu
    return {
        "device": str(jax.devices()[0].device_kind),
        "cpu": cpu,
        "jax": jax.__version__,
        "keeps freed memory": KEEPS_MEMORY,
    }


def write(name: str, results: dict[str, Any]) -> None:
    """Write results/<device>/<name>.json."""
    folder = HERE / "results" / jax.default_backend()
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"machine": machine(), **results}, indent=1)
    (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
