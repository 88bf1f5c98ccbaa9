"""One run: train a network by its configuration, dense or with OIALR, and write what it gives."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pictures
import yaml
from flax import nnx

from tensorgrad_jax import oialr


def optimizer_of(training: dict[str, Any], steps_per_epoch: int) -> optax.GradientTransformation:
    """Return AdamW with a linear warm-up and a cosine behind it."""
    schedule, options = training["lr_schedule"], training["optimizer"]
    rate = optax.warmup_cosine_decay_schedule(
        schedule["warmup_lr"],
        training["lr"],
        max(1, schedule["warmup_epochs"] * steps_per_epoch),
        max(2, training["epochs"] * steps_per_epoch),
        schedule["min_lr"],
    )
    adamw = optax.adamw(
        rate, options["beta1"], options["beta2"], weight_decay=options["weight_decay"]
    )
    norm = training["max_grad_norm"]
    return optax.chain(optax.clip_by_global_norm(norm), adamw) if norm > 0 else adamw


def accuracy(model: nnx.Module, data: pictures.Pictures) -> float:
    """Return the share of images whose class is found, in percent."""
    predict = nnx.jit(lambda model, x: model(x).argmax(-1))
    parts = [predict(model, x) for x in np.array_split(data.images, -(-len(data.labels) // 512))]
    return 100 * float(np.mean(np.concatenate(parts) == data.labels))


def fixing_method(config: dict[str, Any]) -> oialr.Config:
    """Return the method's options of a configuration; a ValueError names a wrong one."""
    try:
        return oialr.Config(**config["training"]["fixing_method"])
    except TypeError as error:
        raise ValueError(f"training.fixing_method: {error}") from error


def build(config: dict[str, Any]):
    """Return model, optimizer, wrapped model (None for a baseline) and the two data sets."""
    data = config["data"]
    train, test = pictures.load(data["dataset"], data["data_dir"])
    shape = train.images.shape[1:]
    model = networks.make(config["model"], shape, data["classes"], config["seed"])
    per_epoch = len(train.labels) // data["local_batch_size"]
    transformation = optimizer_of(config["training"], per_epoch)
    optimizer = nnx.Optimizer(model, transformation, wrt=nnx.Param)
    wrapped = None if config["baseline"] else oialr.wrap(model, fixing_method(config), optimizer)
    return model, optimizer, wrapped, train, test


def run(config: dict[str, Any], say: Callable[[str], None] = print) -> dict[str, Any]:
    """Train, write configuration, results, checkpoint and observables, and return the results."""
    model, optimizer, wrapped, train, test = build(config)
    folder = Path(config["out"]) / config["name"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    smoothing, classes = config["training"]["label_smoothing"], config["data"]["classes"]
    programs: list[int] = []

    def loss_of(model, x, y):
        targets = optax.smooth_labels(jax.nn.one_hot(y, classes), smoothing)
        return optax.softmax_cross_entropy(model(x), targets).mean()

    @nnx.jit
    def step(model, optimizer, x, y):
        programs.append(1)  # once per compilation
        value, gradients = nnx.value_and_grad(loss_of)(model, x, y)
        optimizer.update(model, gradients)
        return value

    of_layers = wrapped or oialr.wrap(model, oialr.Config(delay=2**30))
    history, every = oialr.History(of_layers.kernels), config["tracking"]["stability_every"]
    rng, batch = np.random.default_rng(config["seed"]), config["data"]["local_batch_size"]
    number, value, began = 0, jnp.zeros(()), time.perf_counter()
    for epoch in range(config["training"]["epochs"]):
        order = rng.permutation(len(train.labels))
        for start in range(0, len(order) - batch + 1, batch):
            taken = order[start : start + batch]
            if wrapped is not None and wrapped.step():
                say(f"step {number + 1}: {wrapped.events[-1].report}")
            value = step(model, optimizer, train.images[taken], train.labels[taken])
            number += 1
            if every and number % every == 0:
                history.record(number, of_layers.params, of_layers.bases)
        if epoch % 10 == 9 or epoch == config["training"]["epochs"] - 1:
            say(f"epoch {epoch + 1}: loss {value:.4f}, test {accuracy(model, test):.2f}%")
    seconds = time.perf_counter() - began
    report = of_layers.report()
    result = {
        "name": config["name"], "model": config["model"]["name"], "seed": config["seed"],
        "accuracy": accuracy(model, test), "loss": float(value), "steps": number,
        "trainable_percent": report.trainable_percent, "stored_percent": report.stored_percent,
        "ranks": report.ranks, "programs": len(programs), "seconds": seconds,
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    save(folder, model, of_layers)
    if history.rows:
        oialr.stability_report(history, folder, config["name"], config["tracking"]["images"])
    return result


def save(folder: Path, model: nnx.Module, wrapped: oialr.Wrapped) -> None:
    """Write the arrays of a model, and what their shapes are."""
    leaves = jax.tree.leaves(jax.device_get(nnx.as_pure(nnx.state(model))))
    np.savez(folder / "checkpoint.npz", *leaves)
    (folder / "record.json").write_text(json.dumps(wrapped.record()), encoding="utf-8")


def load(folder: Path) -> tuple[nnx.Module, dict[str, Any], pictures.Pictures]:
    """Return the model of a run with its ranks, its configuration and its test set."""
    for name in ("config.yaml", "record.json", "checkpoint.npz"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing: no run of train.py is there")
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    model, _, wrapped, _, test = build(config)
    if wrapped is not None:
        wrapped.restore(json.loads((folder / "record.json").read_text(encoding="utf-8")))
    state = nnx.state(model)
    arrays = np.load(folder / "checkpoint.npz")
    leaves = [jnp.asarray(arrays[f"arr_{i}"]) for i in range(len(arrays.files))]
    nnx.update(model, jax.tree.unflatten(jax.tree.structure(state), leaves))
    return model, config, test
