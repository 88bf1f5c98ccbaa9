"""Writing data sets so that a process that is killed loses nothing but its last chunk."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tensorgrad_jax.data.folders import check_space, locked, made
from tensorgrad_jax.data.hdf5 import field_of, open_file, sample_count
from tensorgrad_jax.data.samples import FIELDS, DataError, as_float32


def write_resumably(
    path: Path,
    n_samples: int,
    sample_shape: tuple[int, ...],
    options: Mapping[str, Any],
    make: Callable[[range], tuple[np.ndarray, np.ndarray]],
    chunk: int,
    progress: Callable[[int], Any],
) -> bool:
    """Write `n_samples` samples in chunks; a process that is killed continues where it was.

    The file is `<path>.partial` until it is complete. One process at a time writes into a folder;
    another one waits, then finds the file complete.

    Args:
        path: the file to write.
        n_samples: number of samples.
        sample_shape: shape of one sample of x and of y.
        options: what the samples depend on; kept as attributes of the file. A file that is there
            already must have been made with the same ones.
        make: function from a range of sample numbers to the arrays x and y.
        chunk: samples to make at a time.
        progress: called with the number of samples that are done.

    Returns:
        False if the complete file was there already.

    Raises:
        DataError: if a file, complete or not, is there that was made with other options or for
            another number of samples than fits, the folder cannot be written, or a sample that was
            made is not finite in float32.
    """
    say = f"waiting for another process that writes into {path.parent}"
    with contextlib.ExitStack() as folder:
        try:
            folder.enter_context(made(path.parent))
        except OSError as error:
            raise DataError(
                f"{path.parent}: the folder cannot be made ({error.strerror})"
            ) from error
        # Without it, two runs that start together would take each other's file for damaged.
        folder.enter_context(locked(path.parent, wait=lambda: print(say, file=sys.stderr)))
        if path.exists():
            _check_complete(path, n_samples, options)
            return False
        partial = path.with_name(path.name + ".partial")
        try:
            _discard_if_worthless(partial, n_samples, options)
            check_space(path.parent, 0)
            try:
                with h5py.File(partial, "a") as file:
                    _fill(path, file, n_samples, sample_shape, options, make, chunk, progress)
            except BaseException:
                _discard_if_empty(partial)
                raise
        except OSError as error:
            raise DataError(f"{partial}: cannot be written ({error.strerror or error})") from error
        partial.replace(path)
    return True


def was_generated(path: Path) -> bool:
    """Return whether a file was written by `write_resumably`, and so says what it was made with."""
    with open_file(path) as file:
        return "done" in file.attrs


def _fill(path, file, n_samples, sample_shape, options, make, chunk, progress) -> None:
    if "done" not in file.attrs:
        for name in FIELDS:
            file.require_dataset(
                name, (n_samples, *sample_shape), np.float32, chunks=(1, *sample_shape)
            )
        file.attrs.update(options)
        file.attrs["done"] = 0
    done = _done(path, file, n_samples)
    progress(done)
    while done < n_samples:
        numbers = range(done, min(done + chunk, n_samples))
        check_space(path.parent, 8 * len(numbers) * math.prod(sample_shape))
        for name, values in zip(FIELDS, make(numbers), strict=True):
            file[name][numbers.start : numbers.stop] = as_float32(
                path, name, np.asarray(values), numbers.start
            )
        # The samples first: the count must never claim one that is not in the file.
        file.flush()
        done = numbers.stop
        file.attrs["done"] = done
        file.flush()
        progress(done)


def _done(path: Path, file: h5py.File, n_samples: int | None) -> int:
    """Return the number of samples that are in the file."""
    done = np.asarray(file.attrs["done"])
    counts = done.shape == () and done.dtype.kind in "iu"
    if counts and done == 0:
        return 0
    most = sample_count(path, file) if n_samples is None else n_samples
    if not counts or not 0 < done <= most:
        raise DataError(
            f"{path}: damaged, it claims to hold {done} of {most} samples; remove the file"
        )
    return int(done)


def _check_complete(path: Path, n_samples: int, options: Mapping[str, Any]) -> None:
    with open_file(path) as file:
        present = sample_count(path, file)
        _check_options(path, file, options)
    if present < n_samples:
        raise DataError(
            f"{path}: has {present} samples, {n_samples} are wanted; remove the file or "
            "choose another folder"
        )


def _discard_if_worthless(partial: Path, n_samples: int, options: Mapping[str, Any]) -> None:
    """Remove an unfinished file that holds no sample; raise if it holds those of another set."""
    if not partial.exists():
        return
    try:
        with h5py.File(partial, "r") as file:
            if "done" in file.attrs and _done(partial, file, None):
                _check_options(partial, file, options)
                planned = sample_count(partial, file)
                if planned != n_samples:
                    raise DataError(
                        f"{partial}: begun for {planned} samples, not {n_samples}; finish it with "
                        "that number, remove the file or choose another folder"
                    )
                return
    except OSError:
        pass  # killed while HDF5 was writing its own tables: nothing in it can be read
    partial.unlink()


def _discard_if_empty(partial: Path) -> None:
    """Remove an unfinished file that holds no sample: what failed left nothing behind."""
    with contextlib.suppress(OSError, DataError):  # not there, or not readable
        with h5py.File(partial, "r") as file:
            empty = "done" not in file.attrs or _done(partial, file, None) == 0
        if empty:
            partial.unlink()


def _check_options(path: Path, file: h5py.File, options: Mapping[str, Any]) -> None:
    # Files of before there was such an option were solved on the grid they hold.
    assumed = {"solver_resolution": field_of(file, "x").shape[-1]}
    for name, value in options.items():
        found = file.attrs.get(name, assumed.get(name) if "done" in file.attrs else None)
        if found is None or found != value:
            raise DataError(
                f"{path}: made with {name}={'unknown' if found is None else found}, not {value}; "
                "remove the file or choose another folder"
            )
