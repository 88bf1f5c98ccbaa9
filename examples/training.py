"""Training an operator in a notebook: `Training` and the objects it is made of, no train.py.

The operator moves periodic functions on 64 points by 0.3 of their period; 128 examples to train on,
32 to test on, and 32 on twice as many points. Prints a line per epoch, the bytes of the optimizer
state beside AdamW's, and how far the prediction for one more function is from the truth.
"""

import numpy as np
import optax
from flax import nnx
from tensorgrad_jax.models import FNO, tensor_specs

import tensorgrad_jax as tg
from tensorgrad_jax.training.data_sets import TestSet, data_sets
from tensorgrad_jax.training.loop import Training

EPOCHS, BATCH = 8, 8


def samples(n, points, seed):
    """Return n pairs of a function and the moved one, channels last, as data sets hold them."""
    k, s = 2 * np.pi * np.arange(1, 5), np.arange(points)[:, None, None] / points
    a, b = np.random.default_rng(seed).normal(size=(2, n, 1, 1, 4)) / k
    wave = lambda s: np.float32((a * np.sin(k * s) + b * np.cos(k * s)).sum(-1))
    return [{"x": x, "y": y} for x, y in zip(wave(s), wave(s - 0.3), strict=True)]


train = samples(128, 64, seed=0)
tests = [TestSet(n, samples(32, n, seed=1), batch_size=32) for n in (64, 128)]
schedule = optax.cosine_decay_schedule(1e-2, EPOCHS * len(train) // BATCH)
model = FNO((16,), 1, 1, hidden_channels=24, n_layers=2, rngs=nnx.Rngs(0))
optimizer = tg.tensorgrad(schedule, rank=0.20, sparse_ratio=0.05, specs=tensor_specs)

training = Training(model, optimizer, data_sets(train, tests), schedule, batch_size=BATCH)
training.fit(EPOCHS)

adamw = optax.adamw(schedule).init(training.state.params)
ours, full = (tg.state_bytes(state)["total"] for state in (training.state.opt_state, adamw))
print(f"optimizer state: {ours:,} bytes, AdamW's {full:,}")
(sample,) = samples(1, 256, seed=2)
error = np.linalg.norm(training.predict(sample["x"][None])[0] - sample["y"])
print(f"error on 256 points: {error / np.linalg.norm(sample['y']):.3f}")
