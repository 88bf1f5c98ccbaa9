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


def _table(cases: list[Case]) -> str:
    rows = ["| attack | tried | held |", "|---|---|---|"]
    for kind in dict.fromkeys(case.kind for case in cases):
        held = [case.held for case in cases if case.kind == kind]
        rows.append(f"| {kind} | {len(held)} | {sum(held)} |")
    return "\n".join(rows)


def _plot(cases: list[Case], path: Path) -> None:
    kinds = list(dict.fromkeys(case.kind for case in cases))[::-1]
    held = [sum(c.held for c in cases if c.kind == kind) for kind in kinds]
    lost = [sum(not c.held for c in cases if c.kind == kind) for kind in kinds]
    figure = Figure(figsize=(6.4, 0.34 * len(kinds) + 1), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.barh(kinds, held, color="tab:blue", label="held")
    axes.barh(kinds, lost, left=held, color="tab:red", label="not held")
    axes.set_xlabel("attacks")
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=120)


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
        print(f"{name}: {len(cases)} so far, {time.monotonic() - started:.0f} s", flush=True)
    print(_table(cases))
    if arguments.only is None:
        machine = f"{os.cpu_count()} CPU cores, jax {jax.__version__}, {platform.platform()}"
        (OUT / "faults.md").write_text(
            "# What was done to runs of train.py\n\n"
            "Held: the run ended with the same bits as one that nothing happened to, or one line "
            "told what is wrong with the exit status that README gives, and nothing that was good "
            f"was lost. `make faults` on {machine}.\n\n{_table(cases)}\n\n"
            "![Attacks, tried and held](faults.png)\n"
        )
        listed = [case.__dict__ for case in cases]
        (OUT / "faults.json").write_text(json.dumps(listed, indent=0) + "\n")
        _plot(cases, OUT / "faults.png")
    return int(not all(case.held for case in cases))


if __name__ == "__main__":
    sys.exit(main())
