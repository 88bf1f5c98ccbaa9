"""What outlives a process: checkpoints, metrics, and the signals that ask it to end.

A checkpoint holds what changes from step to step, and where in the data the run stands.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import signal
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp

from tensorgrad_jax.training.step import TrainState

_KEPT = 2


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, or of another run."""


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


class Checkpoints:
    """The folder `checkpoints/` of a run.

    A checkpoint is written under a temporary name and renamed when it is complete, so that a
    process killed in between leaves the one before in place. The last two are kept.
    """

    def __init__(self, folder: Path):
        # Orbax tells every step it takes.
        logging.getLogger("absl").setLevel(logging.WARNING)
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=_KEPT, create=True, enable_async_checkpointing=False
            ),
        )
        self.folder = folder

    def save(self, state: TrainState, position: Position) -> None:
        """Write a checkpoint, unless there is one of this very step."""
        if self._manager.latest_step() == position.step:
            return
        self._manager.save(
            position.step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                position=ocp.args.JsonSave(dataclasses.asdict(position)),
            ),
        )
        self._manager.wait_until_finished()

    def restore(self, like: TrainState) -> tuple[TrainState, Position]:
        """Return the newest checkpoint.

        Args:
            like: a state with the shapes and dtypes to expect; its values are not used.

        Raises:
            CheckpointError: if there is none, or it does not fit `like`.
        """
        step = self._manager.latest_step()
        if step is None:
            raise CheckpointError(f"no complete checkpoint in {self.folder}")
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(target), position=ocp.args.JsonRestore()
                ),
            )
        except Exception as error:
            first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise CheckpointError(
                f"checkpoint {self.folder / str(step)} is damaged or belongs to another "
                f"configuration: {first_line}"
            ) from error
        return restored["state"], Position(**restored["position"])

    def close(self) -> None:
        """Release the manager's threads."""
        self._manager.close()


def append_metrics(folder: Path, row: dict[str, Any]) -> None:
    """Append one epoch to metrics.jsonl."""
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read_metrics(folder: Path, epochs: int) -> list[dict[str, Any]]:
    """Return the first `epochs` epochs of metrics.jsonl and cut the file after them.

    A process that was killed may have written an epoch whose checkpoint it never reached, or
    half a line.
    """
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines[:epochs]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return rows


class InterruptedRunError(Exception):
    """The process was asked to end, and everything is saved."""


class Interrupts:
    """Within this context SIGINT and SIGTERM are noted instead of obeyed; a second one is obeyed.

    Attributes:
        received: whether one has come.
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.received = False
        self._before = {}

    def __enter__(self) -> Interrupts:
        """Take over the signals."""
        for number in self._SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, frame):
        if self.received:
            raise KeyboardInterrupt
        self.received = True
