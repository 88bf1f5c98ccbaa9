"""The digits that come with the package."""

import numpy as np

from tensorgrad_jax.data.digits import digits


def test_every_image_is_for_training_or_for_testing():
    train, test = digits()
    assert (len(train.labels), len(test.labels)) == (1498, 299)
    assert train.images.shape == (1498, 8, 8)
    assert train.images.dtype == np.float32
    assert (train.images.min(), train.images.max()) == (0, 1)
    assert set(train.labels.tolist()) == set(test.labels.tolist()) == set(range(10))
    others = digits(test_every=5)
    assert [len(part.labels) for part in others] == [1438, 359]
