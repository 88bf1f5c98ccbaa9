"""All attacks: python -m tests.faults [--only KIND ...] [--kills N]; writes validation/faults.*."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# Before JAX is imported: the small programs of the attacks are compiled once.
_FOLDER = Path(tempfile.mkdtemp(prefix="tensorgrad-faults-"))
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_FOLDER / "cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tests.faults import damage, fuzz, kills, library, places, strangers
from tests.faults.runs import Case

OUT = Path(__file__).resolve().parents[2] / "validation"


def attacks(folder: Path, n_kills: int) -> dict[str, Callable[[], Iterator[Case]]]:
    """Every group of attacks by its name."""
    cache = folder / "cache"
    found = {
        "fuzz": lambda: _both(fuzz.command_lines(10_000), fuzz.files(folder / "fuzz", 10_000)),
        "library": lambda: _both(library.arguments(), library.trees()),
        "yaml": lambda: strangers.yaml_files(folder / "yaml"),
        "hdf5": lambda: strangers.hdf5_files(folder / "hdf5"),
        "unfinished": lambda: strangers.unfinished_files(folder / "unfinished"),
        "names": lambda: places.names(folder / "names"),
        "processes": lambda: places.processes(folder / "processes", cache),
        "streams": lambda: places.streams(folder / "streams", cache),
        "kills": lambda: kills.kills(folder / "kills", n_kills),
        "signals": lambda: kills.signals(folder / "signals", 30),
        "identity": lambda: damage.identity(folder / "identity"),
        "records": lambda: damage.records(folder / "records"),
        "checkpoints": lambda: damage.checkpoints(folder / "checkpoints", 3),
    }
    if places.can_mount(folder / "probe"):
        found["disks"] = lambda: places.disks(folder / "disks", 12, cache)
    else:
        print("disks: left out, this process may not mount one", file=sys.stderr)
    return found


def _both(*parts: Iterator[Case]) -> Iterator[Case]:
    for part in parts:
        yield from part


def _counts(cases: list[Case]) -> dict[str, tuple[int, int]]:
    """Return how many attacks of every kind were tried and how many held."""
    return {
        kind: (
            sum(c.times for c in cases if c.kind == kind),
            sum(c.times for c in cases if c.kind == kind and c.held),
        )
        for kind in dict.fromkeys(case.kind for case in cases)
    }


def _table(cases: list[Case]) -> str:
    rows = [f"| {kind} | {n:,} | {held:,} |" for kind, (n, held) in _counts(cases).items()]
    return "\n".join(["| attack | tried | held |", "|---|---|---|", *rows])


def _plot(cases: list[Case], path: Path) -> None:
    counts = dict(reversed(_counts(cases).items()))
    figure = Figure(figsize=(6.4, 0.3 * len(counts) + 1), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places = range(len(counts))
    axes.barh(places, [n for n, _ in counts.values()], 0.8, color="tab:red", label="tried")
    axes.barh(places, [h for _, h in counts.values()], 0.8, color="tab:blue", label="held")
    axes.set_yticks(places, list(counts))
    axes.set_xscale("log")
    axes.set_xlim(0.7, None)
    axes.set_xlabel("attacks (red: tried and not held)")
    axes.margins(y=0.01)
    figure.savefig(path, dpi=120)


def write(cases: list[Case]) -> None:
    """Write the table, the picture and every case."""
    machine = f"{os.cpu_count()} CPU cores, jax {jax.__version__}, {platform.platform()}"
    (OUT / "faults.md").write_text(
        "# What was done to runs of train.py\n\n"
        "Held: the run ended with the same bits as one that nothing happened to, or one line "
        "told what is wrong with the exit status that README gives, and nothing that was good "
        f"was lost. `make faults` on {machine}.\n\n{_table(cases)}\n\n"
        "![Attacks, tried and held](faults.png)\n"
    )
    lines = ",\n".join(json.dumps(case.__dict__) for case in cases)
    (OUT / "faults.json").write_text(f"[\n{lines}\n]\n")
    _plot(cases, OUT / "faults.png")


def main() -> int:
    """Run the attacks; status 1 if one was not held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", help="groups of attacks")
    parser.add_argument("--kills", type=int, default=50)
    arguments = parser.parse_args()
    groups = attacks(_FOLDER, arguments.kills)
    chosen = arguments.only or list(groups)
    cases: list[Case] = []
    for name in chosen:
        started = time.monotonic()
        for case in groups[name]():
            cases.append(case)
            if not case.held:
                print(f"NOT HELD {case.kind}: {case.what}: {case.seen}", flush=True)
        print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
    print(_table(cases))
    if arguments.only is None:
        write(cases)
    return int(not all(case.held for case in cases))


if __name__ == "__main__":
    sys.exit(main())
