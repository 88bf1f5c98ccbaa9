"""Step times of low-rank layers at ranks n, n/2, n/4, n/8 against dense ones, by turns in one run.

    python benchmarks/oialr.py [--peer PYTHON --checkout FOLDER] [--width 256] [--rounds 7]

Training steps (AdamW) of two blocks of a vision transformer, and of two operators whose spectral
weights are cores with that share of the channels, one small and one whose weights are large; "by
the weight" makes the weights of their cores at every step. The peer is the original in PyTorch: an
interpreter with torch, and a checkout of Helmholtz-AI-Energy/OIALR. Milliseconds are medians over
the rounds; MiB what the compiled step holds beside its arguments. Writes
results/<device>/oialr.json.
"""

from __future__ import annotations

import argparse
import functools
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from tensorgrad_jax.models import FNO

from tensorgrad_jax import oialr
from tensorgrad_jax.oialr.layers import kernel_of, make_low_rank
from tensorgrad_jax.oialr.low_rank import factor

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "studies" / "oialr"))
from interleaved import by_turns, summary, table, write  # noqa: E402
from networks import Encoder  # noqa: E402

TOKENS, BATCH, HEADS, BLOCKS = 64, 8, 4, 2
# Of four layers on a grid of 64 x 64 points.
OPERATORS = {
    "operator": {"width": 32, "modes": 16, "batch": 8},
    "wide operator": {"width": 64, "modes": 32, "batch": 4},
}
PARTS = (1, 2, 4, 8)


def transformer(width: int, part: int | None):
    """Return a step of the blocks with ranks width / part, None: dense."""
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(*(Encoder(width, HEADS, 4, rngs) for _ in range(BLOCKS)))
    if part is not None:
        for _, layer in nnx.iter_modules(model):
            kernel = kernel_of(layer)
            if kernel is not None:
                make_low_rank(layer, factor(layer.kernel[...], kernel.rows, 1 / part))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    x = jax.random.normal(jax.random.key(0), (BATCH, TOKENS, width))
    return step_of(lambda p: jnp.mean((nnx.merge(graph, p, rest)(x) - 1) ** 2), nnx.as_pure(params))


def operator(width: int, modes: int, batch: int, part: int | None, in_parts: bool = True):
    """Return a step of an operator with cores of width / part channels, None: dense."""
    model = FNO((modes, modes), 1, 1, width, n_layers=4, rngs=nnx.Rngs(0))
    graph, variables = nnx.split(model, nnx.Param)
    params, bases = nnx.to_pure_dict(variables), {}
    if part is not None:
        share = 1 / part if part > 1 else 1 - 1e-9
        params, bases = oialr.low_rank(params, oialr.spectral(share), keep_last_layer=False)
    x = jax.random.normal(jax.random.key(0), (batch, 64, 64, 1))
    lifted = lambda p: oialr.lift(p, bases, in_parts) if bases else p
    return step_of(lambda p: jnp.mean((nnx.merge(graph, lifted(p))(x) - 1) ** 2), params)


def step_of(loss, params):
    """Return a function that makes a step and returns milliseconds, and the step's facts."""
    optimizer = optax.adamw(1e-3)
    state = [params, jax.jit(optimizer.init)(params)]

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, opt_state):
        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    compiled = step.lower(*state).compile()
    trained = sum(x.size for x in jax.tree.leaves(params))

    def run() -> float:
        began = time.perf_counter()
        state[:] = compiled(*state)
        jax.block_until_ready(state)
        return 1e3 * (time.perf_counter() - began)

    memory = compiled.memory_analysis()
    return run, {"trained": trained, "mib": memory.temp_size_in_bytes / 2**20}


class Peer:
    """The original in a process of its own."""

    def __init__(self, python: str, checkout: str, width: int):
        command = [python, str(HERE / "oialr_peer.py"), checkout, str(width)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, name: str) -> float:
        """Return the milliseconds of a step."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(name, file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            sys.exit("error: the process of the peer ended; see its message above")
        return float(line)


def named(part: int | None) -> str:
    """Return what a rank is called."""
    return "dense" if part is None else f"n/{part}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer", help="an interpreter with torch")
    parser.add_argument("--checkout", help="folder of the original")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    if (arguments.peer is None) != (arguments.checkout is None):
        parser.error("--peer and --checkout belong together")
    runs, facts = {}, {}
    for part in (None, *PARTS):
        name = f"transformer {named(part)}"
        runs[name], facts[name] = transformer(arguments.width, part)
    for what, sizes in OPERATORS.items():
        for part in (None, *PARTS):
            name = f"{what} {named(part)}"
            runs[name], facts[name] = operator(**sizes, part=part)
        name = f"{what} n/4 by the weight"
        runs[name], facts[name] = operator(**sizes, part=4, in_parts=False)
    if arguments.peer is not None:
        peer = Peer(arguments.peer, arguments.checkout, arguments.width)
        for part in map(named, (None, *PARTS)):
            runs[f"original {part}"] = functools.partial(peer.run, part)
    times, rows = by_turns(runs, arguments.rounds), {}
    print(f"{jax.devices()[0].device_kind}, width {arguments.width}, {arguments.rounds} rounds")
    for what in ("transformer", *OPERATORS, "original"):
        own = {name: values for name, values in times.items() if name.startswith(what)}
        if own:
            found = summary(own, f"{what} dense")
            print("\n" + table(found, f"{what} dense"))
            rows |= {name: row | facts.get(name, {}) for name, row in found.items()}
    print("\n| | trained | MiB |\n|---|---|---|")
    for name, fact in facts.items():
        print(f"| {name} | {fact['trained']} | {fact['mib']:.0f} |")
    sizes = {"width": arguments.width, "operators": OPERATORS}
    write("oialr", sizes | {"rounds": arguments.rounds, "rows": rows})


if __name__ == "__main__":
    main()
