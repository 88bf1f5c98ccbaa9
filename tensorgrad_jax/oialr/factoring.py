"""Which kernels become low-rank at a step, and what is made of them.

A matrix is factored once. A tensor gets its factors axis by axis: what is to be done of it is a
tuple with the rank of every axis that is to get its factor now, and None for the others.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from tensorgrad_jax.oialr.axes import axis_overlap, leading_basis, without_factor
from tensorgrad_jax.oialr.config import Config
from tensorgrad_jax.oialr.kernels import Kernel
from tensorgrad_jax.oialr.low_rank import LowRank
from tensorgrad_jax.oialr.moments import Change
from tensorgrad_jax.oialr.observables import polar_factor, stability
from tensorgrad_jax.oialr.tensors import LowRankTensor, ModesChange, whole, with_factors
from tensorgrad_jax.oialr.trees import Bases, Node, factored

# Of a tensor the ranks of the axes that are meant; of a matrix None.
Axes = tuple[int | None, ...] | None


def unfrozen(
    names: Sequence[str], kernels: dict[str, Kernel], shapes: dict[str, Any], bases: Bases
) -> dict[str, Axes]:
    """Return what is not low-rank yet: matrices without bases, tensors with axes without factor.

    Args:
        names: of the kernels that are or will be low-rank.
        kernels: how each is seen.
        shapes: of the dense kernels.
        bases: that there are.
    """
    found: dict[str, Axes] = {}
    for name in names:
        shares, x = kernels[name].shares, bases.get(name)
        if shares is None:
            if x is None:
                found[name] = None
            continue
        factors = x.factors if isinstance(x, LowRankTensor) else None
        ranks = without_factor(shapes[name], shares, factors)
        if any(r is not None for r in ranks):
            found[name] = ranks
    return found


def look(leaf: Any, kernel: Kernel, ranks: Axes) -> Any:
    """Return what tells whether a kernel has settled, at this time.

    Of a matrix its polar factor; of a tensor for every axis that is meant the leading left singular
    vectors of its unfolding, None for the others.
    """
    if ranks is None:
        return polar_factor(leaf, kernel.rows)
    return tuple(None if r is None else leading_basis(leaf, i, r) for i, r in enumerate(ranks))


def settled(
    leaves: dict[str, Any],
    kernels: dict[str, Kernel],
    waiting: dict[str, Axes],
    previous: dict[str, Any],
    config: Config,
) -> tuple[dict[str, Axes], dict[str, Any]]:
    """Return what of the waiting has settled since the last look, and this look at the others.

    Args:
        leaves: parameters by name.
        kernels: how each is seen.
        waiting: what is not low-rank yet.
        previous: the last look.
        config: its thresholds are used.

    Raises:
        ValueError: if `previous` are shapes into which no arrays have been read.
    """
    if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(previous)):
        raise ValueError(
            "oialr: `previous`, the bases of the last look, has not been read from the checkpoint"
        )
    done: dict[str, Axes] = {}
    others: dict[str, Any] = {}
    for name, ranks in waiting.items():
        now, before = _look(leaves[name], kernels[name], ranks), previous.get(name)
        if ranks is None:
            same = None if before is None else float(_stability(before, now))
            if same is not None and same >= config.threshold(of_axes=False):
                done[name] = None
            else:
                others[name] = now
            continue
        overlaps = [None] * len(ranks) if before is None else _overlaps(before, now)
        ready = [x is not None and float(x) >= config.threshold(of_axes=True) for x in overlaps]
        split = lambda values, of, ready=ready: tuple(
            x if of == ok else None for x, ok in zip(values, ready, strict=True)
        )
        if any(ready):
            done[name] = split(ranks, True)
        if any(u is not None for u in split(now, False)):
            others[name] = split(now, False)
    return done, others


def look_struct(leaf: Any, kernel: Kernel, ranks: Axes) -> Any:
    """Return shapes and dtypes of a `look`."""
    return jax.eval_shape(lambda x: look(x, kernel, ranks), leaf)


def factor_kernels(
    leaves: dict[str, Any],
    kernels: dict[str, Kernel],
    bases: Bases,
    meant: dict[str, Axes],
    config: Config,
) -> dict[str, tuple[Node, Change | ModesChange]]:
    """Make kernels low-rank, or axes of tensors that are in part.

    Args:
        leaves: parameters by name, cores among them.
        kernels: how each is seen.
        bases: that there are.
        meant: which kernels, and of tensors which axes.
        config: `inner_dim_init_ratio` and `bucket` are used.

    Returns:
        for every kernel its new form with its core, and how moments change. Kernels that are not
        finite stay what they are, with a warning.
    """
    finite = [n for n in meant if bool(jnp.isfinite(leaves[n]).all())]
    if spared := [n for n in meant if n not in finite]:
        warnings.warn(
            f"oialr: {spared[0]!r} is not finite and stays dense ({len(spared)} such)",
            RuntimeWarning,
            stacklevel=5,
        )
    made: dict[str, tuple[Node, Change | ModesChange]] = {}
    for name in finite:
        kernel, ranks, leaf = kernels[name], meant[name], leaves[name]
        if ranks is None:
            x = _factored(leaf, kernel, config.inner_dim_init_ratio, config.bucket)
            assert isinstance(x, LowRank)
            made[name] = x, Change(x.U, x.Vt.conj().T, kernel.rows)
        else:
            tensor = bases[name].with_core(leaf) if name in bases else whole(leaf)
            made[name] = _with_factors(tensor, ranks)
    return made


@jax.jit
def _overlaps(before, now):
    pairs = zip(before, now, strict=True)
    return tuple(None if a is None or b is None else axis_overlap(a, b) for a, b in pairs)


_look = functools.partial(jax.jit, static_argnums=(1, 2))(look)
_stability = jax.jit(stability)
_factored = jax.jit(factored, static_argnums=(1, 2, 3))
_with_factors = jax.jit(with_factors, static_argnums=1)
