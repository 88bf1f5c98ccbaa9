"""What features cost: products with random matrices, and features of a neural operator.

    python benchmarks/trak.py [--peer PYTHON] [--rounds 2]
    python benchmarks/trak.py --samples 512 [--peer PYTHON] [--rounds 2]

PYTHON is an interpreter with torch, traker 0.3.2 and neuraloperator, whose BasicProjector is timed
by turns with ours. Prints ratios, writes results/<device>/trak.json. Peak bytes are those of the
compiled program: arguments, results and temporaries.

The second form makes 4,096 features of so many samples of the default FNO, 32 at a time, every way
in a process of its own, and writes trak_samples.json. The peer makes those of 32 samples alone;
its time is multiplied.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
from interleaved import by_turns, summary, table, timed, write
from trak_samples import DEFAULT, compiled_peak, drawn, operator, ways

from tensorgrad_jax import trak

P, K, B = 10**6, 512, 8
KINDS = ("rademacher", "normal", "sjlt", "srft")
CHUNK, FEATURES = 32, 4096


class Worker:
    """A process that does something whenever it reads a line."""

    def __init__(self, python: str, file: str, *arguments: Any):
        command = [python, str(Path(__file__).parent / file), *map(str, arguments)]
        if file == "trak_peer.py":
            command.insert(1, "-P")  # else `trak` would be this file
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.facts = self._read()
        self.found: list[dict[str, float]] = []

    def _read(self):
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit("error: a worker ended; see its message above")
        return json.loads(line)

    def run(self, what: str = "") -> float:
        """Do it once; return milliseconds."""
        assert self.process.stdin is not None
        print(what, file=self.process.stdin, flush=True)
        self.found.append(self._read())
        return self.found[-1]["ms"]


def products(peer: str | None, rounds: int) -> dict:
    """Time products of 8 gradients of a million numbers with 512 columns."""
    gradients = jax.random.normal(jax.random.key(0), (B, P))
    runs = {kind: timed(trak.BasicProjector(P, K, 0, kind).project, gradients, 0) for kind in KINDS}
    facts = {}
    if peer is not None:
        traker = Worker(peer, "trak_peer.py", "products", P, K, B)
        facts = traker.facts
        for kind in ("rademacher", "normal"):
            runs[f"traker {kind}"] = lambda kind=kind: traker.run(kind)
    rows = summary(by_turns(runs, rounds), "rademacher")
    print(f"Products, p = {P:,}, k = {K}, B = {B}\n\n{table(rows, 'rademacher')}\n")
    return {"p": P, "k": K, "batch": B, "traker": facts, "rows": rows}


def features(settings: dict, k: int, rounds: int | None) -> dict:
    """Compile all ways, and time them unless `rounds` is None."""
    loss, params, batch, p = operator(**settings)
    compiled, rows = {}, {}
    for name, way in ways(loss, p, k).items():
        compiled[name] = jax.jit(way).lower(params, batch).compile()
        rows[name] = {"peak_bytes": compiled_peak(compiled[name])}
    if rounds is not None:
        arrays = drawn((params, batch))
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


def samples(n: int, peer: str | None, rounds: int) -> dict:
    """Time features of n samples of the default FNO, every way in a process of its own."""
    loss, *_, p = operator(**DEFAULT, n=CHUNK)
    workers = {
        name: Worker(sys.executable, "trak_samples.py", name, n, CHUNK, FEATURES)
        for name in ways(loss, p, FEATURES)
    }
    runs: dict[str, Any] = {name: worker.run for name, worker in workers.items()}
    if peer is not None:
        for kind in ("rademacher", "normal"):
            name = f"traker {kind}"
            workers[name] = worker = Worker(peer, "trak_peer.py", "samples", FEATURES, CHUNK)
            runs[name] = lambda worker=worker, kind=kind: worker.run(kind) * n / CHUNK
    rows = summary(by_turns(runs, rounds, warm_up=0), "fast rademacher")
    print(
        f"{FEATURES:,} features of {n} samples, {CHUNK} at a time, of an FNO of {p:,} parameters\n"
    )
    print("| | seconds | times fast rademacher | range | CPU seconds | peak MiB | resident MiB |")
    print("|---|---|---|---|---|---|---|")
    for name, row in rows.items():
        found, peak = workers[name].found, workers[name].facts.get("peak_bytes")
        share = n / CHUNK if name.startswith("traker") else 1
        row["cpu_s"] = share * statistics.median(f["cpu_s"] for f in found)
        row |= {"peak_bytes": peak, "peak_rss": found[-1]["peak_rss"]}
        account = "-" if peak is None else f"{peak / 2**20:,.0f}"
        times = f"{row['ratio']:.2f} | {row['low']:.2f} to {row['high']:.2f} | {row['cpu_s']:.1f}"
        print(
            f"| {name} | {row['ms'] / 1e3:.1f} | {times} | {account} "
            f"| {row['peak_rss'] / 2**20:,.0f} |"
        )
    facts = {name: w.facts for name, w in workers.items() if name.startswith("traker")}
    sizes = {"samples": n, "chunk": CHUNK, "k": FEATURES, "p": p}
    return sizes | {"peers": facts, "timed samples of peers": CHUNK, "rows": rows}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer", help="interpreter with torch and traker")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--samples", type=int, help="samples of the second form")
    options = parser.parse_args()
    if options.samples is not None:
        write("trak_samples", samples(options.samples, options.peer, options.rounds))
        return
    default = DEFAULT | {"n": 16}
    wide = {"modes": 64, "channels": 64, "layers": 2, "grid": 64, "n": 16}
    results = {
        "products": products(options.peer, options.rounds),
        "features": features(default, 1024, options.rounds),
        "features of a wide operator": features(wide, 1024, None),
    }
    write("trak", results)


if __name__ == "__main__":
    main()
