"""The data of a run: training set, test sets, and the encoding fitted on the training set."""

from __future__ import annotations

from typing import Any, NamedTuple

from tensorgrad_jax.data import (
    DataError,
    FieldSource,
    UnitGaussianNormalizer,
    generate_burgers,
    generate_darcy,
    generate_navier_stokes,
    open_dataset,
)
from tensorgrad_jax.data.hdf5 import find_file
from tensorgrad_jax.data.writing import was_generated
from tensorgrad_jax.training.options import GENERATOR_OPTIONS, Config, DataConfig, check_modes
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

    What the training would find out later is found here, before anything of the run is written:
    that model, training set and test sets do not fit each other, and numbers that are not finite.

    Raises:
        ConfigError: if `fno.n_modes` has not one entry per grid axis of the data.
        DataError: if a file is missing, damaged, or does not hold what the options ask for.
    """
    data = config.data
    if data.generate and data.problem in _GENERATORS:
        _generate(data)
    training_file = (data.root, data.problem, "train", data.train_resolution)
    train = open_dataset(*training_file, data.n_train, dimension=data.dimension)
    check_modes(config.fno.n_modes, train.dimension, _description(train, data))
    validation = None
    if data.n_validation:
        source = open_dataset(
            *training_file, data.n_validation, start=data.n_train, dimension=data.dimension
        )
        validation = TestSet(data.train_resolution, source, data.test_batch_sizes[0])
    tests = []
    for resolution, n, batch_size in zip(
        data.test_resolutions, data.n_tests, data.test_batch_sizes, strict=True
    ):
        source = open_dataset(
            data.root, data.problem, "test", resolution, n, dimension=train.dimension
        )
        _check_channels(source, train)
        tests.append(TestSet(resolution, source, batch_size))
    encoding = Encoding(
        x=UnitGaussianNormalizer.fit(train, "x") if data.encode_input else None,
        y=UnitGaussianNormalizer.fit(train, "y") if data.encode_output else None,
    )
    # A normalizer has read the training set already.
    unread = [train] if encoding.x is encoding.y is None else []
    unread += [test.source for test in (validation, *tests) if test is not None]
    for source in unread:
        _read_once(source)
    channels = _channels(train)
    return DataSets(train, validation, tests, encoding, channels["x"], channels["y"])


def _description(train: FieldSource, data: DataConfig) -> str:
    """Return what tells the dimension of the data."""
    shapes = ", ".join(f"{name} {shape}" for name, shape in train.shapes.items())
    hint = "; where an axis holds channels, give data.dimension" if data.dimension is None else ""
    return f"the samples of {train.path} are {train.dimension}-dimensional ({shapes}){hint}"


def _channels(source: FieldSource) -> dict[str, int]:
    """Return the number of channels of x and y."""
    return {
        name: shape[0] if len(shape) > source.dimension else 1
        for name, shape in source.shapes.items()
    }


def _check_channels(source: FieldSource, train: FieldSource) -> None:
    expected = _channels(train)
    for name, channels in _channels(source).items():
        if channels != expected[name]:
            raise DataError(
                f"{source.path}: {name} has {channels} channels, expected {expected[name]} as in "
                f"{train.path}"
            )


def _read_once(source: FieldSource) -> None:
    """Read every sample of a set that is not in memory: the reader refuses what is damaged.

    Met at the end of an epoch, such a sample would cost the epoch.
    """
    if source.arrays is None:
        for i in range(len(source)):
            source[i]


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
