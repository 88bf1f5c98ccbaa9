"""traker's BasicProjector, timed one call at a time on request: a worker for trak.py.

    python benchmarks/trak_peer.py products P K B         # with torch and traker 0.3.2 installed
    python benchmarks/trak_peer.py samples K BATCH        # and neuraloperator

Prints a line of JSON when it is ready; for every line read from stdin it does its work once and
prints milliseconds, seconds of all threads and the largest resident memory so far. "products":
gradients of a batch times the random matrix of the kind that the line names. "samples": features of
a batch of samples of the default FNO, in neuraloperator's implementation.

Gradients of samples are taken one after the other. traker's own ways do not serve here: its
`FunctionalGradientComputer` needs `torch.func.vmap`, which neuraloperator's FNO refuses because it
writes into arrays in place; its `IterativeGradientComputer` differentiates the whole batch once per
sample. Complex gradients are handed on as real pairs: of complex ones traker keeps the real parts.
"""

import importlib.metadata
import json
import resource
import sys
import time

import torch
from trak.projectors import BasicProjector, ProjectionType


def main():
    """Serve until stdin ends."""
    mode, *numbers = sys.argv[1:]
    work, names = (products if mode == "products" else samples)(*map(int, numbers))
    versions = {name: importlib.metadata.version(name) for name in ("torch", "traker", *names)}
    print(json.dumps(versions | {"threads": torch.get_num_threads()}), flush=True)
    for line in sys.stdin:
        started, cpu = time.perf_counter(), time.process_time()
        work(line.strip())
        ms = 1e3 * (time.perf_counter() - started)
        found = {"ms": ms, "cpu_s": time.process_time() - cpu}
        found["peak_rss"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps(found), flush=True)


def projector(p, k, kind):
    """Return traker's projector."""
    return BasicProjector(p, k, 0, kind, "cpu", block_size=100)


def products(p, k, b):
    """Return what projects gradients of a batch by a kind of matrix."""
    gradients = torch.randn(b, p)
    projectors = {kind.value: projector(p, k, kind) for kind in ProjectionType}
    return lambda kind: projectors[kind].project(gradients, model_id=0), ()


def samples(k, batch):
    """Return what makes features of a batch of samples."""
    from neuralop.models import FNO

    model = FNO(n_modes=(16, 16), in_channels=1, out_channels=1, hidden_channels=32, n_layers=4)
    p = sum(x.numel() * (2 if x.is_complex() else 1) for x in model.parameters())
    projectors = {kind.value: projector(p, k, kind) for kind in ProjectionType}
    parameters = dict(model.named_parameters())
    xs, ys = (0.1 * torch.randn(batch, 1, 1, 64, 64) for _ in range(2))
    as_real = lambda g: torch.view_as_real(g) if g.is_complex() else g

    def work(kind):
        stacks = {
            name: torch.empty(batch, *as_real(x.detach()).shape) for name, x in parameters.items()
        }
        for i in range(batch):
            error = torch.linalg.vector_norm(model(xs[i]) - ys[i])
            gradients = torch.autograd.grad(error, list(parameters.values()))
            for stack, g in zip(stacks.values(), gradients, strict=True):
                stack[i] = as_real(g)
        return projectors[kind].project(stacks, model_id=0)

    return work, ("neuraloperator",)


if __name__ == "__main__":
    main()
