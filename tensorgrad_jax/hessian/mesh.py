"""Columns on several devices: each multiplies its own, results are kept in rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def by_columns(mesh: Mesh, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a function of a matrix that every device applies to columns of its own.

    Args:
        mesh: its first axis is used.
        function: acts on columns, each by itself.
    """
    mesh, columns = _auto(mesh), PartitionSpec(None, mesh.axis_names[0])
    # What a device does is the same program on other columns: nothing is exchanged.
    mapped = jax.jit(
        jax.shard_map(function, mesh=mesh, in_specs=columns, out_specs=columns, check_vma=False)
    )
    return lambda X: mapped(jax.device_put(X, NamedSharding(mesh, columns)))


def in_rows(mesh: Mesh, X: Any) -> Any:
    """Return a matrix with its rows spread over the first axis of a mesh."""
    return jax.device_put(X, NamedSharding(_auto(mesh), PartitionSpec(mesh.axis_names[0], None)))


def everywhere(mesh: Mesh, X: Any) -> Any:
    """Return an array that every device of a mesh holds."""
    return jax.device_put(X, NamedSharding(_auto(mesh), PartitionSpec()))


def _auto(mesh: Mesh) -> Mesh:
    """Return the mesh with axes whose shardings the compiler derives: products over rows that are
    spread would otherwise each have to say where their result is to be."""
    return Mesh(mesh.devices, mesh.axis_names)


def check_divides(owner: str, mesh: Mesh, **numbers: int) -> None:
    """Raise ValueError unless all numbers are multiples of that of the devices."""
    axis = mesh.axis_names[0]
    for name, number in numbers.items():
        if number % mesh.shape[axis]:
            raise ValueError(
                f"{owner}: {name} must be a multiple of the {mesh.shape[axis]} devices of mesh "
                f"axis {axis!r}, got {number}"
            )
