r"""What happens to the moments of a parameter when its subspace changes.

Let O be the map that carries compact forms from the old basis to the new one, |O|^2 the map with
its squared entries, k = |O|^2 1 the share of every new direction that the old basis knew. With the
means m and v of gradients and of their squares (each over its weight), v - |m|^2 is a variance, and
if the entries of a compact form are uncorrelated,

    m' = O m + r h,        v' = |O|^2 (v - |m|^2)+ + |O m|^2 + (1 - k)+ v.

What the old basis did not know starts as large as the rest is: the second moment at that of the
direction in whose place the new one comes (the same rank among singular vectors, the same block of
entries), the first at the present gradient g in the new basis as far as that is unknown,
h = (1 - k) g, times the ratio r of the sizes of m and gradients; v' then is |m'|^2 at least.
Starting at zero instead, with a step count that says that bias correction is over, updates would be
too large for want of v, or too small for want of m.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tensorgrad_jax.projections.base import Basis, Compact
from tensorgrad_jax.projections.leaf import LeafProjection
from tensorgrad_jax.projections.pairs import Pair, as_array, is_pair
from tensorgrad_jax.transforms.moment_dicts import MomentDicts
from tensorgrad_jax.transforms.packing import is_stored, packed_like, plain, times_real, unpacked
from tensorgrad_jax.transforms.roles import Role

OnRefresh = Literal["transport", "keep", "reset"]
Moments = dict[str, Any]


def transported(
    leaf: LeafProjection,
    moments: MomentDicts,
    name: str,
    roles: dict[str, Role | None],
    weights: dict[str, Array],
    old: Basis,
    new: Basis,
    sees: Compact,
) -> Moments:
    """Return the moments of one parameter carried from its old basis to its new one.

    `sees` is the compact form of the present gradient in the new basis.
    """
    stored, struct = moments.of(name), leaf.compact_struct()
    known = leaf.transport_squares(jax.tree.map(_real_ones, struct), old, new)
    unknown = jax.tree.map(lambda k: jnp.maximum(1 - k, 0), known)
    squares_of = _squares_of_nodes(moments, roles)
    carried, means = {}, {}
    for label, node in zip(moments.labels, moments.nodes, strict=True):
        if roles[label] == "linear":
            before = read(stored[label], struct)
            after = leaf.transport(before, old, new)
            ratio = _ratio(leaf, before, sees, stored, squares_of.get(node), weights)
            started = jax.tree.map(lambda m, u, r, c: m + u * r * c, after, unknown, ratio, sees)
            carried[label] = written(started, stored[label])
            # The first one of a state is the mean of its squares' gradients.
            means.setdefault(node, (label, before, started))
    for label, node in zip(moments.labels, moments.nodes, strict=True):
        if roles[label] == "square":
            squares = stored[label]
            if node in means:
                linear, before, started = means[node]
                # Both over their weights; the result times that of the squares again.
                ratio = weights[label] / weights[linear] ** 2
                result = _carry_with_mean(leaf, squares, before, ratio, old, new)
            else:
                result = _carry_squares(leaf, jax.tree.map(jnp.real, squares), old, new)
            result = _with_unknown(result, squares, unknown)
            if node in means:
                least = squares_like(started, squares, leaf, ratio)
                result = _at_least(least, result, unknown)
            carried[label] = jax.tree.map(lambda x, like: x.astype(like.dtype), result, squares)
    return {label: carried[label] for label in moments.labels}


def _squares_of_nodes(moments, roles):
    squares: dict[Any, str] = {}
    for label, node in zip(moments.labels, moments.nodes, strict=True):
        if roles[label] == "square":
            squares.setdefault(node, label)
    return squares


def _real_ones(struct):
    return jnp.ones(struct.shape, jnp.finfo(struct.dtype).dtype)


def _ratio(leaf, moment, gradient, stored, squares_label, weights):
    """Return, for every array, the size of a first moment over that of the gradients.

    Where there are second moments they tell the size of the gradients, entry by entry, so that many
    small entries count for more than a few large ones; elsewhere the present gradient does.
    """
    size = lambda x: _average(leaf, x.real**2 + x.imag**2)

    def by_gradient(m, g):
        of_gradient = size(g)
        return jnp.sqrt(size(m) / jnp.where(of_gradient > 0, of_gradient, 1))

    def by_squares(m, v):
        # One number for both parts of a pair is the mean of their squares, that is half of |g|^2.
        shared = jnp.iscomplexobj(m) and leaf.spec.complex_axis is not None
        v = v.parts.sum(0) if is_pair(v) else v.real * (2 if shared else 1)
        inverse = jnp.where(v > 0, 1 / jnp.where(v > 0, v, 1), 0)
        return jnp.sqrt(_average(leaf, (m.real**2 + m.imag**2) * inverse * weights[squares_label]))

    if squares_label is None:
        return jax.tree.map(by_gradient, moment, gradient)
    return jax.tree.map(by_squares, moment, stored[squares_label])


def _carry_with_mean(leaf, squares, mean, ratio, old, new):
    """Return |O|^2 (v - r |m|^2)+ + r |O m|^2 for second moments v and the mean m.

    Where v is below r |m|^2, which only means over different times can be, m is taken as small as v
    is: what does not move keeps its v.
    """
    of_mean = squares_like(mean, squares, leaf, ratio)
    spread = jax.tree.map(lambda v, s: jnp.maximum(v.real - s, 0), squares, of_mean)

    def shrunk(m, v, s):
        factor = lambda v, s: jnp.sqrt(jnp.minimum(1, v.real / jnp.where(s > 0, s, 1)))
        if is_pair(v):
            parts = factor(v.parts, s.parts) * jnp.stack([m.real, m.imag])
            return jax.lax.complex(parts[0], parts[1])
        return times_real(m, factor(v, s))

    small = jax.tree.map(shrunk, mean, squares, of_mean)
    moved = squares_like(leaf.transport(small, old, new), squares, leaf, ratio)
    return jax.tree.map(jnp.add, _carry_squares(leaf, spread, old, new), moved)


def _carry_squares(leaf, squares, old, new):
    """Apply |O|^2 to numbers, or to each part of pairs of them."""
    if not any(is_pair(x) for x in jax.tree.leaves(squares, is_leaf=is_pair)):
        return leaf.transport_squares(squares, old, new)
    parts = [
        leaf.transport_squares(
            jax.tree.map(lambda x, i=i: x.parts[i], squares, is_leaf=is_pair), old, new
        )
        for i in (0, 1)
    ]
    return jax.tree.map(lambda a, b: Pair(jnp.stack([a, b])), *parts)


def _average(leaf, x):
    """Return the mean, of stacked tensors each one's own."""
    axes = tuple(range(1, x.ndim)) if leaf.spec.batch_axes else None
    return x.mean(axes, keepdims=axes is not None)


def _with_unknown(squares, old, unknown):
    """Add to second moments those of the directions in their place, as far as unknown."""

    def add(v, before, share):
        # The two parts of a pair lie along a new axis 0, over which the share is broadcast.
        return jax.tree.map(lambda x, b: x + b.real * share, v, before)

    return jax.tree.map(add, squares, old, unknown, is_leaf=is_pair)


def _at_least(least, squares, unknown):
    """Return second moments that are not below those of the mean, where that was started."""

    def bound(v, s, share):
        where = lambda x, y: jnp.where(share > 0, jnp.maximum(x, y), x)
        return jax.tree.map(where, v, s)

    return jax.tree.map(bound, squares, least, unknown, is_leaf=is_pair)


def squares_like(mean: Any, squares: Any, leaf: LeafProjection, ratio: Array) -> Any:
    """Return ratio |mean|^2 in the layout of second moments.

    Those of a `Pair` are a pair too, one for each real number, or one array of the mean of both.
    """

    def of(m, v):
        if is_pair(v):
            return Pair(ratio * jnp.stack([m.real, m.imag]) ** 2)
        shared = jnp.iscomplexobj(m) and leaf.spec.complex_axis is not None
        return ratio * (m.real**2 + m.imag**2) / (2 if shared else 1)

    return jax.tree.map(of, mean, squares, is_leaf=is_pair)


def reset(
    leaf: LeafProjection,
    moments: MomentDicts,
    name: str,
    roles: dict[str, Role | None],
    weights: dict[str, Array],
    fresh: Moments,
    sees: Compact,
) -> Moments:
    """Return moments that start anew, as large as they were: nothing of the old basis is known.

    Moments that are neither linear nor squares are those of `fresh`.
    """
    stored, struct = moments.of(name), leaf.compact_struct()
    squares_of = _squares_of_nodes(moments, roles)
    started = {}
    for label, node in zip(moments.labels, moments.nodes, strict=True):
        if roles.get(label) == "linear":
            before = read(stored[label], struct)
            ratio = _ratio(leaf, before, sees, stored, squares_of.get(node), weights)
            started[label] = written(jax.tree.map(jnp.multiply, ratio, sees), stored[label])
        else:
            started[label] = (stored if roles.get(label) == "square" else fresh)[label]
    return started


def read(stored: Any, struct: Any) -> Any:
    """Return a first moment as the projection's compact form: complex where that is."""

    def of(x, s):
        return as_array(Pair(plain(x.parts))) if is_pair(x) else unpacked(x, s)

    return jax.tree.map(of, stored, struct, is_leaf=is_stored)


def written(compact: Any, stored: Any) -> Any:
    """Return a compact form in the layout and dtype of a stored first moment."""

    def write(x, like):
        if is_pair(like):
            return Pair(packed_like(jnp.stack([x.real, x.imag]), like.parts))
        return packed_like(x, like)

    # The compact form first: what is stored of one of its arrays may be several.
    return jax.tree.map(write, compact, stored, is_leaf=is_pair)
