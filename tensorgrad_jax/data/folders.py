"""Folders that are written to: one process at a time, and that there is space."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path


class FolderInUseError(Exception):
    """Another process holds the lock of a folder."""


@contextlib.contextmanager
def locked(folder: Path, wait: Callable[[], object] | None = None) -> Iterator[None]:
    """Hold the lock of a folder, which the system releases should the process be killed.

    The lock belongs to the folder, not to its name: it may be renamed meanwhile.

    Args:
        folder: an existing folder.
        wait: called if another process holds the lock, before waiting for it; None does not wait.

    Raises:
        FolderInUseError: if another process holds the lock and there is no waiting.
        OSError: if the folder is not there or cannot be read.
    """
    if os.name != "posix":  # Windows has no locks on folders
        yield
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if wait is None:
                raise FolderInUseError(f"{folder} is used by another process") from None
            wait()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def made(folder: Path) -> Iterator[None]:
    """Make a folder; should what is done in it fail, those that were made and are empty go again.

    Raises:
        OSError: if it cannot be made.
    """
    missing = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def check_space(folder: Path, n_bytes: int) -> None:
    """Raise an OSError, which says how much is missing, unless the disk has space for so much.

    Libraries that write large arrays do not survive a full disk: HDF5 ends the process when it
    closes the file, TensorStore tells of it in hundreds of lines.

    Args:
        folder: an existing folder.
        n_bytes: what is to be written. A sixteenth and 128 KiB are added for tables and blocks.
    """
    needed, free = n_bytes + n_bytes // 16 + 2**17, shutil.disk_usage(folder).free
    if needed > free:
        amount = f"{needed:,} bytes are needed, {free:,} are free"
        raise OSError(errno.ENOSPC, f"no space left on the disk: {amount}", str(folder))
