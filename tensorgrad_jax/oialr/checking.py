"""A check of low-rank kernels: bases turn to singular vectors, ranks are cut."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax

from tensorgrad_jax.oialr.config import Config
from tensorgrad_jax.oialr.low_rank import LowRank, cut_rank
from tensorgrad_jax.oialr.moments import Change
from tensorgrad_jax.oialr.tensors import ModesChange
from tensorgrad_jax.oialr.trees import Node


def check_kernels(layers: Sequence[Any], config: Config) -> list[tuple[Node, Change | ModesChange]]:
    """Rotate and cut low-rank kernels.

    Each is worked on by a device of its own where the parameters lie on several. Nothing waits in
    between: devices work at the same time.

    Args:
        layers: matrices and tensors with their cores.
        config: the rule for ranks, and whether work is divided.

    Returns:
        for every one its new form, and how moments change.
    """
    found = []
    divided = config.use_ddp and config.distributed_updates
    for number, x in enumerate(layers):
        sharding = x.S.sharding
        devices = sorted(sharding.addressable_devices, key=lambda d: d.id)
        if divided and len(devices) > 1 and sharding.is_fully_replicated:
            moved = jax.device_put(x, devices[number % len(devices)])
            y, change = _cut_rank(moved, config.sigma_cutoff_fraction)
            y = jax.device_put(y, jax.tree.map(lambda a: a.sharding, x))
            change = jax.device_put(change, sharding)
        else:
            y, change = _cut_rank(x, config.sigma_cutoff_fraction)
        found.append((y, Change(*change) if isinstance(y, LowRank) else change))
    if not config.reinit_shapes:
        return found
    return [(y.shrunk(config.bucket), change) for y, change in found]  # here ranks are read


@functools.partial(jax.jit, static_argnums=1)
def _cut_rank(x, fraction):
    if isinstance(x, LowRank):
        y, rotation, _ = cut_rank(x, fraction)
        return y, rotation
    return x.cut_rank(fraction)
