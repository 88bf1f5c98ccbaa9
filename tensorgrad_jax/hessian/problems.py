"""What curvature is measured of: a loss, its parameters, and two sets of examples."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensorgrad_jax.data.digits import digits
from tensorgrad_jax.hessian.layout import LayoutError

WIDTHS = (256, 20, 20, 20, 20, 20, 10)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A loss over two sets of examples, and how its parameters were, or are, trained.

    Attributes:
        name: of the problem.
        params: a pytree of real arrays: where training begins, or, of what is trained already,
            where it ended.
        loss: of parameters and a batch, a mean over examples.
        train: pytree of arrays of examples, with what their classes are under "y" if `classes`.
        test: likewise.
        classes: number of classes; None where examples have none.
        batch_size: of the training.
        epochs: of the training.
        learning_rate: of the training, by plain SGD.
        step: None for a problem that is to be trained; the step that `params` are of otherwise.
        accuracy: of parameters and a batch, if that has a meaning.
    """

    name: str
    params: Any
    loss: Callable[[Any, Any], Any]
    train: Any
    test: Any
    classes: int | None = None
    batch_size: int = 1
    epochs: int = 0
    learning_rate: float = 0.0
    step: int | None = None
    accuracy: Callable[[Any, Any], Any] | None = None

    def examples(self, n: int, *, test: bool) -> Any:
        """Return the subset that curvature is measured on: the first n, as many of every class.

        Raises:
            LayoutError: if there are not so many, or n is no multiple of the number of classes.
        """
        indices = self.indices(n, test=test)
        return jax.tree.map(lambda x: x[indices], self.test if test else self.train)

    def indices(self, n: int, *, test: bool) -> np.ndarray:
        """Return which examples these are, ascending."""
        data = self.test if test else self.train
        total = len(jax.tree.leaves(data)[0])
        name = "NUM_HESSIAN_DATAPOINTS"
        if self.classes is None:
            if not 1 <= n <= total:
                raise LayoutError(f"{name}: must be from 1 to {total}, got {n}")
            return np.arange(n)
        each, rest = divmod(n, self.classes)
        if rest or not each:
            raise LayoutError(f"{name}: must be a multiple of the {self.classes} classes, got {n}")
        labels = np.asarray(data["y"])
        of_class = [np.flatnonzero(labels == c)[:each] for c in range(self.classes)]
        fewest = min(len(found) for found in of_class)
        if fewest < each:
            raise LayoutError(
                f"{name}: some class has but {fewest} examples, {each} were asked for"
            )
        return np.sort(np.concatenate(of_class))


def mnist_mini(seed: int, datasets: Path | None = None) -> Problem:
    """Return the problem mnist_mini: a tanh network 256-20-20-20-20-20-10 of 7,030 parameters.

    Images have 16 x 16 points. Without a folder of data sets they are the digits that come with
    the package, resized.

    Args:
        seed: of the start.
        datasets: a folder with mnist.npz, as Keras distributes it: arrays x_train, y_train,
            x_test, y_test.

    Raises:
        LayoutError: if the folder has no such file.
    """
    key = jax.random.key(seed)
    layers = []
    for i, (n_in, n_out) in enumerate(itertools.pairwise(WIDTHS)):
        weight, bias = jax.random.split(jax.random.fold_in(key, i))
        bound = 1 / math.sqrt(n_in)  # PyTorch's start, Kaiming's with a = sqrt(5)
        layers.append(
            (
                jax.random.uniform(weight, (n_out, n_in), jnp.float32, -bound, bound),
                jax.random.uniform(bias, (n_out,), jnp.float32, -bound, bound),
            )
        )
    train, test = _mnist(datasets) if datasets is not None else _digits()
    batch_size = 500 if datasets is not None else 100  # there are 1,498 digits
    return Problem(
        "mnist_mini",
        layers,
        _cross_entropy,
        train,
        test,
        classes=10,
        batch_size=batch_size,
        epochs=50,
        learning_rate=0.3,
        accuracy=_accuracy,
    )


def _logits(layers, x):
    for weight, bias in layers[:-1]:
        x = jnp.tanh(x @ weight.T + bias)
    weight, bias = layers[-1]
    return x @ weight.T + bias


def _cross_entropy(layers, batch):
    logits = jax.nn.log_softmax(_logits(layers, batch["x"]))
    return -jnp.take_along_axis(logits, batch["y"][:, None], axis=1).mean()


def _accuracy(layers, batch):
    return jnp.mean(jnp.argmax(_logits(layers, batch["x"]), -1) == batch["y"])


def _small(images: Any) -> np.ndarray:
    resized = jax.image.resize(images, (len(images), 16, 16), "linear")
    return np.asarray(resized, np.float32).reshape(len(images), -1)


def _digits():
    return tuple({"x": _small(part.images), "y": part.labels} for part in digits())


def _mnist(folder: Path):
    path = folder / "mnist.npz"
    if not path.is_file():
        raise LayoutError(
            f"OBS_DATASETS: expected a file mnist.npz (arrays x_train, y_train, x_test, y_test) in "
            f"{folder}; leave the key out to use the digits that come with the package"
        )
    with np.load(path) as file:
        return tuple(
            {
                "x": _small(file[f"x_{part}"].astype(np.float32) / 255),
                "y": file[f"y_{part}"].astype(np.int32),
            }
            for part in ("train", "test")
        )
