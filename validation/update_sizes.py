"""How large updates are, over those of the same optimizer without compression.

    python validation/update_sizes.py

Gradients are a mean of rank 6 and of unit root mean square plus unit noise, on 16^3 numbers: real
ones, complex ones, and pairs of real ones that stand for complex ones. The root mean square of the
update, over that of `optax.adamw`, is averaged over steps 50 to 400. Writes update_sizes.json and
update_sizes.png beside this file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import tensorgrad_jax as tg

HERE = Path(__file__).resolve().parent
N, RANK, STEPS, FIRST = 16, 6, 400, 50
GAPS = (10, 50, 200)
PROJECTIONS = {
    "Tucker 25%": tg.Tucker(0.25),
    "sparse 25%": tg.UnstructuredSparse(0.25),
    "composite": tg.Residual(tg.UnstructuredSparse(0.05), tg.Tucker(0.20)),
}
KINDS = ("real", "pair", "complex")


def mean_gradient(kind: str) -> np.ndarray:
    """Return the mean of the gradients of a real leaf, a complex one, or a pair."""
    r = np.random.default_rng(0)
    draw = lambda: r.normal(size=(3, N, RANK))
    factors = draw() if kind == "real" else draw() + 1j * draw()
    mean = np.einsum("ir,jr,kr->ijk", *factors)
    mean *= (1 if kind == "real" else 2**0.5) / np.sqrt(np.mean(np.abs(mean) ** 2))
    return np.stack([mean.real, mean.imag]) if kind == "pair" else mean


def size(make, kind: str, gaps=(1,)) -> np.ndarray:
    """Return the mean root mean square of updates, for every gap that `make` is given."""
    dtype = jnp.complex64 if kind == "complex" else jnp.float32
    mean = jnp.asarray(mean_gradient(kind), dtype)

    def noise(key):
        if kind == "complex":
            return jax.random.normal(key, mean.shape, jnp.complex64) * 2**0.5
        return jax.random.normal(key, mean.shape)

    def run(gap):
        optimizer = make(lambda step: gap)

        def step(state, key):
            update, state = optimizer.update(mean + noise(key), state, mean)
            return state, jnp.sqrt(jnp.mean(jnp.abs(update) ** 2))

        keys = jax.random.split(jax.random.key(1), STEPS)
        return jax.lax.scan(step, optimizer.init(mean), keys)[1][FIRST:].mean()

    return np.asarray(jax.jit(jax.vmap(run))(jnp.asarray(gaps)))


def optimizers(kind: str, rule: str) -> dict:
    """Return by name what makes an optimizer of a gap."""
    spec = tg.TensorSpec(0) if kind == "pair" else tg.TensorSpec()
    made = {
        name: lambda gap, p=projection: tg.projected_adamw(1.0, p, gap, specs=spec, on_refresh=rule)
        for name, projection in PROJECTIONS.items()
    }
    for name, match in (("subspace momentum", False), ("subspace momentum, matched", True)):
        made[name] = lambda gap, m=match: tg.subspace_momentum(
            1.0, update_proj_gap=gap, specs=spec, on_refresh=rule, match_size=m
        )
    return made


def main() -> None:
    """Measure, print, save."""
    rows = []
    for kind in KINDS:
        reference = size(lambda gap: optax.adamw(1.0, weight_decay=0.0), kind)[0]
        for rule in ("transport", "reset"):
            for name, make in optimizers(kind, rule).items():
                ratios = [round(float(x), 3) for x in size(make, kind, GAPS) / reference]
                rows.append({"leaf": kind, "rule": rule, "optimizer": name, "ratio": ratios})
                print(f"{kind:8} {rule:10} {name:28} {ratios}", flush=True)
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    text = f'{{\n "gaps": {json.dumps(GAPS)},\n "rows": [\n{lines}\n ]\n}}\n'
    (HERE / "update_sizes.json").write_text(text)
    plot(rows)


def plot(rows) -> None:
    """Draw the ratios over the gap, one panel per kind of leaf."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), sharey=True)
    for axis, kind in zip(axes, KINDS, strict=True):
        axis.axhspan(0.85, 1.15, color="0.9", label="within 15%")
        for row in (r for r in rows if r["leaf"] == kind):
            style = "-o" if row["rule"] == "transport" else "--s"
            color = f"C{list(optimizers('real', 'transport')).index(row['optimizer'])}"
            label = row["optimizer"] if row["rule"] == "transport" else None
            axis.semilogx(GAPS, row["ratio"], style, color=color, label=label, ms=4)
        axis.set(title=f"{kind} leaf", xlabel="steps between refreshes", ylim=(0, 2))
    axes[0].set_ylabel("size of update / AdamW's")
    axes[0].legend(fontsize=7, loc="lower right")
    figure.tight_layout()
    figure.savefig(HERE / "update_sizes.png", dpi=120)


if __name__ == "__main__":
    sys.exit(main())
