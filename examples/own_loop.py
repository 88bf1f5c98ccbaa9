"""Compressed moments in a training loop of one's own: a Linen network, plain Optax, no train.py.

A bilinear layer, whose weight is a tensor of shape (24, 24, 24), learns the circular convolution of
two signals: with AdamW, and with the recommended optimizer in a chain with clipping and a schedule.
Prints for both the relative error on the first and on the last batch and the bytes of the optimizer
state.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import tensorgrad_jax as tg

STEPS, SIZE = 500, 24


class Bilinear(nn.Module):
    """y_k = sum_ij w_ijk a_i b_j, for a and b of shape (batch, SIZE)."""

    @nn.compact
    def __call__(self, a, b):  # noqa: D102
        weight = self.param("weight", nn.initializers.normal(0.02), (SIZE, SIZE, SIZE))
        return jnp.einsum("bi,bj,ijk->bk", a, b, weight)


def batch(key):
    """Return pairs of periodic signals, (2, 64, SIZE), and their convolutions."""
    spectra = jnp.fft.rfft(jax.random.normal(key, (2, 64, SIZE))) / jnp.arange(1, SIZE // 2 + 2)
    return jnp.fft.irfft(spectra), jnp.fft.irfft(spectra[0] * spectra[1])


def error(params, pairs, target):
    """Return the relative error of the predictions."""
    return jnp.linalg.norm(Bilinear().apply(params, *pairs) - target) / jnp.linalg.norm(target)


rate = optax.cosine_decay_schedule(2e-2, STEPS)
compressed = optax.chain(optax.clip_by_global_norm(1.0), tg.subspace_muon(rate, update_proj_gap=50))
for name, optimizer in {"AdamW": optax.adamw(rate), "compressed": compressed}.items():

    @jax.jit
    def step(params, state, key, optimizer=optimizer):  # noqa: D103
        value, gradients = jax.value_and_grad(error)(params, *batch(key))
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    params = Bilinear().init(jax.random.key(0), *jnp.ones((2, 1, SIZE)))
    state, errors = optimizer.init(params), []
    for seed in range(STEPS):
        params, state, value = step(params, state, jax.random.key(seed))
        errors.append(value)
    n_bytes = tg.state_bytes(state)["total"]
    print(f"{name:10} error {errors[0]:.3f} -> {errors[-1]:.3f}, optimizer state {n_bytes:,} bytes")
