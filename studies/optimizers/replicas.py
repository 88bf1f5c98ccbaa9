"""Training many copies of one model at once, each with its own seed and learning rate.

A single small operator leaves an accelerator idle. Copies that differ in numbers alone, seed and
rate, are one program under `jax.vmap`: all of them are trained in the time of a few. The counters
of an optimizer's state are the same in all copies and stay outside of the map, so that a refresh is
computed when it is due and not, as under a mapped condition, at every step.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tasks import Task, l2

from tensorgrad_jax.data import UnitGaussianNormalizer

WEIGHT_DECAY = 1e-4
_COUNTERS = ("count", "next_refresh")


def train(
    task: Task,
    data: dict[str, dict[str, np.ndarray]],
    scaled: optax.GradientTransformation,
    seeds: Sequence[int],
    rates: Sequence[float],
) -> list[dict[str, Any]]:
    """Train a model for every seed and rate, and return what is known of each.

    Args:
        task: what is trained.
        data: see `Task.load`.
        scaled: makes updates of gradients; decay of the weights and a cosine from the rate to zero
            follow.
        seeds: of initialisation and order of the samples.
        rates: learning rates.

    Returns:
        For every seed and rate "validation" and "test" (relative L2; NaN where training diverged),
        "train_loss" (mean of the last epoch), "curve" of (train loss, validation) per epoch,
        "state_bytes", and "step_seconds" per copy and step, which says how the copies together ran.
    """
    pairs = list(itertools.product(seeds, rates))
    seed_of = np.array([seed for seed, _ in pairs], np.uint32)
    rate_of = jnp.array([rate for _, rate in pairs], jnp.float32)
    x, y = jnp.asarray(data["train"]["x"]), jnp.asarray(data["train"]["y"])
    of_x, of_y = (
        UnitGaussianNormalizer.fit([{f: sample} for sample in data["train"][f]], f) for f in "xy"
    )
    steps = len(x) // task.batch_size
    total = steps * task.n_epochs
    graphdef = nnx.split(nnx.eval_shape(lambda: task.model(nnx.Rngs(0))), nnx.Param)[0]

    def start(seed):
        return nnx.to_pure_dict(nnx.state(task.model(nnx.Rngs(jax.random.key(seed))), nnx.Param))

    def predict(params, x):
        return of_y.decode(nnx.merge(graphdef, nnx.State(params))(of_x.encode(x)))

    def objective(params, x, y):
        return task.loss(predict(params, x), y)

    def step(params, state, batch, rate, count):
        value, gradients = jax.value_and_grad(objective)(params, x[batch], y[batch])
        updates, state = scaled.update(gradients, state, params)
        size = rate * (1 + jnp.cos(jnp.pi * count / total)) / 2
        params = jax.tree.map(lambda p, u: p - size * (u + WEIGHT_DECAY * p), params, updates)
        return params, state, value

    params = jax.jit(jax.vmap(start))(seed_of)
    state = jax.jit(jax.vmap(scaled.init))(params)
    one = jax.eval_shape(scaled.init, jax.eval_shape(start, seed_of[0]))
    axes = jax.tree_util.tree_map_with_path(lambda path, _: None if _counts(path) else 0, one)
    shared = lambda state: jax.tree.map(
        lambda axis, leaf: leaf[0] if axis is None else leaf, axes, state, is_leaf=_is_none
    )
    mapped = jax.vmap(step, in_axes=(0, axes, 0, 0, None))

    def epoch(params, state, order, count):
        def body(carry, batches):
            params, state, count = carry
            params, state, value = mapped(params, state, batches, rate_of, count)
            return (params, shared(state), count + 1), value

        (params, state, count), values = jax.lax.scan(body, (params, state, count), order)
        return params, state, count, values.mean(0)

    def errors(params, x, y):
        def of_one(params):
            return l2(predict(params, x), y)

        return jax.vmap(of_one)(params)

    run_epoch = jax.jit(epoch, donate_argnums=(0, 1))
    run_errors = jax.jit(errors)

    def error(params, part):
        fields = data[part]
        chunk = max(1, min(len(fields["x"]), 4 * task.batch_size))
        sums = 0.0
        for i in range(0, len(fields["x"]), chunk):
            piece = {n: jnp.asarray(f[i : i + chunk]) for n, f in fields.items()}
            sums = sums + np.asarray(run_errors(params, **piece)) * len(piece["x"])
        return sums / len(fields["x"])

    state, count = shared(state), jnp.float32(0)
    generators = [np.random.default_rng(seed) for seed in seed_of]
    curve, begin, seconds = [], 0.0, 0.0
    for index in range(task.n_epochs):
        order = np.stack([g.permutation(len(x))[: steps * task.batch_size] for g in generators])
        order = order.reshape(len(pairs), steps, task.batch_size).swapaxes(0, 1)
        begin = time.perf_counter()
        params, state, count, value = run_epoch(params, state, jnp.asarray(order), count)
        value = np.asarray(value)
        if index:  # the first epoch compiles
            seconds += time.perf_counter() - begin
        curve.append((value, error(params, "validation")))
    tested = error(params, "test")
    sizes = [leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(one)]
    number = lambda v: round(float(v), 6)
    return [
        {
            "seed": int(seed),
            "rate": rate,
            "validation": number(curve[-1][1][i]),
            "test": number(tested[i]),
            "train_loss": number(curve[-1][0][i]),
            "curve": [(number(v[i]), number(e[i])) for v, e in curve],
            "state_bytes": sum(sizes),
            "steps": total,
            "step_seconds": round(seconds / max(1, (task.n_epochs - 1) * steps * len(pairs)), 6),
        }
        for i, (seed, rate) in enumerate(pairs)
    ]


def _counts(path) -> bool:
    names = [str(getattr(k, "name", getattr(k, "key", k))) for k in path]
    return any(name in _COUNTERS for name in names)


def _is_none(x) -> bool:
    return x is None


Build = Callable[[Task], optax.GradientTransformation]
