"""The contract of a projection.

A *projection* is a linear map of a tensor to a small *compact* form and back, together with a
way of choosing the subspace it maps to. It is a frozen, hashable dataclass of hyper-parameters:
it holds no arrays and nothing about a particular tensor. What it knows of a tensor's subspace
is its *basis*, a pytree of arrays that travels in the optimizer state.

Everything else follows from linearity. Any optimizer can run on the compact form; a sum of two
projections is again a projection, whose compact form is a tuple; and because Adam acts on every
element alone, Adam on that tuple *is* "separate moments for the sparse and the low-rank part".
Four ideas meet in this library, one place each: *which map* (`tucker`, `unstructured`, ...),
*which entries* a sparse map keeps (`selection`), *which optimizer* runs inside and *what happens
to its moments when the subspace changes* (`transforms.subspace`).

Four methods make a projection: `init`, `refresh`, `project`, `lift`. What else is asked of one is
made of these below, right for every projection and slow for most; a projection overrides what it
can do faster.
"""

from __future__ import annotations

import abc
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact, PRNGKeyArray

from tensorgrad_jax.projections.pairs import Pair, Tensor, as_pair

Basis = Any  # a pytree of arrays
Compact = Any  # an array, or a tuple of compacts
Leaf = Any  # an array or a jax.ShapeDtypeStruct

_PROBES = 16  # of random signs, for the variances that a change of basis carries over


class Projection(abc.ABC):
    """A linear map of a tensor to a compact form and back, in a subspace chosen anew at times.

    Subclasses are frozen dataclasses. Every method is a pure function of arrays: it can be
    jitted and vmapped, and no shape depends on data. Tensors are real or complex arrays, float32
    or wider (`LeafProjection` widens bfloat16 before it gets here).
    """

    @abc.abstractmethod
    def init(self, leaf: Leaf) -> Basis:
        """Return a valid basis for tensors like `leaf` (only its shape and dtype are read)."""

    @abc.abstractmethod
    def refresh(self, key: PRNGKeyArray, tensor: Inexact[Array, ...], basis: Basis) -> Basis:
        """Choose the subspace anew from `tensor`; `basis`, the previous one, may be a start."""

    @abc.abstractmethod
    def project(self, tensor: Inexact[Array, ...], basis: Basis) -> Compact:
        """Return the compact form of `tensor`."""

    @abc.abstractmethod
    def lift(self, compact: Compact, basis: Basis) -> Inexact[Array, ...]:
        """Return the tensor that a compact form stands for."""

    # What follows is made of the four.

    def lift_factor(self, shape: tuple[int, ...]) -> float:
        """Return what `lift` multiplies by: it then is that number times the adjoint of `project`.

        The factor belongs to updates. What a compact form leaves over is found without it.
        """
        del shape
        return 1.0

    def compact_struct(self, leaf: Leaf) -> Any:
        """Return the shapes and dtypes of the compact form of tensors like `leaf`."""
        struct = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        return jax.eval_shape(lambda x: self.project(x, self.init(struct)), struct)

    def transport(self, compact: Compact, old: Basis, new: Basis) -> Compact:
        """Return `project(lift(compact, old), new)`, `lift` without its factor."""
        lifted = self.lift(compact, old)
        factor = self.lift_factor(lifted.shape)
        return jax.tree.map(lambda c: c / factor, self.project(lifted, new))

    def transport_squares(self, compact: Compact, old: Basis, new: Basis) -> Compact:
        """Carry second moments, which are not linear, over to the new basis.

        If the entries of a compact form are uncorrelated with variances `compact`, the result
        holds the variances of the transported entries. Here it is an estimate of them, the mean of
        |transport(sqrt(compact) times random signs)|^2 over 16 draws: without bias, and exact where
        every new entry is made of one old one.
        """
        variances, treedef = jax.tree.flatten(compact)

        def add(i, total):
            keys = jax.random.split(jax.random.fold_in(jax.random.key(0), i), len(variances))
            drawn = [
                jnp.sqrt(v) * jax.random.rademacher(key, (v.size,), v.dtype).reshape(v.shape)
                for key, v in zip(keys, variances, strict=True)
            ]
            moved = self.transport(treedef.unflatten(drawn), old, new)
            return jax.tree.map(lambda t, m: t + jnp.abs(m) ** 2 / _PROBES, total, moved)

        return jax.lax.fori_loop(0, _PROBES, add, jax.tree.map(jnp.zeros_like, compact))

    def complement(self, tensor: Tensor, compact: Compact, basis: Basis) -> Tensor:
        """Return what `compact`, the compact form of `tensor`, leaves over of it."""
        return self.add_lifted(tensor, compact, basis, -1.0 / self.lift_factor(tensor.shape))

    def split(self, tensor: Tensor, basis: Basis) -> tuple[Compact, Tensor]:
        """Return the compact form of `tensor` and what it leaves over."""
        compact = self.project(tensor, basis)
        return compact, self.complement(tensor, compact, basis)

    def add_lifted(
        self, tensor: Tensor, compact: Compact, basis: Basis, weight: float = 1.0
    ) -> Tensor:
        """Return `tensor + weight * lift(compact, basis)`, a pair if `tensor` is one."""
        lift = self.lift_pair if isinstance(tensor, Pair) else self.lift
        add = lambda x, y: x + (y if weight == 1.0 else weight * y)
        return jax.tree.map(add, tensor, lift(compact, basis))

    @property
    def takes_pairs(self) -> bool:
        """Whether `refresh` and `project` also take a complex tensor as a `Pair` of real arrays.

        These may be of any precision, bfloat16 too. Where it is False, pairs are made complex
        arrays before they get here.
        """
        return False

    def lift_pair(self, compact: Compact, basis: Basis) -> Pair:
        """Return `lift(compact, basis)` as a pair of real arrays."""
        return as_pair(self.lift(compact, basis))
