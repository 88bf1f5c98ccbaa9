"""Low-rank kernels among the parameters of any model: cores in a tree, bases beside it.

A tree of parameters keeps its structure when kernels become low-rank: where a kernel stood, its
core stands. Optimizer states, masks and checkpoints that follow the tree go on to do so. Bases are
a dictionary {name: `LowRank` without its core}.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from tensorgrad_jax.oialr.axes import first_ranks
from tensorgrad_jax.oialr.kernels import (
    Kernel,
    Kernels,
    by_shape,
    kernels_of,
    named,
    renamed,
    to_be_factored,
)
from tensorgrad_jax.oialr.low_rank import LowRank, factor
from tensorgrad_jax.oialr.tensors import LowRankTensor, factor_tensor

Node = LowRank | LowRankTensor
Bases = dict[str, Node]


def low_rank(
    params: PyTree,
    kernels: Kernels = by_shape,
    *,
    keep_first_layer: bool = False,
    keep_last_layer: bool = True,
    inner_dim_init_ratio: float = 1.0,
    bucket: int = 1,
) -> tuple[PyTree, Bases]:
    """Factor the kernels of a tree that are worth it.

    Args:
        params: the parameters of a dense model.
        kernels: which of them are kernels, see `kernels.Kernels`.
        keep_first_layer: the first of them stays dense.
        keep_last_layer: the last of them stays dense.
        inner_dim_init_ratio: share of the singular values that is kept.
        bucket: of the cores' physical sizes.

    Returns:
        the tree with cores where kernels stood, and the bases.

    Raises:
        ValueError: if no kernel is left.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> params = {"kernel": jax.random.normal(jax.random.key(0), (6, 4)), "bias": jnp.ones(4)}
        >>> cores, bases = low_rank(params, keep_last_layer=False, inner_dim_init_ratio=0.5)
        >>> cores["kernel"].shape, bases["kernel"].U.shape
        ((2, 2), (6, 2))
        >>> loss = lambda cores, x: jnp.sum((x @ lift(cores, bases)["kernel"]) ** 2)
        >>> jax.grad(loss)(cores, jnp.ones((3, 6)))["kernel"].shape
        (2, 2)
    """
    found, leaves = kernels_of(params, kernels), named(params)
    shapes = {name: leaves[name].shape for name in found}
    names = to_be_factored(shapes, found, keep_first_layer, keep_last_layer)
    made = {n: factored(leaves[n], found[n], inner_dim_init_ratio, bucket) for n in names}
    cores = {name: x.S for name, x in made.items()}
    return renamed(params, cores), {name: x.without_core() for name, x in made.items()}


def factored(leaf: Any, kernel: Kernel, ratio: float = 1.0, bucket: int = 1) -> Node:
    """Return a kernel in low-rank form: a matrix between two bases, or a tensor's Tucker form."""
    if kernel.shares is not None:
        return factor_tensor(leaf, kernel.shares)
    return factor(leaf, kernel.rows, ratio, bucket)


def empty(
    params: PyTree, kernels: dict[str, Kernel], sizes: dict[str, Any]
) -> tuple[PyTree, Bases]:
    """Return shapes and dtypes of a tree with cores of given physical sizes, and of its bases.

    Args:
        params: parameters of the dense model, or their shapes.
        kernels: those that are low-rank.
        sizes: of their cores, a number or, of a tensor, a list of numbers.

    Raises:
        ValueError: if a size is not one of 1 to the smaller side of its kernel.
    """
    structs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), x.dtype), params)
    leaves, cores, bases = named(structs), dict[str, Any](), dict[str, Node]()
    for name, size in sizes.items():
        cores[name], bases[name] = _empty(name, leaves[name], kernels[name], size)
    return renamed(structs, cores), bases


def _empty(name: str, leaf: Any, kernel: Kernel, size: Any) -> tuple[Any, Node]:
    struct = lambda *shape, dtype=leaf.dtype: jax.ShapeDtypeStruct(shape, dtype)
    wrong = ValueError(f"oialr: {name!r} of shape {leaf.shape} has no core of size {size}")
    if kernel.shares is None:
        m, n = math.prod(leaf.shape[: kernel.rows]), math.prod(leaf.shape[kernel.rows :])
        if not isinstance(size, int) or not 1 <= size <= min(m, n):
            raise wrong
        rank = struct(dtype=jnp.int32)
        basis = LowRank(struct(m, size), None, struct(size, n), rank, leaf.shape)
        return struct(size, size), basis
    dims = leaf.shape[1:]
    if not isinstance(size, list) or len(size) != len(dims):
        raise wrong
    # An axis of its whole size has no factor, or none yet; with one it begins smaller.
    first = first_ranks(leaf.shape, kernel.shares)
    if not all(p == d or 1 <= p <= r < d for p, d, r in zip(size, dims, first, strict=True)):
        raise wrong
    wide = jnp.promote_types(leaf.dtype, jnp.float32)
    factors = tuple(
        None if p == d else struct(d, p, dtype=wide) for d, p in zip(dims, size, strict=True)
    )
    rank = struct(len(dims), dtype=jnp.int32)
    return struct(2, *size), LowRankTensor(factors, None, rank, leaf.shape)


def lift(params: PyTree, bases: Bases, in_parts: bool = False) -> PyTree:
    """Return the parameters of the dense model: every core between its bases.

    Differentiable with respect to `params`, so that any function of dense parameters becomes one of
    cores. The bases are constants.

    Args:
        params: with cores.
        bases: of the cores.
        in_parts: return complex tensors as a `TuckerWeight` each, which a `SpectralConv` takes and
            multiplies by in parts: the weight is not made, nor is its gradient.
    """
    leaves = named(params)
    nodes = {n: x.with_core(leaves[n]) for n, x in jax.lax.stop_gradient(bases).items()}
    of = lambda x: x.parts() if in_parts and isinstance(x, LowRankTensor) else x.weight()
    return renamed(params, {n: of(x) for n, x in nodes.items()})


@dataclasses.dataclass(frozen=True)
class ParamReport:
    """How many numbers a model has, against the dense one.

    Attributes:
        dense: of the dense model.
        trainable: alive cores and everything that is no low-rank kernel.
        stored: physically, bases and cores at their physical sizes.
        ranks: of every low-rank kernel, by name; of a tensor those of its axes with factors.
    """

    dense: int
    trainable: int
    stored: int
    ranks: dict[str, Any]

    @property
    def trainable_percent(self) -> float:
        """100 trainable / dense."""
        return 100 * self.trainable / self.dense

    @property
    def stored_percent(self) -> float:
        """100 stored / dense."""
        return 100 * self.stored / self.dense

    def __str__(self):
        """Return one line."""
        ranks = [min(r) if isinstance(r, tuple) else r for r in self.ranks.values()]
        low, high = min(ranks, default=0), max(ranks, default=0)
        what = f"{len(ranks)} layers of ranks {low} to {high}" if ranks else "all dense"
        return (
            f"trainable {self.trainable_percent:.2f}% ({self.trainable} of {self.dense}), "
            f"stored {self.stored_percent:.2f}%, {what}"
        )


def param_report(params: PyTree, bases: Bases | None = None) -> ParamReport:
    """Count the parameters of a model, some of whose kernels may be low-rank."""
    leaves, bases = named(params), bases or {}
    ranks = {name: x.ranks() for name, x in bases.items()}
    size = lambda x: math.prod(jnp.shape(x))
    others = sum(size(x) for name, x in leaves.items() if name not in bases)
    frozen = sum(size(a) for x in bases.values() for a in jax.tree.leaves(x))
    frozen -= sum(size(x.rank) for x in bases.values())
    return ParamReport(
        dense=others + sum(math.prod(x.shape) for x in bases.values()),
        trainable=others + sum(x.alive() for x in bases.values()),
        stored=sum(map(size, leaves.values())) + frozen,
        ranks=ranks,
    )
