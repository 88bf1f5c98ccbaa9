"""Handwritten digits, a data set that is always there: 1,797 images of 8 x 8 points.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits (its test set), UCI
Machine Learning Repository, 1998, https://doi.org/10.24432/C50P49, CC BY 4.0; as scikit-learn's
`load_digits` has it.
"""

from __future__ import annotations

from importlib.resources import files
from typing import NamedTuple

import numpy as np


class Digits(NamedTuple):
    """Images and labels.

    Attributes:
        images: float32 in [0, 1], (N, 8, 8).
        labels: int32 in 0 to 9, (N,).
    """

    images: np.ndarray
    labels: np.ndarray


def digits(test_every: int = 6) -> tuple[Digits, Digits]:
    """Return images for training and images for testing.

    Args:
        test_every: of so many images the last is for testing; by default 299 of them.
    """
    with (files("tensorgrad_jax.data") / "digits.npz").open("rb") as file:
        packed = np.load(file)
        images = packed["images"].astype(np.float32) / 16
        labels = packed["labels"].astype(np.int32)
    is_test = np.arange(len(labels)) % test_every == test_every - 1
    return (
        Digits(images[~is_test], labels[~is_test]),
        Digits(images[is_test], labels[is_test]),
    )
