"""Which parameters are kernels, as which matrix each is seen, and which of them become low-rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from tensorgrad_jax.projections.plain import number, shown


class Kernel(NamedTuple):
    """How a parameter is seen as a matrix.

    Attributes:
        rows: number of leading axes that make up its rows.
        convolution: whether the rule for convolutions says if it is worth factoring.
        shares: of a complex tensor of real and imaginary part along axis 0: for each further axis
            the share that is kept at first, 1: it stays whole. It is held in Tucker form then.
    """

    rows: int = 1
    convolution: bool = False
    shares: tuple[float, ...] | None = None


# Of a parameter's name and the parameter; a number is that of a kernel's rows; None: no kernel.
Kernels = Callable[[str, Any], Kernel | int | None]


def by_shape(name: str, leaf: Any) -> Kernel | None:
    """Return what an array of that name and shape is in Flax and Haiku, channels last.

    Matrices and kernels of convolutions, whose last axis is that of the outputs; no embeddings.
    """
    if leaf.ndim < 2 or "embedding" in name.rsplit(".", 1)[-1]:
        return None
    return Kernel(leaf.ndim - 1, convolution=leaf.ndim > 2)


def spectral(share: float = 0.5) -> Kernels:
    """Return what takes the spectral weights of an operator, (2, *modes, in, out), for kernels.

    Args:
        share: of the channels that is kept at first, on both sides: cores then have share^2 of the
            weight's numbers.

    Raises:
        ValueError: if it is not in (0, 1).
    """
    share = number("spectral", "share", share, "a number in (0, 1)", lambda x: 0 < x < 1)

    def kernels(name: str, leaf: Any) -> Kernel | None:
        if name.rsplit(".", 1)[-1] != "spectral_weight":
            return None
        return Kernel(leaf.ndim - 1, shares=(*[1.0] * (leaf.ndim - 3), share, share))

    return kernels


def named(params: PyTree) -> dict[str, Any]:
    """Return the leaves of a tree by name, `layers.0.kernel`."""
    paths = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in paths}


def renamed(params: PyTree, leaves: dict[str, Any]) -> PyTree:
    """Return a tree with some of its leaves, by name, replaced."""
    found = named(params)
    if unknown := sorted(leaves.keys() - found.keys()):
        raise ValueError(f"no parameter is called {unknown[0]!r}")
    return jax.tree.unflatten(jax.tree.structure(params), (found | leaves).values())


def kernels_of(params: PyTree, kernels: Kernels = by_shape) -> dict[str, Kernel]:
    """Return the kernels of a tree by name, in the order of its leaves.

    Raises:
        ValueError: if `kernels` returns a number of rows that the parameter cannot have.
    """
    found = {}
    for name, leaf in named(params).items():
        if not hasattr(leaf, "ndim") or not jnp.issubdtype(leaf.dtype, jnp.inexact):
            continue
        kernel = kernels(name, leaf)
        if kernel is None:
            continue
        kernel = Kernel(kernel) if isinstance(kernel, int) else kernel
        if not 0 < kernel.rows < leaf.ndim:
            raise ValueError(
                f"kernels: parameter {name!r} of shape {tuple(leaf.shape)} can have "
                f"1 to {leaf.ndim - 1} axes as rows, got {shown(kernel.rows)}"
            )
        found[name] = kernel
    return found


def worth_factoring(shape: Sequence[int], kernel: Kernel) -> bool:
    """Whether a kernel of that shape has enough columns for its rows.

    Of a dense layer the smaller side must be above a tenth of the larger one. Of a convolution the
    inputs times the window must be at least a tenth of the outputs; the other way round anything
    goes.
    """
    if kernel.shares is not None:
        return True
    rows, columns = math.prod(shape[: kernel.rows]), math.prod(shape[kernel.rows :])
    if kernel.convolution:
        # The side of the window is the one with several axes.
        inputs, outputs = (rows, columns) if kernel.rows > 1 else (columns, rows)
        return inputs >= outputs / 10
    return min(rows, columns) > max(rows, columns) / 10


def to_be_factored(
    shapes: dict[str, Sequence[int]],
    kernels: dict[str, Kernel],
    keep_first_layer: bool = False,
    keep_last_layer: bool = True,
) -> list[str]:
    """Return the names of the kernels that become low-rank, in their order.

    Args:
        shapes: of all kernels.
        kernels: in the order of the network.
        keep_first_layer: whether the first of those that are worth it stays dense.
        keep_last_layer: whether the last of those that are worth it stays dense.

    Raises:
        ValueError: if none is left.
    """
    chosen = [n for n, kernel in kernels.items() if worth_factoring(shapes[n], kernel)]
    if keep_first_layer:
        chosen = chosen[1:]
    if keep_last_layer:
        chosen = chosen[:-1]
    if not chosen:
        raise ValueError(
            f"oialr: no layer can become low-rank: of {len(kernels)} kernels none is left by its "
            f"shape, keep_first_layer={keep_first_layer}, keep_last_layer={keep_last_layer}"
        )
    return chosen


def working_layers(
    names: Sequence[str], check: int, network_layer_perc_step: float, legacy: bool = False
) -> Sequence[str]:
    """Return those of the low-rank layers that the check of that number, from 1, looks at.

    They are the last ceil(p L j) of L layers at check j, with the share p =
    `network_layer_perc_step`. The original takes the last j floor(p (L - 1)), and all where that is
    0 (`legacy`).
    """
    if legacy:
        taken = check * int((len(names) - 1) * network_layer_perc_step)
        return names[-taken:]
    # Rounded first: 0.1 * 10 * 3 is a little more than 3.
    taken = math.ceil(round(network_layer_perc_step * len(names) * check, 9))
    return names[max(0, len(names) - taken) :]
