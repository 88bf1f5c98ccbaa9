"""Text files of a run: a reader sees the old one or the new one, never half of it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name and rename it when it is complete.

    Raises:
        OSError: if it cannot be written; the file that was there is untouched.
    """
    # In the same folder: a rename is atomic only within one file system.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's files are private
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def append_metrics(folder: Path, row: Mapping[str, Any]) -> None:
    """Append one epoch to metrics.jsonl."""
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write(_line(row))


def write_metrics(folder: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write metrics.jsonl anew.

    A process that was killed may have written an epoch whose checkpoint it never reached, or half a
    line: what the checkpoint holds is what counts.
    """
    write_text(folder / "metrics.jsonl", "".join(_line(row) for row in rows))


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"
