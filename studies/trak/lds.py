"""Do attribution scores predict what leaving training examples out does?

The linear datamodelling score (LDS): models are trained anew on random halves of the training set.
For every target the margin of these models is ranked, and so is the sum of the scores of the
examples they were trained on; the LDS is the rank correlation of both over the halves, averaged
over targets. Beside it, the same with the scores of a target given to another one, and with
training examples shuffled.

    python studies/trak/lds.py                 # prints a table, appends it to results.jsonl

Data: 450 of scikit-learn's handwritten digits, the file that the tests use.
"""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tensorgrad_jax import trak

HERE = Path(__file__).parent
DIGITS = HERE.parents[1] / "tests" / "golden" / "trak_scores.npz"
N_TRAIN, HIDDEN = 400, 32


def apply(params, x):
    """Return the logits of a network with one hidden layer."""
    return params["out"].T @ jax.nn.relu(params["in"].T @ x + params["b"]) + params["c"]


def initial(key):
    """Return parameters: 2,410 numbers."""
    keys = jax.random.split(key)
    scaled = lambda key, m, n: jax.random.normal(key, (m, n)) * jnp.sqrt(2 / m)
    return {
        "in": scaled(keys[0], 64, HIDDEN), "b": jnp.zeros(HIDDEN),
        "out": scaled(keys[1], HIDDEN, 10), "c": jnp.zeros(10),
    }  # fmt: skip


@functools.partial(jax.jit, static_argnames="steps")
def train(seed, kept, images, labels, steps=600):
    """Return parameters trained on the examples whose `kept` is 1."""
    optimizer = optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(0.1, momentum=0.9))

    def loss(params):
        logits = jax.vmap(apply, (None, 0))(params, images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return (kept * losses).sum() / kept.sum()

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    params = initial(jax.random.key(seed))
    return jax.lax.scan(step, (params, optimizer.init(params)), length=steps)[0][0]


def ranks(x):
    """Return ranks along the first axis."""
    return np.argsort(np.argsort(x, axis=0), axis=0).astype(float)


def rank_correlation(a, b):
    """Return Spearman's correlation of the columns of a and b, averaged."""
    a, b = (ranks(x) - (len(x) - 1) / 2 for x in (a, b))
    return float(np.mean((a * b).sum(0) / np.sqrt((a**2).sum(0) * (b**2).sum(0))))


def main():
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subsets", type=int, default=50)
    parser.add_argument("--checkpoints", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3, help="models per subset, averaged")
    parser.add_argument("--proj_dim", type=int, default=256)
    parser.add_argument("--lambda_reg", type=float, default=0.0)
    options = parser.parse_args()
    data = np.load(DIGITS)
    images = jnp.asarray(data["pixels"], jnp.float32) / 16
    labels = jnp.asarray(data["labels"], jnp.int32)
    fit = functools.partial(train, images=images[:N_TRAIN], labels=labels[:N_TRAIN])
    pairs = (images, labels)
    split = lambda rows: jax.tree.map(lambda x: np.asarray(x[rows]), pairs)
    output = trak.classification(apply)
    rng = np.random.default_rng(0)

    kept = np.zeros((options.subsets, N_TRAIN), np.float32)
    for row in kept:
        row[rng.permutation(N_TRAIN)[: N_TRAIN // 2]] = 1
    margins, started = np.zeros((options.subsets, len(images) - N_TRAIN)), time.perf_counter()
    all_margins = jax.jit(
        lambda p: jax.vmap(output.output, (None, 0))(p, (images[N_TRAIN:], labels[N_TRAIN:]))
    )
    for i, row in enumerate(kept):
        for repeat in range(options.repeats):
            params = fit(1000 + options.repeats * i + repeat, row)
            margins[i] += np.asarray(all_margins(params)) / options.repeats
    retraining = time.perf_counter() - started

    lines = []
    for kind in ("rademacher", "normal", "sjlt"):
        started = time.perf_counter()
        projector = trak.BasicProjector(2410, options.proj_dim, 0, kind)
        with tempfile.TemporaryDirectory() as folder:
            attributor = trak.Attributor(
                output, projector, Path(folder) / "f.h5", lambda_reg=options.lambda_reg,
                chunk_size=100,
            )  # fmt: skip
            for c in range(options.checkpoints):
                params = fit(c, np.ones(N_TRAIN, np.float32))
                attributor.featurize(params, c, split(slice(0, N_TRAIN)), "train")
                attributor.featurize(params, c, split(slice(N_TRAIN, None)), "targets")
            scores = attributor.scores("train", "targets")
        line = {
            "kind": kind,
            "lds": rank_correlation(kept @ scores, margins),
            "other_target": rank_correlation(kept @ np.roll(scores, 1, axis=1), margins),
            "shuffled": rank_correlation(kept @ rng.permutation(scores), margins),
            "seconds": time.perf_counter() - started,
            "retraining_seconds": retraining,
            **vars(options),
        }
        lines.append(line)
        print(
            f"{kind:12} LDS {line['lds']:.3f}   another target's {line['other_target']:.3f}   "
            f"shuffled {line['shuffled']:.3f}   {line['seconds']:.1f} s "
            f"(retraining {retraining:.1f} s)"
        )
    with (HERE / "results.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


if __name__ == "__main__":
    main()
