"""A run of train.py, from its configuration to its folder."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

from tensorgrad_jax.data.folders import FolderInUseError, locked
from tensorgrad_jax.training.build import (
    OptimizerBuilder,
    build_data,
    build_optimizer,
    build_step_memory,
    build_training,
)
from tensorgrad_jax.training.checkpoints import CheckpointError, Checkpoints
from tensorgrad_jax.training.config import parse, to_yaml
from tensorgrad_jax.training.data_sets import fingerprint
from tensorgrad_jax.training.loop import DivergedError, InterruptedRunError, Training
from tensorgrad_jax.training.memory import write_profile
from tensorgrad_jax.training.options import OPTIONS, Config, ConfigError, show
from tensorgrad_jax.training.records import write_metrics, write_text
from tensorgrad_jax.training.report import write_report
from tensorgrad_jax.training.run_folder import make_run_folder, new_run_folder

# What may differ between a run and its continuation: nothing that the parameters depend on.
_FREE = {
    "name",
    "data.root",
    "data.generate",
    "data.n_tests",
    "data.n_validation",
    "data.test_resolutions",
    "data.test_batch_sizes",
    "opt.save_dir",
    "opt.save_every",
    "opt.profiling",
    "opt.resume_from_dir",
    "opt.allow_changes",
}


def run(
    config: Config,
    build_optimizer: OptimizerBuilder = build_optimizer,
    begun: Callable[[Path], object] = lambda folder: None,
) -> Path:
    """Train as the configuration says and return the folder of the run.

    Args:
        config: the configuration.
        build_optimizer: makes the optimizer of the configuration and the steps per epoch; to try
            one that no option describes.
        begun: called with the folder as soon as the run can be continued from it.

    Raises:
        ConfigError: if an option is wrong; nothing was written.
        DataError: if the data are missing or damaged; nothing was written.
        DivergedError: if a number became NaN or infinite; the last checkpoint is from before that.
        InterruptedRunError: if the process was asked to end; a checkpoint was saved.
        OSError: if something could not be written; the last checkpoint is intact.
    """
    opt = config.opt
    with contextlib.ExitStack() as held:
        if opt.resume_from_dir is None:
            new_run_folder(config)  # what is wrong with it is told before the time of all this ...
        else:
            held.enter_context(_locked(Path(opt.resume_from_dir)))
        data = build_data(config)
        training = build_training(config, data, build_optimizer)
        identity = {"options": config.model_dump(mode="json"), "data": fingerprint(data.train)}
        if opt.resume_from_dir is None:
            training.compile()  # ... and what cannot be compiled leaves no folder behind
            fill = lambda folder: _begin(folder, config, training, identity)
            folder = make_run_folder(config, fill, held)
            checkpoints = _opened(folder, identity, held)
        else:
            folder = Path(opt.resume_from_dir)
            checkpoints = _opened(folder, identity, held)
            _resume(folder, config, training, checkpoints)
        begun(folder)
        if opt.profiling:
            adamw = config.model_copy(update={"opt": opt.model_copy(update={"tensorgrad": False})})
            channels = data.in_channels, data.out_channels
            rows = {"this run": config, "AdamW": adamw}
            rows = {name: build_step_memory(c, *channels) for name, c in rows.items()}
            write_profile(rows, folder)
        try:
            training.fit(opt.n_epochs, folder, checkpoints, opt.save_every)
        except DivergedError as error:
            advice = f"lower opt.learning_rate ({opt.learning_rate})"
            last = f"the last checkpoint is {checkpoints.newest()}"
            raise DivergedError(f"{error}; {advice}; {last}") from error
        except InterruptedRunError as error:
            how = f"continue with --opt.resume_from_dir {folder}"
            raise InterruptedRunError(f"{error}; {how}") from error
        write_report(training, folder)
    return folder


def config_to_resume(argv: list[str], folder: Path) -> Config:
    """Return the configuration of a continued run.

    Its checkpoints tell the run's own options, `--opt.resume_from_dir` alone is enough; the file
    config.yaml is for readers. A `--config_file` takes the place of the run's options.

    Args:
        argv: the arguments of the command.
        folder: of the run.

    Raises:
        ConfigError: if the folder holds no run, or an option differs that the parameters
            depend on.
    """
    if not (folder / "checkpoints").is_dir():
        raise ConfigError(
            f"opt.resume_from_dir: got {show(str(folder))}, expected the folder of a run, with "
            "checkpoints"
        )
    with contextlib.ExitStack() as held:
        try:
            options = _opened(folder, {}, held).record().run["options"]
        except (CheckpointError, KeyError) as error:
            raise ConfigError(f"opt.resume_from_dir: {error}") from error
    saved, config = parse([], base=options), parse(argv, base=options)
    if config.opt.allow_changes:
        return config
    _refuse_changes(config, saved, f"the run in {folder} has")
    try:
        written = parse(["--config_file", str(folder / "config.yaml")])
    except ConfigError:  # absent, or cut: it is written anew
        return config
    if (folder / "config.yaml").stat().st_size:
        _refuse_changes(written, saved, f"{folder}/config.yaml was changed: its checkpoint has")
    return config


def _refuse_changes(config: Config, saved: Config, what: str) -> None:
    """Raise a ConfigError that names an option that the parameters depend on and that differs."""
    free = set(_FREE)
    if saved.opt.scheduler != "CosineAnnealingLR" or saved.opt.scheduler_T_max is not None:
        free.add("opt.n_epochs")  # else the learning rate of every epoch depends on it
    for option in OPTIONS:
        ours, theirs = (attrgetter(option)(c) for c in (config, saved))
        if option not in free and ours != theirs:
            raise ConfigError(
                f"{option}: {what} {show(theirs)}, got {show(ours)}; a continued run cannot change "
                "it, unless opt.allow_changes is True"
            )


def _locked(folder: Path) -> contextlib.ExitStack:
    stack = contextlib.ExitStack()
    try:
        stack.enter_context(locked(folder))
    except FolderInUseError as error:
        raise ConfigError(f"opt.resume_from_dir: {error}, expected one that has ended") from error
    except OSError as error:
        raise ConfigError(f"opt.resume_from_dir: {folder}: {error.strerror}") from error
    return stack


def _opened(folder: Path, identity: Mapping[str, Any], held: contextlib.ExitStack) -> Checkpoints:
    """Return the checkpoints of a folder, closed when the stack is."""
    checkpoints = Checkpoints(folder / "checkpoints", identity)
    held.callback(checkpoints.close)
    return checkpoints


def _begin(folder: Path, config: Config, training: Training, identity: Mapping[str, Any]) -> None:
    """Write what a run is continued from: its options and its state before the first step."""
    write_text(folder / "config.yaml", to_yaml(config))
    with contextlib.ExitStack() as held:
        training.save(_opened(folder, identity, held))


def _resume(folder: Path, config: Config, training: Training, checkpoints: Checkpoints) -> None:
    """Bring the training to where the folder's last intact checkpoint is, and the records too."""
    try:
        record = training.restore(checkpoints)
    except CheckpointError as error:
        raise ConfigError(f"opt.resume_from_dir: {error}") from error
    theirs, ours = record.run["data"], checkpoints.run["data"]
    if ours != theirs and not config.opt.allow_changes:
        raise ConfigError(
            f"data.root: the training data in {config.data.root} are not those that the run in "
            f"{folder} was begun with; a continued run cannot change them, unless "
            "opt.allow_changes is True"
        )
    training.position, training.rows = record.position, record.rows
    write_metrics(folder, record.rows)
    write_text(folder / "config.yaml", to_yaml(config))
