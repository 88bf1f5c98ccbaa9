"""The folder of a run: its name, and that it is there complete or not at all."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tensorgrad_jax.data.folders import FolderInUseError, locked, made
from tensorgrad_jax.training.options import Config, ConfigError


def new_run_folder(config: Config) -> Path:
    """Return the path of a folder that does not exist yet: `save_dir/name`.

    Without a name it is called after problem and optimizer, with a number where that is taken.

    Raises:
        ConfigError: if a folder of the given name is there already, or none can be made.
    """
    _check_writable(config.opt.save_dir)
    return next(_candidates(config))


def make_run_folder(
    config: Config, fill: Callable[[Path], None], held: contextlib.ExitStack
) -> Path:
    """Make the folder of `new_run_folder` and return its path.

    It is filled under a temporary name and renamed: a process that is killed leaves a folder with
    which the run can be continued, or none.

    Args:
        config: the configuration.
        fill: writes into the folder of the temporary name.
        held: takes the folder's lock, which keeps other processes out of it.

    Raises:
        ConfigError: if a folder of the given name is there already, or none can be made.
        OSError: if what it holds cannot be written.
    """
    for folder in _candidates(config):
        temporary = folder.with_name(f".{folder.name}.new")
        with contextlib.ExitStack() as opened:
            try:
                opened.enter_context(made(temporary))
            except OSError as error:
                raise _not_writable(config.opt.save_dir, temporary, error) from error
            try:
                opened.enter_context(locked(temporary))
            except (FolderInUseError, FileNotFoundError):
                continue  # another run is just making it, or has this moment renamed it
            if os.path.lexists(folder):
                continue
            try:
                for left in temporary.iterdir():  # by a process that was killed
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
                fill(temporary)
                temporary.rename(folder)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
            held.enter_context(opened.pop_all())
            return folder
    raise ConfigError(f"name: another run is just making {config.opt.save_dir}/{config.name}")


def _candidates(config: Config) -> Iterator[Path]:
    """The paths that the folder may have, those that are taken left out."""
    parent = Path(config.opt.save_dir)
    if config.name is not None:
        folder = parent / config.name
        if os.path.lexists(folder):
            raise ConfigError(
                f"name: {folder} exists already; choose another name, or continue that run with "
                f"--opt.resume_from_dir {folder}"
            )
        yield folder
        return
    base = f"{config.data.problem}_{config.optimizer()}"
    for n in itertools.count(1):
        folder = parent / (base if n == 1 else f"{base}_{n}")
        if not os.path.lexists(folder):
            yield folder


def _check_writable(save_dir: str) -> None:
    """Raise a ConfigError unless a folder can be made at that path, or in the one that is there.

    Found out by making one in the innermost folder that exists; it is removed at once.
    """
    path = Path(os.path.abspath(save_dir))
    try:
        while not _exists(path):
            path = path.parent
        with tempfile.TemporaryDirectory(dir=path, prefix=".probe"):
            pass
    except OSError as error:
        raise _not_writable(save_dir, path, error) from error


def _exists(path: Path) -> bool:
    """Whether there is something of that name, a link to nowhere too."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _not_writable(save_dir: str, path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"opt.save_dir: got {save_dir!r}, expected a folder that can be written to: {path}: "
        f"{error.strerror}"
    )
