"""A second moment factored over groups of axes: the memory of a few means for that of a tensor."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import jax.numpy as jnp
import optax
from jaxtyping import Array, Int32

from tensorgrad_jax.projections.base import TensorSpec
from tensorgrad_jax.transforms.complex_pairs import times_real
from tensorgrad_jax.transforms.leaves import Specs, named_leaves
from tensorgrad_jax.transforms.moments import abs_squared


class ScaleByFactoredRmsState(NamedTuple):
    """State of `scale_by_factored_rms`.

    Attributes:
        count: number of updates.
        nu: by parameter name the running means of |g|^2: one array per group of axes, for
            parameters without a spec one array of the parameter's shape.
    """

    count: Int32[Array, ""]
    nu: dict[str, tuple[Array, ...]]


def scale_by_factored_rms(
    b2: float = 0.999, eps: float = 1e-8, specs: Specs = None
) -> optax.GradientTransformation:
    r"""Divide gradients by the root of a second moment that is a product of means.

    The axes of a tensor are split into groups A and B (and more, if a spec says so). With the
    running means of |g|^2, bias corrected as Adam's,

        a = mean over B of |g|^2,   b = mean over A,   v = a b / mean(a),   u = g / (sqrt(v) + eps),

    so that v is exact where |g|^2 is a product of a function on A and one on B, and the means of v
    over A and over B always are. Of an FNO weight A are the frequencies, B the pairs of channels:
    1,168 numbers for a weight (16, 9, 32, 32), of which Adam keeps 147,456. Chained before
    `in_subspace(optax.ema(0.9), ..., complement="pass")` it is Adam with both moments small.

    Parameters without a spec have the full second moment, that of `scale_by_adam(b1=0)`.

    Args:
        b2: decay of the means, in [0, 1).
        eps: added to the root, for numerical stability.
        specs: which leaves are factored, see `in_subspace`. Real and imaginary part of a complex
            pair have one second moment, |g|^2; every slice of batch axes has its own means. Groups
            are those of the spec; without any the axes, in their order, are cut in two where that
            leaves the fewest numbers.

    Returns:
        A transformation whose updates are float32 or wider, complex for complex leaves.

    Raises:
        ValueError: here, if b2 or eps is out of range; at `init`, if a spec does not fit its leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> transform = scale_by_factored_rms()
        >>> gradient = jnp.ones((16, 9, 32, 32)).at[0].set(5.0)
        >>> update, state = transform.update(gradient, transform.init(gradient))
        >>> [x.shape for x in state.nu["params"]]
        [(16, 9, 1, 1), (1, 1, 32, 32)]
        >>> bool(jnp.allclose(update, 1.0))
        True

    References:
        N. Shazeer and M. Stern, Adafactor, arXiv 1804.04235, section 3 (of two axes).
    """
    if isinstance(b2, int | float) and not 0 <= b2 < 1:
        raise ValueError(f"scale_by_factored_rms: b2 must be in [0, 1), got {b2!r}")
    if isinstance(eps, int | float) and eps < 0:
        raise ValueError(f"scale_by_factored_rms: eps must not be negative, got {eps!r}")

    def init_fn(params):
        arrays, chosen, _ = named_leaves(params, specs)
        nu = {}
        for name, leaf in arrays.items():
            dtype = jnp.finfo(jnp.promote_types(leaf.dtype, jnp.float32)).dtype
            averaged = _averaged_axes(name, leaf, chosen[name])
            shapes = [_mean_shape(leaf, chosen[name], axes) for axes in averaged]
            nu[name] = tuple(jnp.zeros(shape, dtype) for shape in shapes)
        return ScaleByFactoredRmsState(jnp.zeros((), jnp.int32), nu)

    def update_fn(updates, state, params=None):
        del params
        arrays, chosen, treedef = named_leaves(updates, specs)
        count = cast(Array, optax.safe_increment(state.count))
        correct = 1 - jnp.float32(b2) ** count
        nu, scaled = {}, []
        for name, g in arrays.items():
            squares = abs_squared(g)
            pair = _pair_axes(g, chosen[name])
            squares = squares.sum(pair, keepdims=True) if pair else squares
            averaged = _averaged_axes(name, g, chosen[name])
            nu[name] = tuple(
                b2 * old + (1 - b2) * (squares.mean(axes, keepdims=True) if axes else squares)
                for old, axes in zip(state.nu[name], averaged, strict=True)
            )
            wide = g.astype(jnp.promote_types(g.dtype, jnp.float32))
            root = jnp.sqrt(_product(nu[name], averaged) / correct)
            scaled.append(times_real(wide, 1 / (root + eps)))
        return treedef.unflatten(scaled), ScaleByFactoredRmsState(count, nu)

    return optax.GradientTransformation(init_fn, update_fn)


def _product(means, averaged):
    """Return the product of the means of K groups over the K - 1st power of the mean of all."""
    if len(means) == 1:
        return means[0]
    # All means have the same mean over what they were not averaged over already.
    rest = tuple(sorted({axis for axes in averaged[1:] for axis in axes} - set(averaged[0])))
    total = means[0].mean(rest, keepdims=True)
    product = means[0]
    for mean in means[1:]:
        # The ratio first: products of squares leave float32's range. Nothing but zeros: zero.
        product = product * (mean / jnp.where(total > 0, total, 1))
    return product


def _pair_axes(leaf, spec: TensorSpec | None) -> tuple[int, ...]:
    if spec is None or spec.complex_axis is None:
        return ()
    return (spec.complex_axis % leaf.ndim,)


def _mean_shape(leaf, spec, averaged):
    gone = {*averaged, *_pair_axes(leaf, spec)}
    return tuple(1 if axis in gone else n for axis, n in enumerate(leaf.shape))


def _averaged_axes(name: str, leaf: Any, spec: TensorSpec | None) -> list[tuple[int, ...]]:
    """Return for every mean the axes that it is taken over; one empty tuple for a full moment."""
    if spec is None:
        return [()]
    kept_out = {*_pair_axes(leaf, spec), *(a % leaf.ndim for a in spec.batch_axes)}
    axes = [a for a in range(leaf.ndim) if a not in kept_out]
    groups = _cut_in_two(leaf.shape, axes) if spec.groups is None else spec.groups
    groups = [tuple(a % leaf.ndim for a in group) for group in groups]
    if sorted(a for group in groups for a in group) != axes:
        raise ValueError(
            f"parameter {name!r} of shape {tuple(leaf.shape)}: the groups of {spec} must hold each "
            f"of the axes {axes} once"
        )
    return [tuple(a for a in axes if a not in group) for group in groups]


def _cut_in_two(shape, axes):
    """Return the axes before and behind the cut that leaves the fewest numbers."""
    if len(axes) < 2:
        return [tuple(axes)]
    size = lambda some: math.prod(shape[a] for a in some)
    cuts = [(tuple(axes[:i]), tuple(axes[i:])) for i in range(1, len(axes))]
    return list(min(cuts, key=lambda cut: size(cut[0]) + size(cut[1])))
