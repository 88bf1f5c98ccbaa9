"""Devices, as JAX and as PyTorch names them."""

from __future__ import annotations

from typing import Any

import jax

Place = jax.Device | jax.sharding.Sharding

_PLATFORMS = {"cuda": "gpu", "gpu": "gpu", "cpu": "cpu", "tpu": "tpu", "rocm": "gpu"}


def place_of(owner: str, device: Any) -> Place | None:
    """Return where arrays are to be put.

    Args:
        owner: named in errors.
        device: None for wherever JAX puts them; a JAX device; a sharding, whose first axis is that
            of the examples; a name ("cpu", "cuda", "cuda:1"); or an object that prints as one, as
            PyTorch's devices do.

    Raises:
        ValueError: if there is no such device here.
    """
    if device is None or isinstance(device, jax.Device | jax.sharding.Sharding):
        return device
    name, _, index = str(device).partition(":")
    here = [f"{d.platform}:{d.id}" for d in jax.devices()]
    if name not in _PLATFORMS or not (index == "" or index.isdigit()):
        raise ValueError(
            f"{owner}: device must be None, a JAX device or sharding, or a name such as 'cpu' or "
            f"'cuda:0', got {device!r}"
        )
    try:
        return jax.devices(_PLATFORMS[name])[int(index or 0)]
    except (RuntimeError, IndexError):
        raise ValueError(f"{owner}: there is no device {str(device)!r}, only {here}") from None


def is_gpu(place: Place | None) -> bool:
    """Whether arrays put there are on GPUs."""
    if place is None:
        return jax.default_backend() == "gpu"
    devices = place.device_set if isinstance(place, jax.sharding.Sharding) else {place}
    return all(d.platform == "gpu" for d in devices)
