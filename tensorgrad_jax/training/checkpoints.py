"""Checkpoints of a run: what changes from step to step, and where in the data the run stands."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from tensorgrad_jax.training.allowed import ConfigError
from tensorgrad_jax.training.step import TrainState

_KEPT = 2


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
            ConfigError: if there is none, or it does not fit the configuration.
        """
        step = self._manager.latest_step()
        if step is None:
            raise ConfigError(f"opt.resume_from_dir: no complete checkpoint in {self.folder}")
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
            raise ConfigError(
                f"opt.resume_from_dir: checkpoint {self.folder / str(step)} is damaged or belongs "
                f"to another configuration: {first_line}"
            ) from error
        return restored["state"], Position(**restored["position"])

    def close(self) -> None:
        """Release the manager's threads."""
        self._manager.close()
