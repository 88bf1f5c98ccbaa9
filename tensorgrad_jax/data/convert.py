"""Turning neuraloperator's .pt data files into HDF5 files."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import h5py

from tensorgrad_jax.data.folders import check_space, made
from tensorgrad_jax.data.samples import FIELDS, DataError, as_float32

_CHUNK_BYTES = 2**26


def convert(source: str | Path, target: str | Path) -> Path:
    """Write the data sets x and y of a file that torch.save made into an HDF5 file.

    The .pt file holds a dictionary with the tensors x and y, of shape (N, *grid) or (N, C, *grid)
    with the same N and the same grid, real: floating-point numbers, integers, or truth values as
    the permeabilities of neuraloperator's Darcy sets. They are written as they are in float32,
    chunked by sample, a few at a time. The HDF5 file appears when it is complete.

    Args:
        source: the .pt file.
        target: the HDF5 file; must not exist. `open_dataset` looks for the name
            `<problem>_{train,test}_<resolution>.hdf5`.

    Returns:
        The path of the HDF5 file.

    Raises:
        DataError: if PyTorch is not installed, the source is missing, no such file or holds other
            things, numbers that are not finite in float32 among them, or the target exists or
            cannot be written.
    """
    source, target = Path(source), Path(target)
    if target.exists():
        raise DataError(f"{target}: exists already; remove it or choose another name")
    tensors = _load(source)
    _check(source, tensors)
    partial = target.with_name(target.name + ".partial")
    try:
        with made(target.parent):
            check_space(target.parent, 4 * sum(tensors[name].numel() for name in FIELDS))
            try:
                with h5py.File(partial, "w") as file:
                    for name in FIELDS:
                        _copy(source, tensors[name], file, name)
                partial.replace(target)
            finally:
                partial.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{target}: cannot be written ({error.strerror or error})") from error
    return target


def _load(source: Path) -> Any:
    if not source.is_file():
        raise DataError(f"{source}: no such file")
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise DataError(f"{source}: reading it needs PyTorch: pip install torch") from error
    try:
        # Not read into memory at once, where the format allows that (torch.save's since 1.6).
        with open(source, "rb") as file:
            is_archive = file.read(2) == b"PK"
        # weights_only: no code in the file is executed.
        return torch.load(source, map_location="cpu", weights_only=True, mmap=is_archive)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{source}: not a data file that torch.save made ({reason})") from error


def _check(source: Path, tensors: Any) -> None:
    found = sorted(map(str, tensors)) if isinstance(tensors, dict) else type(tensors).__name__
    for name in FIELDS:
        if not isinstance(tensors, dict) or not hasattr(tensors.get(name), "detach"):
            raise DataError(
                f"{source}: expected a dictionary with the tensors x and y, found {found}"
            )
        field = tensors[name]
        if field.ndim < 2 or field.numel() == 0 or field.is_complex():
            raise DataError(
                f"{source}: {name} has shape {tuple(field.shape)} and type {field.dtype}, expected "
                "real numbers of shape (N, *grid) or (N, C, *grid)"
            )
    x, y = (tuple(tensors[name].shape) for name in FIELDS)
    # (N, *grid) and (N, C, *grid) may stand beside each other: d grid axes at the end are shared.
    same_grid = any(
        {len(x), len(y)} <= {d + 1, d + 2} and x[-d:] == y[-d:] for d in range(1, len(x))
    )
    if x[0] != y[0] or not same_grid:
        raise DataError(f"{source}: x has shape {x}, y has {y}: not the same samples and grids")


def _copy(source: Path, tensor: Any, file: h5py.File, name: str) -> None:
    n, *shape = tensor.shape
    data = file.create_dataset(name, (n, *shape), "float32", chunks=(1, *shape))
    step = max(1, _CHUNK_BYTES // (4 * tensor[0].numel()))
    for start in range(0, n, step):
        # By PyTorch: NumPy has no bfloat16.
        values = tensor[start : start + step].detach().float().numpy()
        data[start : start + step] = as_float32(source, name, values, start)
