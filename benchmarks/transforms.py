"""The truncated Fourier transform as matrix products beside fast Fourier transforms.

    python benchmarks/transforms.py [--rounds N]

A spectral convolution of 32 channels with its gradients, by both ways, over sizes: what the rule
of `models.fourier.choose_method` is made of. Writes results/<backend>/transforms.json.
"""

from __future__ import annotations

import argparse

import jax
import jax.numpy as jnp
from flax import nnx
from interleaved import by_turns, machine, summary, timed, write
from tensorgrad_jax.models import SpectralConv
from tensorgrad_jax.models.fourier import kept_frequencies, matrix_work

CHANNELS = 32
# Batch, points and modes per axis, number of axes.
SIZES = [
    (8, 8192, 16, 1),
    (8, 8192, 64, 1),
    (8, 8192, 128, 1),
    (8, 8192, 256, 1),
    (8, 64, 16, 2),
    (2, 128, 32, 2),
    (2, 128, 64, 2),
    (8, 64, 64, 2),
    (1, 256, 96, 2),
    (1, 256, 128, 2),
    (1, 32, 8, 3),
    (1, 32, 16, 3),
    (1, 32, 32, 3),
    (1, 64, 56, 3),
]


def convolution(transform: str, batch: int, n: int, modes: int, dim: int):
    """Return a function that convolves, differentiates and returns milliseconds."""
    layer = SpectralConv(CHANNELS, CHANNELS, (modes,) * dim, transform=transform, rngs=nnx.Rngs(0))
    graph, variables = nnx.split(layer)
    x = jax.random.normal(jax.random.key(0), (batch, *(n,) * dim, CHANNELS))

    def loss(variables, x):
        return jnp.sum(nnx.merge(graph, variables)(x) ** 2)

    return timed(jax.jit(jax.grad(loss, argnums=(0, 1))), variables, x)


def main() -> None:
    """Measure, print the table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    print(machine())
    print("\n| points | modes | work per axis | matrix, ms | over fft | range |")
    print("|---|---|---|---|---|---|")
    rows = []
    for batch, n, modes, dim in SIZES:
        ways = {way: convolution(way, batch, n, modes, dim) for way in ("matrix", "fft")}
        result = summary(by_turns(ways, rounds), "fft")["matrix"]
        grid = (n,) * dim
        kept = kept_frequencies(grid, (*(modes,) * (dim - 1), modes // 2 + 1))
        work = matrix_work(grid, kept) / dim
        rows.append({"batch": batch, "grid": grid, "modes": modes, "work": work, **result})
        times = "{ms:.1f} | {ratio:.2f} | {low:.2f} to {high:.2f}".format(**result)
        print(f"| {n}^{dim} | {modes} | {work:.0f} | {times} |", flush=True)
    write("transforms", {"rows": rows})


if __name__ == "__main__":
    main()
