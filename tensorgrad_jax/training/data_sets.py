"""The data of a run: training set, test sets, and the encoding fitted on the training set."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from tensorgrad_jax.data import (
    DataError,
    UnitGaussianNormalizer,
    generate_burgers,
    generate_darcy,
    generate_navier_stokes,
)
from tensorgrad_jax.data.hdf5 import find_file
from tensorgrad_jax.data.writing import was_generated
from tensorgrad_jax.training.step import Encoding

_GENERATORS = {
    "nsforcing": generate_navier_stokes,
    "darcy": generate_darcy,
    "burgers": generate_burgers,
}


class TestSet(NamedTuple):
    """One test set: its grid, its samples, and how many of them are evaluated at a time."""

    resolution: int
    source: Any
    batch_size: int


class DataSets(NamedTuple):
    """What a run trains and is tested on; `data_sets` makes one.

    Attributes:
        train: random-access source of {"x", "y"}, channels last.
        validation: samples of the training file that are not trained on; None without any.
        tests: the test sets, in the order in which they are reported.
        encoding: normalizers fitted on the training set; None where there is to be none.
        in_channels: channels of x.
        out_channels: channels of y.
    """

    train: Any
    validation: TestSet | None
    tests: Sequence[TestSet]
    encoding: Encoding
    in_channels: int
    out_channels: int


def data_sets(
    train: Any,
    tests: Sequence[TestSet] = (),
    validation: TestSet | None = None,
    *,
    encode_input: bool = True,
    encode_output: bool = True,
) -> DataSets:
    """Fit the encoding, and read every sample once.

    What the training would find out later is found here: that training and test sets do not fit
    each other, and numbers that are not finite.

    Args:
        train: a source of samples: `tensorgrad_jax.data.open_dataset` of a file, or any sequence
            of {"x": (*grid, in_channels), "y": (*grid, out_channels)}, float32.
        tests: the test sets.
        validation: one more, for choosing options by.
        encode_input: whether the model sees inputs of mean 0 and deviation 1.
        encode_output: whether the model predicts targets of mean 0 and deviation 1.

    Raises:
        DataError: if a test set has other channels, or a file is damaged.
    """
    channels = _channels(train)
    for test in tests:
        for name, n in _channels(test.source).items():
            if n != channels[name]:
                raise DataError(
                    f"{_name(test.source)}: {name} has {n} channels, expected {channels[name]} as "
                    f"in {_name(train)}"
                )
    encoding = Encoding(
        x=UnitGaussianNormalizer.fit(train, "x") if encode_input else None,
        y=UnitGaussianNormalizer.fit(train, "y") if encode_output else None,
    )
    # A normalizer has read the training set already.
    unread = [train] if encoding.x is encoding.y is None else []
    unread += [test.source for test in (validation, *tests) if test is not None]
    for source in unread:
        _read_once(source)
    return DataSets(train, validation, tests, encoding, channels["x"], channels["y"])


# Of a set that is not in memory the fingerprint is that of so many samples.
_FINGERPRINT_SAMPLES = 64


def fingerprint(source: Any) -> str:
    """Return a hash that tells sets of samples apart: SHA-256 of their number and their values.

    Of a file that is read sample by sample, 64 evenly spaced samples count.
    """
    n = len(source)
    in_memory = getattr(source, "arrays", ()) is not None
    used = n if in_memory else min(n, _FINGERPRINT_SAMPLES)
    found = hashlib.sha256(str(n).encode())
    for i in (j * n // used for j in range(used)):
        for name, values in sorted(source[i].items()):
            found.update(f"{name} {values.shape} {values.dtype}".encode())
            found.update(values.tobytes())
    return found.hexdigest()


def _channels(source: Any) -> dict[str, int]:
    """Return the number of channels of x and y."""
    sample = source[0]
    return {name: sample[name].shape[-1] for name in ("x", "y")}


def _name(source: Any) -> Any:
    return getattr(source, "path", "the data")


def _read_once(source: Any) -> None:
    """Read every sample of a set that is not in memory: the reader refuses what is damaged.

    Met at the end of an epoch, such a sample would cost the epoch.
    """
    if getattr(source, "arrays", ()) is None:
        for i in range(len(source)):
            source[i]


def generate_missing(
    root: str,
    problem: str,
    *,
    train_resolution: int,
    test_resolutions: Sequence[int],
    **options: Any,
) -> None:
    """Make the files at the finest resolution in use; the others are every few points of it.

    Where files made elsewhere are there, nothing is made: the two would be of different kinds.

    Args:
        root: folder of the files.
        problem: nsforcing, darcy or burgers.
        train_resolution: grid points per axis of the training set.
        test_resolutions: those of the test sets.
        options: what the problem's generator takes beside the resolution: `n_train`, `n_test`,
            `seed` and its own.
    """
    wanted = [("train", train_resolution), *(("test", r) for r in test_resolutions)]
    found = [find_file(root, problem, split, resolution) for split, resolution in wanted]
    elsewhere = [path for path in found if path is not None and not was_generated(path)]
    if elsewhere:
        print(
            f"{elsewhere[0]} was made elsewhere: the files in {root} are used as they are, "
            "nothing is generated"
        )
        return
    finest = max(train_resolution, *test_resolutions)
    _GENERATORS[problem](root, resolution=finest, **options)
