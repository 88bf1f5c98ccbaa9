"""Do the subspaces that optimizers keep of a gradient hold a trained operator's curvature?

    python studies/hessian/run.py --root datasets/darcy

Trains the Darcy operator for 10 epochs with AdamW and with TensorGRaD on three seeds. At the
trained parameters the top 50 eigenvectors of the training loss's Hessian over 64 samples are taken,
all parameters together, by block Lanczos with 100 products. Of what these vectors have on the
spectral weights it is measured how much lies in the subspaces that a projection would choose there:
5% of the entries (random, largest gradient, largest weight), Tucker cores of 20% and, as
tensor_muon has them, halved channels, chosen from the gradient over 64 *other* samples. Beside it
stand chance, kept dimensions / dimensions; the same subspaces against 50 random vectors; random
factors in the place of the gradient's; how much they hold of the gradient of the first 64 samples;
and the 5% of the entries with most of the eigenvectors' mass, which no choice of as many entries
beats.

Results: results.jsonl, one line per run (a second call continues), table.md, shares.png and
over_k.png.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from tensorgrad_jax.models import tensor_specs  # pyright: ignore[reportMissingImports]

import tensorgrad_jax as tg
from tensorgrad_jax import hessian
from tensorgrad_jax.projections.leaf import LeafProjection
from tensorgrad_jax.training.config import parse
from tensorgrad_jax.training.hessian_command import of_run
from tensorgrad_jax.training.run import run

HERE = Path(__file__).resolve().parent
CONFIG = ["--config_file", "darcy_tensorgrad_config.yaml", "--opt.n_epochs", "10"]
OPTIMIZERS = {
    "AdamW": ["--opt.tensorgrad", "False"],
    "TensorGRaD": [],
}
SEEDS = (0, 1, 2)
K, PRODUCTS, BLOCK, SAMPLES = 50, 100, 10, 64
SPARSE, CORE = 0.05, 0.20
HALVED = tg.Tucker((..., 0.5, 0.5), factors="real")
# What is chosen, and from what: the gradient, the weight, or normal numbers.
SUBSPACES: dict[str, tuple[Any, str]] = {
    "5% random entries": (tg.UnstructuredSparse(SPARSE), "gradient"),
    "5% largest gradient": (tg.UnstructuredSparse(SPARSE, "topk"), "gradient"),
    "5% largest weight": (tg.UnstructuredSparse(SPARSE, "topk"), "weight"),
    "Tucker 20%, gradient": (tg.Tucker(CORE), "gradient"),
    "Tucker 20%, random": (tg.Tucker(CORE), "normal"),
    "half the channels, gradient": (HALVED, "gradient"),
    "half the channels, random": (HALVED, "normal"),
}
BOUND = "5% most curvature"
NAMES = (*SUBSPACES, BOUND)
PARTS = ("eigenvectors", "random vectors", "gradient")


def spectral_weights(params: Any) -> list[tuple[str, Any, int, tuple[int, ...]]]:
    """Return name, spec, offset in the vector of parameters and shape of the spectral weights."""
    found, offset = [], 0
    specs = jax.tree.structure(params).flatten_up_to(tensor_specs(params))
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for (path, leaf), spec in zip(leaves, specs, strict=True):
        if spec is not None:
            found.append((jax.tree_util.keystr(path), spec, offset, leaf.shape))
        offset += leaf.size
    return found


def kept(projection: LeafProjection, basis: Any, columns: Any) -> Any:
    """Return of every column, a leaf of its own, the squared norm that the subspace holds."""

    def of(column):
        leaf = column.reshape(projection.shape)
        compact = projection.project(projection.to_tensor(leaf), basis)
        return sum(jnp.sum(jnp.abs(x) ** 2) for x in jax.tree.leaves(compact))

    return jax.jit(jax.vmap(of, in_axes=1))(columns)


def measured(folder: Path, root: str, seed: int) -> dict[str, Any]:
    """Return what is known of a run: eigenvalues, and shares per spectral weight and subspace."""
    problem = of_run(folder, root)
    part = lambda i: jax.tree.map(lambda x: x[i * SAMPLES : (i + 1) * SAMPLES], problem.train)
    H = hessian.hvp_operator(problem.loss, problem.params, part(0), block_size=BLOCK)
    found = hessian.block_lanczos(H, jax.random.key(seed), K, PRODUCTS, block_size=BLOCK)
    vectors = found.vectors()
    top = vectors[:, :BLOCK]
    residual = jnp.linalg.norm(H.mm(top) - top * found.values[:BLOCK], axis=0)
    gradient = jax.jit(jax.grad(problem.loss))
    first, other = (ravel_pytree(gradient(problem.params, part(i)))[0] for i in (0, 1))
    random = jnp.linalg.qr(jax.random.normal(jax.random.key(100 + seed), vectors.shape))[0]
    columns = {"eigenvectors": vectors, "random vectors": random, "gradient": first[:, None]}
    leaves: list[dict[str, Any]] = []
    for number, (name, spec, start, shape) in enumerate(spectral_weights(problem.params)):
        size = int(np.prod(shape))
        own = {part: x[start : start + size] for part, x in columns.items()}
        sources = {
            "gradient": other[start : start + size].reshape(shape),
            "weight": H.params[start : start + size].reshape(shape),
            "normal": jax.random.normal(jax.random.fold_in(jax.random.key(seed), number), shape),
        }
        row: dict[str, Any] = {"name": name, "size": size, "chance": {}}
        row["mass"] = {part: np.sum(np.square(x), 0).tolist() for part, x in own.items()}
        row["kept"] = {part: {} for part in own}
        for label, (projection, source) in SUBSPACES.items():
            leaf = LeafProjection(projection, spec, shape, jnp.float32, name)
            key = jax.random.fold_in(jax.random.key(1 + seed), number)
            basis = leaf.refresh(key, leaf.to_tensor(sources[source]), leaf.init())
            row["chance"][label] = leaf.budget
            for part, x in own.items():
                row["kept"][part][label] = np.asarray(kept(leaf, basis, x)).tolist()
        # Complex entries, as a projection takes them: both parts or none.
        entries = jnp.sum(vectors[start : start + size] ** 2, 1).reshape(2, -1).sum(0)
        count = int(SPARSE * entries.size)
        best = jnp.argsort(-entries)[:count]
        row["chance"][BOUND] = count / entries.size
        for part, x in own.items():
            inside = jnp.sum(x.reshape(2, entries.size, -1)[:, best] ** 2, (0, 1))
            row["kept"][part][BOUND] = inside.tolist()
        leaves.append(row)
    return {
        "parameters": int(H.shape[0]),
        "values": np.asarray(found.values).tolist(),
        "residuals": np.asarray(residual).tolist(),
        "step": problem.step,
        "leaves": leaves,
    }


def train_and_measure(root: str, results: Path) -> None:
    """Add to the results the runs that are not there."""
    for optimizer, flags in OPTIMIZERS.items():
        for seed in SEEDS:
            labels = {"optimizer": optimizer, "seed": seed}
            if any(labels.items() <= row.items() for row in read(results)):
                continue
            print(labels, flush=True)
            with tempfile.TemporaryDirectory() as folder:
                common = ["--data.root", root, "--seed", str(seed), "--opt.save_dir", folder]
                folder_of_run = run(parse([*CONFIG, *flags, *common]))
                summary = json.loads((folder_of_run / "summary.json").read_text(encoding="utf-8"))
                row = labels | {name: summary[name] for name in ("train_loss", "tests")}
                row |= measured(folder_of_run, root, seed)
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(rounded(row)) + "\n")


def rounded(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with five digits of every number."""
    return jax.tree.map(lambda x: float(f"{x:.5g}") if isinstance(x, float) else x, row)


def read(results: Path) -> list[dict[str, Any]]:
    """Return the finished runs."""
    if not results.exists():
        return []
    return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]


def share(row: dict, part: str, label: str, k: int = K, leaf: int | None = None) -> float:
    """Return what a subspace holds of the first k vectors' mass on spectral weights, or on one."""
    leaves = row["leaves"] if leaf is None else [row["leaves"][leaf]]
    inside = sum(sum(x["kept"][part][label][:k]) for x in leaves)
    return inside / sum(sum(x["mass"][part][:k]) for x in leaves)


def chance(row: dict, label: str) -> float:
    """Return kept dimensions / dimensions of the spectral weights."""
    leaves = row["leaves"]
    return sum(x["chance"][label] * x["size"] for x in leaves) / sum(x["size"] for x in leaves)


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Return mean and standard error."""
    return float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values)))


def runs_of(rows: list[dict], optimizer: str) -> list[dict]:
    """Return its runs."""
    return [row for row in rows if row["optimizer"] == optimizer]


def report(rows: list[dict], folder: Path) -> None:
    """Write table and pictures."""
    text = lambda values: "{:.1%} ± {:.1%}".format(*mean_and_error(values))
    lines = []
    for optimizer in OPTIMIZERS:
        own = runs_of(rows, optimizer)
        if len(own) < len(SEEDS):
            lines += [f"{optimizer}: not run.", ""]
            continue
        spectral = [sum(sum(x["mass"]["eigenvectors"]) for x in r["leaves"]) / K for r in own]
        by_size = sum(x["size"] for x in own[0]["leaves"]) / own[0]["parameters"]
        errors = " ".join(f"{next(iter(r['tests'].values()))['l2']:.4f}" for r in own)
        negative = text([float(np.mean(np.array(r["values"]) < 0)) for r in own])
        worst = max(max(np.array(r["residuals"]) / np.abs(r["values"][:BLOCK])) for r in own)
        lines += [
            f"**{optimizer}**: test L2 {errors}; of the {K} eigenvectors' mass "
            f"{text(spectral)} is on spectral weights, which hold {by_size:.1%} of the "
            f"{own[0]['parameters']:,} parameters; {negative} of the eigenvalues are negative; "
            f"largest residual |H v - λ v| / |λ| of the first {BLOCK}: {worst:.1e}.",
            "",
            "| subspace | chance | of the top eigenvectors | times chance | layers, times chance "
            f"| of {K} random vectors | of the gradient |",
            "|---|---|---|---|---|---|---|",
        ]
        for label in NAMES:
            expected = chance(own[0], label)
            shares = {part: [share(r, part, label) for r in own] for part in PARTS}
            ratio = "{:.2f} ± {:.2f}".format(
                *mean_and_error([x / expected for x in shares["eigenvectors"]])
            )
            layers = " ".join(
                f"{np.mean([share(r, 'eigenvectors', label, leaf=i) for r in own]) / expected:.2f}"
                for i in range(len(own[0]["leaves"]))
            )
            cells = [text(shares[part]) for part in PARTS]
            lines.append(
                f"| {label} | {expected:.1%} | {cells[0]} | {ratio} | {layers} | {cells[1]} "
                f"| {cells[2]} |"
            )
        lines.append("")
    (folder / "table.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))
    complete = [o for o in OPTIMIZERS if len(runs_of(rows, o)) == len(SEEDS)]
    if complete:
        plot(rows, complete, folder)


def plot(rows: list[dict], optimizers: list[str], folder: Path) -> None:
    """Draw shares over chance, and how they depend on k."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(9, 4.4), layout="constrained")
    place, width = np.arange(len(NAMES)), 0.8 / (len(optimizers) + 1)
    parts = [(o, "eigenvectors", f"C{i}") for i, o in enumerate(optimizers)]
    for i, (optimizer, part, color) in enumerate(
        [*parts, (optimizers[0], "random vectors", "0.7")]
    ):
        own = runs_of(rows, optimizer)
        ratios = [[share(r, part, n) / chance(r, n) for r in own] for n in NAMES]
        means, errors = np.array([mean_and_error(x) for x in ratios]).T
        label = f"after {optimizer}" if part == "eigenvectors" else f"{K} random vectors"
        axis.bar(
            place + (i - len(optimizers) / 2) * width,
            means,
            width,
            yerr=errors,
            color=color,
            label=label,
            capsize=2,
        )
    axis.axhline(1, color="k", ls="--", lw=1, label="chance")
    axis.set_xticks(place, [n.replace(" ", "\n") for n in NAMES], fontsize=8)
    axis.set(
        yscale="log",
        ylabel=f"share of the top {K} eigenvectors' mass\non spectral weights / chance",
        title="Darcy operator, three seeds, standard errors",
    )
    axis.legend(fontsize=8)
    figure.savefig(folder / "shares.png", dpi=120)

    figure, axes = plt.subplots(
        1,
        len(optimizers),
        figsize=(4 * len(optimizers), 4.4),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    ks = np.unique(np.geomspace(1, K, 24).astype(int))
    for axis, optimizer in zip(axes[0], optimizers, strict=True):
        own = runs_of(rows, optimizer)
        for i, name in enumerate(NAMES):
            ratios = [
                [share(r, "eigenvectors", name, int(k)) / chance(r, name) for r in own] for k in ks
            ]
            means, errors = np.array([mean_and_error(x) for x in ratios]).T
            axis.plot(ks, means, color=f"C{i}", label=name)
            axis.fill_between(ks, means - errors, means + errors, color=f"C{i}", alpha=0.2)
        axis.axhline(1, color="k", ls="--", lw=1)
        axis.set(
            xscale="log", yscale="log", xlabel="k top eigenvectors", title=f"after {optimizer}"
        )
    axes[0][0].set_ylabel("share of their mass / chance")
    figure.legend(
        *axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8
    )
    figure.savefig(folder / "over_k.png", dpi=120)


def main() -> None:
    """Run what is missing, then report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", default="datasets/darcy", help="folder of the data")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the results")
    parser.add_argument("--report", action="store_true", help="of the results that are there")
    options = parser.parse_args()
    results = options.out / "results.jsonl"
    if not options.report:
        train_and_measure(options.root, results)
    report(read(results), options.out)


if __name__ == "__main__":
    sys.exit(main())
