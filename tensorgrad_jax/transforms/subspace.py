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

from tensorgrad_jax.backend.ordering import after, last_array
from tensorgrad_jax.projections.base import Projection
from tensorgrad_jax.projections.leaf import LeafProjection
from tensorgrad_jax.projections.plain import check_choice, plain, shown, whole
from tensorgrad_jax.transforms import carrying
from tensorgrad_jax.transforms.carrying import Moments, OnRefresh
from tensorgrad_jax.transforms.explicit_axes import compiler_chooses
from tensorgrad_jax.transforms.inner import (
    check_found,
    check_needs_no_parameters,
    check_transformation,
    check_transportable,
)
from tensorgrad_jax.transforms.leaves import Leaves, Specs, check_fits, take_apart
from tensorgrad_jax.transforms.moment_dicts import MomentDicts, cast_like
from tensorgrad_jax.transforms.placeholders import is_placeholder, not_of_parameters
from tensorgrad_jax.transforms.roles import Role, roles, weights
from tensorgrad_jax.transforms.sizes import Sample, sample_name

Gap = int | Callable[[Array], Any]
Carry = Callable[[LeafProjection, Moments, Any, Any], Moments]

_ON_REFRESH = ("transport", "keep", "reset")
_COMPLEMENT = ("drop", "pass")


class InSubspaceState(NamedTuple):
    """State of `in_subspace`.

    Attributes:
        count: int32 (), number of updates so far.
        next_refresh: for every compressed parameter, int32 (), the step of its next refresh.
        basis: for every compressed parameter, the arrays of the projection's basis.
        inner: the inner transformation's state on {parameter name: compact form, or the
            parameter itself where it is not compressed}. Compact forms of complex parameters that
            are stored as pairs are pairs (`Pair`) of real arrays.
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
    complement: Literal["drop", "pass"] | float | int = "drop",
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
        on_refresh: what happens to the moments when the subspace changes, see `carrying`.
            "transport" carries first moments over linearly and second ones as the variances and
            means that they are; what the old subspace did not know starts as large as the rest.
            "reset" starts all of it so. "keep" leaves the numbers as they are, now read in the new
            basis. A function (projection of the leaf, moments by name, old basis, new basis) ->
            moments by the same names is a rule of one's own.
        complement: the part of the gradient outside the subspace is dropped ("drop") or added
            to the update as it is ("pass"), or times a number. Around `optax.trace(b,
            nesterov=True)` the number 1 + b makes the whole the momentum buffer M <- b M + G of the
            full gradient, compressed after every step: what is not kept of it is G + b G.
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
        match_size: make the update of a compressed parameter as large (root mean square) as
            `inner` would make it uncompressed, so that the same learning rate fits: `inner` also
            runs on a sample of single entries of every such parameter (1,024, or a thirty-second),
            and the lifted update is scaled to the sample's size. For transformations that treat
            every number alone. Needs complement="drop".

    Returns:
        A transformation. Its updates have the dtype of the gradients. A refresh whose gradient is
        not finite, or nothing but zeros, is put off to the next step.

    Raises:
        ValueError: if an argument is not one of these; in `init`, if a spec does not fit its
            parameter, or `on_refresh="transport"` meets a moment it cannot carry.

    Examples:
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
    update_proj_gap, seed, complement = plain(update_proj_gap), plain(seed), plain(complement)
    _check_arguments(inner, projection, update_proj_gap, on_refresh, complement, seed)
    for name, value in (("stagger", stagger), ("per_layer", per_layer), ("match_size", match_size)):
        check_choice("in_subspace", name, value, (True, False))
    weight: Any = {"drop": 0.0, "pass": 1.0}.get(cast(str, complement), complement)
    if match_size and weight != 0:
        raise ValueError(
            'in_subspace: match_size needs complement="drop": what is passed on has its own size'
        )
    subspace = _InSubspace(
        optax.with_extra_args_support(inner),
        projection,
        update_proj_gap,
        on_refresh,
        float(weight),
        specs,
        stagger,
        seed,
        per_layer,
        match_size,
    )
    return optax.GradientTransformationExtraArgs(subspace.init, compiler_chooses(subspace.update))


@dataclasses.dataclass(frozen=True)
class _InSubspace:
    inner: optax.GradientTransformationExtraArgs
    projection: Projection | PyTree
    gap: Gap
    on_refresh: OnRefresh | Carry
    complement: float
    specs: Specs
    stagger: bool
    seed: int
    per_layer: bool
    match_size: bool

    def init(self, params):
        if is_placeholder(params):
            return not_of_parameters(InSubspaceState)
        leaves = take_apart(params, self.projection, self.specs)
        inner = self._inner_init(leaves)
        check_needs_no_parameters(self.inner, self._compact_zeros(leaves), inner)
        moments = MomentDicts(inner, self._compact_zeros(leaves).keys())
        if self.on_refresh != "keep" and leaves.compressed:
            check_found(moments, self.on_refresh)
        if self.on_refresh == "transport" and leaves.compressed:
            check_transportable(moments, leaves.compressed, roles(self.inner), self.inner)
        return InSubspaceState(
            count=jnp.zeros((), jnp.int32),
            next_refresh={name: jnp.zeros((), jnp.int32) for name in leaves.compressed},
            basis={
                name: leaf.basis_arrays(leaf.init()) for name, leaf in leaves.compressed.items()
            },
            inner=inner,
        )

    def update(self, updates, state, params=None, **extra_args):
        # Beyond that they are not used: `inner` works in the compact space.
        check_fits("in_subspace", "gradient", updates, params)
        leaves = take_apart(updates, self.projection, self.specs)
        if state.basis.keys() != leaves.compressed.keys():
            raise ValueError(
                "in_subspace: the state belongs to other parameters: it compresses "
                f"{sorted(state.basis)}, these updates have {sorted(leaves.compressed)}"
            )
        samples = self._samples(leaves)
        moments = MomentDicts(state.inner, self._names(leaves))
        rule = self._rule(leaves, moments, state.count)
        basis, next_refresh, tensors, compact, given = {}, {}, {}, {}, dict(leaves.arrays)

        # One parameter after the other: while one is projected, arrays as large as it are alive.
        # The last first, as its gradient comes first out of the backward pass.
        done = None
        for index, (name, leaf) in reversed(list(enumerate(leaves.compressed.items()))):
            gradient, arrays = leaves.arrays[name], self._after(state.basis[name], done, leaf)
            if not leaf.takes_as_stored:
                gradient = self._after(gradient, done, leaf)
            tensors[name] = leaf.to_tensor(gradient)
            basis[name], next_refresh[name], compact[name] = self._refresh_if_due(
                index, name, leaf, tensors[name], leaf.basis_of(arrays), state, moments, rule,
                len(leaves.compressed),
            )  # fmt: skip
            given[name] = leaf.to_numbers(compact[name])
            if name in samples:
                given[sample_name(name)] = samples[name].of(tensors[name])
            done = last_array(compact[name])
        given = {name: given[name] for name in self._names(leaves)}
        scaled, inner_state = self.inner.update(given, moments.state(), None, **extra_args)
        # A copy: some transformations keep what they return as their state too.
        scaled = dict(cast(dict, scaled))

        for name, leaf in leaves.compressed.items():
            update = leaf.from_numbers(self._after(scaled[name], done, leaf))
            if self.complement:
                lifted = leaf.lift_onto_complement(
                    tensors[name], update, compact[name], basis[name], self.complement
                )
            else:
                lifted = leaf.lift(update, basis[name])
                if name in samples:
                    sample = scaled[sample_name(name)]
                    lifted = samples[name].matched(lifted, sample)
            done = scaled[name] = leaf.to_leaf(lifted).astype(leaf.dtype)
        updates = leaves.treedef.unflatten([scaled[name] for name in leaves.arrays])
        count = cast(Array, optax.safe_increment(state.count))
        in_order = lambda tree: {name: tree[name] for name in state.basis}
        basis = {n: leaf.basis_arrays(basis[n]) for n, leaf in leaves.compressed.items()}
        return updates, InSubspaceState(count, in_order(next_refresh), basis, inner_state)

    def _samples(self, leaves: Leaves) -> dict[str, Sample]:
        """Return the samples of entries that sizes are matched with."""
        if not self.match_size:
            return {}
        return {
            name: Sample(leaf, self.seed + index)
            for index, (name, leaf) in enumerate(leaves.compressed.items())
            if leaf.budget < 1  # nothing is lost otherwise
        }

    def _names(self, leaves: Leaves) -> list[str]:
        """Return the keys of what the inner transformation sees."""
        return [*leaves.arrays, *map(sample_name, self._samples(leaves))]

    def _compact_zeros(self, leaves: Leaves):
        """Return what the inner transformation sees, zeros where parameters are compressed."""

        def zeros(leaf):
            struct = leaf.compact_struct()
            empty = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), struct)
            return leaf.to_numbers(empty)

        samples = {sample_name(n): sample.zeros() for n, sample in self._samples(leaves).items()}
        return leaves.arrays | {n: zeros(x) for n, x in leaves.compressed.items()} | samples

    def _inner_init(self, leaves: Leaves):
        return self.inner.init(self._compact_zeros(leaves))

    def _rule(self, leaves: Leaves, moments: MomentDicts, count) -> Callable[..., Moments]:
        """Return the function (name, leaf, old basis, new basis) -> moments after a refresh."""
        if self.on_refresh == "keep" or not leaves.compressed:
            return lambda name, leaf, old, new, sees: moments.of(name)
        if callable(self.on_refresh):
            own = self.on_refresh

            def by_function(name, leaf, old, new, _):
                stored, struct = moments.of(name), leaf.compact_struct()
                read = {label: carrying.read(x, struct) for label, x in stored.items()}
                carried = own(leaf, read, old, new)
                return {label: carrying.written(carried[label], x) for label, x in stored.items()}

            return by_function
        known: dict[str, Role | None] = roles(self.inner)
        known_weights = weights(self.inner, count)
        if self.on_refresh == "reset":
            fresh = MomentDicts(self._inner_init(leaves), self._names(leaves))
            return lambda name, leaf, old, new, sees: carrying.reset(
                leaf, moments, name, known, known_weights, fresh.of(name), sees
            )
        return lambda name, leaf, old, new, sees: carrying.transported(
            leaf, moments, name, known, known_weights, old, new, sees
        )

    def _refresh_if_due(self, index, name, leaf, tensor, old, state, moments, rule, n_leaves):
        """Return basis, time of the next refresh and compact form; the moments follow."""
        current = (old, moments.of(name), state.next_refresh[name])

        def refresh():
            key = jax.random.fold_in(jax.random.key(self.seed), index)
            key = jax.random.fold_in(key, state.count)
            new = cast_like(leaf.refresh(key, tensor, old), old)
            # A gradient that is not finite must not choose the subspace of later ones, and one of
            # nothing but zeros cannot.
            usable = _all_finite((tensor, new)) & _any_nonzero(tensor)
            either = lambda new, old: jax.tree.map(lambda n, o: jnp.where(usable, n, o), new, old)
            new = either(new, old)
            compact = leaf.project(tensor, new)
            carried = rule(name, leaf, old, new, compact)
            due = state.count + self._gap(state.count, index, n_leaves)
            return *either((new, carried, due), current), compact

        due = state.count >= state.next_refresh[name]
        keep = lambda: (*current, leaf.project(tensor, old))
        basis, carried, next_refresh, compact = jax.lax.cond(due, refresh, keep)
        moments.replace(name, carried)
        return basis, next_refresh, compact

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
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))


def _any_nonzero(tree):
    return jnp.any(jnp.stack([jnp.any(x != 0) for x in jax.tree.leaves(tree)]))


def _check_arguments(inner, projection, gap, on_refresh, complement, seed):
    check_transformation("in_subspace", "inner", inner)
    is_projection = lambda x: isinstance(x, Projection)
    if not all(is_projection(x) for x in jax.tree.leaves(projection, is_leaf=is_projection)):
        raise ValueError(
            "in_subspace: projection must be a Projection or a tree of them, got "
            f"{shown(projection)}"
        )
    integer = isinstance(gap, int) and not isinstance(gap, bool)
    if not callable(gap) and (not integer or not 1 <= gap < 2**31):
        raise ValueError(
            "in_subspace: update_proj_gap must be a positive integer below 2**31 or a schedule, "
            f"got {shown(gap)}"
        )
    if not callable(on_refresh):
        check_choice("in_subspace", "on_refresh", on_refresh, _ON_REFRESH)
    number = isinstance(complement, int | float) and not isinstance(complement, bool)
    named = isinstance(complement, str) and complement in _COMPLEMENT
    if not named and not (number and math.isfinite(cast(float, complement))):
        raise ValueError(
            f"in_subspace: complement must be one of {_COMPLEMENT} or a finite number, got "
            f"{shown(complement)}"
        )
    whole("in_subspace", "seed", seed, 0, 2**32)
