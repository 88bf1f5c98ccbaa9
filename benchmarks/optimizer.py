"""Refresh, step and selection of the optimizer, beside its peers.

    python benchmarks/optimizer.py [--torch PYTHON] [--reference FOLDER] [--rounds N]

PYTHON is an interpreter that has PyTorch, tensorly and neuraloperator (the extra `bench` installs
them; default: this one), FOLDER a checkout of github.com/neuraloperator/tensorgrad.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from interleaved import Peers, by_turns, machine, summary, table, timed, write
from optax.contrib import MuonDimensionNumbers, muon

import tensorgrad_jax as tg
from tensorgrad_jax.projections.pairs import as_pair
from tensorgrad_jax.projections.selection import stratified, top_k

CHANNELS, MODES = (64, 64), (32, 17)
RANKS = (6, 17, 64, 64)  # of a weight of shape (2, *MODES, *CHANNELS): .188 of its entries
N_LEAVES = 4
LARGE_GAP = 10**6


def decaying_tensor() -> np.ndarray:
    """Return the complex tensor that is decomposed, the same as the peers'."""
    rng = np.random.default_rng(0)
    shape = (*CHANNELS, *MODES)
    x = rng.normal(size=shape) + 1j * rng.normal(size=shape)
    for axis, n in enumerate(shape):
        scale = 1 / (1 + np.arange(n)) ** 0.5
        x *= scale.reshape([-1 if a == axis else 1 for a in range(4)])
    return x.astype(np.complex64)


def refresh(peers: Peers, rounds: int) -> dict[str, Any]:
    """Choose a Tucker basis of one complex tensor, budget 0.20."""
    x = jnp.asarray(decaying_tensor())
    tensor = as_pair(x)
    runs, errors, temporaries = {}, {}, {}
    variants = {
        "gram": tg.Tucker(0.20),
        "gram, tensorly's ranks": tg.Tucker((43, 43, 22, 12)),
        "gram, real factors, planned": tg.Tucker((64, 64, 13, 7), factors="real"),
        "svd": tg.Tucker(0.20, method="svd", warm_restart=False),
        "randomized": tg.Tucker(0.20, method="randomized"),
    }
    for name, projection in variants.items():
        basis = projection.init(x)
        compiled = jax.jit(projection.refresh).lower(jax.random.key(0), tensor, basis).compile()
        basis = compiled(jax.random.key(0), tensor, basis)
        restored = projection.lift(projection.project(x, basis), basis)
        errors[name] = float(jnp.linalg.norm(restored - x) / jnp.linalg.norm(x))
        temporaries[name] = compiled.memory_analysis().temp_size_in_bytes / x.nbytes
        runs[name] = timed(compiled, jax.random.key(0), tensor, basis)
    times = by_turns(runs | peers.runs(), rounds)
    rows = summary(times, "gram")
    print(f"\nRefresh of a complex {x.shape} tensor, budget 0.20\n\n{table(rows, 'gram')}")
    errors |= peers.facts.get("errors", {})
    print("relative errors:", {name: round(e, 4) for name, e in errors.items()})
    print("temporaries over the tensor:", {n: round(t, 2) for n, t in temporaries.items()})
    return {"times": rows, "errors": errors, "temporaries over the tensor": temporaries}


def stepper(optimizer: optax.GradientTransformation, shape: tuple[int, ...]):
    """Return a function that does one update in place, and the state's bytes over AdamW's."""
    rng = np.random.default_rng(0)
    draw = lambda: {
        f"w{i}": jnp.asarray(rng.normal(size=shape), jnp.float32) for i in range(N_LEAVES)
    }
    gradients = draw()
    current = [draw()]
    current.append(optimizer.init(current[0]))
    share = tg.state_bytes(current[1])["total"] / (2 * sum(x.nbytes for x in gradients.values()))

    def step(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(*current, gradients).compile()

    def run():
        current[:] = compiled(*current, gradients)
        return current[0]

    run()  # the step that refreshes
    return timed(run), share, compiled.memory_analysis().temp_size_in_bytes


def step(peers: Peers, rounds: int) -> dict[str, Any]:
    """One update of four complex weights, without a refresh."""
    shape = (2, *MODES, *CHANNELS)
    specs = {f"w{i}": tg.TensorSpec(0) for i in range(N_LEAVES)}
    options = {"update_proj_gap": LARGE_GAP, "specs": specs}
    sparse = tg.UnstructuredSparse(0.05)
    composite = lambda tucker: tg.projected_adamw(1e-3, tg.Residual(sparse, tucker), **options)
    half = tg.projected_adamw(
        1e-3,
        tg.Residual(tg.UnstructuredSparse(0.02), tg.Tucker((4, 17, 64, 64), factors="real")),
        mu_dtype=jnp.bfloat16,
        **options,
    )
    optimizers = {
        "optax.adamw": optax.adamw(1e-3),
        "5% + 20%, uniform ranks": tg.tensorgrad(1e-3, **options),
        f"5% + ranks {RANKS}, real factors": composite(tg.Tucker(RANKS, factors="real")),
        "5% + ranks (13, 8, 64, 64), real factors": composite(
            tg.Tucker((13, 8, 64, 64), factors="real")
        ),
        f"ranks {RANKS} alone, real factors": tg.projected_adamw(
            1e-3, tg.Tucker(RANKS, factors="real"), **options
        ),
        "2% + ranks (4, 17, 64, 64), bfloat16 first moments": half,
        "subspace_momentum 5%, uniform ranks": tg.subspace_momentum(1e-3, **options),
        "subspace_momentum, ranks (4, 7, 64, 64), real factors": tg.subspace_momentum(
            1e-3, tg.Tucker((4, 7, 64, 64), factors="real"), **options
        ),
        "subspace_muon": tg.subspace_muon(1e-3, **options),
        "subspace_muon, 3 rounds": tg.subspace_muon(1e-3, steps=3, **options),
        "subspace_muon, no polar factors": tg.subspace_muon(1e-3, polar_share=0.0, **options),
        "tensor_muon": tg.tensor_muon(1e-3, **options),
        "tensor_muon, channels times .25": tg.tensor_muon(
            1e-3, tg.Tucker((..., 0.25, 0.25), factors="real"), **options
        ),
        "tensor_muon, whole momentum": tg.tensor_muon(1e-3, None, specs=specs),
        "optax.contrib.muon, per frequency": muon(
            1e-3, muon_weight_dimension_numbers=MuonDimensionNumbers(3, 4)
        ),
    }
    runs, shares, temporaries = {}, {}, {}
    for name, optimizer in optimizers.items():
        runs[name], shares[name], temporaries[name] = stepper(optimizer, shape)
    # optax.contrib.galore has no tensors and no complex numbers: it gets matrix views.
    views = (2 * MODES[0] * MODES[1] * CHANNELS[0], CHANNELS[1])
    galore = optax.contrib.galore(1e-3, rank=16, update_proj_gap=LARGE_GAP)
    runs["optax.contrib.galore, rank 16 of 64"], *rest = stepper(galore, views)
    shares["optax.contrib.galore, rank 16 of 64"] = rest[0]
    times = by_turns(runs | peers.runs(), rounds)
    rows = summary(times, "optax.adamw")
    n_bytes = peers.facts.get("state_bytes", {})
    shares |= {n: b / (2 * peers.facts["parameter_bytes"]) for n, b in n_bytes.items()}
    print(f"\nStep, {N_LEAVES} weights of shape {shape}, no refresh")
    print(f"\n{table(rows, 'optax.adamw')}")
    print("state over AdamW's:", {n: round(s, 3) for n, s in shares.items()})
    return {"times": rows, "state over AdamW's": shares, "temporaries": temporaries}


def selection(rounds: int) -> dict[str, Any]:
    """Choose 5% of n entries."""
    n_random, n_top = 2**26, 2**24
    rng = np.random.default_rng(0)
    x = jnp.abs(jnp.asarray(rng.normal(size=n_top), jnp.float32))
    k = n_top // 20
    draw = jax.jit(lambda seed: stratified(seed, n_random, n_random // 20))
    ours = jax.jit(lambda x: top_k(x, k)).lower(x).compile()
    theirs = jax.jit(lambda x: jax.lax.top_k(x, k)[1]).lower(x).compile()
    random = by_turns({"random, 2^26": timed(draw, jnp.uint32(1))}, 9)
    random_ms = sorted(random["random, 2^26"])
    runs = {
        "top-k, 2^24": timed(ours, x),
        "lax.top_k, 2^24": timed(theirs, x),
    }
    rows = summary(by_turns(runs, rounds), "top-k, 2^24")
    temporaries = ours.memory_analysis().temp_size_in_bytes / x.nbytes
    print(f"\nSelection of 5%\n\n{table(rows, 'top-k, 2^24')}")
    print(f"temporaries of top-k over the input: {temporaries:.2f}")
    print(f"random, 2^26: {random_ms[4]:.1f} ms ({random_ms[0]:.1f} to {random_ms[-1]:.1f})")
    facts = {"temporaries of top-k over the input": temporaries, "random, 2^26, ms": random_ms}
    return {"times": rows} | facts


def main() -> None:
    """Measure everything, print the tables, write results/<backend>/optimizer.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    own = sys.executable if importlib.util.find_spec("torch") else None
    parser.add_argument("--torch", default=own, help="interpreter that has PyTorch")
    parser.add_argument("--reference", help="checkout of neuraloperator/tensorgrad")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    print(machine())
    peer = lambda *names: Peers(arguments.torch, arguments.reference, list(names))
    results = {"refresh": refresh(peer("tensorly tucker"), arguments.rounds)}
    steppers = (
        "torch adamw complex", "torch adamw real fused", "neuraloperator adamw",
        "neuraloperator galore", "reference tensorgrad",
    )  # fmt: skip
    results["step"] = step(peer(*steppers), arguments.rounds)
    results["selection"] = selection(max(3, arguments.rounds // 3))
    write("optimizer", results)


if __name__ == "__main__":
    main()
