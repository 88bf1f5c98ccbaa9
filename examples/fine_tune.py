"""Fine-tune a neuraloperator checkpoint with compressed moments.

    python examples/fine_tune.py [CHECKPOINT DATA]

CHECKPOINT is a state dict of its FNO, from torch.save (needs PyTorch) or as .npz, DATA an .npz with
x and y, (samples, *grid, channels). Without them a small model is trained first, to move periodic
functions by 0.25, and exported under neuraloperator's names; the new task is 0.30. Prints the
relative L2 error on 16 samples that are not trained on, before and after 100 steps.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tensorgrad_jax.models import FNO, from_neuralop, tensor_specs, to_neuralop

import tensorgrad_jax as tg


def moved(shift):
    """Return 144 periodic functions on 32 points and the same functions moved by `shift`."""
    k, s = 2 * np.pi * np.arange(1, 5), np.arange(32)[:, None, None] / 32
    a, b = np.random.default_rng(0).normal(size=(2, 144, 1, 1, 4)) / k
    wave = lambda s: np.float32((a * np.sin(k * s) + b * np.cos(k * s)).sum(-1))
    return wave(s), wave(s - shift)


def train(model, x, y, optimizer):
    """Train on all but the last 16 samples and print the error on these."""
    graphdef, params = nnx.split(model, nnx.Param)
    norms = lambda fields: jnp.linalg.norm(fields.reshape(len(fields), -1), axis=1)
    error = lambda params, x, y: jnp.mean(norms(nnx.merge(graphdef, params)(x) - y) / norms(y))

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(error)(params, x[:-16], y[:-16]), state, params)
        return optax.apply_updates(params, updates), state

    state, before = optimizer.init(params), error(params, x[-16:], y[-16:])
    for _ in range(100):
        params, state = step(params, state)
    nnx.update(model, params)
    print(f"error {before:.3f} -> {error(params, x[-16:], y[-16:]):.3f}")


if len(sys.argv) == 3:
    source, data = sys.argv[1], np.load(sys.argv[2])
    weights, x, y = np.load(source) if source.endswith(".npz") else source, data["x"], data["y"]
else:
    pretrained = FNO((8,), 1, 1, 24, n_layers=1, use_channel_mlp=False, rngs=nnx.Rngs(0))
    print("AdamW, from random weights: ", end="")
    train(pretrained, *moved(0.25), optax.adamw(5e-3))
    weights, (x, y) = to_neuralop(pretrained), moved(0.30)
print("tg.tensorgrad, from the checkpoint: ", end="")
optimizer = tg.tensorgrad(5e-3, rank=0.20, sparse_ratio=0.05, specs=tensor_specs)
train(from_neuralop(weights), x, y, optimizer)
