"""Checkpoints of a run: what changes from step to step, where it stands, and what it is a run of.

Orbax writes the arrays. What it does not do is added here: a checkpoint knows the hash of every
file in it, so that damage is noticed, and an older one is used where the newest is damaged.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from tensorgrad_jax.data.folders import check_space
from tensorgrad_jax.training.records import write_text
from tensorgrad_jax.training.step import TrainState

_KEPT = 2


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, or of another run."""


class StorageError(OSError):
    """A checkpoint could not be written."""


@dataclasses.dataclass(frozen=True)
class Position:
    """Where a run stands.

    Attributes:
        epoch: completed epochs.
        batch: batches done in the epoch under way.
        step: optimizer steps done.
        seconds: training time so far, earlier processes included.
        data_seconds: how much of it the host waited for batches.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    seconds: float = 0.0
    data_seconds: float = 0.0

    def rounded_seconds(self) -> dict[str, float]:
        """Return both times to the millisecond."""
        return {"seconds": round(self.seconds, 3), "data_seconds": round(self.data_seconds, 3)}


class Record(NamedTuple):
    """What a checkpoint holds beside the arrays.

    Attributes:
        position: where the run stood.
        rows: the metrics of its epochs.
        run: what it is a run of, as given to `Checkpoints`.
        files: the SHA-256 of every file of the arrays, by its path.
        low_rank: of parameters that are trained as cores, their sizes and when they change next;
            None without such.
    """

    position: Position
    rows: list[dict[str, Any]]
    run: dict[str, Any]
    files: dict[str, str]
    low_rank: dict[str, Any] | None = None


class Checkpoints:
    """The folder `checkpoints/` of a run; a checkpoint is a folder in it, called after its step.

    It holds `state/`, the arrays as Orbax's `StandardCheckpointer` writes them, and record.json, a
    `Record` with a hash of its own. It is written under a temporary name and renamed when it is
    complete, so that a process killed in between leaves the one before in place. The last two are
    kept.

    Attributes:
        folder: the folder.
        run: what the checkpoints are of; whatever JSON can hold.
    """

    def __init__(self, folder: Path, run: Mapping[str, Any] | None = None):
        """Open the folder, which is made with the first checkpoint."""
        # Orbax tells every step it takes, and with a traceback what it could not read.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self.folder, self.run = folder, dict(run or {})
        self._arrays = ocp.StandardCheckpointer()
        self._damaged: set[int] = set()

    def save(
        self,
        state: TrainState,
        position: Position,
        rows: Sequence[Mapping[str, Any]] = (),
        low_rank: dict[str, Any] | None = None,
    ) -> None:
        """Write a checkpoint, unless there is an intact one of this very step.

        Args:
            state: the arrays.
            position: where the run stands.
            rows: the metrics of its epochs, which are kept with it.
            low_rank: see `Record`.

        Raises:
            StorageError: if it could not be written; those before it are untouched.
        """
        path = self.folder / str(position.step)
        temporary = path.with_name(f".{path.name}.new").absolute()
        try:
            self._set_damaged_aside()
            if path.exists():
                return
            shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
            self.folder.mkdir(parents=True, exist_ok=True)
            check_space(self.folder, sum(x.nbytes for x in jax.tree.leaves(state)))
            self._arrays.save(temporary / "state", state)
            self._arrays.wait_until_finished()
            record = {
                "position": dataclasses.asdict(position),
                "rows": list(rows),
                "run": self.run,
                "files": _hashes(temporary),
                "low_rank": low_rank,
            }
            record["hash"] = _hash_of_text(record)
            write_text(temporary / "record.json", json.dumps(record, allow_nan=False))
            temporary.rename(path)
        except Exception as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise StorageError(f"{path}: cannot be written: {_first_line(error)}") from error
        for step in self._steps()[_KEPT:]:
            shutil.rmtree(self.folder / str(step), ignore_errors=True)

    def record(self) -> Record:
        """Return the record of the newest checkpoint whose record is intact.

        Raises:
            CheckpointError: if there is none.
        """
        first: CheckpointError | None = None
        for step in self._steps():
            try:
                return self._record(step)
            except CheckpointError as error:
                first = first or error
        raise first or self._none()

    def restore(
        self, like: TrainState | Callable[[Record], TrainState]
    ) -> tuple[TrainState, Record]:
        """Return the newest checkpoint that is intact; one line on stderr if it is an older one.

        Args:
            like: a state with the shapes and dtypes to expect, or what makes one of a checkpoint's
                record; values are not used.

        Raises:
            CheckpointError: if there is none that fits `like`; the message tells why not the
                newest.
        """
        first: CheckpointError | None = None
        for step in self._steps():
            try:
                restored = self._restore(step, like)
            except CheckpointError as error:
                first = first or error
                self._damaged.add(step)
                continue
            if first is not None:
                print(f"{first}; going on from {self.folder / str(step)}", file=sys.stderr)
            return restored
        self._damaged = set()  # all of them: rather another configuration
        raise first or self._none()

    def newest(self) -> Path | None:
        """Return the path of the newest checkpoint that is not known to be damaged."""
        steps = [step for step in self._steps() if step not in self._damaged]
        return self.folder / str(steps[0]) if steps else None

    def close(self) -> None:
        """Release Orbax's threads."""
        self._arrays.close()

    def _steps(self) -> list[int]:
        """Return the steps of all checkpoints, the newest first."""
        names = (path.name for path in self.folder.iterdir()) if self.folder.is_dir() else ()
        return sorted((int(name) for name in names if name.isdecimal()), reverse=True)

    def _none(self) -> CheckpointError:
        return CheckpointError(f"no complete checkpoint in {self.folder}")

    def _record(self, step: int) -> Record:
        path = self.folder / str(step)
        try:
            read = json.loads((path / "record.json").read_text(encoding="utf-8"))
            intact = read.pop("hash") == _hash_of_text(read)
        except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
            reason = f"its record.json cannot be read ({_first_line(error)})"
            raise CheckpointError(f"checkpoint {path} is damaged: {reason}") from error
        if not intact:
            raise CheckpointError(
                f"checkpoint {path} is damaged: its record.json is not what was written"
            )
        return Record(**read | {"position": Position(**read["position"])})

    def _restore(self, step: int, like: Any) -> tuple[TrainState, Record]:
        path, record = self.folder / str(step), self._record(step)
        found = _hashes(path)
        # Found here: Orbax tells of damage in hundreds of lines, or not at all.
        for name in record.files:
            if found.get(name) != record.files[name]:
                what = "is missing" if name not in found else "is not what was written"
                raise CheckpointError(f"checkpoint {path} is damaged: {name} {what}")
        expected = like(record) if callable(like) else like
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, expected)
        try:
            state = self._arrays.restore((path / "state").absolute(), target)
        except Exception as error:  # of Orbax, of TensorStore, of JAX: shapes that differ
            raise CheckpointError(
                f"checkpoint {path} belongs to another configuration: {_first_line(error)}"
            ) from error
        return state, record

    def _set_damaged_aside(self) -> None:
        """Move what could not be read to a folder beside: of its steps there will be new ones."""
        for step in self._damaged:
            aside = self.folder.with_name("damaged_checkpoints")
            aside.mkdir(exist_ok=True)
            target, n = aside / str(step), 1
            while target.exists():
                n += 1
                target = aside / f"{step}_{n}"
            (self.folder / str(step)).rename(target)
        self._damaged = set()


def _hashes(checkpoint: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of a checkpoint's arrays, by its path."""
    found = {}
    for path in sorted((checkpoint / "state").rglob("*")):
        if path.is_file():
            with open(path, "rb") as file:
                name = path.relative_to(checkpoint).as_posix()
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _hash_of_text(record: Mapping[str, Any]) -> str:
    text = json.dumps(record, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _first_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
