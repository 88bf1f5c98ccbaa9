"""The data of a run: training set, test sets, and the encoding fitted on the training set."""

from __future__ import annotations

from typing import Any, NamedTuple

from tensorgrad_jax.data import UnitGaussianNormalizer, generate_navier_stokes, open_dataset
from tensorgrad_jax.training.options import Config
from tensorgrad_jax.training.step import Encoding


class TestSet(NamedTuple):
    """One test set: its grid, its samples, and how many of them are evaluated at a time."""

    resolution: int
    source: Any
    batch_size: int


class DataSets(NamedTuple):
    """What a run trains and is tested on.

    Attributes:
        train: random-access source of {"x", "y"}, channels last.
        tests: the test sets, in the order of `data.test_resolutions`.
        encoding: normalizers fitted on the training set; None where the options say so.
        in_channels: channels of x.
        out_channels: channels of y.
    """

    train: Any
    tests: list[TestSet]
    encoding: Encoding
    in_channels: int
    out_channels: int


def load_data_sets(config: Config) -> DataSets:
    """Open the files that the `data` options name; make the Navier-Stokes ones that are missing.

    Raises:
        DataError: if a file is missing, damaged, or does not hold what the options ask for.
    """
    data = config.data
    if data.problem == "nsforcing" and data.generate:
        generate_navier_stokes(
            data.root,
            n_train=data.n_train,
            n_test=max(data.n_tests),
            resolution=max(data.train_resolution, *data.test_resolutions),
            viscosity=data.viscosity,
            t_end=data.t_end,
            dt=data.dt,
            seed=data.generator_seed,
        )
    train = open_dataset(data.root, data.problem, "train", data.train_resolution, data.n_train)
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
    return DataSets(train, tests, encoding, sample["x"].shape[-1], sample["y"].shape[-1])
