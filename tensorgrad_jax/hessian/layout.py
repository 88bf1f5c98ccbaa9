"""A sketch in many HDF5 files, one per column: workers need not know of each other.

    leftouter_0000000000.h5  (m,)    leftouter_ALL.h5  all of them as one virtual (m, outer)
    inner_0000000000.h5      (s,)    inner_ALL.h5      likewise (s, s)
    rightouter_...           (n,)    of operators that are not symmetric

Every file holds the data sets "data" and "flags"; a flag is "initialized", "processing
measurement...", or what a worker was told success is called ("measured"). Names, data sets, flags
and compression are those of skerch up to 0.11, whose workers and these can read each other's files.
From 0.12 on it splits matrices into blocks of rows, each its own file; such layouts are refused.
What is added are attributes, which it does not look at: of which operator a column is.

A column is written to a file beside and renamed: who is killed leaves the old column or the new
one. Files are opened one by one, so that their number may exceed what a process may hold open;
through the virtual file, columns beyond it would read as zeros without a word.
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
DTYPES = ("float32", "float64", "complex64", "complex128")
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


def create(
    folder: Path, shape: tuple[int, int], dtype: str, outer: int, inner: int, *, symmetric: bool
) -> dict[str, Path]:
    """Make the files of a sketch of an operator.

    Args:
        folder: exists and is empty.
        shape: (m, n) of the operator.
        dtype: of the measurements, one of `DTYPES`.
        outer: number of outer columns.
        inner: number of inner ones, at least `outer`.
        symmetric: no right outer columns are needed.

    Returns:
        The virtual file of every kind.

    Raises:
        LayoutError: if the folder is missing or not empty, or the numbers do not fit.
        OSError: if the disk has no space for them.
    """
    check_numbers(shape, dtype, outer, inner, symmetric=symmetric)
    if not folder.is_dir():
        raise LayoutError(f"--hdf5dir: there is no folder {folder}")
    if any(folder.iterdir()):
        raise LayoutError(f"--hdf5dir: Directory must be empty! {folder} is not")
    m, n = shape
    kinds = {LEFT: (m, outer), INNER: (inner, inner)}
    if not symmetric:
        kinds = {LEFT: (n, outer), RIGHT: (m, outer), INNER: (inner, inner)}
    size = np.dtype(dtype).itemsize
    # Empty columns take next to nothing; what they are to hold must have space all the same.
    check_space(folder, sum((rows * size + 2**14) * count for rows, count in kinds.values()))
    found = {}
    for kind, (rows, count) in kinds.items():
        for i in range(count):
            make_column(path_of(folder, kind, i), rows, dtype)
        found[kind] = _virtual(folder, kind, rows, count, dtype)
    return found


def check_numbers(
    shape: tuple[int, int], dtype: str, outer: int, inner: int, *, symmetric: bool
) -> None:
    """Raise LayoutError unless these numbers make a sketch."""
    m, n = shape
    if dtype not in DTYPES:
        raise LayoutError(f"--dtype: must be one of {', '.join(DTYPES)}, got {dtype}")
    if symmetric and m != n:
        raise LayoutError(f"--shape: Non-square matrix can't be symmetric! Got {m},{n} with --sym")
    for name, value in (("--outer", outer), ("--inner", inner)):
        if not 1 <= value <= min(m, n):
            raise LayoutError(f"{name}: must be from 1 to {min(m, n)}, got {value}")
    if outer > inner:
        raise LayoutError(f"--outer: must not exceed --inner {inner}, got {outer}")


def _virtual(folder: Path, kind: str, rows: int, count: int, dtype: str) -> Path:
    data = h5py.VirtualLayout(shape=(rows, count), dtype=dtype)
    flags = h5py.VirtualLayout(shape=(count,), dtype=h5py.string_dtype())
    for i in range(count):
        name = path_of(folder, kind, i).name  # relative: the folder may move
        data[..., i] = h5py.VirtualSource(name, DATA, shape=(rows,))
        flags[i] = h5py.VirtualSource(name, FLAGS, shape=(1,))
    path = path_of(folder, kind, ALL)
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset(DATA, data)
        file.create_virtual_dataset(FLAGS, flags)
    return path


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
        return _read(file, path, success)


def _read(file: Any, path: Path, success: str | None) -> np.ndarray:
    flag = file[FLAGS][0].decode()
    if success is not None and flag != success:
        raise LayoutError(f"{path}: Subfile flag not equal {success}! It is {flag!r}")
    data = file[DATA][:]
    if not np.all(np.isfinite(data)):
        raise LayoutError(f"{path}: holds numbers that are not finite")
    return data


def columns_of(virtual: Path) -> list[Path]:
    """Return the files of a virtual data set, in the order of its columns.

    Raises:
        LayoutError: if it is none or not split by columns, or a file is missing.
    """
    with opened(virtual) as file:
        if not file[DATA].is_virtual:
            raise LayoutError(f"{virtual}: is not a virtual data set, as ..._ALL.h5 files are")
        check_columns(virtual, file[DATA])
        first = lambda source: source.vspace.get_select_bounds()[0]
        sources = sorted(file[DATA].virtual_sources(), key=lambda source: first(source)[-1])
        paths = [virtual.parent / source.file_name for source in sources]
    for path in paths:
        if not path.is_file():
            raise LayoutError(f"{virtual}: Subpath doesn't exist! {path}")
    return paths


def check_columns(path: Path, data: Any) -> None:
    """Raise LayoutError if this data set is a virtual one of anything but single columns."""
    if not data.is_virtual:
        return
    rows = data.shape[0]
    for source in data.virtual_sources():
        (top, *left), (bottom, *right) = source.vspace.get_select_bounds()
        if (top, bottom) != (0, rows - 1) or len(left) != 1 or left != right:
            raise LayoutError(
                f"{path}: {source.file_name} is not one column; layouts split by columns are read, "
                "as skerch up to 0.11 writes them, those split by rows of 0.12 and later are not"
            )


def merge(
    virtual: Path,
    out: Path,
    success: str | None = None,
    *,
    delete_subfiles: bool = False,
    of: str | None = None,
) -> Path:
    """Write all columns of a virtual data set into one file, one after the other.

    Args:
        virtual: ..._ALL.h5.
        out: is replaced when it is complete; may be the virtual file.
        success: what all flags must be; None for anything.
        delete_subfiles: delete the columns' files afterwards.
        of: if given, of which operator all columns must be that say so.

    Raises:
        LayoutError: if a column is missing, damaged, or its flag another: it is named.
    """
    paths = columns_of(virtual)
    with opened(virtual) as file:
        shape, dtype = file[DATA].shape, file[DATA].dtype
    check_space(out.parent, int(np.prod(shape)) * dtype.itemsize)
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with h5py.File(beside, "w") as file:
            data = file.create_dataset(
                DATA, shape, dtype, maxshape=shape, chunks=(shape[0], 1), compression="lzf"
            )
            flags = file.create_dataset(
                FLAGS,
                (len(paths),),
                h5py.string_dtype(),
                maxshape=(len(paths),),
                chunks=(1,),
                compression="lzf",
            )
            for i, path in enumerate(paths):
                with opened(path) as column:
                    owner = column.attrs.get("of")
                    if of is not None and owner is not None and owner != of:
                        raise LayoutError(f"{path}: is a measurement of {owner}, expected {of}")
                    data[:, i] = _read(column, path, success)
                    flags[i] = column[FLAGS][0]
        os.replace(beside, out)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    if delete_subfiles:
        for path in paths:
            path.unlink()
    return out


def read_merged(path: Path, success: str | None = SUCCESS) -> np.ndarray:
    """Return the matrix of a merged file.

    Raises:
        LayoutError: if it is missing or damaged, or a flag is not `success`.
    """
    with opened(path) as file:
        if file[DATA].is_virtual:
            raise LayoutError(f"{path}: is a virtual data set, merge it first")
        flags = [flag.decode() for flag in file[FLAGS][:]]
        wrong = [i for i, flag in enumerate(flags) if success is not None and flag != success]
        if wrong:
            raise LayoutError(
                f"{path}: flag of column {wrong[0]} is {flags[wrong[0]]!r}, not {success!r}"
            )
        return file[DATA][:]


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
