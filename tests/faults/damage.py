"""Flipped bytes, torn files, edited configurations: a folder that is continued is not as it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from . import runs
from .runs import Case


def half_way(folder: Path) -> tuple[Path, dict]:
    """A run that stands after its second epoch of three, and what it comes to in the end."""
    whole, half = folder / "whole", folder / "half"
    for path, epochs in ((whole, 3), (half, 2)):
        found = runs.within(runs.arguments(path, **{"opt.n_epochs": epochs}))
        assert found.status == 0, found
    # As if it had been killed: the files of the report are not there.
    for report in ("summary.json", "loss.png", "prediction.png"):
        (half / "runs" / "run" / report).unlink()
    return half, runs.result(whole)


def continued(folder: Path, half: Path, change, *flags: str) -> tuple[runs.Ended, Path]:
    """Continue a copy of the run in `half` that was changed before."""
    trial = folder / "trial"
    shutil.rmtree(trial, ignore_errors=True)
    shutil.copytree(half, trial)
    change(trial / "runs" / "run")
    argv = ["--opt.resume_from_dir", str(trial / "runs" / "run"), *flags]
    flags = ("--opt.n_epochs", "3", "--data.root", str(trial / "data"))
    return runs.within([*argv, *flags]), trial


def _case(kind, what, found, trial, expected, refusal=None) -> Case:
    """Held: the same bits in the end, with one line at most; or refused with the words given."""
    if refusal is None:
        held = found.status == 0 and found.error.count("\n") <= 1
        held = held and runs.result(trial) == expected
    else:
        held = found.status == 2 and found.one_line and refusal in found.error
    return Case(kind, what, held, "" if held else str(found))


def checkpoints(folder: Path, per_file: int, seed: int = 2) -> Iterator[Case]:
    """Bytes of every file of the newest checkpoint flipped, files cut, emptied and removed."""
    half, expected = half_way(folder)
    newest = half / "runs" / "run" / "checkpoints" / "6"
    rng = np.random.default_rng(seed)
    for path in sorted(p.relative_to(newest) for p in newest.rglob("*") if p.is_file()):
        content = (newest / path).read_bytes()
        places = rng.integers(len(content), size=per_file) if content else []
        changes = {f"byte {at} flipped": _flipped(content, at) for at in map(int, places)}
        changes |= {"cut": content[: len(content) // 2], "emptied": b"", "removed": None}
        for what, new in changes.items():

            def change(run: Path, path=path, new=new) -> None:
                file = run / "checkpoints" / "6" / path
                file.unlink() if new is None else file.write_bytes(new)

            found, trial = continued(folder, half, change)
            # File names of values are random: the kind of file is what tells.
            name = path.parent / "..." if len(path.name) == 32 else path
            yield _case("damaged checkpoint", f"{name}: {what}", found, trial, expected)


def _flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :]


def records(folder: Path) -> Iterator[Case]:
    """metrics.jsonl and config.yaml torn, empty, missing, binary, edited."""
    half, expected = half_way(folder)
    row = json.dumps({"epoch": 3, "step": 9, "train_loss": None})

    def metrics(text: bytes | None):
        def change(run: Path) -> None:
            file = run / "metrics.jsonl"
            file.unlink() if text is None else file.write_bytes(text)

        return change

    first = (half / "runs" / "run" / "metrics.jsonl").read_bytes()
    for what, text in {
        "torn": first[:-40], "empty": b"", "missing": None, "binary": bytes(range(256)),
        "one epoch more": first + row.encode(), "a NaN": first.replace(b"0.", b"NaN", 1),
        "other numbers": first.replace(b"1", b"2"),
    }.items():  # fmt: skip
        found, trial = continued(folder, half, metrics(text))
        yield _case("metrics.jsonl", what, found, trial, expected)

    def config(edit):
        def change(run: Path) -> None:
            file = run / "config.yaml"
            text = edit(file.read_text())
            file.unlink() if text is None else file.write_text(text)

        return change

    for what, edit, refusal in (
        ("missing", lambda text: None, None),
        ("empty", lambda text: "", None),
        ("cut", lambda text: text[: len(text) // 2], None),
        ("seed", lambda text: text.replace("seed: 0", "seed: 1", 1), "seed: "),
        ("opt.b2", lambda text: text.replace("b2: 0.999", "b2: 0.99"), "opt.b2: "),
    ):
        found, trial = continued(folder, half, config(edit))
        yield _case("config.yaml", what, found, trial, expected, refusal)


def identity(folder: Path) -> Iterator[Case]:
    """Flags and data that are, or are not, the run's own."""
    half, expected = half_way(folder)
    same = lambda run: None
    own = [x for k, v in runs.OPTIONS.items() for x in (f"--{k}", str(v))]
    for what, flags, refusal in (
        ("all its own flags", own, None),
        ("another learning rate", ["--opt.learning_rate", "0.5"], "opt.learning_rate: "),
        ("another seed", ["--seed", "7"], "seed: "),
        ("allowed", ["--opt.allow_changes", "True"], None),
    ):
        found, trial = continued(folder, half, same, *flags)
        yield _case("the run's own flags", what, found, trial, expected, refusal)

    def other_data(run: Path) -> None:
        with h5py.File(run.parents[1] / "data" / "burgers_train_16.hdf5", "a") as file:
            file["x"][3, 5] += 1e-3

    found, trial = continued(folder, half, other_data)
    yield _case("data", "one number is another", found, trial, expected, "data.root: ")
    found, trial = continued(folder, half, other_data, "--opt.allow_changes", "True")
    yield Case("data", "another number, allowed", found.status == 0, str(found))
