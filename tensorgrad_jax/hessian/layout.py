"""A sketch in many HDF5 files, one per column: workers need not know of each other.

    leftouter_0000000000.h5  (m,)    leftouter_ALL.h5  all of them as one virtual (m, outer)
    inner_0000000000.h5      (s,)    inner_ALL.h5      likewise (s, s)
    rightouter_...           (n,)    of operators that are not symmetric

What a column's file holds is in columns.py. Names, data sets, flags and compression are those of
skerch up to 0.11, whose workers and these can read each other's files. From 0.12 on it splits
matrices into blocks of rows, each its own file; such layouts are refused.

Files are opened one by one, so that their number may exceed what a process may hold open; through
the virtual file, columns beyond it would read as zeros without a word.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tensorgrad_jax.data.folders import check_space
from tensorgrad_jax.hessian.columns import ALL as ALL
from tensorgrad_jax.hessian.columns import DATA as DATA
from tensorgrad_jax.hessian.columns import FLAGS as FLAGS
from tensorgrad_jax.hessian.columns import INITIAL as INITIAL
from tensorgrad_jax.hessian.columns import INNER as INNER
from tensorgrad_jax.hessian.columns import LEFT as LEFT
from tensorgrad_jax.hessian.columns import MERGED as MERGED
from tensorgrad_jax.hessian.columns import PROCESSING as PROCESSING
from tensorgrad_jax.hessian.columns import RIGHT as RIGHT
from tensorgrad_jax.hessian.columns import SUCCESS as SUCCESS
from tensorgrad_jax.hessian.columns import LayoutError as LayoutError
from tensorgrad_jax.hessian.columns import checked
from tensorgrad_jax.hessian.columns import claimed as claimed
from tensorgrad_jax.hessian.columns import flag_of as flag_of
from tensorgrad_jax.hessian.columns import make_column as make_column
from tensorgrad_jax.hessian.columns import opened as opened
from tensorgrad_jax.hessian.columns import path_of as path_of
from tensorgrad_jax.hessian.columns import read_column as read_column
from tensorgrad_jax.hessian.columns import shape_of as shape_of
from tensorgrad_jax.hessian.columns import write_column as write_column

DTYPES = ("float32", "float64", "complex64", "complex128")


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
                    data[:, i] = checked(column, path, success)
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
