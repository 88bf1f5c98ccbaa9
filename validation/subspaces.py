"""What the distances of subspaces say about random ones: overlap alone keeps telling.

    python validation/subspaces.py

Pairs of random k-dimensional subspaces of R^1000: two of random orthonormal bases, one of them and
a mask (coordinates), two masks; per k 20 pairs, of which 2 for what needs principal angles. Of
every measure of `tensorgrad_jax.subspaces` the mean and standard deviation over pairs, as a part of
the largest value that it can take. Claims, for every kind of pair: the mean overlap is k / D, where
a basis is random to within 0.002, of masks to within four standard errors of their numbers of
shared coordinates, which are hypergeometric; |sin theta|^2 = k (1 - overlap);
intersection over union of masks is overlap / (2 - overlap); and for every k from 16 to 400 the
largest chordal and projection distance and Fubini-Study are within 1% of their largest values.
Writes subspaces.json and subspaces.png; exit status 1 if a claim fails.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from tensorgrad_jax import subspaces

HERE = Path(__file__).resolve().parent
D = 1000
SIZES = (1, 4, 16, 50, 100, 200, 300, 400, 600, 800)
PAIRS, WITH_ANGLES = 20, 2
KINDS = ("two bases", "a basis and a mask", "two masks")
CHEAP = ("overlap", "stability")
# Each with its largest value for k dimensions in D, k <= D / 2.
MEASURES = {
    "overlap": (subspaces.overlap, lambda k: 1.0),
    "geodesic": (subspaces.geodesic, lambda k: math.pi * math.sqrt(k) / 2),
    "chordal, F": (subspaces.chordal, lambda k: math.sqrt(2 * k)),
    "chordal, largest": (lambda A, B: subspaces.chordal(A, B, "largest"), lambda k: math.sqrt(2)),
    "projection, F": (subspaces.projection, lambda k: math.sqrt(k)),
    "projection, largest": (lambda A, B: subspaces.projection(A, B, "largest"), lambda k: 1.0),
    "Fubini-Study": (subspaces.fubini_study, lambda k: math.pi / 2),
    "stability": (subspaces.stability, lambda k: 1.0),
}
SATURATED = ("chordal, largest", "projection, largest", "Fubini-Study")


@jax.jit(static_argnums=1)
def basis(key, k: int):
    """Return a random orthonormal basis."""
    return jnp.linalg.qr(jax.random.normal(key, (D, k)))[0]


def pair(kind: str, key, k: int):
    """Return two bases, and the masks that they are, if they are."""
    first, second = jax.random.split(key)
    mask = lambda key: jax.random.permutation(key, D)[:k]
    of_mask = lambda indices: jnp.zeros((D, k)).at[indices, jnp.arange(k)].set(1)
    if kind == "two bases":
        return basis(first, k), basis(second, k), None
    if kind == "a basis and a mask":
        return basis(first, k), of_mask(mask(second)), None
    masks = mask(first), mask(second)
    return *map(of_mask, masks), masks


@jax.jit(static_argnums=2)
def measured(A, B, with_angles: bool):
    """Return all measures of one pair, or those that need no principal angles."""
    names = MEASURES if with_angles else CHEAP
    return {name: MEASURES[name][0](A, B) for name in names}


def rows_of(kind: str) -> list[dict]:
    """Return a row per k with mean and standard deviation of every measure."""
    rows = []
    for k in SIZES:
        found: dict[str, list[float]] = {}
        for seed in range(PAIRS):
            A, B, masks = pair(kind, jax.random.fold_in(jax.random.key(k), seed), k)
            values = measured(A, B, seed < WITH_ANGLES)
            if masks is not None:
                values["iou"] = subspaces.iou(*masks)
            for name, value in values.items():
                largest = MEASURES[name][1](k) if name in MEASURES else 1.0
                found.setdefault(name, []).append(float(value) / largest)
        row = {"kind": kind, "k": k}
        for name, values in found.items():
            row[name] = [float(np.mean(values)), float(np.std(values))]
            assert np.all(np.isfinite(values)), (kind, k, name)
        identities = zip(found["projection, F"], found["overlap"], strict=False)
        row["identity"] = max(abs(p**2 - (1 - o)) for p, o in identities)
        if "iou" in found:
            pairs = zip(found["iou"], found["overlap"], strict=True)
            row["identity of iou"] = max(abs(i - o / (2 - o)) for i, o in pairs)
        rows.append(row)
        print(
            f"{kind:20} k {k:3}  "
            + "  ".join(f"{name} {row[name][0]:.3f}" for name in (*MEASURES, "iou") if name in row),
            flush=True,
        )
    return rows


def failures(rows: list[dict]) -> list[str]:
    """Return the claims that do not hold."""
    failed = []
    for row in rows:
        where = f"{row['kind']}, k = {row['k']}"
        mean, _ = row["overlap"]
        p, allowed = row["k"] / D, 0.002
        if row["kind"] == "two masks":
            allowed = 4 * (1 - p) * math.sqrt(p / (row["k"] * PAIRS))
        if abs(mean - p) > allowed:
            failed.append(f"{where}: overlap {mean:.4f}, not {p} +- {allowed:.4f}")
        if max(row["identity"], row.get("identity of iou", 0.0)) > 1e-5:
            failed.append(f"{where}: an identity is off by {row['identity']:.1e}")
        if 16 <= row["k"] <= 400:
            failed += [
                f"{where}: {name} {row[name][0]:.4f} is not saturated"
                for name in SATURATED
                if row[name][0] < 0.99
            ]
    return failed


def main() -> int:
    """Measure, print, draw; return 1 if a claim fails."""
    rows = [row for kind in KINDS for row in rows_of(kind)]
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    text = f'{{\n "D": {D},\n "rows": [\n{lines}\n ]\n}}\n'
    (HERE / "subspaces.json").write_text(text, encoding="utf-8")
    plot(rows)
    failed = failures(rows)
    print("\n".join(["claims that failed:", *failed]) if failed else "all claims hold")
    return 1 if failed else 0


def plot(rows: list[dict]) -> None:
    """Draw every measure over k, a panel per kind of pair."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12.5, 4.2), sharey=True, layout="constrained")
    for axis, kind in zip(axes, KINDS, strict=True):
        own = [row for row in rows if row["kind"] == kind]
        k = np.array([row["k"] for row in own])
        axis.plot([0, max(k)], [0, max(k) / D], color="0.8", lw=6, label="k / D")
        for i, name in enumerate((*MEASURES, "iou")):
            if name not in own[0]:
                continue
            means, spread = np.array([row[name] for row in own]).T
            style = "--" if name in SATURATED else "-"
            axis.errorbar(k, means, spread, fmt=style, marker="o", ms=3, color=f"C{i}", label=name)
        axis.set(title=kind, xlabel=f"k, of D = {D}")
    axes[0].set_ylabel("of the largest possible value")
    figure.legend(
        *axes[2].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8
    )
    figure.savefig(HERE / "subspaces.png", dpi=120)


if __name__ == "__main__":
    sys.exit(main())
