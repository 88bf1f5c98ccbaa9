"""What the squares of examples cost beside the gradient that they come with.

    python benchmarks/truegrad.py [--peer PYTHON] [--rounds 7] [--models mlp resnet vit fno]

PYTHON is an interpreter with torch, truegrad 2.0.0 and BackPACK 1.7.1. Everything is timed by
turns, each peer against its own plain gradient. Prints ratios, writes
results/<device>/truegrad.json. Peak bytes are those of the compiled program (arguments, results,
temporaries), of the peers those that model and one gradient add to the process. "fastest" compares
the fastest of all rounds, which a machine with other work on it disturbs least.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from interleaved import by_turns, timed, write
from tensorgrad_jax.models import FNO  # pyright: ignore[reportMissingImports]

HERE = Path(__file__).resolve().parent
# Without this file's folder: in it `truegrad` would be this file.
sys.path[:] = [str(HERE.parent), *(p for p in sys.path if Path(p or ".").resolve() != HERE)]

from examples.networks.transformers import ViT  # noqa: E402
from examples.networks.vision import ResNet18  # noqa: E402
from tensorgrad_jax.truegrad import value_and_grads  # noqa: E402

SETTINGS = {
    "mlp": {"layers": 4, "width": 1024, "n": 256},
    "resnet": {"width": 32, "size": 64, "n": 8},
    "vit": {"width": 192, "layers": 4, "heads": 3, "patch": 8, "size": 64, "n": 8},
    "fno": {"modes": 16, "channels": 32, "layers": 4, "grid": 64, "n": 8},
}
# What the peers can do of these models.
PEER_WAYS = {
    "mlp": ("plain", "truegrad.nn", "backpack"),
    "resnet": ("plain", "backpack"),
    "vit": ("plain", "backpack"),
}


class MLP(nnx.Module):
    """Dense layers, each but the last with a ReLU."""

    def __init__(self, width, layers, rngs):
        self.layers = nnx.List([nnx.Linear(width, width, rngs=rngs) for _ in range(layers)])

    def __call__(self, x):
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return self.layers[-1](x)


def problem(name: str) -> tuple[Callable[..., Any], Any, Any]:
    """Return (loss, parameters, batch) of a model."""
    s, rngs, key = SETTINGS[name], nnx.Rngs(0), jax.random.key(0)
    images = lambda: jax.random.normal(key, (s["n"], s["size"], s["size"], 3))
    labels = jnp.arange(s["n"])
    entropy = lambda y, t: optax.softmax_cross_entropy_with_integer_labels(y, t).mean()
    mean_square = lambda y, t: jnp.mean((y - t) ** 2)
    # The peers' models have as many parameters of the same shapes. BackPACK has no attention: the
    # peer's is written out between four dense layers, which is what ours computes, too.
    if name == "mlp":
        model, x = MLP(s["width"], s["layers"], rngs), jax.random.normal(key, (s["n"], s["width"]))
        batch, loss = (x, x[::-1]), mean_square
    elif name == "resnet":
        model, batch, loss = ResNet18(width=s["width"], rngs=rngs), (images(), labels), entropy
    elif name == "vit":
        kept = {k: v for k, v in s.items() if k != "n"}
        model, batch, loss = ViT(**kept, rngs=rngs), (images(), labels), entropy
    else:
        model = FNO((s["modes"],) * 2, 1, 1, s["channels"], s["layers"], rngs=rngs)
        x = jax.random.normal(key, (s["n"], s["grid"], s["grid"], 1))
        batch, loss = (x, x[::-1]), mean_square
    model.eval()
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    return lambda p, b: loss(nnx.merge(graph, p, rest)(b[0]), b[1]), params, batch


class Peer:
    """The peers in a process of their own."""

    def __init__(self, python: str):
        self.command = [python, str(HERE / "truegrad_peer.py"), json.dumps(SETTINGS)]
        # Threads that spin while they wait would steal the time of who is measured next.
        waiting = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **waiting},
        )
        self.facts = self._read()
        self.parts: dict[str, list[dict[str, float]]] = {}

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def run(self, name: str) -> float:
        """Take one gradient; return milliseconds."""
        assert self.process.stdin is not None
        print(name, file=self.process.stdin, flush=True)
        parts = self._read()
        self.parts.setdefault(name, []).append(parts)
        return parts["forward"] + parts["backward"]

    def peak(self, name: str) -> dict[str, int]:
        """Return the bytes of one gradient, the parameters, and how many of them lack squares."""
        done = subprocess.run(
            [*self.command, "--peak", name], capture_output=True, text=True, check=True
        )
        return json.loads(done.stdout)


def ways(loss: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """Return functions of parameters and a batch."""
    return {
        "forward": loss,
        "plain": jax.value_and_grad(loss),
        "ours": value_and_grads(loss),
        "ours, token": value_and_grads(loss, granularity="token"),
    }


def peak_bytes(compiled: Any) -> int:
    """Return what a compiled program holds at most."""
    memory = compiled.memory_analysis()
    return memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes


def measured(name: str, peer: Peer | None, rounds: int) -> dict[str, Any]:
    """Compile and time the ways of one model, and print a table."""
    loss, params, batch = problem(name)
    compiled = {}
    for way, function in ways(loss).items():
        try:
            compiled[way] = jax.jit(function).lower(params, batch).compile()
        except ValueError as error:
            print(f"{name}, {way}: {error}\n")
    runs = {way: timed(function, params, batch) for way, function in compiled.items()}
    peers = {}
    if peer is not None:
        peers = {f"{way} (torch)": f"{name} {way}" for way in PEER_WAYS.get(name, ())}
        runs |= {label: lambda n=n: peer.run(n) for label, n in peers.items()}
    times = by_turns(runs, rounds)
    rows = {}
    for label, values in times.items():
        torch = label in peers
        plain = times["plain (torch)" if torch else "plain"]
        row: dict[str, Any] = {"ms": statistics.median(values), **_ratio("ratio", values, plain)}
        if torch and peer is not None:
            backward = [p["backward"] for p in peer.parts[peers[label]][-rounds:]]
            base = [p["backward"] for p in peer.parts[f"{name} plain"][-rounds:]]
            row |= _ratio("backward", backward, base) | peer.peak(peers[label])
        elif label != "forward":
            rest = [
                [a - b for a, b in zip(v, times["forward"], strict=True)] for v in (values, plain)
            ]
            row |= _ratio("backward", *rest)
            row["peak"] = peak_bytes(compiled[label])
        rows[label] = row
    return {"settings": SETTINGS[name], "rows": rows}


def _ratio(name: str, values: list[float], base: list[float]) -> dict[str, float]:
    """Return median and range of ratios, round by round."""
    ratios = sorted(a / b for a, b in zip(values, base, strict=True))
    fastest = min(values) / min(base)
    return {
        name: statistics.median(ratios),
        f"{name} fastest": fastest,
        f"{name} low": ratios[0],
        f"{name} high": ratios[-1],
    }


def show(name: str, result: dict[str, Any]) -> None:
    """Print a table."""
    rows = result["rows"]
    print(f"{name} {result['settings']}\n")
    print("| | ms | times plain | range | fastest | backward alone | peak MiB | times plain |")
    print("|---|---|---|---|---|---|---|---|")
    for label, r in rows.items():
        plain = rows["plain (torch)" if "torch" in label else "plain"]
        peak = f"{r['peak'] / 2**20:.0f} | {r['peak'] / plain['peak']:.2f}" if "peak" in r else "|"
        back = f"{r['backward']:.2f}" if "backward" in r else ""
        low, high = r["ratio low"], r["ratio high"]
        times = (
            f"{r['ms']:.1f} | {r['ratio']:.2f} | {low:.2f} to {high:.2f} | {r['ratio fastest']:.2f}"
        )
        print(f"| {label} | {times} | {back} | {peak} |")
    for label, r in rows.items():
        if r.get("without_squares") and not label.startswith("plain"):
            print(f"\n{label}: {r['without_squares']} of {r['parameters']} parameters lack squares")
    print(flush=True)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer", help="interpreter with torch, truegrad and BackPACK")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--models", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    options = parser.parse_args()
    peer = None if options.peer is None else Peer(options.peer)
    results = {}
    for name in options.models:
        results[name] = measured(name, peer, options.rounds)
        show(name, results[name])
    write("truegrad", {"peers": peer.facts if peer else {}, **results})


if __name__ == "__main__":
    main()
