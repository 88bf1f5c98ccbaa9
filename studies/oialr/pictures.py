"""Images and labels: the package's handwritten digits, or CIFAR-10 where it is."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tensorgrad_jax.data.digits import digits


class Pictures(NamedTuple):
    """Images (N, height, width, channels), of mean 0 and deviation 1, and their classes."""

    images: np.ndarray
    labels: np.ndarray


def load(dataset: str, folder: str | None = None) -> tuple[Pictures, Pictures]:
    """Return training and test set; a ValueError says what is missing."""
    if dataset == "digits":
        parts = [(part.images[..., None], part.labels) for part in digits(test_every=5)]
    elif dataset == "cifar10":
        parts = _cifar10(Path(folder or "data") / "cifar-10-batches-py")
    else:
        raise ValueError(f"data.dataset must be 'digits' or 'cifar10', got {dataset!r}")
    mean, deviation = parts[0][0].mean(), parts[0][0].std()
    scaled = [((x - mean) / deviation, y.astype(np.int32)) for x, y in parts]
    return Pictures(*scaled[0]), Pictures(*scaled[1])


def _cifar10(folder: Path):
    names = [f"data_batch_{i}" for i in range(1, 6)]
    if missing := [n for n in [*names, "test_batch"] if not (folder / n).is_file()]:
        raise ValueError(
            f"data.data_dir: {folder / missing[0]} is missing; the files of "
            "cifar-10-python.tar.gz (https://www.cs.toronto.edu/~kriz/cifar.html) are expected"
        )

    def read(name):
        with open(folder / name, "rb") as file:
            batch = pickle.load(file, encoding="bytes")
        images = np.asarray(batch[b"data"], np.float32).reshape(-1, 3, 32, 32)
        return images.transpose(0, 2, 3, 1), np.asarray(batch[b"labels"])

    train = [np.concatenate(parts) for parts in zip(*map(read, names), strict=True)]
    return [tuple(train), read("test_batch")]
