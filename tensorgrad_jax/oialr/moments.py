r"""What happens to an optimizer's moments when a kernel becomes low-rank, or its bases turn.

Moments are found in the state of any Optax transformation by their paths: where one ends with the
path of a parameter and the array has that parameter's shape, it is a moment of it. What it is, is
found out by trying the optimizer (`oialr.trial`). The rules:

"transport". With bases P and Q (at a conversion U and V, at a check the core's rotation), a moment
that is linear in gradients becomes m' = P^H m Q, exactly what it would be had the core been trained
before. A mean of squares v beside such a mean m, both over their weights, becomes

    v' = |P|^2^T (v - |m|^2)+ |Q|^2 + |P^H m Q|^2,

exact in expectation if what gradients have beside their mean is uncorrelated. Without the split a
mean gradient, which bases gather in few entries of the core, would be divided by a v that has been
spread over all. Without a mean, v' = |P|^2^T v |Q|^2. A moment that is neither starts anew.

"zero", the original's: moments of a kernel that becomes low-rank are zeros, but the step count
goes on, so that Adam's bias correction believes them: updates are several learning rates large
for a while. At a check moments stay as they are, in bases that are no longer there.

"zero+reset_count": where a kernel becomes low-rank, the states that hold its moments start anew
for all parameters, counts included.

Moments that lie in a subspace of their own, with a basis beside them, or in 8 bits, are refused
(`check_carriable`): what they would have to become is known to their transformation alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from tensorgrad_jax.oialr.kernels import named
from tensorgrad_jax.oialr.low_rank import as_matrix, transport, transport_squares
from tensorgrad_jax.oialr.tensors import ModesChange
from tensorgrad_jax.oialr.trial import Tried
from tensorgrad_jax.projections.plain import shown
from tensorgrad_jax.transforms.eight_bits import EightBits
from tensorgrad_jax.transforms.moment_dicts import at
from tensorgrad_jax.transforms.roles import KNOWN, Role
from tensorgrad_jax.transforms.subspace import InSubspaceState

MOMENTS = ("transport", "zero", "zero+reset_count")


class Change(NamedTuple):
    """How the coordinates of a parameter change.

    Attributes:
        P: bases of the rows, (m, p).
        Q: bases of the columns, (n, q).
        rows: number of leading axes that make up the m rows.
    """

    P: Any
    Q: Any
    rows: int = 1

    def linear(self, moment: Any) -> Any:
        """Return a linear moment in the new coordinates."""
        return transport(as_matrix(moment, self.rows), self.P, self.Q)

    def squares(self, moment: Any) -> Any:
        """Return a mean of squares in the new coordinates."""
        return transport_squares(as_matrix(moment, self.rows), self.P, self.Q)


def check_carriable(state: optax.OptState, names: Sequence[str]) -> None:
    """Refuse an optimizer's state whose moments cores cannot take over.

    Args:
        state: for parameters in which kernels may be dense yet.
        names: of the kernels that are or will be low-rank.

    Raises:
        ValueError: if moments of one of them lie in the subspace of a projection, or in 8 bits.
    """
    of_its_own = lambda x: isinstance(x, InSubspaceState | EightBits)
    kernels = set(names)
    for path, x in jax.tree_util.tree_leaves_with_path(state, is_leaf=of_its_own):
        where = jax.tree_util.keystr(path, simple=True, separator=".") or "the state"
        if isinstance(x, InSubspaceState):
            if inside := sorted(kernels & x.basis.keys()):
                raise ValueError(
                    f"oialr: in_subspace ({where}) keeps moments of {shown(inside[0])} in a "
                    "subspace of its own, which a core cannot take over: leave the kernels out of "
                    "its specs, or train with what keeps whole moments, as optax.adamw or "
                    "tensor_muon(learning_rate, None)"
                )
            check_carriable(x.inner, names)
        elif isinstance(x, EightBits):
            own = ".".join(_words(path))
            if found := [n for n in names if f".{own}".endswith(f".{n}")]:
                raise ValueError(
                    f"oialr: the optimizer keeps moments of {shown(found[0])} in 8 bits "
                    f"({where}), which a core cannot take over: choose mu_dtype=jnp.bfloat16 or "
                    "None"
                )


def _squares_about(change: Any, squares: Any, mean: Any, ratio: float) -> Any:
    """Return ratio |m|^2, and what squares have beside it, each by its own rule.

    Where v is below ratio |m|^2, which only means over different times can be, m is taken as small
    as v is.
    """
    size = lambda x: x.real**2 + x.imag**2 if jnp.iscomplexobj(x) else x**2
    squares, of_mean = squares.real, ratio * size(mean)
    spread = jnp.maximum(squares - of_mean, 0)
    share = jnp.minimum(1, squares / jnp.where(of_mean > 0, of_mean, 1))
    moved = change.linear(mean * jnp.sqrt(jnp.maximum(share, 0)).astype(mean.dtype))
    return change.squares(spread) + ratio * size(moved)


def carried(
    optimizer: optax.GradientTransformation,
    state: optax.OptState,
    before: PyTree,
    after: PyTree,
    changes: dict[str, Change | ModesChange],
    moments: str = "transport",
    factoring: bool = True,
    trial: list[Tried] | None = None,
) -> optax.OptState:
    """Return the optimizer's state for parameters some of which have changed their meaning.

    Args:
        optimizer: whose state it is.
        state: for the parameters `before`.
        before: the parameters, or their shapes.
        after: the parameters as they are now, the same tree.
        changes: how coordinates change, by the names of the parameters that have changed.
        moments: one of `MOMENTS`.
        factoring: whether these parameters have just become cores; otherwise bases have turned.
        trial: what the arrays of the state are; None: as their types say, without the split of
            second moments.

    Raises:
        ValueError: if the optimizer makes another state of `after` than of `before`.
    """
    fresh = optimizer.init(after)
    entries, treedef = jax.tree_util.tree_flatten_with_path(state)
    leaves, fresh_treedef = jax.tree.flatten(fresh)
    if treedef != fresh_treedef:
        raise ValueError(
            "oialr: the optimizer's state has another structure than the optimizer gives it for "
            "the parameters as they are now; its masks must not depend on shapes"
        )
    changed = {p: found for p, found in _by_path(before).items() if found[0] in changes}
    tries = trial or [None] * len(entries)
    places = [_place(state, *e, changed, t) for e, t in zip(entries, tries, strict=True)]
    means = _means(entries, places, tries, state)
    restarted = set()
    if factoring and moments == "zero+reset_count":
        restarted = {place.node for place in places if place.name is not None}
    result = []
    for (path, old), new, place, of in zip(entries, leaves, places, tries, strict=True):
        shape = jnp.shape(new)
        sliced = lambda x, shape=shape: x[tuple(slice(0, n) for n in shape)]
        if any(path[: len(node)] == node for node in restarted):
            result.append(new)
        elif place.name is None:
            result.append(old if jnp.shape(old) == shape else new)
        elif moments == "zero" and not factoring:
            result.append(sliced(old))
        elif place.role is None or (factoring and moments != "transport"):
            result.append(new)
        else:
            change = changes[place.name]
            if place.role == "linear":
                moved = change.linear(old)
            elif of is not None and (place.node, place.name) in means:
                mean, weight = means[place.node, place.name]
                ratio = of.weight(_count(state, place.node)) / weight**2
                moved = _squares_about(change, old, mean, ratio)
            else:
                moved = change.squares(old)
            result.append(sliced(moved.astype(old.dtype)))
    return treedef.unflatten(result)


def _means(entries, places, tries, state):
    """Return the first linear moment of every parameter in a node of the state, and its weight."""
    found = {}
    for (_, leaf), place, tried in zip(entries, places, tries, strict=True):
        if place.role == "linear" and tried is not None:
            weight = tried.weight(_count(state, place.node))
            if weight:
                found.setdefault((place.node, place.name), (leaf, weight))
    return found


def _count(state, node) -> float:
    """Return the number of steps of a node of the state; where it counts none, many."""
    count = getattr(at(state, node), "count", None)  # of a tuple that is a method
    if isinstance(count, jax.Array | np.ndarray) and count.ndim == 0:
        return max(1.0, float(count))
    return 1e6


class _Place(NamedTuple):
    """Whose moment an array of a state is, of which role, and the path of the node it stands in."""

    name: str | None = None
    role: Role | None = None
    node: Any = None


def _place(state, path, leaf, changed, tried) -> _Place:
    for start in range(len(path)):
        name, shape = changed.get(_words(path[start:]), (None, None))
        if name is not None and jnp.shape(leaf) == shape:
            node, field = path[: start - 1], path[start - 1] if start else None
            role = None if tried is None else tried.role
            if role is None:  # not to be tried, or empty just then
                owner = type(at(state, node)).__name__
                role = KNOWN.get((owner, str(getattr(field, "name", ""))))
            return _Place(name, role, node)
    return _Place()


def _by_path(params):
    """Return name and shape of every parameter by its path in words."""
    names = list(named(params))
    paths = jax.tree_util.tree_leaves_with_path(params)
    found = {_words(p): (n, x.shape) for n, (p, x) in zip(names, paths, strict=True)}
    # Transformations of this library call parameters by their names, in one word.
    flat = {(name,): (name, shape) for name, shape in found.values()}
    return flat | found


def _words(path) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
