"""Optimizers of others, in the form that the study compares: makers of updates, no rate, no decay.

Where Optax has one it is Optax's. The rest is written after the publications, of which the name
stands at each: SOAP, subset-norm with subspace-momentum, Adam-mini, 8-bit AdamW.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from baselines import spectral
from optax.contrib import MuonDimensionNumbers, muon
from tensorgrad_jax.models import tensor_specs

import tensorgrad_jax as tg


def optax_muon(per_frequency: bool, rms: float | None) -> optax.GradientTransformation:
    """Return Optax's Muon.

    Args:
        per_frequency: whether spectral weights are given as matrices (in, out), real and imaginary
            part apart; by default Optax gives them Adam.
        rms: its `consistent_rms`; None: its own scale.
    """

    def numbers(params):
        def of(leaf, spectral):
            if leaf.ndim == 2 or (spectral and per_frequency):
                return MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1)
            return None

        return jax.tree.map(of, params, spectral(params))

    return optax.chain(
        muon(1.0, muon_weight_dimension_numbers=numbers, consistent_rms=rms), optax.scale(-1.0)
    )


class SoapState(NamedTuple):
    """State of `soap`: per leaf a moment, a second moment in the basis, Gram matrices and bases."""

    count: jax.Array
    mu: Any
    nu: Any
    grams: Any
    bases: Any


def soap(b1: float = 0.95, b2: float = 0.95, gap: int = 10) -> optax.GradientTransformation:
    """Return SOAP (N. Vyas et al., arXiv 2409.11321) with one basis per channel axis of a tensor.

    Adam in the eigenbasis of averaged Gram matrices of the last two axes. Of spectral weights all
    frequencies share the two bases; real and imaginary part are two slices of the tensor. Vectors
    get Adam.
    """
    adam = optax.scale_by_adam(b1, b2)

    def rotated(g, bases):
        return jnp.einsum("...ij,ia,jb->...ab", g, *bases)

    def gram(g):
        flat = g.reshape(-1, *g.shape[-2:])
        return jnp.einsum("kij,klj->il", flat, flat), jnp.einsum("kij,kil->jl", flat, flat)

    def init_matrices(params):
        eyes = jax.tree.map(lambda p: (jnp.eye(p.shape[-2]), jnp.eye(p.shape[-1])), params)
        zeros = jax.tree.map(jnp.zeros_like, params)
        grams = jax.tree.map(lambda e: jnp.zeros_like(e), eyes)
        return SoapState(jnp.zeros((), jnp.int32), zeros, zeros, grams, eyes)

    def update_matrices(updates, state, params=None):
        del params
        count = state.count + 1
        leaves, treedef = jax.tree.flatten(updates)
        grams = [
            tuple(b2 * old + (1 - b2) * new for old, new in zip(pair, gram(g), strict=True))
            for g, pair in zip(leaves, treedef.flatten_up_to(state.grams), strict=True)
        ]
        old = [tuple(pair) for pair in treedef.flatten_up_to(state.bases)]

        def refreshed():
            return [tuple(jnp.linalg.eigh(m)[1] for m in pair) for pair in grams]

        bases = jax.lax.cond((count - 1) % gap == 0, refreshed, lambda: old)
        mu = [b1 * m + (1 - b1) * g for m, g in zip(jax.tree.leaves(state.mu), leaves, strict=True)]
        nu, scaled = [], []
        for g, m, v, basis in zip(leaves, mu, jax.tree.leaves(state.nu), bases, strict=True):
            v = b2 * v + (1 - b2) * rotated(g, basis) ** 2
            step = rotated(m, basis) / (1 - b1**count)
            step = step / (jnp.sqrt(v / (1 - b2**count)) + 1e-8)
            nu.append(v)
            scaled.append(jnp.einsum("...ab,ia,jb->...ij", step, *basis))
        back = treedef.unflatten
        return back(scaled), SoapState(count, back(mu), back(nu), back(grams), back(bases))

    matrices = optax.GradientTransformation(init_matrices, update_matrices)
    return optax.partition(
        {True: matrices, False: adam}, lambda p: jax.tree.map(lambda x: x.ndim >= 2, p)
    )


def by_subset(axis: int = -1, b2: float = 0.999, numerator=None) -> optax.GradientTransformation:
    """Divide what `numerator` makes of gradients by the root of their mean square along an axis."""

    def init(params):
        nu = jax.tree.map(
            lambda p: jnp.mean(p * 0, axis, keepdims=True) if p.ndim > 1 else p * 0, params
        )
        inner = () if numerator is None else numerator.init(params)
        return {"count": jnp.zeros((), jnp.int32), "nu": nu, "inner": inner}

    def update(updates, state, params=None):
        count = state["count"] + 1
        mean = lambda g: jnp.mean(g**2, axis, keepdims=True) if g.ndim > 1 else g**2
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * mean(g), state["nu"], updates)
        above, inner = updates, ()
        if numerator is not None:
            above, inner = numerator.update(updates, state["inner"], params)
        root = lambda v: jnp.sqrt(v / (1 - b2**count)) + 1e-8
        scaled = jax.tree.map(lambda u, v: u / root(v), above, nu)
        return scaled, {"count": count, "nu": nu, "inner": inner}

    return optax.GradientTransformation(init, update)


def snsm(gap: int, rank: float = 0.25) -> optax.GradientTransformation:
    """Return subset-norm with subspace-momentum (T. Nguyen et al., arXiv 2411.07120) of tensors.

    Momentum in the leading singular vectors of the matrix (in, everything else), set to zero at a
    refresh; what lies outside is passed on; one second moment for every row of output channels.
    """
    momentum = tg.in_subspace(
        optax.ema(0.9),
        tg.MatrixLowRank(rank, "left", (-2,)),
        gap,
        on_refresh=lambda leaf, moments, old, new: jax.tree.map(jnp.zeros_like, moments),
        complement="pass",
        specs=tensor_specs,
    )
    return by_subset(numerator=momentum)


def adam_mini() -> optax.GradientTransformation:
    """Return Adam with one second moment per output row (Y. Zhang et al., arXiv 2406.16793)."""
    return by_subset(-2, numerator=optax.ema(0.9))


_BLOCK = 256


def adam_8bit(b1: float = 0.9, b2: float = 0.999) -> optax.GradientTransformation:
    """Return Adam whose moments are kept in 8 bits, by blocks of 256 (T. Dettmers et al., 2022).

    The code is the square root of the first moment over the block's largest magnitude, and the
    fourth root of the second, both in 255 levels: relatively finer near zero, as the dynamic code
    of the paper is. Leaves of fewer than 4,096 numbers stay in float32, as there.
    """

    def pack(x, power, levels):
        blocks = jnp.pad(x.ravel(), (0, -x.size % _BLOCK)).reshape(-1, _BLOCK)
        top = jnp.abs(blocks).max(1, keepdims=True)
        share = blocks / jnp.where(top > 0, top, 1)
        code = jnp.round(jnp.sign(share) * jnp.abs(share) ** power * levels)
        return {"code": code.astype(jnp.int8 if levels == 127 else jnp.uint8), "top": top}

    def unpack(stored, like, power, levels):
        share = stored["code"].astype(jnp.float32) / levels
        values = jnp.sign(share) * jnp.abs(share) ** (1 / power) * stored["top"]
        return values.ravel()[: like.size].reshape(like.shape)

    small = lambda x: x.size < 4096
    first = lambda x: x if small(x) else pack(x, 0.5, 127)
    second = lambda x: x if small(x) else pack(x, 0.25, 255)

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return {
            "count": jnp.zeros((), jnp.int32),
            "mu": jax.tree.map(first, zeros),
            "nu": jax.tree.map(second, zeros),
        }

    def update(updates, state, params=None):
        del params
        count = state["count"] + 1
        leaves, treedef = jax.tree.flatten(updates)
        old_mu, old_nu = (treedef.flatten_up_to(state[name]) for name in ("mu", "nu"))
        scaled, mu, nu = [], [], []
        for g, m, v in zip(leaves, old_mu, old_nu, strict=True):
            m = m if small(g) else unpack(m, g, 0.5, 127)
            v = v if small(g) else unpack(v, g, 0.25, 255)
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
            scaled.append(m / (1 - b1**count) / (jnp.sqrt(v / (1 - b2**count)) + 1e-8))
            mu.append(first(m))
            nu.append(second(v))
        back = treedef.unflatten
        return back(scaled), {"count": count, "mu": back(mu), "nu": back(nu)}

    return optax.GradientTransformation(init, update)
