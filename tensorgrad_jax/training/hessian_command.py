"""The commands of `tensorgrad_jax.hessian`, with problems: mnist_mini, or a run of train.py."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from tensorgrad_jax.hessian.layout import LayoutError


def problem_of(name: str, seed: int, datasets: Path | None) -> Any:
    """Return a problem.

    Args:
        name: mnist_mini, or the folder of a run.
        seed: of the start, for mnist_mini.
        datasets: folder of data sets, or of the run's data if they were moved.

    Raises:
        LayoutError: if it is neither, or its data are missing.
    """
    if name == "mnist_mini":
        from tensorgrad_jax.hessian.problems import mnist_mini

        return mnist_mini(seed, datasets)
    if not Path(name).is_dir():
        raise LayoutError(
            f"PROBLEM: must be mnist_mini or the folder of a run of train.py, got {name}"
        )
    return of_run(Path(name), None if datasets is None else str(datasets))


def of_run(folder: Path, data_root: str | None = None) -> Any:
    """Return the problem of a finished run: its training loss at its newest checkpoint.

    Args:
        folder: of the run.
        data_root: where its data lie; None: where the run found them.

    Raises:
        ConfigError: if the folder holds no run, or no checkpoint that fits it.
        DataError: if the data are missing or damaged.
    """
    from flax import nnx

    from tensorgrad_jax.hessian.problems import Problem
    from tensorgrad_jax.training.attribution import load_run, test_set_of
    from tensorgrad_jax.training.losses import LOSSES
    from tensorgrad_jax.training.step import predict

    run = load_run(folder, data_root)
    graphdef, _ = nnx.split(run.training.model, nnx.Param)
    loss, encoding = LOSSES[run.config.opt.training_loss], run.data.encoding

    def of_batch(params, batch):
        return loss(predict(graphdef, params, batch["x"], encoding), batch["y"])

    def arrays(source):
        rows = [source[i] for i in range(len(source))]
        return {name: np.stack([row[name] for row in rows]) for name in ("x", "y")}

    return Problem(
        str(folder),
        run.training.state.params,
        of_batch,
        arrays(run.data.train),
        arrays(test_set_of(run, None).source),
        batch_size=run.config.data.batch_size,
        epochs=run.config.opt.n_epochs,
        learning_rate=run.config.opt.learning_rate,
        step=run.step,
    )


def main(argv: list[str]) -> int:
    """Run a command and return its exit status."""
    from tensorgrad_jax.data import DataError
    from tensorgrad_jax.hessian.commands import main as command

    try:
        return command(argv, problem_of)
    except DataError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
