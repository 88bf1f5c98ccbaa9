"""Does training without the most helpful samples make a prediction worse, as scores predict?

An FNO learns Burgers' equation (initial function to the solution at time 1, 128 points) from 200
samples. For single test samples, and for the mean over all of them, TRAK's scores name the most
helpful and the most harmful training samples. The operator is trained anew without them, and
without as many random ones, from the same initial weights and with the same order of batches; what
is recorded is the relative change of the test error. The scores are those of the seed's own model
and of the models of the other seeds, averaged.

    python studies/trak/removal.py             # trains, appends to removal.jsonl, draws the figure
    python studies/trak/removal.py --report    # the table and the figure alone
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from lds import rank_correlation
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tensorgrad_jax.models import FNO  # pyright: ignore[reportMissingImports]

from tensorgrad_jax import trak
from tensorgrad_jax.data import generate_burgers, open_dataset
from tensorgrad_jax.training.losses import lp_loss

HERE = Path(__file__).parent
RESULTS, PICTURE = HERE / "removal.jsonl", HERE / "removal.png"
RESOLUTION, BATCH = 128, 20
WAYS = ("helpful", "random", "harmful")


def load(root: Path, n_train: int, n_test: int):
    """Return training and test samples, {"x", "y"}; makes them where they are not there."""
    generate_burgers(
        root, n_train=n_train, n_test=n_test, resolution=RESOLUTION, viscosity=0.01, seed=0
    )

    def of(split, n):
        source = open_dataset(root, "burgers", split, RESOLUTION, n)
        return {name: np.stack([source[i][name] for i in range(n)]) for name in ("x", "y")}

    return of("train", n_train), of("test", n_test)


def model(seed):
    """Return the graph and the parameters of the operator: 16,729 numbers."""
    fno = FNO((16,), 1, 1, 16, 3, rngs=nnx.Rngs(seed))
    graph, params = nnx.split(fno, nnx.Param)
    return graph, nnx.to_pure_dict(params)


GRAPH, _ = model(0)


def sample_loss(params, example):
    """Return the relative L2 error of a sample."""
    return lp_loss(nnx.merge(GRAPH, params)(example["x"][None]), example["y"][None])


@jax.jit
def losses_of(params, examples):
    """Return the relative L2 errors of samples."""
    return jax.vmap(sample_loss, (None, 0))(params, examples)


def make_fit(examples, epochs: int, rate: float):
    """Return the jitted function (parameters, seed, kept) -> trained parameters.

    Samples whose `kept` is 0 have no weight: initial weights and batches are the same without them.
    """
    n = len(examples["x"])
    steps = epochs * (n // BATCH)
    optimizer = optax.adamw(optax.cosine_decay_schedule(rate, steps), weight_decay=1e-4)

    def loss(params, rows, kept):
        batch = jax.tree.map(lambda x: jnp.asarray(x)[rows], examples)
        prediction = nnx.merge(GRAPH, params)(batch["x"])
        errors = lp_loss(prediction, batch["y"], reduction="none")[:, 0]
        return (kept[rows] * errors).sum() / jnp.maximum(kept[rows].sum(), 1)

    @jax.jit
    def fit(params, seed, kept):
        orders = jax.vmap(lambda key: jax.random.permutation(key, n))(
            jax.random.split(jax.random.key(seed), epochs)
        )

        def step(carry, rows):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params, rows, kept), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), orders.reshape(steps, BATCH))[
            0
        ][0]

    return fit


def scores_of(models, train, targets, options) -> np.ndarray:
    """Return the scores averaged over models, (training samples, targets)."""
    p = sum(x.size for x in jax.tree.leaves(models[0]))
    projector = trak.BasicProjector(p, options.proj_dim, 0, "rademacher")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "f.h5"
        attributor = trak.Attributor(trak.sample_loss(sample_loss), projector, path)
        for model_id, params in enumerate(models):
            attributor.featurize(params, model_id, train, "train")
            attributor.featurize(params, model_id, targets, "targets")
        features = attributor.store.read("train", 0, slice(0, len(train["x"])))[0]
        attributor.lambda_reg = options.damping * float((features**2).sum() / min(features.shape))
        return attributor.scores("train", "targets")


def run(options) -> list[dict]:
    """Train, attribute, remove, train again; return a line per removal."""
    train, test = load(options.data, options.n_train, options.n_test)
    fit = make_fit(train, options.epochs, options.learning_rate)
    initial = [model(seed)[1] for seed in range(options.seeds)]
    every = jnp.ones(options.n_train)
    full = [fit(params, seed, every) for seed, params in enumerate(initial)]
    before = [np.asarray(losses_of(params, test)) for params in full]
    print("test error of the full training sets:", [float(b.mean().round(4)) for b in before])
    scores = scores_of(full, train, test, options)
    # The scores of the mean error are the mean of the scores: both are linear in the target.
    groups = {str(t): scores[:, t] for t in range(options.targets)}
    groups["all"] = scores.mean(1)
    lines, rng = [], np.random.default_rng(1)
    for target, column in groups.items():
        order = np.argsort(-column)
        for seed in range(options.seeds):
            for way in WAYS:
                removed = {
                    "helpful": order[: options.removed],
                    "harmful": order[::-1][: options.removed],
                    "random": rng.permutation(options.n_train)[: options.removed],
                }[way]
                kept = np.ones(options.n_train, np.float32)
                kept[removed] = 0
                after = np.asarray(losses_of(fit(initial[seed], seed, kept), test))
                rows = slice(None) if target == "all" else [int(target)]
                old, new = float(before[seed][rows].mean()), float(after[rows].mean())
                lines.append({
                    "target": target, "seed": seed, "removed": way, "n_removed": options.removed,
                    "error": old, "error_without": new, "change": new / old - 1,
                    "score": float(column[removed].sum() / np.abs(column).sum()),
                })  # fmt: skip
        means = {w: np.mean([x["change"] for x in lines if x["removed"] == w and
                             x["target"] == target]) for w in WAYS}  # fmt: skip
        print(f"target {target:>3}  " + "  ".join(f"{w} {m:+.1%}" for w, m in means.items()))
    return lines


def report(lines) -> None:
    """Print the table and draw the figure."""
    single = [x for x in lines if x["target"] != "all"]
    seeds = sorted({x["seed"] for x in lines})
    print("| error of | removed | " + " | ".join(f"seed {s}" for s in seeds) + " | mean |")
    print("|---|---|" + "---|" * (len(seeds) + 1))
    for name, part in (
        ("single samples, mean", single),
        ("the test set", [x for x in lines if x["target"] == "all"]),
    ):
        for way in WAYS:
            cells = [
                np.mean([x["change"] for x in part if x["removed"] == way and x["seed"] == s])
                for s in seeds
            ]
            numbers = " | ".join(f"{c:+.1%}" for c in (*cells, np.mean(cells)))
            print(f"| {name} | {way} | {numbers} |")
    by = lambda key, way: {(x["target"], x["seed"]): x[key] for x in single if x["removed"] == way}
    helpful, random, harmful = (by("change", way) for way in WAYS)
    wins = np.mean([helpful[k] > random[k] for k in helpful])
    ordered = np.mean([helpful[k] > harmful[k] for k in helpful])
    pairs = np.asarray([(x["score"], x["change"]) for x in single])
    correlation = rank_correlation(pairs[:, :1], pairs[:, 1:])
    print(
        f"single samples: without the helpful ones worse than without random ones in {wins:.0%}, "
        f"worse than without the harmful ones in {ordered:.0%} of {len(helpful)} cases; rank "
        f"correlation of removed score and change {correlation:.2f}"
    )
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for i, way in enumerate(WAYS):
        part = [x for x in single if x["removed"] == way]
        color = ("tab:red", "0.5", "tab:blue")[i]
        left.scatter([x["score"] for x in part], [100 * x["change"] for x in part], s=12,
                     color=color, label=way)  # fmt: skip
        means = [100 * np.mean([x["change"] for x in part if x["seed"] == s]) for s in seeds]
        right.bar(i, np.mean(means), color=color, alpha=0.6)
        right.scatter([i] * len(means), means, color="black", s=10, zorder=3)
    left.axhline(0, color="0.7", linewidth=0.8)
    right.axhline(0, color="0.7", linewidth=0.8)
    left.set_xlabel("score of the removed samples, part of all")
    left.set_ylabel("change of the test sample's error, %")
    left.legend(frameon=False)
    right.set_xticks(range(len(WAYS)), [f"without\n{way}" for way in WAYS])
    right.set_ylabel("mean change, % (dots: seeds)")
    figure.savefig(PICTURE, dpi=150)


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--report", action="store_true")
    add("--data", type=Path, default=Path("datasets/burgers_removal"))
    add("--n_train", type=int, default=200)
    add("--n_test", type=int, default=50)
    add("--targets", type=int, default=8, help="single test samples")
    add("--removed", type=int, default=20)
    add("--seeds", type=int, default=3)
    add("--epochs", type=int, default=30)
    add("--learning_rate", type=float, default=5e-3)
    add("--proj_dim", type=int, default=1024)
    add("--damping", type=float, default=0.1)
    options = parser.parse_args()
    if not options.report:
        started = time.perf_counter()
        lines = run(options)
        settings = {
            k: v for k, v in vars(options).items() if k not in ("report", "data", "removed")
        }
        with RESULTS.open("w") as file:
            file.writelines(json.dumps(settings | line) + "\n" for line in lines)
        print(f"{time.perf_counter() - started:.0f} s")
    report([json.loads(line) for line in RESULTS.open()])


if __name__ == "__main__":
    main()
