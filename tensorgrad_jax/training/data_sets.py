"""The data of a run: training set, test sets, and the encoding fitted on the training set."""

from __future__ import annotations

from typing import Any, NamedTuple

from tensorgrad_jax.data import (
    UnitGaussianNormalizer,
    generate_burgers,
    generate_darcy,
    generate_navier_stokes,
    open_dataset,
)
from tensorgrad_jax.data.hdf5 import find_file
from tensorgrad_jax.data.writing import was_generated
from tensorgrad_jax.training.options import GENERATOR_OPTIONS, Config, DataConfig
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
    """What a run trains and is tested on.

    Attributes:
        train: random-access source of {"x", "y"}, channels last.
        validation: samples of the training file that are not trained on; None without any.
        tests: the test sets, in the order of `data.test_resolutions`.
        encoding: normalizers fitted on the training set; None where the options say so.
        in_channels: channels of x.
        out_channels: channels of y.
    """

    train: Any
    validation: TestSet | None
    tests: list[TestSet]
    encoding: Encoding
    in_channels: int
    out_channels: int


def load_data_sets(config: Config) -> DataSets:
    """Open the files that the `data` options name; make what is missing and can be generated.

    Raises:
        DataError: if a file is missing, damaged, or does not hold what the options ask for.
    """
    data = config.data
    if data.generate and data.problem in _GENERATORS:
        _generate(data)
    training_file = (data.root, data.problem, "train", data.train_resolution)
    train = open_dataset(*training_file, data.n_train)
    validation = None
    if data.n_validation:
        source = open_dataset(*training_file, data.n_validation, start=data.n_train)
        validation = TestSet(data.train_resolution, source, data.test_batch_sizes[0])
    tests = [
        TestSet(resolution, open_dataset(data.root, data.problem, "test", resolution, n), batch)
        for resolution, n, batch in zip(
            data.test_resolutions, data.n_tests, data.test_batch_sizes, strict=True
        )
    ]
    sample = train[0]
    encoding = Encoding(
        x=UnitGaussianNormalizer.fit(train, "x") if data.encode_input else None,
        y=UnitGaussianNormalizer.fit(train, "y") if data.encode_output else None,
    )
    return DataSets(
        train, validation, tests, encoding, sample["x"].shape[-1], sample["y"].shape[-1]
    )


def _generate(data: DataConfig) -> None:
    """Make the files at the finest resolution in use; the others are every few points of it.

    Where files made elsewhere are there, nothing is made: the two would be of different kinds.
    """
    wanted = [("train", data.train_resolution), *(("test", r) for r in data.test_resolutions)]
    found = [find_file(data.root, data.problem, split, resolution) for split, resolution in wanted]
    elsewhere = [path for path in found if path is not None and not was_generated(path)]
    if elsewhere:
        print(
            f"{elsewhere[0]} was made elsewhere: the files in {data.root} are used as they are, "
            "nothing is generated"
        )
        return
    _GENERATORS[data.problem](
        data.root,
        n_train=data.n_train + data.n_validation,
        n_test=max(data.n_tests),
        resolution=max(data.train_resolution, *data.test_resolutions),
        seed=data.generator_seed,
        **{name: getattr(data, name) for name in GENERATOR_OPTIONS[data.problem]},
    )
