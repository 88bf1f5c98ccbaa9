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


def digits() -> tuple[Digits, Digits]:
    """Return 1,498 images for training and 299 for testing: every sixth."""
    with (files("tensorgrad_jax.data") / "digits.npz").open("rb") as file:
        packed = np.load(file)
        images = packed["images"].astype(np.float32) / 16
        labels = packed["labels"].astype(np.int32)
    is_test = np.arange(len(labels)) % 6 == 5
    return (
        Digits(images[~is_test], labels[~is_test]),
        Digits(images[is_test], labels[is_test]),
    )
