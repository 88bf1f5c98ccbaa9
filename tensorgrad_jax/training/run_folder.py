"""The folder a run writes: its name, its configuration, its metrics."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tensorgrad_jax.training.config import parse, to_yaml
from tensorgrad_jax.training.options import Config, ConfigError

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
    compressed = config.opt.tensorgrad is not False and config.opt.optimizer_type != "adamw"
    base = f"{config.data.problem}_{config.opt.optimizer_type if compressed else 'adamw'}"
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
    for name in ("seed", "data", "fno", "opt"):
        ours, theirs = _options(getattr(config, name), name), _options(getattr(saved, name), name)
        for option, value in ours.items():
            if option not in free and value != theirs[option]:
                raise ConfigError(
                    f"{option}: the run in {saved_file.parent} has {theirs[option]!r}, got "
                    f"{value!r}; a continued run cannot change it"
                )
    return config


def _options(section: Any, name: str) -> dict[str, Any]:
    if not hasattr(section, "__dataclass_fields__"):
        return {name: section}
    return {f"{name}.{option}": getattr(section, option) for option in section.__dataclass_fields__}


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
