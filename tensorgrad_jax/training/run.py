"""A run of train.py, from its configuration to its folder."""

from __future__ import annotations

import os
from operator import attrgetter
from pathlib import Path

from tensorgrad_jax.training.build import (
    OptimizerBuilder,
    build_data,
    build_optimizer,
    build_step_memory,
    build_training,
)
from tensorgrad_jax.training.checkpoints import (
    CheckpointError,
    Checkpoints,
    InterruptedRunError,
    read_metrics,
)
from tensorgrad_jax.training.config import parse, to_yaml
from tensorgrad_jax.training.loop import DivergedError
from tensorgrad_jax.training.memory import write_profile
from tensorgrad_jax.training.options import OPTIONS, Config, ConfigError
from tensorgrad_jax.training.report import write_report

# What may differ between a run and its continuation: nothing that the parameters depend on.
_FREE = (
    "name",
    "data.root",
    "data.generate",
    "data.n_tests",
    "data.n_validation",
    "data.test_resolutions",
    "data.test_batch_sizes",
    "opt.save_dir",
    "opt.save_every",
    "opt.resume_from_dir",
)


def run(config: Config, build_optimizer: OptimizerBuilder = build_optimizer) -> Path:
    """Train as the configuration says and return the folder of the run.

    Args:
        config: the configuration.
        build_optimizer: makes the optimizer of the configuration and the steps per epoch; to try
            one that no option describes.

    Raises:
        ConfigError: if an option is wrong; nothing was written.
        DataError: if the data are missing or damaged; nothing was written.
        DivergedError: if the loss became NaN or infinite; the last checkpoint is from before that.
        InterruptedRunError: if the process was asked to end; a checkpoint was saved.
    """
    opt = config.opt
    data = build_data(config)
    training = build_training(config, data, build_optimizer)
    if opt.resume_from_dir is None:
        new_run_folder(config)  # a name that is taken is told before the time of compiling ...
        training.compile()  # ... and what cannot be compiled leaves no folder behind
        folder = make_run_folder(config)
    else:
        folder = Path(opt.resume_from_dir)
    checkpoints = Checkpoints(folder / "checkpoints")
    try:
        if opt.resume_from_dir is not None:
            training.state, training.position = checkpoints.restore(training.state)
            training.rows = read_metrics(folder, training.position.epoch)
        if opt.profiling:
            adamw = config.model_copy(update={"opt": opt.model_copy(update={"tensorgrad": False})})
            channels = data.in_channels, data.out_channels
            rows = {"this run": config, "AdamW": adamw}
            rows = {name: build_step_memory(c, *channels) for name, c in rows.items()}
            write_profile(rows, folder)
        training.fit(opt.n_epochs, folder, checkpoints, opt.save_every)
    except CheckpointError as error:
        raise ConfigError(f"opt.resume_from_dir: {error}") from error
    except DivergedError as error:
        advice = f"lower opt.learning_rate ({opt.learning_rate})"
        raise DivergedError(f"{error}; {advice}") from error
    except InterruptedRunError as error:
        how = f"continue with --opt.resume_from_dir {folder}"
        raise InterruptedRunError(f"{error}; {how}") from error
    finally:
        checkpoints.close()
    write_report(training, folder)
    return folder


def new_run_folder(config: Config) -> Path:
    """Return the path of a folder that does not exist yet: `save_dir/name`.

    Without a name it is called after problem and optimizer, with a number where that is taken.

    Raises:
        ConfigError: if a folder of the given name is there already.
    """
    parent = Path(config.opt.save_dir)
    if config.name is not None:
        folder = parent / config.name
        if os.path.lexists(folder):
            raise ConfigError(
                f"name: {folder} exists already; choose another name, or continue that run with "
                f"--opt.resume_from_dir {folder}"
            )
        return folder
    base = f"{config.data.problem}_{config.opt.optimizer()}"
    folder, n = parent / base, 1
    while os.path.lexists(folder):
        n += 1
        folder = parent / f"{base}_{n}"
    return folder


def make_run_folder(config: Config) -> Path:
    """Make the folder of `new_run_folder` with the complete configuration in it; return its path.

    Raises:
        ConfigError: if it is there already or cannot be made.
    """
    while True:
        folder = new_run_folder(config)
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            if os.path.lexists(folder):
                continue  # another run has just taken it
            raise ConfigError(
                f"opt.save_dir: got {config.opt.save_dir!r}, expected a folder that can be written "
                f"to: {folder}: {error.strerror}"
            ) from error
        (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
        return folder


def config_to_resume(argv: list[str], config: Config) -> Config:
    """Return the configuration of a continued run.

    Without a `--config_file` the run's own config.yaml takes its place, so that
    `--opt.resume_from_dir` alone is enough.

    Raises:
        ConfigError: if the folder holds no run, or an option differs that the parameters
            depend on.
    """
    assert config.opt.resume_from_dir is not None
    saved_file = Path(config.opt.resume_from_dir) / "config.yaml"
    if not saved_file.is_file():
        raise ConfigError(f"opt.resume_from_dir: expected the folder of a run, no {saved_file}")
    saved = parse(["--config_file", str(saved_file)])
    if not any(a.split("=")[0] == "--config_file" for a in argv):
        config = parse(["--config_file", str(saved_file), *argv])
    free: set[str] = set(_FREE)
    if saved.opt.scheduler != "CosineAnnealingLR" or saved.opt.scheduler_T_max is not None:
        free.add("opt.n_epochs")  # else the learning rate of every epoch depends on it
    for option in OPTIONS:
        ours, theirs = (attrgetter(option)(c) for c in (config, saved))
        if option not in free and ours != theirs:
            raise ConfigError(
                f"{option}: the run in {saved_file.parent} has {theirs!r}, got {ours!r}; a "
                "continued run cannot change it"
            )
    return config
