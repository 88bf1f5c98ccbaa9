"""A second moment factored over groups of axes: the memory of a few means for that of a tensor."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Int32

from tensorgrad_jax.projections.leaf import TensorSpec
from tensorgrad_jax.projections.plain import decay, not_negative, number
from tensorgrad_jax.transforms.explicit_axes import compiler_chooses
from tensorgrad_jax.transforms.inner import check_transformation
from tensorgrad_jax.transforms.leaves import Specs, named_leaves
from tensorgrad_jax.transforms.moments import abs_squared, bias_correction
from tensorgrad_jax.transforms.packing import times_real
from tensorgrad_jax.transforms.placeholders import is_placeholder, not_of_parameters


class ScaleByFactoredRmsState(NamedTuple):
    """State of `scale_by_factored_rms`.

    Attributes:
        count: number of updates.
        nu: by parameter name the running means of |g|^2: one array per group of axes, for
            parameters without a spec one array of the parameter's shape.
        numerator: the state of the transformation of that name.
    """

    count: Int32[Array, ""]
    nu: dict[str, tuple[Array, ...]]
    numerator: optax.OptState


def scale_by_factored_rms(
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    specs: Specs = None,
    numerator: optax.GradientTransformation | None = None,
    max_rms: float | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Divide gradients by the root of a second moment that is a product of means.

    Two axes A and B of a tensor are factored, at every index of the others. With the running means
    of |g|^2, bias corrected as Adam's,

    $$
    a = \operatorname{mean}_B |g|^2, \quad b = \operatorname{mean}_A |g|^2, \quad
    v = \frac{a b}{\operatorname{mean}(a)}, \quad u = \frac{g}{\sqrt{v} + \varepsilon},
    $$

    so that v is exact where |g|^2 is a product of a function on A and one on B, and the means of v
    over A and over B always are. Of an FNO weight A and B are the channels, at every frequency:
    9,216 numbers for a weight (16, 9, 32, 32), of which Adam keeps 147,456.

    Parameters without a spec have the full second moment, that of `scale_by_adam(b1=0)`. With the
    numerator optax.ema(0.9) they have Adam's update.

    Args:
        b2: decay of the means, in [0, 1).
        eps: added to the root, for numerical stability.
        specs: which leaves are factored, see `in_subspace`. Real and imaginary part of a complex
            pair have one second moment, the mean of their squares. The two largest axes are
            factored, the last ones among equals; `TensorSpec.groups` asks for others, or for groups
            of axes: frequencies by both channels, ((0, 1), (2, 3)), would take 1,168 numbers above.
        numerator: makes of the gradients what is divided by the root; None for the gradients
            themselves. `optax.ema(b1)` gives the momentum of Adam, and in a subspace
            (`in_subspace(optax.ema(b1), ..., complement="pass")`) a small one.
        max_rms: bound of the root mean square of a factored parameter's update; what exceeds it is
            scaled down as a whole. A factored v can be far below single entries' own squares, in
            the first steps above all. Adafactor has 1.

    Returns:
        A transformation whose updates have the dtype of the gradients.

    Raises:
        ValueError: here, if b2 or eps is out of range; at `init`, if a spec does not fit its leaf.

    Examples:
        >>> import jax.numpy as jnp
        >>> transform = scale_by_factored_rms()
        >>> gradient = jnp.ones((16, 9, 32, 32)).at[0].set(5.0)
        >>> update, state = transform.update(gradient, transform.init(gradient))
        >>> [x.shape for x in state.nu["params"]]
        [(16, 9, 32, 1), (16, 9, 1, 32)]
        >>> bool(jnp.allclose(update, 1.0))
        True

    References:
        N. Shazeer and M. Stern, Adafactor, arXiv 1804.04235, section 3 (of a matrix).
    """
    owner = "scale_by_factored_rms"
    b2, eps = decay(owner, "b2", b2), not_negative(owner, "eps", eps)
    if max_rms is not None:
        max_rms = number(owner, "max_rms", max_rms, "a positive number or None", lambda x: x > 0)
    check_transformation(owner, "numerator", optax.identity() if numerator is None else numerator)

    inner = optax.with_extra_args_support(optax.identity() if numerator is None else numerator)

    def init_fn(params):
        if is_placeholder(params):
            return not_of_parameters(ScaleByFactoredRmsState)
        arrays, chosen, _ = named_leaves(params, specs)
        nu = {}
        for name, leaf in arrays.items():
            dtype = jnp.finfo(jnp.promote_types(leaf.dtype, jnp.float32)).dtype
            averaged = _averaged_axes(name, leaf, chosen[name])
            if chosen[name] is None:
                nu[name] = (jnp.zeros_like(leaf, dtype),)  # sharded as the parameter is
                continue
            shapes = [_mean_shape(leaf, chosen[name], axes) for axes in averaged]
            nu[name] = tuple(jnp.zeros(shape, dtype) for shape in shapes)
        return ScaleByFactoredRmsState(jnp.zeros((), jnp.int32), nu, inner.init(params))

    def update_fn(updates, state, params=None, **extra_args):
        arrays, chosen, treedef = named_leaves(updates, specs)
        count = cast(Array, optax.safe_increment(state.count))
        divided, inner_state = inner.update(updates, state.numerator, params, **extra_args)
        nu, scaled = {}, []
        for (name, g), above in zip(arrays.items(), treedef.flatten_up_to(divided), strict=True):
            squares = abs_squared(g)
            for axis in _complex_axes(g, chosen[name]):
                # Slices are added in the pass that squares; a sum over an axis would be its own.
                first, second = jnp.split(squares, 2, axis)
                squares = (first + second) / 2
            averaged = _averaged_axes(name, g, chosen[name])
            nu[name] = tuple(
                b2 * old + (1 - b2) * (squares.mean(axes, keepdims=True) if axes else squares)
                for old, axes in zip(state.nu[name], averaged, strict=True)
            )
            wide = above.astype(jnp.promote_types(above.dtype, jnp.float32))
            v = _product(nu[name], averaged)
            root = jnp.sqrt(v / bias_correction(b2, count, v.dtype))
            update = times_real(wide, 1 / (root + eps))
            if chosen[name] is not None and max_rms is not None:
                size = jnp.sqrt(abs_squared(update).mean())
                update = times_real(update, 1 / jnp.maximum(1, size / max_rms))
            scaled.append(update.astype(above.dtype))
        return treedef.unflatten(scaled), ScaleByFactoredRmsState(count, nu, inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, compiler_chooses(update_fn))


def _product(means, averaged):
    """Return the product of the means of K groups over the K - 1st power of the mean of all."""
    if len(means) == 1:
        return means[0]
    # All means have the same mean over what they were not averaged over already, but for axes
    # that none was averaged over.
    rest = tuple(sorted({axis for axes in averaged[1:] for axis in axes} - set(averaged[0])))
    total = means[0].mean(rest, keepdims=True)
    product = means[0]
    for mean in means[1:]:
        # The ratio first: products of squares leave float32's range. Nothing but zeros: zero.
        product = product * (mean / jnp.where(total > 0, total, 1))
    return product


def _complex_axes(leaf, spec: TensorSpec | None) -> tuple[int, ...]:
    if spec is None or spec.complex_axis is None:
        return ()
    return (spec.complex_axis % leaf.ndim,)


def _mean_shape(leaf, spec, averaged):
    gone = {*averaged, *_complex_axes(leaf, spec)}
    return tuple(1 if axis in gone else n for axis, n in enumerate(leaf.shape))


def _averaged_axes(name: str, leaf: Any, spec: TensorSpec | None) -> list[tuple[int, ...]]:
    """Return for every mean the axes that it is taken over; one empty tuple for a full moment."""
    if spec is None:
        return [()]
    kept_out = {*_complex_axes(leaf, spec), *(a % leaf.ndim for a in spec.batch_axes)}
    axes = [a for a in range(leaf.ndim) if a not in kept_out]
    groups = _two_largest(leaf.shape, axes) if spec.groups is None else spec.groups
    within = all(-leaf.ndim <= a < leaf.ndim for group in groups for a in group)
    groups = [tuple(a % leaf.ndim for a in group) for group in groups]
    counts = [sum(group.count(a) for group in groups) for a in axes]
    held = {a for group in groups for a in group}
    if not within or held != {*axes} or not {*counts} <= {1, len(groups)}:
        raise ValueError(
            f"parameter {name!r} of shape {tuple(leaf.shape)}: the groups of {spec} must hold each "
            f"of the axes {axes}, and each of them once or in every group"
        )
    return [tuple(a for a in axes if a not in group) for group in groups]


def _two_largest(shape, axes):
    """Return the groups that factor the two largest axes at every index of the others."""
    if len(axes) < 2:
        return [tuple(axes)]
    first, second = sorted(sorted(axes, key=lambda a: (shape[a], a))[-2:])
    return [tuple(a for a in axes if a != other) for other in (second, first)]
