"""One column of a sketch: a file with its numbers and how far it is.

Every file holds the data sets "data" and "flags"; a flag is "initialized", "processing
measurement...", or what a worker was told success is called ("measured"). What skerch does not
have are an attribute, of which operator a column is, and claims.

A column is written to a file beside and renamed: who is killed leaves the old column or the new
one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tensorgrad_jax.data.folders import check_space

DATA, FLAGS = "data", "flags"
INITIAL, PROCESSING, SUCCESS = "initialized", "processing measurement...", "measured"
LEFT, RIGHT, INNER = "leftouter_{}.h5", "rightouter_{}.h5", "inner_{}.h5"
ALL, MERGED = "ALL", "MERGED"
_LOCKS = "columns.lock"


class LayoutError(ValueError):
    """Files of a sketch are missing, damaged, or not what was asked for."""


def path_of(folder: Path, kind: str, number: int | str) -> Path:
    """Return the file of a column, or that of all ("ALL").

    Args:
        folder: of the layout.
        kind: `LEFT`, `RIGHT` or `INNER`.
        number: of the column.
    """
    return folder / kind.format(number if isinstance(number, str) else f"{number:010d}")


def write_column(path: Path, data: Any, flag: str, of: str) -> None:
    """Replace a column's file.

    Args:
        path: of an existing column.
        data: its numbers; None for zeros.
        flag: its state.
        of: names the operator and the noise that it is measured with.

    Raises:
        LayoutError: if there is no such column, or the numbers do not fit it.
    """
    shape, dtype = _shape_and_dtype(path)
    if data is not None and np.shape(data) != shape:
        raise LayoutError(f"{path}: holds {shape} numbers, got shape {np.shape(data)}")
    if data is not None:
        check_space(path.parent, int(np.prod(shape)) * np.dtype(dtype).itemsize)
    _write(path, data, flag, shape, str(dtype), of)


def make_column(path: Path, rows: int, dtype: str) -> None:
    """Write a column's file anew, without numbers."""
    _write(path, None, INITIAL, (rows,), dtype)


def _write(
    path: Path, data: Any, flag: str, shape: tuple[int], dtype: str, of: str | None = None
) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with h5py.File(beside, "w") as file:
            made = file.create_dataset(
                DATA, shape, dtype, maxshape=shape, chunks=shape, compression="lzf"
            )
            if data is not None:
                made[:] = data
            flags = file.create_dataset(
                FLAGS, (1,), h5py.string_dtype(), maxshape=(1,), chunks=(1,), compression="lzf"
            )
            flags[:] = flag
            if of is not None:
                file.attrs["of"] = of
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise


def _shape_and_dtype(path: Path) -> tuple[tuple[int], Any]:
    with opened(path) as file:
        return file[DATA].shape, file[DATA].dtype


def shape_of(path: Path) -> tuple[int, ...]:
    """Return the shape of a file's data.

    Raises:
        LayoutError: see `opened`.
    """
    with opened(path) as file:
        return file[DATA].shape


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a file of a layout for reading.

    Raises:
        LayoutError: if it is missing, damaged or another file.
    """
    if not path.is_file():
        raise LayoutError(f"there is no file {path}")
    try:
        file: Any = h5py.File(path, "r")
    except OSError as error:
        raise LayoutError(f"{path} is damaged or no HDF5 file ({error})") from None
    with file:
        missing = [name for name in (DATA, FLAGS) if not isinstance(file.get(name), h5py.Dataset)]
        if missing:
            raise LayoutError(f"{path}: has no data set {' or '.join(missing)}")
        try:
            yield file
        except (OSError, KeyError) as error:
            raise LayoutError(f"{path} is damaged ({error})") from None


def flag_of(path: Path) -> tuple[str, str | None]:
    """Return the flag of a column and of which operator it is, if that is known.

    Raises:
        LayoutError: see `opened`.
    """
    with opened(path) as file:
        return file[FLAGS][0].decode(), file.attrs.get("of")


def read_column(path: Path, success: str | None = SUCCESS) -> np.ndarray:
    """Return the numbers of a column.

    Args:
        path: of the column.
        success: what its flag must be; None for anything.

    Raises:
        LayoutError: if it is missing, damaged, holds numbers that are not finite, or its flag is
            another.
    """
    with opened(path) as file:
        return checked(file, path, success)


def checked(file: Any, path: Path, success: str | None) -> np.ndarray:
    """Return the numbers of a column's open file, as `read_column` does."""
    flag = file[FLAGS][0].decode()
    if success is not None and flag != success:
        raise LayoutError(f"{path}: Subfile flag not equal {success}! It is {flag!r}")
    data = file[DATA][:]
    if not np.all(np.isfinite(data)):
        raise LayoutError(f"{path}: holds numbers that are not finite")
    return data


@contextlib.contextmanager
def claimed(folder: Path, numbers: Sequence[int]) -> Iterator[list[int]]:
    """Claim columns for this process; yield those that no other process holds.

    A claim ends with the block, or with the process however it ends. It is a lock on a byte of
    one file, which works on network file systems too.
    """
    if os.name != "posix":  # Windows has no such locks: two workers there must not share numbers
        yield list(numbers)
        return
    import fcntl

    with (folder / _LOCKS).open("a+b") as file:
        mine = []
        for number in numbers:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
            except OSError:
                continue
            mine.append(number)
        yield mine
