"""What features cost: products with random matrices, and features of a neural operator.

    python benchmarks/trak.py [--peer PYTHON] [--rounds 2]

PYTHON is an interpreter with torch and traker 0.3.2, whose BasicProjector is timed by turns with
ours. Prints ratios, writes results/<device>/trak.json. Peak bytes are those of the compiled
program: arguments, results and temporaries.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from interleaved import by_turns, summary, table, timed, write
from tensorgrad_jax.models import FNO  # pyright: ignore[reportMissingImports]

from tensorgrad_jax import trak
from tensorgrad_jax.per_example import Project, ProjectLayers, per_example
from tensorgrad_jax.random_matrices import key_from
from tensorgrad_jax.trak.kinds import matrix_of

P, K, B = 10**6, 512, 8
KINDS = ("rademacher", "normal", "sjlt", "srft")


class Traker:
    """traker in a process of its own."""

    def __init__(self, python: str):
        # Without -P `trak` would be this file.
        command = [python, "-P", str(Path(__file__).parent / "trak_peer.py"), *map(str, (P, K, B))]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.facts = self._read()

    def _read(self):
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def run(self, kind: str) -> float:
        """Project once; return milliseconds."""
        assert self.process.stdin is not None
        print(kind, file=self.process.stdin, flush=True)
        return self._read()


def products(peer: str | None, rounds: int) -> dict:
    """Time products of 8 gradients of a million numbers with 512 columns."""
    gradients = jax.random.normal(jax.random.key(0), (B, P))
    runs = {kind: timed(trak.BasicProjector(P, K, 0, kind).project, gradients, 0) for kind in KINDS}
    facts = {}
    if peer is not None:
        traker = Traker(peer)
        facts = traker.facts
        for kind in ("rademacher", "normal"):
            runs[f"traker {kind}"] = lambda kind=kind: traker.run(kind)
    rows = summary(by_turns(runs, rounds), "rademacher")
    print(f"Products, p = {P:,}, k = {K}, B = {B}\n\n{table(rows, 'rademacher')}\n")
    return {"p": P, "k": K, "batch": B, "traker": facts, "rows": rows}


def operator(modes: int, channels: int, layers: int, grid: int, n: int):
    """Return the loss of a sample, shapes of parameters and samples, and parameters' number."""
    make = lambda: FNO((modes, modes), 1, 1, channels, layers, rngs=nnx.Rngs(0))
    graph, state = nnx.split(nnx.eval_shape(make), nnx.Param)
    params = nnx.to_pure_dict(state)
    p = sum(x.size for x in jax.tree.leaves(params))
    field = jax.ShapeDtypeStruct((n, grid, grid, 1), jnp.float32)

    def loss(params, batch):
        x, y = batch
        errors = jnp.sum((nnx.merge(graph, params)(x) - y) ** 2, axis=(1, 2, 3))
        return jnp.mean(jnp.sqrt(errors))

    return loss, params, (field, field), p


def ways(loss, p: int, k: int) -> dict:
    """Return functions of parameters and a batch to its features."""

    def fast(kind):
        def features(params, batch):
            key = key_from(0)
            reduction = (
                ProjectLayers(k, key) if kind == "kron" else Project(matrix_of(kind, p, k), key)
            )
            return per_example(loss, reduction, check_independence=False)(params, batch)[2]

        return features

    def exact(params, batch):
        reduction = Project(matrix_of("rademacher", p, k), key_from(0))
        return per_example(loss, reduction, method="exact")(params, batch)[2]

    def whole(params, batch):
        one = lambda sample: jax.grad(loss)(params, jax.tree.map(lambda x: x[None], sample))
        gradients = jax.vmap(one)(batch)
        return trak.jl_project(gradients, key_from(0), k, "rademacher")

    return {
        "fast rademacher": fast("rademacher"),
        "fast sjlt": fast("sjlt"),
        "fast kron": fast("kron"),
        "exact rademacher": exact,
        "vmap(grad), rademacher": whole,
    }


def features(settings: dict, k: int, rounds: int | None) -> dict:
    """Compile all ways, and time them unless `rounds` is None."""
    loss, params, batch, p = operator(**settings)
    compiled, rows = {}, {}
    for name, way in ways(loss, p, k).items():
        compiled[name] = jax.jit(way).lower(params, batch).compile()
        memory = compiled[name].memory_analysis()
        peak = (
            memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        )
        rows[name] = {"peak_bytes": peak}
    if rounds is not None:
        draw = lambda s: 0.1 * jax.random.normal(jax.random.key(s.size), s.shape)
        arrays = jax.tree.map(draw, (params, batch))
        times = by_turns({n: timed(f, *arrays) for n, f in compiled.items()}, rounds)
        for name, row in summary(times, "fast rademacher").items():
            rows[name] |= row
    print(f"Features of an FNO of {p:,} parameters, k = {k}, {settings}\n")
    print("| | peak MiB | of parameters | seconds | times fast rademacher |\n|---|---|---|---|---|")
    for name, row in rows.items():
        seconds = f"{row['ms'] / 1e3:.2f} | {row['ratio']:.2f}" if "ms" in row else "- | -"
        peak = row["peak_bytes"]
        print(f"| {name} | {peak / 2**20:,.0f} | {peak / (4 * p):.1f} | {seconds} |")
    print()
    return {"p": p, "k": k, "settings": settings, "rows": rows}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer", help="interpreter with torch and traker")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    default = {"modes": 16, "channels": 32, "layers": 4, "grid": 64, "n": 16}
    wide = {"modes": 64, "channels": 64, "layers": 2, "grid": 64, "n": 16}
    results = {
        "products": products(options.peer, options.rounds),
        "features": features(default, 1024, options.rounds),
        "features of a wide operator": features(wide, 1024, None),
    }
    write("trak", results)


if __name__ == "__main__":
    main()
