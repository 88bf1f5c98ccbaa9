"""What products with Hessians and their decompositions cost.

    python benchmarks/hessian.py [--peer PYTHON SKERCH] [--rounds 5]

PYTHON is an interpreter with torch, torch-dct and curvlinops 3.0.1, SKERCH the folder of the
package skerch 0.6. A trained tanh network of 7,030 parameters, 100 samples: by turns, 100 products
with its Hessian, in one block and by curvlinops in one block and one by one (ten, times ten); then
the eigendecompositions of 50 values from about 100 products, beside skerch's on curvlinops'
operator, scipy's eigsh and, if it is installed, matfree's Lanczos on our products. First calls,
with compilation, are timed in processes of their own, as is a neural operator of a million
parameters, whose parts are timed one by one. On a machine with other work set
OPENBLAS_NUM_THREADS=1: the threads of a QR decomposition spin while they wait for each other.
Prints tables, writes results/<device>/hessian.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from interleaved import by_turns, summary, table, timed, write
from scipy.sparse.linalg import LinearOperator, eigsh
from tensorgrad_jax.models import FNO  # pyright: ignore[reportMissingImports]

from tensorgrad_jax import hessian
from tensorgrad_jax.hessian.gathering import trained
from tensorgrad_jax.hessian.noise import Noise
from tensorgrad_jax.hessian.orthogonal import orthonormal, orthonormal_beside
from tensorgrad_jax.hessian.problems import mnist_mini

HERE = Path(__file__).resolve().parent
STEPS, SAMPLES, COLUMNS, K = 600, 100, 100, 50
OURS: dict[str, Callable[[Any, Any], hessian.Eigh]] = {
    "seigh oversampled": lambda H, key: hessian.seigh(H, key, K, 2 * K),
    "seigh hmt": lambda H, key: hessian.seigh(H, key, K, recovery="hmt"),
    "block_lanczos": lambda H, key: hessian.block_lanczos(H, key, K, 2 * K),
}
PARTS = ("products", "decompositions", "neural operator")
CHANNELS, FNO_SAMPLES, GRID, BLOCK = 29, 8, 32, 10


def network(steps: int) -> tuple[Any, Any, hessian.Curvature]:
    """Return parameters, examples and Hessian of the trained network."""
    problem = mnist_mini(0)
    *_, (_, _, params, _) = trained(problem, 0, steps)
    batch = problem.examples(SAMPLES, test=False)
    return params, batch, hessian.hvp_operator(problem.loss, params, batch)


def first_call(name: str) -> None:
    """Print the milliseconds of the first call, with all that it compiles."""
    H = network(0)[2]
    print(json.dumps({"ms": timed(lambda: OURS[name](H, jax.random.key(0)))()}))


class Peer:
    """curvlinops and skerch in a process of their own."""

    def __init__(self, python: str, skerch: str, folder: Path, arrays: dict[str, Any]):
        self.folder = folder
        np.savez(folder / "arrays.npz", **arrays)
        self.process = subprocess.Popen(
            [python, str(HERE / "hessian_peer.py"), str(folder / "arrays.npz"), skerch],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # Threads that spin while they wait would steal the time of who is measured next.
            env={**os.environ, "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"},
        )
        self.facts = self._read()
        self.cpu: dict[str, list[float]] = {}

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit("error: the peers' process ended; see its message above")
        return json.loads(line)

    def run(self, name: str) -> float:
        """Do it once; return milliseconds."""
        assert self.process.stdin is not None
        print(name, file=self.process.stdin, flush=True)
        found = self._read()
        self.cpu.setdefault(name, []).append(found["cpu_ms"])
        return found["ms"]

    def result(self, name: str) -> np.ndarray:
        """Return what the last run found."""
        return np.load(self.folder / f"result_{name}.npy")


def with_fastest(times: dict[str, list[float]], baseline: str) -> dict[str, dict[str, float]]:
    """Return `summary`, and the fastest of all turns, which other work disturbs least."""
    rows = summary(times, baseline)
    for name, row in rows.items():
        row["fastest ms"] = min(times[name])
        row["ratio of fastest"] = min(times[name]) / min(times[baseline])
    return rows


def products(H: hessian.Curvature, columns: Any, peer: Peer | None, rounds: int) -> dict:
    """Time 100 products, and compare them."""
    ours = "ours, one block"
    runs = {ours: timed(H.mm, columns)}
    block, single = "curvlinops, one block", "curvlinops, one by one"
    if peer is None:
        rows = with_fastest(by_turns(runs, rounds), ours)
    else:
        # One by one takes minutes on a busy machine: fewer turns, with ours again.
        of_single = runs | {single: lambda: peer.run("single") * COLUMNS / 10}
        rows = with_fastest(by_turns(runs | {block: lambda: peer.run("block")}, 4 * rounds), ours)
        rows[single] = with_fastest(by_turns(of_single, rounds, warm_up=0), ours)[single]
    print(f"{COLUMNS} Hessian products, D = {H.shape[0]:,}\n\n{table(rows, ours)}\n")
    # What other work on the machine disturbs least: the CPUs' own time, the least of all turns.
    cpu = []
    for _ in range(4 * rounds):
        started = time.process_time()
        jax.block_until_ready(H.mm(columns))
        cpu.append(1e3 * (time.process_time() - started))
    rows[ours]["cpu ms"] = min(cpu)
    if peer is not None:
        rows[block]["cpu ms"] = min(peer.cpu["block"])
        rows[single]["cpu ms"] = min(peer.cpu["single"]) * COLUMNS / 10
    for name, row in rows.items():
        print(
            f"{name}: fastest {row['fastest ms']:.1f} ms, {row['ratio of fastest']:.1f}; of CPUs "
            f"{row['cpu ms']:.1f} ms, {row['cpu ms'] / rows[ours]['cpu ms']:.1f}"
        )
    print()
    result: dict[str, Any] = {"rows": rows}
    if peer is not None:
        theirs = peer.result("block")
        away = np.linalg.norm(theirs - H.mm(columns)) / np.linalg.norm(theirs)
        result["relative difference"] = float(away)
        print(f"relative difference of the products: {away:.1e}\n")
    return result


def decompositions(H: hessian.Curvature, peer: Peer | None, rounds: int) -> dict:
    """Time decompositions, and estimate how good they are with the same 30 further products."""
    found: dict[str, hessian.Eigh] = {}
    used: dict[str, int] = {}
    key = jax.random.key(0)

    cpu: dict[str, list[float]] = {}

    def keep(name, run):
        def kept():
            started = time.process_time()
            found[name] = jax.block_until_ready(run())
            cpu.setdefault(name, []).append(1e3 * (time.process_time() - started))

        return timed(kept)

    runs = {name: keep(name, lambda f=f: f(H, key)) for name, f in OURS.items()}
    used = dict.fromkeys(OURS, 2 * K)
    eigh = lambda values, vectors: hessian.Eigh(
        jnp.asarray(values, H.dtype), jnp.asarray(vectors, H.dtype), jnp.eye(len(values))
    )

    def of_scipy():
        used["scipy eigsh"] = 0

        def multiply(x):
            used["scipy eigsh"] += 1
            return np.asarray(H.mv(jnp.asarray(x.ravel(), H.dtype)))

        start = np.random.default_rng(0).normal(size=H.shape[0]).astype(np.float32)
        A = LinearOperator(H.shape, matvec=multiply, dtype=np.float32)
        values, vectors = eigsh(A, K, which="LM", v0=start, tol=1e-4)
        order = np.argsort(-np.abs(values))
        return eigh(values[order], vectors[:, order])

    runs["scipy eigsh"] = keep("scipy eigsh", of_scipy)
    try:
        from matfree import decomp, eig
    except ImportError:
        print("matfree is not installed\n")
    else:
        solve = jax.jit(
            lambda v, w: eig.eigh_partial(decomp.tridiag_sym(2 * K))(
                lambda x: H.product(w, x[:, None])[:, 0], v
            )
        )

        def of_matfree():
            start = jax.random.normal(key, H.params.shape)
            values, vectors = solve(start / jnp.linalg.norm(start), H.params)
            order = jnp.argsort(-jnp.abs(values))[:K]
            return eigh(values[order], vectors[order].T)

        runs["matfree, Lanczos"] = keep("matfree, Lanczos", of_matfree)
        used["matfree, Lanczos"] = 2 * K
    if peer is not None:
        runs["skerch 0.6 on curvlinops"] = lambda: peer.run("seigh")
        used["skerch 0.6 on curvlinops"] = 2 * K
    rows = with_fastest(by_turns(runs, rounds), "seigh oversampled")
    if peer is not None:
        result = peer.result("seigh")
        found["skerch 0.6 on curvlinops"] = eigh(result[0], result[1:])
        cpu["skerch 0.6 on curvlinops"] = peer.cpu["seigh"]
    print("| | products | ms | times oversampled | range | of CPUs, ms | error | first call, ms |")
    print("|---|---|---|---|---|---|---|---|")
    for name, row in rows.items():
        error = hessian.a_posteriori_error(H, found[name], jax.random.key(7), 30).relative[0]
        row |= {"products": used[name], "estimated error": float(error), "cpu ms": min(cpu[name])}
        first = ""
        if name in OURS:
            command = [sys.executable, __file__, "--first", name]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            row["first call ms"] = json.loads(done.stdout)["ms"]
            first = f"{row['first call ms']:.0f}"
        times = f"{row['ratio']:.2f} | {row['low']:.2f} to {row['high']:.2f}"
        print(
            f"| {name} | {used[name]} | {row['ms']:.0f} | {times} | {row['cpu ms']:.0f} "
            f"| {error:.4f} | {first} |"
        )
    print(flush=True)
    return {"k": K, "rows": rows}


def resident(name: str) -> int:
    """Return the bytes that the process holds now (VmRSS) or held at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(x for x in lines if x.startswith(name)).split()[1])


def neural_operator() -> None:
    """Print what block Lanczos costs for a neural operator, and its parts."""
    model = FNO((16, 16), 1, 1, CHANNELS, 4, rngs=nnx.Rngs(0))
    graph, params = nnx.split(model, nnx.Param)
    x = jax.random.normal(jax.random.key(1), (FNO_SAMPLES, GRID, GRID, 1))
    loss = lambda p, b: jnp.mean((nnx.merge(graph, nnx.State(p))(b[0]) - b[1]) ** 2)
    H = hessian.hvp_operator(loss, nnx.to_pure_dict(params), (x, x[::-1]))
    run = timed(lambda: hessian.block_lanczos(H, jax.random.key(0), K, 2 * K))
    first = run()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak starts anew
    before = resident("VmRSS")
    whole = run()
    peak = resident("VmHWM")
    D, rounds = H.shape[0], 2 * K // BLOCK
    noise, key = Noise("gaussian", D, BLOCK), jax.random.key(0)
    X = orthonormal(noise.block(key, range(BLOCK), H.dtype))
    V = orthonormal(jax.random.normal(key, (D, 2 * K)))
    inner = jax.jit(lambda V, W: jnp.matmul(V.T, W, precision=jax.lax.Precision.HIGHEST))
    lift = jax.jit(lambda V, Z: jnp.matmul(V, Z, precision=jax.lax.Precision.HIGHEST))
    core = jax.jit(jnp.linalg.eigh)
    gradient = jax.jit(jax.grad(lambda w: loss(H.unravel(w), (x, x[::-1]))))
    parts = {
        "products": (rounds, timed(H.mm, X)),
        "orthogonalisation": (rounds - 1, timed(orthonormal_beside, V, X)),
        "projection V^T A V": (rounds, timed(inner, V, X)),
        "random numbers and first basis": (
            1,
            timed(lambda: orthonormal(noise.block(key, range(BLOCK), H.dtype))),
        ),
        "core": (1, timed(core, V[: 2 * K] + V[: 2 * K].T)),
        "vectors": (1, timed(lift, V, jnp.eye(2 * K)[:, :K])),
    }
    runs = {name: f for name, (_, f) in parts.items()} | {"gradient": timed(gradient, H.params)}
    times = {name: statistics.median(x) for name, x in by_turns(runs, 1).items()}
    memory = jax.jit(H.product).lower(H.params, X).compile().memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    facts = {
        "D": D,
        "k": K,
        "products": 2 * K,
        "block": BLOCK,
        "samples": FNO_SAMPLES,
        "grid": GRID,
        "channels": CHANNELS,
        "first call s": first / 1e3,
        "seconds": whole / 1e3,
        "parts, s": {name: n * times[name] / 1e3 for name, (n, _) in parts.items()},
        "a product / a gradient": times["products"] / BLOCK / times["gradient"],
        "basis bytes": 4 * D * 2 * K,
        "resident before": before,
        "resident peak": peak,
        "compiled product bytes": held,
    }
    print(json.dumps(facts))


def show(facts: dict[str, Any]) -> None:
    """Print what the neural operator costs."""
    mib = lambda name: f"{facts[name] / 2**20:,.0f} MiB"
    print(
        f"An FNO of {facts['D']:,} parameters, {facts['samples']} samples, k = {facts['k']}, "
        f"{facts['products']} products: {facts['seconds']:.1f} s (first call "
        f"{facts['first call s']:.1f} s)\n"
    )
    for name, seconds in facts["parts, s"].items():
        print(f"    {name}: {seconds:.2f} s")
    print(
        f"\na product costs {facts['a product / a gradient']:.1f} gradients; resident "
        f"{mib('resident peak')} at most, {mib('resident before')} before; basis "
        f"{mib('basis bytes')}; a block's product, compiled, {mib('compiled product bytes')}"
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer", nargs=2, metavar=("PYTHON", "SKERCH"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--parts",
        nargs="+",
        default=list(PARTS),
        choices=list(PARTS),
        help="the others stay in the results as they are",
    )
    parser.add_argument("--first", choices=list(OURS), help=argparse.SUPPRESS)
    parser.add_argument("--fno", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.first:
        return first_call(options.first)
    if options.fno:
        return neural_operator()
    file = HERE / "results" / jax.default_backend() / "hessian.json"
    results = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    results.pop("machine", None)
    if set(options.parts) & {"products", "decompositions"}:
        small_network(options, results)
    if "neural operator" in options.parts:
        command = [sys.executable, __file__, "--fno"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        results["neural operator"] = json.loads(done.stdout)
        show(results["neural operator"])
    write("hessian", results)


def small_network(options: argparse.Namespace, results: dict[str, Any]) -> None:
    """Time products and decompositions for the network of 7,030 parameters."""
    params, batch, H = network(STEPS)
    columns = jax.random.normal(jax.random.key(3), (H.shape[0], COLUMNS))
    arrays = {"columns": columns, "x": batch["x"], "y": batch["y"]}
    for i, (weight, bias) in enumerate(params):
        arrays |= {f"weight{i}": weight, f"bias{i}": bias}
    with tempfile.TemporaryDirectory() as folder:
        peer = Peer(*options.peer, Path(folder), arrays) if options.peer else None
        results["peers"] = peer.facts if peer else {}
        results["OPENBLAS_NUM_THREADS"] = os.environ.get("OPENBLAS_NUM_THREADS")
        if "products" in options.parts:
            results["products"] = products(H, columns, peer, options.rounds)
        if "decompositions" in options.parts:
            results["decompositions"] = decompositions(H, peer, options.rounds)
        if peer is not None:
            peer.process.kill()


if __name__ == "__main__":
    main()
