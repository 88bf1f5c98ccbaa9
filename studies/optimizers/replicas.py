"""Training many copies of one model at once, each with its own seed and learning rate.

A single small operator leaves an accelerator idle. Copies that differ in numbers alone, seed and
rate, are one program under `jax.vmap`: all of them are trained in the time of a few. The counters
of an optimizer's state are the same in all copies and stay outside of the map, so that a refresh is
computed when it is due and not, as under a mapped condition, at every step.

Gradients and updates are two programs: that of the gradients is the same for all optimizers, and
compiled once where JAX keeps a cache on disk (`JAX_COMPILATION_CACHE_DIR`).
"""

from __future__ import annotations

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
    pairs: Sequence[tuple[int, float]],
) -> list[dict[str, Any]]:
    """Train a model for every pair of a seed and a rate, and return what is known of each.

    Args:
        task: what is trained.
        data: see `Task.load`.
        scaled: makes updates of gradients; decay of the weights and a cosine from the rate to zero
            follow.
        pairs: seeds, of initialisation and order of the samples, with learning rates.

    Returns:
        For every pair "validation" and "test" (relative L2; NaN where training diverged),
        "train_loss" (mean of the last epoch), "curve" of (train loss, validation) per epoch,
        "state_bytes", and "step_seconds" per copy and step, which says how the copies together ran.
    """
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

    def gradient(params, x, y, batch):
        return jax.value_and_grad(objective)(params, x[batch], y[batch])

    def move(params, state, gradients, rate, count):
        updates, state = scaled.update(gradients, state, params)
        size = rate * (1 + jnp.cos(jnp.pi * count / total)) / 2
        params = jax.tree.map(lambda p, u: p - size * (u + WEIGHT_DECAY * p), params, updates)
        return params, state

    params = jax.jit(jax.vmap(start))(seed_of)
    state = jax.jit(jax.vmap(scaled.init))(params)
    one = jax.eval_shape(scaled.init, jax.eval_shape(start, seed_of[0]))
    axes = jax.tree_util.tree_map_with_path(lambda path, _: None if _counts(path) else 0, one)
    shared = lambda state: jax.tree.map(
        lambda axis, leaf: leaf[0] if axis is None else leaf, axes, state, is_leaf=_is_none
    )
    mapped = jax.vmap(move, in_axes=(0, axes, 0, 0, None))

    def move_all(params, state, gradients, count):
        params, state = mapped(params, state, gradients, rate_of, count)
        return params, shared(state)

    def errors(params, x, y):
        def of_one(params):
            return l2(predict(params, x), y)

        return jax.vmap(of_one)(params)

    run_gradient = jax.jit(jax.vmap(gradient, in_axes=(0, None, None, 0)))
    run_move = jax.jit(move_all, donate_argnums=(0, 1))
    run_errors = jax.jit(errors)

    def error(params, part):
        fields = data[part]
        n = len(fields["x"])
        sums = 0.0
        # As few shapes as possible: each is a program.
        for indices in np.array_split(np.arange(n), -(-n // (4 * task.batch_size))):
            piece = {name: jnp.asarray(f[indices]) for name, f in fields.items()}
            sums = sums + np.asarray(run_errors(params, **piece)) * len(indices)
        return sums / n

    state, count = shared(state), 0
    generators = [np.random.default_rng(seed) for seed in seed_of]
    curve, begin, seconds = [], 0.0, 0.0
    for index in range(task.n_epochs):
        order = np.stack([g.permutation(len(x))[: steps * task.batch_size] for g in generators])
        order = order.reshape(len(pairs), steps, task.batch_size).swapaxes(0, 1)
        begin = time.perf_counter()
        values = []
        for batches in order:
            value, gradients = run_gradient(params, x, y, jnp.asarray(batches))
            params, state = run_move(params, state, gradients, jnp.float32(count))
            values.append(value)
            count += 1
        value = np.mean([np.asarray(v) for v in values], 0)
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
