"""Which training samples does a prediction of a trained operator rest on?

The loss of a test sample is attributed to the training samples by TRAK (`tensorgrad_jax.trak`): a
sample has a positive score where training without it would make that loss larger.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from tensorgrad_jax import trak
from tensorgrad_jax.training.attribution_figure import plot_attribution
from tensorgrad_jax.training.build import build_data, build_training
from tensorgrad_jax.training.checkpoints import CheckpointError, Checkpoints
from tensorgrad_jax.training.config import parse
from tensorgrad_jax.training.data_sets import DataSets, TestSet
from tensorgrad_jax.training.losses import LOSSES
from tensorgrad_jax.training.options import Config, ConfigError
from tensorgrad_jax.training.step import predict


@dataclasses.dataclass(frozen=True)
class AttributionOptions:
    """How scores are computed.

    Attributes:
        proj_dim: number of features of a gradient.
        proj_type: the kind of random matrix, a `trak.ProjectionType` or "kron".
        seed: of the random matrices.
        damping: what is added to the diagonal of F^T F, as a part of the mean of its positive
            eigenvalues. Small values trust the linearised model more.
        chunk_size: samples per backward pass.
        shown: how many helpful and how many harmful samples are named and drawn.
    """

    proj_dim: int = 1024
    proj_type: str = "rademacher"
    seed: int = 0
    damping: float = 0.1
    chunk_size: int = 32
    shown: int = 5

    def projector(self, n_parameters: int) -> trak.AbstractProjector:
        """Return the projector."""
        if self.proj_type == "kron":
            return trak.KroneckerProjector(n_parameters, self.proj_dim, self.seed)
        return trak.BasicProjector(n_parameters, self.proj_dim, self.seed, self.proj_type)


class TrainedRun(NamedTuple):
    """A run as its newest checkpoint left it.

    Attributes:
        folder: of the run.
        config: its options.
        data: its data sets.
        training: with the trained parameters in its state.
        step: of the checkpoint.
    """

    folder: Path
    config: Config
    data: DataSets
    training: Any
    step: int


def load_run(folder: Path, data_root: str | None = None) -> TrainedRun:
    """Return a run with the parameters of its newest checkpoint.

    Args:
        folder: of the run, with config.yaml and checkpoints.
        data_root: where its data lie; None: where the run found them.

    Raises:
        ConfigError: if the folder holds no run, or no checkpoint that fits it.
        DataError: if the data are missing or damaged; nothing is generated.
    """
    saved = folder / "config.yaml"
    if not saved.is_file() or not (folder / "checkpoints").is_dir():
        raise ConfigError(
            f"--run: expected the folder of a run with config.yaml and checkpoints, got {folder}"
        )
    config = parse(["--config_file", str(saved)])
    update: dict[str, Any] = {"generate": False}
    if data_root is not None:
        update["root"] = data_root
    config = config.model_copy(update={"data": config.data.model_copy(update=update)})
    data = build_data(config)
    training = build_training(config, data)
    checkpoints = Checkpoints(folder / "checkpoints")
    try:
        record = training.restore(checkpoints)
        training.position = record.position
    except CheckpointError as error:
        raise ConfigError(f"--run {folder}: {error}") from error
    finally:
        checkpoints.close()
    nnx.update(training.model, training.params)
    return TrainedRun(folder, config, data, training, training.position.step)


def sample_loss_of(run: TrainedRun) -> trak.ModelOutput:
    """Return the training loss of a sample, {"x", "y"}, as a function of the parameters."""
    graphdef, _ = nnx.split(run.training.model, nnx.Param)
    loss, encoding = LOSSES[run.config.opt.training_loss], run.data.encoding

    def of_sample(params, example):
        prediction = predict(graphdef, params, example["x"][None], encoding)
        return loss(prediction, example["y"][None])

    return trak.sample_loss(of_sample)


class _Field:
    """One field of all samples of a source, read where it is asked for."""

    def __init__(self, source, name: str):
        self.source, self.name = source, name
        self.shape = (len(source), *source[0][name].shape)

    def __getitem__(self, block: slice) -> np.ndarray:
        return np.stack(
            [self.source[i][self.name] for i in range(*block.indices(len(self.source)))]
        )


def _fields(source: Any) -> dict[str, _Field]:
    return {name: _Field(source, name) for name in ("x", "y")}


def test_set_of(run: TrainedRun, resolution: int | None) -> TestSet:
    """Return the test set of a resolution, by default the training set's, or else the first.

    Raises:
        ConfigError: if there is none.
    """
    tests = {test.resolution: test for test in run.data.tests}
    if resolution is None:
        trained = run.config.data.train_resolution
        resolution = trained if trained in tests else next(iter(tests), trained)
    if resolution not in tests:
        raise ConfigError(f"--resolution: must be one of {list(tests)}, got {resolution}")
    return tests[resolution]


def attribute(
    runs: Sequence[TrainedRun],
    source: Any,
    samples: Sequence[int],
    store: Path,
    options: AttributionOptions,
    name: str = "test",
) -> np.ndarray:
    """Return the scores of all training samples for some samples, (n_train, len(samples)).

    Args:
        runs: trained on the same data; scores are averaged over them.
        source: the samples are of.
        samples: their numbers.
        store: the HDF5 file of features; a stopped call continues with those that are there.
        options: how.
        name: of the samples in the store.
    """
    chosen = {key: np.stack([source[i][key] for i in samples]) for key in ("x", "y")}
    first = runs[0].training.params
    projector = options.projector(sum(x.size for x in jax.tree.leaves(first)))
    targets = "-".join([name, *map(str, samples)])
    attributor = None
    for model_id, run in enumerate(runs):
        attributor = trak.Attributor(
            sample_loss_of(run), projector, store, block_size=256, chunk_size=options.chunk_size
        )
        params = run.training.params
        attributor.featurize(params, model_id, _fields(run.data.train), "train")
        attributor.featurize(params, model_id, chosen, targets)
    assert attributor is not None
    attributor.lambda_reg = options.damping * _mean_eigenvalue(attributor, len(runs))
    return attributor.scores("train", targets)


def _mean_eigenvalue(attributor: trak.Attributor, n_models: int) -> float:
    """Return the mean of the positive eigenvalues of F^T F, at most as many as samples."""
    total = 0.0
    for model_id in range(n_models):
        n, k = attributor.store.size("train", model_id)
        for begin in range(0, n, 4096):
            rows = slice(begin, min(n, begin + 4096))
            features = attributor.store.read("train", model_id, rows)[0]
            total += float(np.sum(features.astype(np.float64) ** 2)) / min(n, k)
    return total / n_models


def write_attribution(
    runs: Sequence[TrainedRun],
    resolution: int | None,
    samples: Sequence[int],
    folder: Path,
    options: AttributionOptions,
) -> list[str]:
    """Write scores and pictures of some test samples; return the names of the files.

    scores.npz          scores (n_train, samples), test_samples, resolution
    attribution.jsonl   a line per test sample: its error, the most helpful and harmful samples
    attribution_N.png   test sample N beside these

    Args:
        runs: trained on the same data.
        resolution: of the test set; None: that of the training set.
        samples: numbers of test samples.
        folder: is made where it is not there.
        options: how.

    Raises:
        ConfigError: if there is no such test set or sample, or the runs are of different data.
    """
    run, test = runs[0], test_set_of(runs[0], resolution)
    for other in runs[1:]:
        differs = [
            key
            for key in ("problem", "root", "n_train", "train_resolution")
            if getattr(other.config.data, key) != getattr(run.config.data, key)
        ]
        if differs or other.config.opt.training_loss != run.config.opt.training_loss:
            raise ConfigError(
                f"--run: runs must have one training set and loss, {other.folder} differs from "
                f"{run.folder} in {', '.join(differs) or 'opt.training_loss'}"
            )
    for i in samples:
        if not 0 <= i < len(test.source):
            raise ConfigError(f"--test_samples: must be from 0 to {len(test.source) - 1}, got {i}")
    folder.mkdir(parents=True, exist_ok=True)
    # Features of other checkpoints or options are other features.
    what = [[str(r.folder.resolve()), r.step] for r in runs], dataclasses.astuple(options)[:3]
    digest = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]
    store = folder / f"features_{digest}.h5"
    name = f"test_{test.resolution}"
    scores = attribute(runs, test.source, samples, store, options, name)
    np.savez(
        folder / "scores.npz",
        scores=scores,
        test_samples=np.asarray(samples),
        resolution=test.resolution,
    )
    written, lines = [store.name, "scores.npz", "attribution.jsonl"], []
    for column, i in zip(scores.T, samples, strict=True):
        sample = test.source[i]
        prediction = np.asarray(run.training.predict(sample["x"][None])[0])
        order = np.argsort(-column, kind="stable")
        shown = min(options.shown, len(order))
        best, worst = order[:shown], order[::-1][:shown]
        error = np.linalg.norm(prediction - sample["y"]) / np.linalg.norm(sample["y"])
        described = lambda chosen: [
            {"sample": int(j), "score": float(column[j])}  # noqa: B023
            for j in chosen
        ]
        line = {"test_sample": i, "resolution": test.resolution, "l2": float(error)}
        lines.append(line | {"helpful": described(best), "harmful": described(worst)})
        picture = f"attribution_{i}.png"
        drawn = lambda chosen: [
            (int(j), float(column[j]), run.data.train[int(j)])  # noqa: B023
            for j in chosen
        ]
        title = f"test sample {i}, relative L2 error {error:.3g}"
        plot_attribution(sample, prediction, drawn(best), drawn(worst), folder / picture, title)
        written.append(picture)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "attribution.jsonl").write_text(text, encoding="utf-8")
    return written
