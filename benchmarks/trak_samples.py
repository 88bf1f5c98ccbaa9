"""One way to features of an operator's samples, run on request: a worker for trak.py.

    python benchmarks/trak_samples.py WAY SAMPLES CHUNK K

In a process of its own, so that its largest resident memory is that of this way; freed memory is
returned to the system as usual. Prints a line of JSON when it is compiled; for every line read from
stdin it makes features of all samples, a chunk of them at a time, and prints milliseconds, seconds
of all threads and the largest resident memory so far.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from tensorgrad_jax.models import FNO  # pyright: ignore[reportMissingImports]

from tensorgrad_jax.per_example import Project, ProjectLayers, per_example
from tensorgrad_jax.random_matrices import key_from
from tensorgrad_jax.trak.engine import jl_project
from tensorgrad_jax.trak.kinds import matrix_of

DEFAULT = {"modes": 16, "channels": 32, "layers": 4, "grid": 64}


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
        return jl_project(gradients, key_from(0), k, "rademacher")

    return {
        "fast rademacher": fast("rademacher"),
        "fast sjlt": fast("sjlt"),
        "fast kron": fast("kron"),
        "exact rademacher": exact,
        "vmap(grad), rademacher": whole,
    }


def compiled_peak(compiled: Any) -> int:
    """Return the bytes of arguments, results and temporaries."""
    memory = compiled.memory_analysis()
    return memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes


def drawn(structs: Any, seed: int = 0) -> Any:
    """Return random arrays of these shapes."""
    draw = lambda s: 0.1 * jax.random.normal(jax.random.key(s.size + seed), s.shape)
    return jax.tree.map(draw, structs)


def main() -> None:
    """Serve until stdin ends."""
    way, (samples, chunk, k) = sys.argv[1], map(int, sys.argv[2:])
    loss, params, batch, p = operator(**DEFAULT | {"n": chunk})
    compiled = jax.jit(ways(loss, p, k)[way]).lower(params, batch).compile()
    params = drawn(params)
    batches = [drawn(batch, seed) for seed in range(samples // chunk)]
    jax.block_until_ready(compiled(params, batches[0]))
    print(json.dumps({"peak_bytes": compiled_peak(compiled)}), flush=True)
    for _ in sys.stdin:
        started, cpu = time.perf_counter(), time.process_time()
        for some in batches:
            jax.block_until_ready(compiled(params, some))
        ms = 1e3 * (time.perf_counter() - started)
        found = {"ms": ms, "cpu_s": time.process_time() - cpu}
        found["peak_rss"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
