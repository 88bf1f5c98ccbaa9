"""kill -9 at random moments, and signals that ask to end."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from . import runs
from .runs import Case

_ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _duration(folder: Path, cache: Path) -> float:
    """Return how long a run takes that nothing happens to, once its programs are compiled."""
    seconds = []
    for name in ("compiled", "timed"):
        started = time.monotonic()
        found = runs.run(runs.arguments(folder / name), cache)
        assert found.status == 0, found
        seconds.append(time.monotonic() - started)
    return seconds[-1]


def kills(folder: Path, n: int, seed: int = 0) -> Iterator[Case]:
    """`kill -9` at n moments over the whole run, from its first imports to its report.

    Every third run compiles its programs: the moments lie there too.
    """
    cache = folder / "cache"
    duration = _duration(folder, cache)
    expected = runs.result(folder / "timed")
    moments = (np.arange(n) + np.random.default_rng(seed).uniform(size=n)) / n * duration
    for i, moment in enumerate(moments):
        trial = folder / f"kill{i}"
        process = runs.start(runs.arguments(trial), cache if i % 3 else None)
        time.sleep(moment)
        process.kill()
        runs.ended(process)
        found = runs.go_on(trial, cache)
        same = found.status == 0 and runs.result(trial) == expected
        yield Case(
            "kill -9", f"after {moment:.2f} of {duration:.2f} s", same, "" if same else str(found)
        )
        shutil.rmtree(trial, ignore_errors=True)


def signals(folder: Path, n: int, seed: int = 1) -> Iterator[Case]:
    """SIGINT, SIGTERM or SIGHUP at n moments from the first line of `main` on, some twice."""
    for number in _ASKING:
        # Ignored by a shell's background job or under nohup, and then by its children too. What has
        # a handler here they begin with as the system has it.
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda number, frame: None)
    cache = folder / "cache"
    duration = _duration(folder, cache)
    expected = runs.result(folder / "timed")
    moments = (np.arange(n) + np.random.default_rng(seed).uniform(size=n)) / n * duration
    for i, moment in enumerate(moments):
        trial, number, twice = folder / f"signal{i}", _ASKING[i % 3], i % 5 == 4
        process = runs.start(runs.arguments(trial), cache if i % 2 else None)
        while not catches(process.pid, number):
            time.sleep(0.005)
        time.sleep(moment)
        process.send_signal(number)
        if twice:
            time.sleep(0.02)
            process.send_signal(number)
        found = runs.ended(process)
        # One that comes when all is done may find a process that is ending anyway.
        asked = found.status == 130 and found.one_line
        done = found.status == 0 and found.error == ""
        status = found.status
        seen = "" if asked or done else str(found)
        if not seen and not done:
            found = runs.go_on(trial, cache)
            seen = "" if found.status == 0 and runs.result(trial) == expected else str(found)
        what = f"{number.name}{' twice' if twice else ''} after {moment:.2f} of {duration:.2f} s"
        what += f": status {status}"
        yield Case("signal", what, not seen, seen)
        shutil.rmtree(trial, ignore_errors=True)


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler of its own for a signal; true of one that has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True
    caught = next((x.split()[1] for x in status.splitlines() if x.startswith("SigCgt")), "")
    # Python catches SIGINT from its start: SIGTERM tells whether main has begun.
    bit = 1 << (signal.SIGTERM - 1)
    return bool(int(caught or "0", 16) & bit) or "State:\tZ" in status
