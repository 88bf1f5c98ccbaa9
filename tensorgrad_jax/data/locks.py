"""One process at a time in a folder."""

from __future__ import annotations

import contextlib
import os
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
