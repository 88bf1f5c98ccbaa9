"""What the steps leave for each other: a log of JSON lines, and recorded parameters in HDF5.

Both have the form of the original's, whose readers can read them.
"""

from __future__ import annotations

import ast
import datetime
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from tqdm import tqdm

from tensorgrad_jax.hessian.layout import LayoutError


def timestamp() -> str:
    """Return the time, as 2026_03_21_02_09_31.164."""
    return datetime.datetime.now().strftime("%Y_%m_%d_%H_%M_%S.%f")[:-3]


class Log:
    """Lines `["time", ["HEADER", body]]` of a file, and the same lines on stdout.

    Attributes:
        path: the file.
    """

    def __init__(self, folder: Path, name: str):
        """Begin a file `<time>[<name>].log` in a folder.

        Args:
            folder: exists.
            name: of the step.
        """
        self.path = folder / f"{timestamp()}{name}.log"

    def write(self, header: str, body: Any) -> None:
        """Add a line."""
        now = datetime.datetime.now().strftime("%Y-%m-%d_%H:%M:%S.%f")[:-3]
        line = json.dumps([now, [header, body]])
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        # Above a progress bar, where there is one.
        tqdm.write(line if len(line) < 300 else line[:297] + "...")
        sys.stdout.flush()


def read_log(path: Path, headers: Iterable[str] | None = None) -> list[tuple[str, Any]]:
    """Return (header, body) of the lines of a log.

    Args:
        path: of the log.
        headers: which lines; None for all.

    Raises:
        LayoutError: if it is missing or a line is none of a log.
    """
    wanted = None if headers is None else set(headers)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        entries = [json.loads(line)[1] for line in lines]
        return [(h, body) for h, body in entries if wanted is None or h in wanted]
    except (OSError, ValueError, IndexError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise LayoutError(f"TRAINING_LOGPATH: {path} is no log of gather ({reason})") from None


def _opened(path: Path, mode: str) -> Any:
    return h5py.File(path, mode)


class ParameterFile:
    """Vectors of parameters, a column each, with the step that each was recorded at.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path):
        """Name a file; nothing is read or written."""
        self.path = path

    def create(self, size: int, dtype: Any = np.float32) -> None:
        """Make the file, of vectors of `size` numbers.

        Raises:
            FileExistsError: if it is there.
        """
        if self.path.exists():
            raise FileExistsError(17, "File already exists!", os.fspath(self.path))
        text = h5py.string_dtype()
        with _opened(self.path, "w") as file:
            of = lambda name, shape, most, chunks, dtype: file.create_dataset(
                name, shape, dtype, maxshape=most, chunks=chunks, compression="lzf"
            )
            of("data", (size, 0), (size, None), (size, 1), dtype)
            of("metadata", (0,), (None,), (1,), text)
            of("data_idxs", (2, 0), (2, None), (2, 1), np.int64)

    def append(self, vector: Any, step: int) -> None:
        """Add the parameters of a step."""
        with _opened(self.path, "r+") as file:
            n = file["metadata"].shape[0]
            for name, shape in (
                ("data", (len(vector), n + 1)),
                ("metadata", (n + 1,)),
                ("data_idxs", (2, n + 1)),
            ):
                file[name].resize(shape)
            file["data"][:, n] = vector
            file["metadata"][n] = str({"step": step})
            file["data_idxs"][:, n] = (n, n + 1)

    def read(self, step: int) -> np.ndarray:
        """Return the parameters of a step.

        Raises:
            LayoutError: if the file is missing or damaged, or the step was not recorded.
        """
        if not self.path.is_file():
            raise LayoutError(f"PARAMS_PATH: there is no file {self.path}")
        try:
            with _opened(self.path, "r") as file:
                texts = [text.decode() for text in file["metadata"][:]]
                steps = [ast.literal_eval(text)["step"] for text in texts]
                if step not in steps:
                    raise LayoutError(f"STEP: Step {step} not available! There are {steps}")
                begin, end = file["data_idxs"][:, steps.index(step)]
                return file["data"][:, begin:end].ravel()
        except (OSError, KeyError, ValueError, SyntaxError, TypeError) as error:
            if isinstance(error, LayoutError):
                raise
            raise LayoutError(f"PARAMS_PATH: {self.path} is damaged ({error})") from None
