"""PyTorch peers of the benchmark, timed one run at a time on request.

    python benchmarks/peers.py [--reference FOLDER] [--threads N]

A worker for another process, so that its measurements can alternate with ours. Everything is
prepared and warmed up first; then one line of JSON goes to stdout with the names of the peers that
are ready, versions, errors and bytes of optimizer state. For every name read from stdin that peer
runs once and a line {"name": ..., "ms": ...} comes back; a name that is unknown or a run that fails
gives "ms": null and "error". The worker ends with its input. What the libraries print goes to
stderr. FOLDER holds the package `tensorgrad` of the repository neuraloperator/tensorgrad.

All optimizers act on four complex64 parameters with the same learning rate and weight decay, and
find fresh gradients before every step (writing them is not timed).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, TextIO

import numpy as np
import torch

SHAPE = (64, 64, 32, 17)
COUNT = 4
TUCKER_RANK = [43, 43, 22, 12]
NEVER = 10**9  # a refresh gap that no run reaches
WARM_UP = 3  # the reference refreshes at its steps 0 and 1
SETTINGS = {"lr": 1e-3, "weight_decay": 1e-4}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass
class Peer:
    """One measurement: `run` is timed, `before` prepares it, the rest is for the first line."""

    run: Callable[[], Any]
    before: Callable[[], Any] = lambda: None
    errors: dict[str, float] = field(default_factory=dict)
    state_bytes: int | None = None
    parameter_bytes: int | None = None
    notes: dict[str, str] = field(default_factory=dict)

    def milliseconds(self) -> float:
        """Wall time of one run."""
        self.before()
        synchronize()
        start = time.perf_counter()
        self.run()
        synchronize()
        return 1e3 * (time.perf_counter() - start)


def synchronize() -> None:
    """Wait for the device."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def tensor_bytes(root: Any) -> int:
    """Bytes of all distinct tensors reachable from `root` by containers and attributes."""
    seen: set[int] = set()
    total, todo = 0, [root]
    while todo:
        item = todo.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, torch.Tensor):
            total += item.numel() * item.element_size()
        elif isinstance(item, dict):
            todo.extend(item.values())
        elif isinstance(item, (list, tuple)):
            todo.extend(item)
        elif hasattr(item, "__dict__") and not isinstance(item, (type, ModuleType)):
            todo.extend(vars(item).values())
    return total


def random_tensors(seed: int) -> list[torch.Tensor]:
    """Complex standard normal tensors, one for every parameter."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(SHAPE, dtype=torch.complex64, generator=generator)
    return [draw().to(DEVICE) for _ in range(COUNT)]


def decaying_tensor() -> torch.Tensor:
    """A complex normal tensor scaled along every axis by 1 / sqrt(1 + index)."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal(SHAPE) + 1j * rng.standard_normal(SHAPE)
    for axis, size in enumerate(SHAPE):
        scale = (1.0 + np.arange(size)) ** -0.5
        values *= scale.reshape([-1 if i == axis else 1 for i in range(len(SHAPE))])
    return torch.from_numpy(values.astype(np.complex64)).to(DEVICE)


def optimizer_peer(
    make: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer], real: bool = False
) -> Peer:
    """The step of the optimizer that `make` builds, warmed up."""
    view = torch.view_as_real if real else lambda x: x
    parameters = [torch.nn.Parameter(view(x).clone()) for x in random_tensors(0)]
    gradients = [view(x) for x in random_tensors(1)]
    for p in parameters:
        p.grad = torch.empty_like(p)

    def refill() -> None:
        for p, g in zip(parameters, gradients, strict=True):
            p.grad.copy_(g)

    optimizer = make(parameters)
    peer = Peer(optimizer.step, refill)
    for _ in range(WARM_UP):
        peer.milliseconds()
    peer.state_bytes = tensor_bytes([optimizer.state[p] for p in parameters])
    peer.parameter_bytes = tensor_bytes(parameters)
    return peer


def tensorly_tucker() -> Peer:
    """One sweep of tensorly's Tucker decomposition from the truncated SVDs."""
    import tensorly as tl
    from tensorly.decomposition import tucker

    tl.set_backend("pytorch")
    x = decaying_tensor()
    options = {"rank": TUCKER_RANK, "init": "svd", "n_iter_max": 1, "svd": "truncated_svd"}
    run = lambda: tucker(x, **options)
    rest = x - tl.tucker_to_tensor(run())
    error = torch.linalg.vector_norm(rest) / torch.linalg.vector_norm(x)
    return Peer(run, errors={"tensorly tucker": float(error)})


def torch_complex() -> Peer:
    """AdamW of torch on the complex parameters, as it chooses to run them."""
    return optimizer_peer(lambda ps: torch.optim.AdamW(ps, **SETTINGS))


def torch_real() -> Peer:
    """AdamW of torch on pairs of reals: fused, or foreach where that is refused."""
    try:
        peer = optimizer_peer(lambda ps: torch.optim.AdamW(ps, fused=True, **SETTINGS), real=True)
        variant = "fused"
    except (RuntimeError, TypeError, ValueError):
        peer = optimizer_peer(lambda ps: torch.optim.AdamW(ps, foreach=True, **SETTINGS), real=True)
        variant = "foreach"
    peer.notes["torch adamw real fused"] = variant
    return peer


def neuraloperator_adamw() -> Peer:
    """AdamW of neuraloperator, its branch without projection."""
    from neuralop.training.adamw import AdamW

    return optimizer_peer(lambda ps: AdamW(ps, **SETTINGS))


def neuraloperator_galore() -> Peer:
    """AdamW of neuraloperator with Tucker projected gradients and no refresh."""
    import tensorly as tl
    from neuralop.training.adamw import AdamW

    tl.set_backend("pytorch")
    galore = {"galore_rank": 0.25, "galore_update_proj_gap": NEVER}
    # Torch refuses an empty list of parameters, but takes an empty group.
    make = lambda ps: AdamW([{"params": []}], galore_params=ps, **galore, **SETTINGS)
    return optimizer_peer(make)


def ensure_pyplot() -> None:
    """Let the reference import pyplot where it is missing: only its plots would use it."""
    if importlib.util.find_spec("matplotlib") is None:
        package, pyplot = ModuleType("matplotlib"), ModuleType("matplotlib.pyplot")
        package.pyplot = pyplot
        sys.modules.update({"matplotlib": package, "matplotlib.pyplot": pyplot})


def reference_group(parameters: list[torch.nn.Parameter]) -> dict[str, Any]:
    """The parameter group of the reference: 5% random entries, then rank 20% of the residual."""
    first = {"proj_type": "unstructured_sparse", "sparse_ratio": 0.05, "sparse_type": "randk"}
    second = {"second_proj_type": "low_rank", "second_rank": 0.20, "second_scale": 1.0}
    gap = {"update_proj_gap": NEVER, "update_proj_gap_end": NEVER, "update_proj_gap_mode": "fixed"}
    length = {"batch_size": 1, "epochs": 1, "scheduler_T_max": 1, "training_samples": 1}
    return {
        "params": parameters,
        "type": "tucker",
        "optimizer_type": "tensorgrad",
        "dim": 5,
        "rank": 0.20,  # its presence turns the projections on
        "scale": 1.0,
        "scale_by_mask_ratio": False,
        "reset_sparse_optimizer_states": False,
        "enforce_full_complex_precision": True,
        "svd_type": "truncated_svd",
        "n_iter_max_tucker": 1,
        "tucker_warm_restart": False,
        **first,
        **second,
        **gap,
        **length,
    }


def reference_tensorgrad(folder: str) -> Peer:
    """TensorGRaD of the reference, sparse plus low rank, with no refresh."""
    import tensorly as tl

    tl.set_backend("pytorch")
    ensure_pyplot()
    sys.path.insert(0, os.path.abspath(folder))
    from tensorgrad.tensorgrad import TensorGRaD

    flags = {"support_complex": True, "enforce_full_complex_precision": True, "use_sum": False}
    make = lambda ps: TensorGRaD([reference_group(ps)], matrix_only=False, **flags, **SETTINGS)
    return optimizer_peer(make)


def fno_step() -> Peer:
    """A training step of neuraloperator's FNO: forward, relative L2 loss, backward, AdamW."""
    from neuralop.losses import LpLoss
    from neuralop.models import FNO

    torch.manual_seed(0)
    channels = {"in_channels": 1, "out_channels": 1, "hidden_channels": 32}
    model = FNO(n_modes=(16, 16), n_layers=4, **channels).to(DEVICE)
    x, y = (torch.randn(8, 1, 64, 64, device=DEVICE) for _ in range(2))
    loss, optimizer = LpLoss(d=2), torch.optim.AdamW(model.parameters(), **SETTINGS)

    def step() -> None:
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()

    for _ in range(WARM_UP):
        step()
    return Peer(step)


def prepare(makers: dict[str, Callable[[], Peer]]) -> dict[str, Peer]:
    """Those peers that can be imported and run."""
    peers = {}
    for name, make in makers.items():
        try:
            peers[name] = make()
        except Exception as error:  # any peer may be missing
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            print(f"left out {name}: {reason}", file=sys.stderr, flush=True)
    return peers


def versions(peers: Iterable[Peer]) -> dict[str, Any]:
    """Versions of the packages, the device and the variants that were chosen."""
    found: dict[str, Any] = {"python": platform.python_version()}
    for package in ("torch", "numpy", "tensorly", "neuraloperator"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    found["device"] = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu"
    found["threads"] = torch.get_num_threads()
    for peer in peers:
        found.update(peer.notes)
    return found


def summary(peers: dict[str, Peer]) -> dict[str, Any]:
    """The first line."""
    states = {n: p.state_bytes for n, p in peers.items() if p.state_bytes is not None}
    sizes = [p.parameter_bytes for p in peers.values() if p.parameter_bytes is not None]
    return {
        "ready": list(peers),
        "versions": versions(peers.values()),
        "errors": {k: v for p in peers.values() for k, v in p.errors.items()},
        "state_bytes": states,
        "parameter_bytes": max(sizes, default=0),
    }


def answer(peers: dict[str, Peer], name: str) -> dict[str, Any]:
    """One measurement."""
    if name not in peers:
        return {"name": name, "ms": None, "error": "unknown name"}
    try:
        return {"name": name, "ms": peers[name].milliseconds()}
    except Exception as error:  # the other peers can still be asked
        return {"name": name, "ms": None, "error": f"{type(error).__name__}: {error}"}


def answers_only() -> TextIO:
    """The real stdout; everything else that is printed goes to stderr from now on."""
    sys.stdout.flush()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def main() -> None:
    """Prepare the peers, then answer requests until the input ends."""
    parser = argparse.ArgumentParser(description="Time PyTorch peers on request.")
    parser.add_argument("--reference", metavar="FOLDER", help="folder of the package tensorgrad")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of torch")
    arguments = parser.parse_args()
    answers = answers_only()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    makers = {
        "tensorly tucker": tensorly_tucker,
        "torch adamw complex": torch_complex,
        "torch adamw real fused": torch_real,
        "neuraloperator adamw": neuraloperator_adamw,
        "neuraloperator galore": neuraloperator_galore,
    }
    if arguments.reference:
        makers["reference tensorgrad"] = lambda: reference_tensorgrad(arguments.reference)
    makers["neuraloperator fno step"] = fno_step
    peers = prepare(makers)
    print(json.dumps(summary(peers)), file=answers, flush=True)
    for line in sys.stdin:
        if name := line.strip():
            print(json.dumps(answer(peers, name)), file=answers, flush=True)


if __name__ == "__main__":
    main()
