"""From checkpoints and data sets to attribution scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tensorgrad_jax.trak.features import number_of, projected_gradients, selected
from tensorgrad_jax.trak.kinds import bounded, positive
from tensorgrad_jax.trak.outputs import ModelOutput
from tensorgrad_jax.trak.projectors import AbstractProjector
from tensorgrad_jax.trak.scores import attribution_scores
from tensorgrad_jax.trak.store import FeatureStore


class Attributor:
    """Features of training and target examples over several checkpoints, and their scores.

        attributor = Attributor(classification(apply), projector, "features.h5")
        for model_id, params in enumerate(checkpoints):
            attributor.featurize(params, model_id, train, "train")
            attributor.featurize(params, model_id, targets, "targets")
        scores = attributor.scores("train", "targets")     # (training examples, targets)

    A run that was stopped is started again with the same arguments and goes on where it was.
    Features are divided by sqrt(p), p being the number of parameters they are of, as traker's are.

    Attributes:
        output: what is attributed, of `classification`, `sample_loss` or one's own.
        projector: what features are made by. If its device is a sharding, examples are spread
            over the devices.
        store: the HDF5 file.
        lambda_reg: added to the diagonal of F^T F before it is inverted.
        block_size: examples per slab of the store: what a stopped run can lose.
        chunk_size: examples per backward pass.
        grad_wrt: which parameters gradients are taken of: a function of a leaf's path
            ("layers/0/kernel"); None for all.

    Raises:
        ValueError: at construction, if a size is not positive or lambda_reg is negative.
    """

    def __init__(
        self,
        output: ModelOutput,
        projector: AbstractProjector,
        path: str | Path,
        *,
        lambda_reg: float = 0.0,
        block_size: int = 1024,
        chunk_size: int = 32,
        grad_wrt: Callable[[str], bool] | None = None,
    ):
        self.output = output
        self.projector = projector
        self.store = FeatureStore(path)
        if not (math.isfinite(lambda_reg) and lambda_reg >= 0):
            raise ValueError(
                f"Attributor: lambda_reg must be a finite number of at least 0, got {lambda_reg}"
            )
        self.lambda_reg = lambda_reg
        self.block_size = positive("Attributor", "block_size", block_size)
        self.chunk_size = positive("Attributor", "chunk_size", chunk_size)
        self.grad_wrt = grad_wrt

    def featurize(self, params: Any, model_id: int, examples: Any, name: str) -> None:
        """Write the features of a data set at a checkpoint to the store.

        Args:
            params: the checkpoint, a pytree.
            model_id: its number; every checkpoint has a random matrix of its own.
            examples: a pytree of arrays with one leading axis, that of the examples; what
                `output` takes is one of them.
            name: of the data set.

        Raises:
            ValueError: if an argument is none of these, or features were begun with others.
        """
        model_id = bounded("Attributor", "model_id", model_id, 32)
        sizes = {np.shape(x)[:1] for x in jax.tree.leaves(examples)}
        if len(sizes) != 1 or sizes & {(), (0,)}:
            raise ValueError(
                "Attributor: examples must be arrays with one leading size, at least 1, got shapes "
                f"{[np.shape(x) for x in jax.tree.leaves(examples)]}"
            )
        chosen = selected(params, self.grad_wrt)
        p = number_of(params, chosen)
        if self.projector.grad_dim not in (0, p):
            raise ValueError(
                f"Attributor: the projector has grad_dim={self.projector.grad_dim}, the parameters "
                f"hold {p} numbers"
            )
        k = self.projector.proj_dim or p
        made_by = type(self.projector).__name__
        description = f"{made_by} {self.projector.proj_type} seed {self.projector.seed} of {p}"
        n = next(iter(sizes))[0]
        self.store.create(name, model_id, n, k, self.block_size, description)
        for block in self.store.missing(name, model_id):
            part = jax.tree.map(lambda x: x[block], examples)  # noqa: B023
            features, weights = projected_gradients(
                self.output, params, part, self.projector, model_id, chosen, self.chunk_size
            )
            self.store.write(name, model_id, block, features / np.float32(math.sqrt(p)), weights)
        self.projector.free_memory()

    def scores(
        self, train: str, targets: str, model_ids: Sequence[int] | None = None, chunk: int = 4096
    ) -> np.ndarray:
        """Return the scores of training examples for targets, (n, m): positive where one helps.

        Args:
            train: name of the training examples' features.
            targets: name of the targets' features.
            model_ids: checkpoints to average over; None: all at which the targets have features.
            chunk: training examples at a time.

        Raises:
            ValueError: as `attribution_scores` does.
        """
        chosen = self.store.models(targets) if model_ids is None else list(model_ids)
        chunk = positive("Attributor", "chunk", chunk)
        return attribution_scores(self.store, train, targets, chosen, self.lambda_reg, chunk)
