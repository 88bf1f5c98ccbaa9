"""Run any Optax transformation in the compact space of a projection.

Per step, for a gradient G and a basis B:

    at a refresh:  B' = refresh(G, B),  moments <- transport(moments, B, B'),  B <- B'
    always:        c = project(G, B),   u = inner(c),   update = lift(u, B)

What is chosen where: the map and its subspace by `projection`, the optimizer by `inner`, the
time of a refresh by `update_proj_gap`, the fate of the moments by `on_refresh`, the part of the
gradient outside the subspace by `complement`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int32, PyTree

from tensorgrad_jax.bfloat16 import all_finite
from tensorgrad_jax.ordering import after, last_array
from tensorgrad_jax.projections.base import LeafProjection, Projection
from tensorgrad_jax.transforms.leaves import Leaves, Specs, take_apart
from tensorgrad_jax.transforms.moment_dicts import MomentDicts, OnRefresh, cast_like

Gap = int | Callable[[Array], Any]
Carry = Callable[[LeafProjection, Any, Any, Any], Any]

_ON_REFRESH = ("transport", "keep", "reset")
_COMPLEMENT = ("drop", "pass")


class InSubspaceState(NamedTuple):
    """State of `in_subspace`.

    Attributes:
        count: int32 (), number of updates so far.
        next_refresh: for every compressed parameter, int32 (), the step of its next refresh.
        basis: for every compressed parameter, the projection's basis.
        inner: the inner transformation's state on {parameter name: compact form, or the
            parameter itself where it is not compressed}.
    """

    count: Int32[Array, ""]
    next_refresh: dict[str, Int32[Array, ""]]
    basis: dict[str, Any]
    inner: optax.OptState


def in_subspace(
    inner: optax.GradientTransformation,
    projection: Projection | PyTree,
    update_proj_gap: Gap = 200,
    on_refresh: OnRefresh | Carry = "transport",
    complement: Literal["drop", "pass"] = "drop",
    specs: Specs = None,
    stagger: bool = False,
    seed: int = 0,
    per_layer: bool = True,
    match_size: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Run `inner` on compressed gradients and lift its updates back.

    Args:
        inner: any Optax transformation that needs no parameters (weight decay belongs outside:
            in the compact space it could only decay the projected part).
        projection: what compresses every tensor; or a pytree like the parameters of projections
            and None (not compressed), as `plan_ranks` helps to make.
        update_proj_gap: steps from one refresh to the next. A schedule is asked for the gap at
            each refresh, `max(1, int(gap(step)))`. The first refresh is at step 0.
        on_refresh: what happens to the moments when the subspace changes. "transport" carries
            first moments over linearly and second ones by squared overlaps; "keep" leaves their
            numbers as they are, now read in the new basis; "reset" starts them anew; a function
            (projection of the leaf, moment, old basis, new basis) -> moment is a rule of one's own.
        complement: the part of the gradient outside the subspace is dropped ("drop") or added
            to the update as it is ("pass").
        specs: which leaves to compress: a pytree like the parameters of `TensorSpec` or None, or
            a function from parameters to one. Leaves without a spec go through `inner` as they
            are. Default: every leaf of 3 or more dimensions and more than 1,000 elements.
        stagger: give every parameter its own phase, so that no step after the first pays for
            all refreshes.
        seed: of the random projections.
        per_layer: handle large parameters (64 MiB and more in float32) one after the other, the
            last first: each gradient can be compressed and freed as soon as the backward pass
            has made it. Otherwise the compiler is free to work on all at once. The numbers are
            the same.
        match_size: multiply the updates of compressed parameters by sqrt(entries / compact
            entries): where `inner` makes updates of a fixed size per entry, as Adam does, the
            lifted update then has that size too (root mean square), and the learning rate of the
            uncompressed optimizer fits. Needs complement="drop".

    Returns:
        A transformation. Its updates of compressed leaves are float32 or wider. A refresh whose
        gradient is not finite is put off to the next step.

    Raises:
        ValueError: if an argument is not one of these; in `init`, if a spec does not fit its
            parameter, or `on_refresh="transport"` meets a moment it cannot carry.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> import tensorgrad_jax as tg
        >>> params = {"w": jnp.ones((16, 16, 8)), "b": jnp.ones(16)}
        >>> optimizer = optax.chain(
        ...     tg.in_subspace(tg.scale_by_adam(), tg.Tucker(0.1)), optax.scale(-1e-3))
        >>> state = optimizer.init(params)
        >>> state[0].inner.mu["w"].shape
        (7, 7, 4)
        >>> tg.state_bytes(state)["moments"]
        1696
        >>> tg.state_bytes(optax.adam(1e-3).init(params))["moments"]
        16512
    """
    _check_arguments(inner, projection, update_proj_gap, on_refresh, complement, seed)
    for name, value in (("stagger", stagger), ("per_layer", per_layer), ("match_size", match_size)):
        if not isinstance(value, bool):
            raise ValueError(f"in_subspace: {name} must be True or False, got {value!r}")
    if match_size and complement == "pass":
        raise ValueError(
            'in_subspace: match_size needs complement="drop": what is passed on has its own size'
        )
    subspace = _InSubspace(
        optax.with_extra_args_support(inner),
        projection,
        update_proj_gap,
        on_refresh,
        complement,
        specs,
        stagger,
        seed,
        per_layer,
        match_size,
    )
    return optax.GradientTransformationExtraArgs(subspace.init, subspace.update)


@dataclasses.dataclass(frozen=True)
class _InSubspace:
    inner: optax.GradientTransformationExtraArgs
    projection: Projection | PyTree
    gap: Gap
    on_refresh: OnRefresh | Carry
    complement: str
    specs: Specs
    stagger: bool
    seed: int
    per_layer: bool
    match_size: bool

    def init(self, params):
        leaves = take_apart(params, self.projection, self.specs)
        inner = self._inner_init(leaves)
        if self.on_refresh == "transport":
            moments = MomentDicts(inner, leaves.arrays.keys())
            moments.check_transportable(leaves.compact_structs(), leaves.compressed)
        return InSubspaceState(
            count=jnp.zeros((), jnp.int32),
            next_refresh={name: jnp.zeros((), jnp.int32) for name in leaves.compressed},
            basis={name: leaf.init() for name, leaf in leaves.compressed.items()},
            inner=inner,
        )

    def update(self, updates, state, params=None, **extra_args):
        del params  # They live in the full space; `inner` works in the compact one.
        leaves = take_apart(updates, self.projection, self.specs)
        if state.basis.keys() != leaves.compressed.keys():
            raise ValueError(
                "in_subspace: the state belongs to other parameters: it compresses "
                f"{sorted(state.basis)}, these updates have {sorted(leaves.compressed)}"
            )
        names = leaves.arrays.keys()
        moments = MomentDicts(state.inner, names)
        fresh = MomentDicts(self._inner_init(leaves), names) if self.on_refresh == "reset" else None
        basis, next_refresh, tensors, compact = {}, {}, {}, dict(leaves.arrays)

        # One parameter after the other: what a large one needs meanwhile is a multiple of itself.
        # The last first, as its gradient comes first out of the backward pass.
        done = None
        for index, (name, leaf) in reversed(list(enumerate(leaves.compressed.items()))):
            gradient, old = leaves.arrays[name], self._after(state.basis[name], done, leaf)
            if not leaf.takes_as_stored:
                gradient = self._after(gradient, done, leaf)
            tensors[name] = leaf.to_tensor(gradient)
            basis[name], next_refresh[name] = self._refresh_if_due(
                index, name, leaf, tensors[name], old, state, moments, fresh, len(leaves.compressed)
            )
            compact[name] = leaf.project(tensors[name], basis[name])
            done = last_array(compact[name])
        inner_state = moments.state()
        basis, next_refresh = ({n: tree[n] for n in state.basis} for tree in (basis, next_refresh))
        scaled, inner_state = self.inner.update(compact, inner_state, None, **extra_args)
        scaled = cast(dict, scaled)

        for name, leaf in leaves.compressed.items():
            scaled[name] = self._after(scaled[name], done, leaf)
            if self.complement == "pass":
                lifted = leaf.lift_onto_complement(
                    tensors[name], scaled[name], compact[name], basis[name]
                )
            else:
                update = scaled[name]
                if self.match_size:
                    factor = math.sqrt(1 / leaf.budget)
                    update = jax.tree.map(lambda u, f=factor: f * u, update)
                lifted = leaf.lift(update, basis[name])
            scaled[name] = leaf.to_leaf(lifted)
            done = scaled[name]
        updates = leaves.treedef.unflatten([scaled[name] for name in leaves.arrays])
        count = cast(Array, optax.safe_increment(state.count))
        return updates, InSubspaceState(count, next_refresh, basis, inner_state)

    def _inner_init(self, leaves: Leaves):
        """Return the inner state on zeros in the place of compressed parameters."""
        zeros = lambda structs: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), structs)
        structs = leaves.compact_structs()
        return self.inner.init(leaves.arrays | {n: zeros(structs[n]) for n in leaves.compressed})

    def _refresh_if_due(self, index, name, leaf, tensor, old, state, moments, fresh, n_leaves):
        """Return basis and time of the next refresh of one parameter; its moments follow."""
        current = (old, moments.of(name), state.next_refresh[name])

        def refresh():
            carried = current[1]
            key = jax.random.fold_in(jax.random.key(self.seed), index)
            key = jax.random.fold_in(key, state.count)
            new = cast_like(leaf.refresh(key, tensor, old), old)
            if fresh is not None:
                carried = fresh.of(name)
            elif self.on_refresh == "transport":
                carried = moments.transported(name, leaf, old, new)
            elif callable(self.on_refresh):
                carried = [self.on_refresh(leaf, moment, old, new) for moment in carried]
            due = state.count + self._gap(state.count, index, n_leaves)
            # A gradient that is not finite must not choose the subspace of later ones.
            usable = _all_finite((tensor, new))
            return jax.tree.map(lambda n, o: jnp.where(usable, n, o), (new, carried, due), current)

        due = state.count >= state.next_refresh[name]
        basis, carried, next_refresh = jax.lax.cond(due, refresh, lambda: current)
        moments.replace(name, carried)
        return basis, next_refresh

    def _after(self, tree, done, leaf):
        return after(tree, done, leaf.nbytes) if self.per_layer else tree

    def _gap(self, count, index, n_leaves):
        gap = jnp.asarray(self.gap(count) if callable(self.gap) else self.gap)
        gap = jnp.maximum(1, gap.astype(jnp.int32))
        if not self.stagger:
            return gap
        # All refresh at step 0; the first gap differs from leaf to leaf.
        return jnp.where(count == 0, jnp.maximum(1, gap * (index + 1) // n_leaves), gap)


def _all_finite(tree):
    return jnp.all(jnp.stack([all_finite(x) for x in jax.tree.leaves(tree)]))


def _check_arguments(inner, projection, gap, on_refresh, complement, seed):
    if not (hasattr(inner, "init") and hasattr(inner, "update")):
        raise ValueError(f"in_subspace: inner must be an Optax transformation, got {inner!r}")
    is_projection = lambda x: isinstance(x, Projection)
    if not all(is_projection(x) for x in jax.tree.leaves(projection, is_leaf=is_projection)):
        raise ValueError(
            f"in_subspace: projection must be a Projection or a tree of them, got {projection!r}"
        )
    if not callable(gap) and (isinstance(gap, bool) or not isinstance(gap, int) or gap < 1):
        raise ValueError(
            f"in_subspace: update_proj_gap must be a positive integer or a schedule, got {gap!r}"
        )
    if on_refresh not in _ON_REFRESH and not callable(on_refresh):
        raise ValueError(
            f"in_subspace: on_refresh must be one of {_ON_REFRESH}, got {on_refresh!r}"
        )
    if complement not in _COMPLEMENT:
        raise ValueError(
            f"in_subspace: complement must be one of {_COMPLEMENT}, got {complement!r}"
        )
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"in_subspace: seed must be an integer, got {seed!r}")
