"""Checkpoints of a run: what changes from step to step, where it stands, and what it is a run of.

Orbax writes them. What it does not do is added here: a checkpoint knows the hash of every array in
it and of its record, so that damage is noticed, and an older one is used where the newest is
damaged.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

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
        hashes: of every array, by its path in the state.
    """

    position: Position
    rows: list[dict[str, Any]]
    run: dict[str, Any]
    hashes: dict[str, str]


class Checkpoints:
    """The folder `checkpoints/` of a run.

    A checkpoint is written under a temporary name and renamed when it is complete, so that a
    process killed in between leaves the one before in place. The last two are kept.

    Attributes:
        folder: the folder.
        run: what the checkpoints are of; whatever JSON can hold.
    """

    def __init__(self, folder: Path, run: Mapping[str, Any] | None = None):
        """Open the folder, which is made where it is missing."""
        # Orbax tells every step it takes, and with a traceback what it could not read.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self.folder, self.run = folder, dict(run or {})
        self._damaged: set[int] = set()
        self._open()

    def _open(self) -> None:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=_KEPT, create=True, enable_async_checkpointing=False
        )
        self._manager = ocp.CheckpointManager(self.folder.absolute(), options=options)

    def save(
        self, state: TrainState, position: Position, rows: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """Write a checkpoint, unless there is an intact one of this very step.

        Args:
            state: the arrays.
            position: where the run stands.
            rows: the metrics of its epochs, which are kept with it.

        Raises:
            StorageError: if it could not be written; those before it are untouched.
        """
        self._set_damaged_aside()
        if self._manager.latest_step() == position.step:
            return
        record = {
            "position": dataclasses.asdict(position),
            "rows": list(rows),
            "run": self.run,
            "hashes": _hashes(state),
        }
        record["hash"] = _hash_of_text(record)
        try:
            self._manager.save(
                position.step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record)
                ),
            )
            self._manager.wait_until_finished()
        except Exception as error:
            for unfinished in self.folder.glob(f"{position.step}.orbax-checkpoint-tmp*"):
                shutil.rmtree(unfinished, ignore_errors=True)
            path = self.folder / str(position.step)
            raise StorageError(f"{path}: cannot be written: {_first_line(error)}") from error

    def record(self) -> Record:
        """Return the record of the newest checkpoint whose record is intact.

        Raises:
            CheckpointError: if there is none.
        """
        for step in self._steps():
            with contextlib.suppress(CheckpointError):
                return self._record(step)
        self._record(self._steps()[0])  # why not the newest
        raise AssertionError

    def restore(self, like: TrainState) -> tuple[TrainState, Record]:
        """Return the newest checkpoint that is intact; one line on stderr if it is an older one.

        Args:
            like: a state with the shapes and dtypes to expect; its values are not used.

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
        assert first is not None
        self._damaged = set()  # all of them: rather another configuration
        raise first

    def newest(self) -> Path | None:
        """Return the path of the newest checkpoint that is not known to be damaged."""
        steps = [step for step in self._manager.all_steps() if step not in self._damaged]
        return self.folder / str(max(steps)) if steps else None

    def close(self) -> None:
        """Release the manager's threads."""
        self._manager.close()

    def _steps(self) -> list[int]:
        """Return the steps of all checkpoints, the newest first."""
        steps = sorted(self._manager.all_steps(), reverse=True)
        if not steps:
            raise CheckpointError(f"no complete checkpoint in {self.folder}")
        return steps

    def _read(self, step: int, **items: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # of Orbax, of TensorStore, of JSON: whatever was damaged
            raise self._error(step, _first_line(error)) from error

    def _error(self, step: int, reason: str) -> CheckpointError:
        path = self.folder / str(step)
        return CheckpointError(f"checkpoint {path} is damaged or of another kind: {reason}")

    def _record(self, step: int) -> Record:
        read = self._read(step, record=ocp.args.JsonRestore())["record"]
        if not isinstance(read, dict) or read.pop("hash", None) != _hash_of_text(read):
            raise self._error(step, "its record is not what was written")
        return Record(**read | {"position": Position(**read["position"])})

    def _restore(self, step: int, like: TrainState) -> tuple[TrainState, Record]:
        record = self._record(step)
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        state = self._read(step, state=ocp.args.StandardRestore(target))["state"]
        for path, found in _hashes(state).items():
            if record.hashes.get(path) != found:
                raise self._error(step, f"{path} is not what was written")
        return state, record

    def _set_damaged_aside(self) -> None:
        """Move what could not be read to a folder beside: of its steps there will be new ones."""
        if not self._damaged:
            return
        self._manager.close()
        aside = self.folder.with_name("damaged_checkpoints")
        aside.mkdir(exist_ok=True)
        for step in self._damaged:
            target, n = aside / str(step), 1
            while target.exists():
                n += 1
                target = aside / f"{step}_{n}"
            (self.folder / str(step)).rename(target)
        self._damaged = set()
        self._open()


def _hashes(state: Any) -> dict[str, str]:
    """Return the SHA-256 of every array's bytes, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    contents = ((path, np.ascontiguousarray(np.asarray(leaf))) for path, leaf in leaves)
    return {
        jax.tree_util.keystr(path): hashlib.sha256(x.reshape(-1).view(np.uint8)).hexdigest()
        for path, x in contents
    }


def _hash_of_text(record: Mapping[str, Any]) -> str:
    text = json.dumps(record, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
