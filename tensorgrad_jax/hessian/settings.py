"""What the steps are told on their command lines, KEY=VALUE; the keys are the original's."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from tensorgrad_jax.hessian.layout import SUCCESS
from tensorgrad_jax.hessian.noise import KINDS
from tensorgrad_jax.projections.plain import shown

Settings = TypeVar("Settings")


class SettingError(ValueError):
    """A key is unknown, missing, or its value none that is allowed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Training:
    """What `gather`, `exhaustive` and `check` have in common.

    Attributes:
        NUM_HESSIAN_DATAPOINTS: size of the subsets that curvature is measured on.
        PROBLEM: mnist_mini, or the folder of a run of train.py.
        RANDOM_SEED: of start, order and noise; None draws one.
        OBS_DATASETS: folder of data sets; None for those that come with the package.
        TUNING_CONF: a YAML file `PROBLEM: {batch_size, num_epochs, SGD: {opt_hpars: {lr}}}`.
        OPTIMIZER: SGD.
        OUTPUT_DIR: where the folder of the run is made.
        OUTDIR_SUFFIX: ends its name.
        MAX_STEPS: of the training; None for all epochs.
    """

    NUM_HESSIAN_DATAPOINTS: int
    PROBLEM: str = "mnist_mini"
    RANDOM_SEED: int | None = None
    OBS_DATASETS: Path | None = None
    TUNING_CONF: Path | None = None
    OPTIMIZER: str = "SGD"
    OUTPUT_DIR: Path = Path("output")
    OUTDIR_SUFFIX: str | None = None
    MAX_STEPS: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gather(_Training):
    """`gather`: train and record parameters.

    Attributes:
        RECORD_STEPS: at which steps; None for the first and the last.
        STORE_GRADS: record the gradients of both subsets too.
        WITH_EVAL: evaluate both sets at every epoch.
    """

    RECORD_STEPS: list[int] | None = None
    STORE_GRADS: bool = False
    WITH_EVAL: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """`check`: can the Hessian of a problem be measured?

    Attributes:
        NUM_HESSIAN_DATAPOINTS: see `Gather`.
        PROBLEM: see `Gather`.
        RANDOM_SEED: see `Gather`.
        OBS_DATASETS: see `Gather`.
    """

    NUM_HESSIAN_DATAPOINTS: int
    PROBLEM: str = "mnist_mini"
    RANDOM_SEED: int | None = None
    OBS_DATASETS: Path | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Recorded:
    """Of the steps after `gather`.

    Attributes:
        PARAMS_PATH: recorded parameters, ...__params.h5.
        TRAINING_LOGPATH: the log of `gather`.
        STEP: of the training, one that was recorded.
        TEST_HESSIAN: measure on the subset of the test set, not of the training set.
        OBS_DATASETS: see `Gather`.
        MEASUREMENTS_DIR: folder of the sketch, as `create_hdf5_layout` made it.
        SUCCESS_FLAG: of a column that is measured.
        NOISE: kind of random vectors.
        CHUNK_SIZE: examples at once; None for all.
    """

    PARAMS_PATH: Path
    TRAINING_LOGPATH: Path
    STEP: int
    TEST_HESSIAN: bool = False
    OBS_DATASETS: Path | None = None
    MEASUREMENTS_DIR: Path
    SUCCESS_FLAG: str = SUCCESS
    NOISE: str = "srft"
    CHUNK_SIZE: int | None = None

    def __post_init__(self):
        if self.NOISE not in KINDS:
            raise SettingError(f"NOISE: must be one of {', '.join(KINDS)}, got {self.NOISE}")
        if not self.SUCCESS_FLAG:
            raise SettingError("SUCCESS_FLAG: must be a text, got nothing")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure(_Recorded):
    """`measure`: fill columns of the sketch.

    Attributes:
        MEASUREMENT_IDXS: which columns.
        NUM_INNER: number of inner columns of the layout.
        NUM_OUTER: number of outer ones.
        BLOCK_SIZE: columns at once.
    """

    MEASUREMENT_IDXS: list[int]
    NUM_INNER: int
    NUM_OUTER: int
    BLOCK_SIZE: int = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Solve(_Recorded):
    """`solve`: from the sketch to eigenpairs, their errors and the overlap.

    Attributes:
        INNER_VIRTUAL: inner_ALL.h5; None for that of MEASUREMENTS_DIR. Likewise the next three.
        OUTER_VIRTUAL: leftouter_ALL.h5.
        INNER_MONOLITHIC: inner_MERGED.h5.
        OUTER_MONOLITHIC: leftouter_MERGED.h5.
        WITH_A_POSTERIORI: estimate errors.
        NUM_A_POSTERIORI: by so many products.
        DELETE_MERGED_SUBFILES: delete the columns' files once they are merged.
        SAVE_VECTORS: write eigenvalues and eigenvectors to an HDF5 file.
    """

    INNER_VIRTUAL: Path | None = None
    OUTER_VIRTUAL: Path | None = None
    INNER_MONOLITHIC: Path | None = None
    OUTER_MONOLITHIC: Path | None = None
    WITH_A_POSTERIORI: bool = True
    NUM_A_POSTERIORI: int = 30
    DELETE_MERGED_SUBFILES: bool = False
    SAVE_VECTORS: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(_Recorded):
    """`run`: measure with several workers on this machine, then solve.

    Attributes:
        WORKERS: number of processes.
        NUM_INNER: see `Measure`.
        NUM_OUTER: see `Measure`.
        BLOCK_SIZE: see `Measure`.
        NUM_A_POSTERIORI: see `Solve`.
    """

    WORKERS: int = 2
    NUM_INNER: int
    NUM_OUTER: int
    BLOCK_SIZE: int = 16
    NUM_A_POSTERIORI: int = 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exhaustive(_Training):
    """`exhaustive`: the sketch beside the exact eigendecomposition, for small problems.

    Attributes:
        RECORD_STEPS: at which steps.
        NUM_OUTER: columns of the outer sketch.
        NUM_INNER: columns of the inner one.
        WITH_TEST_HESSIAN: on the subset of the test set.
        WITH_TRAIN_HESSIAN: on the subset of the training set.
        WITH_A_POSTERIORI: estimate errors.
        NUM_A_POSTERIORI: by so many products.
    """

    RECORD_STEPS: list[int]
    NUM_OUTER: int = 355
    NUM_INNER: int = 700
    WITH_TEST_HESSIAN: bool = True
    WITH_TRAIN_HESSIAN: bool = True
    WITH_A_POSTERIORI: bool = True
    NUM_A_POSTERIORI: int = 30

    def __post_init__(self):
        if not (self.WITH_TEST_HESSIAN or self.WITH_TRAIN_HESSIAN):
            raise SettingError(
                "WITH_TRAIN_HESSIAN: at least one of WITH_TEST_HESSIAN and it must be true"
            )


# Numbers are at least this; those that are not named, at least 1.
_LEAST = {"RANDOM_SEED": 0, "STEP": 0, "MAX_STEPS": 0, "RECORD_STEPS": 0, "MEASUREMENT_IDXS": 0}


def parse(kind: type[Settings], arguments: Sequence[str]) -> Settings:
    """Return settings from KEY=VALUE arguments.

    Args:
        kind: which.
        arguments: each KEY=VALUE; lists as JSON, [0,1,2].

    Raises:
        SettingError: naming the key, its value and what is allowed.
    """
    hints = get_type_hints(kind)
    given: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or key not in hints:
            raise SettingError(
                f"expected KEY=VALUE with a key of {', '.join(sorted(hints))}, got {argument}"
            )
        if key in given:
            raise SettingError(f"{key}: is given twice")
        given[key] = _value(key, hints[key], text)
    missing = [
        field.name
        for field in dataclasses.fields(kind)  # type: ignore[arg-type]
        if field.default is dataclasses.MISSING and field.name not in given
    ]
    if missing:
        raise SettingError(f"{missing[0]}: is mandatory, {missing[0]}=VALUE is missing")
    return kind(**given)


def _value(key: str, hint: Any, text: str) -> Any:
    options = get_args(hint) if type(None) in get_args(hint) else (hint,)
    if type(None) in options and text.lower() in ("none", "null", ""):
        return None
    kind = options[0]
    least = _LEAST.get(key, 1)
    if kind is bool:
        values = {"true": True, "1": True, "false": False, "0": False}
        if text.lower() in values:
            return values[text.lower()]
        expected = "true or false"
    elif kind is int:
        if text.strip().isdecimal() and least <= int(text) < 2**31:
            return int(text)
        expected = f"an integer from {least} to 2**31 - 1"
    elif kind == list[int]:
        expected = f"a list of integers from {least}, each once, as [{least},{least + 1}]"
        try:
            values = json.loads(text)
        except ValueError:
            values = None
        whole = isinstance(values, list) and all(
            isinstance(v, int) and not isinstance(v, bool) and least <= v < 2**31 for v in values
        )
        if whole and values and len(set(values)) == len(values):
            return values
    else:
        if text:
            return kind(text)
        expected = "a text"
    raise SettingError(f"{key}: must be {expected}, got {shown(text)}")
