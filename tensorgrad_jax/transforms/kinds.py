"""Different transformations for different kinds of parameters, by their names.

`optax.partition` does this with a masked copy of the whole tree for every transformation. Here each
gets a dictionary of its own parameters and nothing else, as `in_subspace` does with its inner
transformation: so its state holds no placeholders, and Optax's tools for states, which stumble over
them, know it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import optax
from jaxtyping import Array

from tensorgrad_jax.projections.leaf import TensorSpec
from tensorgrad_jax.transforms.explicit_axes import compiler_chooses
from tensorgrad_jax.transforms.leaves import Specs, check_fits, named_leaves
from tensorgrad_jax.transforms.placeholders import is_placeholder, not_of_parameters

Make = Callable[[dict[str, TensorSpec | None]], optax.GradientTransformation]


class ByKindState(NamedTuple):
    """State of `by_kind`.

    Attributes:
        inner: for every kind that has parameters, the state of its transformation on
            {parameter name: parameter}.
    """

    inner: dict[str, optax.OptState]


def by_kind(
    transforms: Mapping[str, Make], kind: Callable[[Any, TensorSpec | None], str], specs: Specs
) -> optax.GradientTransformationExtraArgs:
    """Apply to every parameter the transformation of its kind.

    Args:
        transforms: for every kind, (specs of its parameters by name) -> transformation.
        kind: (leaf, its spec) -> kind.
        specs: see `in_subspace`.
    """

    def take_apart(tree):
        arrays, chosen, treedef = named_leaves(tree, specs)
        kinds = {name: kind(leaf, chosen[name]) for name, leaf in arrays.items()}
        names = {k: [n for n in arrays if kinds[n] == k] for k in transforms}
        groups = {k: {n: arrays[n] for n in own} for k, own in names.items() if own}
        made = {
            k: optax.with_extra_args_support(transforms[k]({n: chosen[n] for n in own}))
            for k, own in groups.items()
        }
        return arrays, groups, made, treedef

    def init_fn(params):
        if is_placeholder(params):
            return not_of_parameters(ByKindState)
        _, groups, made, _ = take_apart(params)
        return ByKindState({k: made[k].init(own) for k, own in groups.items()})

    def update_fn(updates, state, params=None, **extra_args):
        check_fits("update", "gradient", updates, params)
        arrays, groups, made, treedef = take_apart(updates)
        of_params = {} if params is None else named_leaves(params, specs)[0]
        scaled, inner = {}, {}
        for k, own in groups.items():
            own_params = {n: of_params[n] for n in own} if of_params else None
            changed, inner[k] = made[k].update(own, state.inner[k], own_params, **extra_args)
            scaled.update(cast(dict[str, Array], changed))
        return treedef.unflatten([scaled[name] for name in arrays]), ByKindState(inner)

    return optax.GradientTransformationExtraArgs(init_fn, compiler_chooses(update_fn))


def with_axes_last(
    transform: Make, axes: Callable[[str, Any, TensorSpec], tuple[int, int]]
) -> Make:
    """Return what makes a transformation of tensors, of which two axes are moved to the end.

    Args:
        transform: makes it of the specs that then hold, by name.
        axes: (name, leaf, its spec) -> the two axes, not negative.
    """

    def make(specs):
        def order(name, leaf):
            last = axes(name, leaf, specs[name])
            return (*(a for a in range(leaf.ndim) if a not in last), *last)

        def moved(leaves):
            return {n: _transposed(x, order(n, x)) for n, x in leaves.items()}

        def of_moved(leaves):
            made = {}
            for name, leaf in leaves.items():
                place, spec = order(name, leaf).index, specs[name]
                new = lambda axis, place=place, n=leaf.ndim: place(axis % n)
                pair = None if spec.complex_axis is None else new(spec.complex_axis)
                groups = spec.groups and tuple(tuple(map(new, group)) for group in spec.groups)
                made[name] = TensorSpec(pair, tuple(map(new, spec.batch_axes)), groups)
            return optax.with_extra_args_support(transform(made))

        def init_fn(params):
            return of_moved(params).init(moved(params))

        def update_fn(updates, state, params=None, **extra_args):
            del params
            made = of_moved(updates)
            changed, state = made.update(moved(updates), state, None, **extra_args)
            scaled = cast(dict[str, Array], changed)
            back = lambda n: sorted(range(updates[n].ndim), key=order(n, updates[n]).__getitem__)
            return {n: x.transpose(back(n)) for n, x in scaled.items()}, state

        return optax.GradientTransformationExtraArgs(init_fn, update_fn)

    return make


def _transposed(leaf: Any, order: tuple[int, ...]) -> Any:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(tuple(leaf.shape[a] for a in order), leaf.dtype)
    return leaf.transpose(order)
