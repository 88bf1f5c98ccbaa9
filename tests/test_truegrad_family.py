"""The optimizers of later releases: their steps are the original's, and what they promise."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tensorgrad_jax import truegrad
from tensorgrad_jax.truegrad import graft, sign, tg_adamw, tg_laprop, tg_rmsprop

PEERS = np.load(pathlib.Path(__file__).parent / "golden" / "truegrad_peers.npz")
PLAIN = {"weight_decay": 0.0}
RMS = tg_rmsprop(0.02, **PLAIN, graft=False)

STEPS = {
    "laprop": tg_laprop(0.02, graft=False),
    "laprop, graft": tg_laprop(0.02, betas=(0.8, 0.9, 0.7, 0.95)),
    "rmsprop": tg_rmsprop(0.02, betas=0.8, graft=False),
    "rmsprop, graft": tg_rmsprop(0.02, betas=(0.8, 0.95)),
    "graft": graft(tg_laprop(0.02, **PLAIN), optax.sgd(1.0)),
    "sign": optax.chain(sign(RMS, graft_to_self=False), optax.scale(0.02)),
    "sign, graft": sign(RMS),
}


@pytest.mark.parametrize("name", STEPS)
def test_steps_are_those_of_the_original(name):
    optimizer = STEPS[name]
    with jax.enable_x64(True):
        p = jnp.asarray(PEERS["steps/start"])
        state, path = optimizer.init(p), []
        step = jax.jit(lambda p, state, g, s: optimizer.update(g, state, p, sum_grad_squared=s))
        for g, s in zip(PEERS["steps/gradients"], PEERS["steps/squares"], strict=True):
            updates, state = step(p, state, jnp.asarray(g), jnp.asarray(s))
            p = optax.apply_updates(p, updates)
            path.append(p)
    np.testing.assert_allclose(np.stack(path), PEERS[f"steps/{name}"], rtol=1e-6, atol=1e-8)


PARAMS = {"w": jnp.ones((2, 3)), "z": jnp.ones(2, jnp.complex64), "h": jnp.ones(2, jnp.bfloat16)}
GRADIENTS = {
    "w": jnp.arange(6.0).reshape(2, 3),
    "z": jnp.array([3 + 4j, 1j]),
    "h": jnp.ones(2, jnp.bfloat16),
}
SQUARES = jax.tree.map(lambda g: 4 * jnp.abs(g).astype(jnp.float32) ** 2, GRADIENTS)
FAMILY = {"laprop": tg_laprop, "rmsprop": tg_rmsprop, "adamw": tg_adamw}


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("grafted", [True, False])
def test_without_squares_it_is_the_baseline_where_that_is_allowed(name, grafted):
    make = FAMILY[name]
    squares = {**SQUARES, "w": None}
    allowed = make(0.1, **PLAIN, graft=grafted, default_to_baseline=True)
    update, _ = allowed.update(GRADIENTS, allowed.init(PARAMS), PARAMS, sum_grad_squared=squares)
    # One example per batch is the baseline: S = g^2.
    one = {"w": GRADIENTS["w"] ** 2}
    w = {"w": GRADIENTS["w"]}
    alone = make(0.1, **PLAIN, graft=False)
    expected, _ = alone.update(w, alone.init(w), w, sum_grad_squared=one)
    np.testing.assert_allclose(update["w"], expected["w"], rtol=1e-6)
    # Squares of twice the root halve the update, unless it is grafted to the baseline's size.
    sizes = [float(jnp.abs(update["z"][0])), float(jnp.abs(update["h"][0]))]
    np.testing.assert_allclose(sizes, 0.1 if grafted else 0.05, rtol=1e-2)

    strict = make(0.1, graft=grafted)
    with pytest.raises(ValueError, match=r"shape \(2, 3\) has no sum_grad_squared: \['w'\]"):
        strict.update(GRADIENTS, strict.init(PARAMS), PARAMS, sum_grad_squared=squares)


def test_states_keep_their_dtypes_and_zeros_stay_zeros():
    zeros = jax.tree.map(jnp.zeros_like, GRADIENTS)
    squares = jax.tree.map(jnp.zeros_like, SQUARES)
    adam = tg_adamw(0.1, **PLAIN)
    for optimizer in (tg_laprop(0.1), graft(tg_rmsprop(0.1), adam), sign(adam)):
        state = optimizer.init(PARAMS)
        update, after = optimizer.update(zeros, state, zeros, sum_grad_squared=squares)
        jax.tree.map(lambda u: np.testing.assert_array_equal(np.asarray(u), 0), update)
        kinds = lambda tree: jax.tree.map(lambda x: (x.shape, str(x.dtype)), tree)
        assert kinds(after) == kinds(state)


WRONG = {
    "tg_rmsprop: betas must be 1 or 2 numbers": lambda: tg_rmsprop(betas=(0.9, 0.9, 0.9)),
    "tg_laprop: betas must be 2 or 4 numbers": lambda: tg_laprop(betas=(0.9, 0.9, 0.9)),
    "tg_laprop: eps must not be negative": lambda: tg_laprop(eps=-1.0),
    "tg_rmsprop: weight_decay must not be negative": lambda: tg_rmsprop(weight_decay=-1.0),
    "scale_by_true_rms: betas must be 1 numbers": lambda: truegrad.scale_by_true_rms(1.0),
    "graft: direction must be an Optax": lambda: graft(RMS, "sgd"),
    "sign: base must be an Optax": lambda: sign(None),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(message, unchecked):
    del unchecked
    with pytest.raises(ValueError, match=message):
        WRONG[message]()
