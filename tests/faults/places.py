"""Where a run is to be written: names, paths, full and read-only disks; two processes; streams."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from . import runs
from .runs import Case


def names(folder: Path) -> Iterator[Case]:
    """Paths in which no folder can be made: refused before data are generated."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "file").touch()
    (folder / "link").symlink_to(folder / "nowhere")
    (folder / "loop").symlink_to(folder / "loop")
    for save_dir in ("file", "file/below", "link", "loop", "/proc/runs", "/dev/null", "x" * 300,
                     "a\0b", "not utf-8 \udcff", "", "   "):  # fmt: skip
        target = save_dir if save_dir.strip() in ("", *save_dir[:1]) else str(folder / save_dir)
        found = runs.within(runs.arguments(folder, **{"opt.save_dir": target}))
        held = found.status == 2 and found.one_line and "opt.save_dir" in found.error
        held = held and not (folder / "data").exists()
        yield Case("opt.save_dir", repr(save_dir[:20]), held, "" if held else str(found))
    for name in ("x" * 300, "a/b", "..", "a\0b", ""):
        found = runs.within(runs.arguments(folder, name=name))
        held = found.status == 2 and found.one_line and "name" in found.error
        held = held and not (folder / "data").exists() and not (folder / "runs").exists()
        yield Case("name", repr(name[:20]), held, "" if held else str(found))
    (folder / "runs" / "taken").mkdir(parents=True)
    found = runs.within(runs.arguments(folder, name="taken"))
    held = found.status == 2 and found.one_line and not (folder / "data").exists()
    yield Case("name", "taken, before data are generated", held, "" if held else str(found))


@contextlib.contextmanager
def _disk(folder: Path, kibibytes: int) -> Iterator[Path]:
    """A small file system of its own; needs the right to mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    options = f"size={kibibytes}k"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def can_mount(folder: Path) -> bool:
    """Whether this process may mount a file system."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError), _disk(folder, 64):
        return True
    return False


def disks(folder: Path, n: int, cache: Path | None = None) -> Iterator[Case]:
    """Disks of n sizes, full at different moments of the run; then space is made and it goes on."""
    whole = folder / "whole"
    assert runs.run(runs.arguments(whole), cache).status == 0
    expected = runs.result(whole)
    used = sum(p.stat().st_size for p in whole.rglob("*") if p.is_file()) // 1024
    for i in range(n):
        size = max(16, int(1.1 * used * (i + 0.5) / n))
        with _disk(folder / f"disk{i}", size) as disk:
            found = runs.run(runs.arguments(disk), cache)
            # Too small for the data or the first checkpoint, or full during the run.
            held = (found.status in (1, 2) and found.one_line) or found.status == 0
            seen = "" if held else str(found)
            if held and found.status:
                subprocess.run(["mount", "-o", "remount,size=64m", "tmpfs", str(disk)], check=True)
                found = runs.go_on(disk, cache)
                if found.status or runs.result(disk) != expected:
                    seen = f"not continued: {found}"
            yield Case("full disk", f"{size} of {used} KiB", not seen, seen)
    with _disk(folder / "readonly", 65536) as disk:
        subprocess.run(["mount", "-o", "remount,ro", "tmpfs", str(disk)], check=True)
        found = runs.run(runs.arguments(disk, **{"data.root": whole / "data"}), cache)
        held = found.status == 2 and found.one_line and "opt.save_dir" in found.error
        yield Case("read-only disk", "from the beginning", held, "" if held else str(found))
    with _disk(folder / "later", 65536) as disk:
        shutil.copytree(whole / "runs", disk / "runs")
        shutil.rmtree(disk / "runs" / "run" / "checkpoints" / "9")
        subprocess.run(["mount", "-o", "remount,ro", "tmpfs", str(disk)], check=True)
        argv = ["--opt.resume_from_dir", str(disk / "runs" / "run")]
        found = runs.run(argv, cache)
        held = found.status in (1, 2) and found.one_line
        yield Case("read-only disk", "to continue", held, "" if held else str(found))


def processes(folder: Path, cache: Path | None = None) -> Iterator[Case]:
    """Two processes that want the same folder."""
    first, second = (runs.start(runs.arguments(folder), cache) for _ in range(2))
    found = sorted((runs.ended(first), runs.ended(second)), key=lambda e: e.status)
    held = (found[0].status, found[1].status) == (0, 2)
    held = held and found[1].error.splitlines()[-1].startswith("error: name: ")
    yield Case("two processes", "one name", held, "" if held else "; ".join(map(str, found)))
    expected = runs.result(folder)
    shutil.rmtree(folder / "runs" / "run" / "checkpoints" / "9")
    argv = ["--opt.resume_from_dir", str(folder / "runs" / "run")]
    first, second = (runs.start(argv, cache) for _ in range(2))
    found = sorted((runs.ended(first), runs.ended(second)), key=lambda e: e.status)
    held = (found[0].status, found[1].status) == (0, 2) and found[1].one_line
    held = held and runs.result(folder) == expected
    yield Case(
        "two processes", "continue one run", held, "" if held else "; ".join(map(str, found))
    )


def streams(folder: Path, cache: Path | None = None) -> Iterator[Case]:
    """Nobody reads what is printed: the run is worth more than its lines."""
    assert runs.run(runs.arguments(folder / "whole"), cache).status == 0
    expected = runs.result(folder / "whole")
    closed, ends = os.pipe()
    os.close(closed)
    with open("/dev/full", "w") as full:
        ways = {
            "stdout on a full disk": {"stdout": full},
            "both on a full disk": {"stdout": full, "stderr": full},
            "stdout a closed pipe": {"stdout": ends},
            "stdout closed": {"closing": "1>&-"},
            "stderr closed": {"closing": "2>&-"},
            "all closed": {"closing": "0<&- 1>&- 2>&-"},
            "an ASCII terminal": {
                "env": runs.environment(cache) | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
            },
        }  # fmt: skip
        for i, (what, options) in enumerate(ways.items()):
            trial = folder / str(i)
            found = runs.run(runs.arguments(trial), cache, **options)
            same = found.status == 0 and runs.result(trial) == expected
            yield Case("streams", what, same, "" if same else str(found))
    os.close(ends)
