"""Fifty steps on handwritten digits follow the original's, from the same start and batches."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tensorgrad_jax import truegrad

PEER = np.load(pathlib.Path(__file__).parent / "golden" / "truegrad_curves.npz")
BATCH = 16


# The models of golden/make_truegrad_curves.py, with parameters under PyTorch's names.
def _dense(p, name, x):
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def _conv(p, name, x, stride):
    padding, numbers = [(1, 1), (1, 1)], ("NCHW", "OIHW", "NCHW")
    y = jax.lax.conv_general_dilated(
        x, p[f"{name}.weight"], (stride, stride), padding, dimension_numbers=numbers
    )
    return y + p[f"{name}.bias"][:, None, None]


def _norm(p, name, x):
    x = x - x.mean(-1, keepdims=True)
    x = x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-5)
    return x * p[f"{name}.weight"] + p[f"{name}.bias"]


def _mlp(p, x):
    return _dense(p, "3", jax.nn.relu(_dense(p, "1", x.reshape(len(x), 64))))


def _cnn(p, x):
    x = jax.nn.relu(_conv(p, "1", x[:, None], 1))
    x = jax.nn.relu(_conv(p, "3", x, 2))
    return _dense(p, "6", x.reshape(len(x), 128))


def _vit(p, x):
    n = len(x)
    x = x.reshape(n, 4, 2, 4, 2).swapaxes(2, 3).reshape(n, 16, 4)
    x = _dense(p, "patch", x) + p["position"]
    y = _norm(p, "norm1", x)
    q, k, v = (_dense(p, name, y).reshape(n, 16, 2, 8) for name in ("query", "key", "value"))
    weights = jax.nn.softmax(jnp.einsum("nqhc,nkhc->nhqk", q, k) / 8**0.5)
    x = x + _dense(p, "out", jnp.einsum("nhqk,nkhc->nqhc", weights, v).reshape(n, 16, 16))
    inner = jax.nn.gelu(_dense(p, "inner", _norm(p, "norm2", x)), approximate=False)
    return _dense(p, "head", (x + _dense(p, "outer", inner)).mean(1))


@pytest.mark.parametrize(("name", "apply"), [("mlp", _mlp), ("cnn", _cnn), ("vit", _vit)])
def test_curves_are_those_of_the_original(name, apply):
    def loss(p, batch):
        x, y = batch
        return optax.softmax_cross_entropy_with_integer_labels(apply(p, x), y).mean()

    optimizer = truegrad.tg_adamw(3e-3, floor=False)

    def step(state, batch):
        p, state = state
        value, g, s = truegrad.value_and_grads(loss, granularity="token")(p, batch)
        updates, state = optimizer.update(g, state, p, sum_grad_squared=s)
        return (optax.apply_updates(p, updates), state), value

    with jax.enable_x64(True):
        expected = PEER[f"{name}/curve"]
        start = {
            key.removeprefix(f"{name}/"): jnp.asarray(PEER[key])
            for key in PEER
            if key.startswith(f"{name}/") and not key.endswith("/curve")
        }
        images, labels = PEER["images"] / 16, PEER["labels"].astype(int)
        taken = np.arange(BATCH * len(expected)).reshape(-1, BATCH) % len(images)
        batches = (jnp.asarray(images[taken]), jnp.asarray(labels[taken]))
        curve = jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), batches)[1])(start)
    np.testing.assert_allclose(curve, expected, rtol=1e-6)
    assert np.mean(expected[-5:]) < 0.75 * expected[0]
