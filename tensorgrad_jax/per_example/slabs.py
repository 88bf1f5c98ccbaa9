"""Gradients of all examples with respect to a slab of a parameter at a time.

Where the gradients of all examples do not fit, there are two ways to take some of them: a few
examples at a time, or a few rows of the parameter at a time. A random projection prefers rows: it
then draws each of its own rows once for all examples. An operation that is linear in the parameter
and in the example gives the gradient of a slab from a slab of its other input or of its cotangent:

    y = x W:    g[i:j, :] = sum_t x_t[i:j] d_t^T,    g[:, i:j] = sum_t x_t d_t[i:j]^T

`CUTS` says for every such primitive along which axes input and cotangent are cut.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tensorgrad_jax.per_example.uses import Use


class Cut(NamedTuple):
    """Where to cut beside an axis of the parameter; axes without that of the examples.

    Attributes:
        other: axis of the other input, or None.
        cotangent: axis of the cotangent, or None.
    """

    other: int | None
    cotangent: int | None


def _cut_of_dot(use: Use, axis: int) -> Cut | None:
    """A contracted axis is the other input's too, a free one the result's, a batch axis both's."""
    where = use.is_parameter.index(True)
    contracted, batches = use.operation.params["dimension_numbers"]
    if axis in contracted[where]:
        return Cut(contracted[1 - where][contracted[where].index(axis)], None)
    if axis in batches[where]:
        place = batches[where].index(axis)
        return Cut(batches[1 - where][place], place)
    return Cut(None, free_axes(use, where).index(axis) + first_free(use, where))


def _cut_of_convolution(use: Use, axis: int) -> Cut | None:
    """Channels in are the input's, channels out the result's; a place in the window is neither."""
    params = use.operation.params
    if use.is_parameter.index(True) != 1 or params["feature_group_count"] != 1:
        return None
    numbers = params["dimension_numbers"]
    channels_out, channels_in = numbers.rhs_spec[:2]
    if params["batch_group_count"] == 1 and axis == channels_in:
        return Cut(numbers.lhs_spec[1], None)
    return Cut(None, numbers.out_spec[1]) if axis == channels_out else None


CUTS: dict[str, Callable[[Use, int], Cut | None]] = {
    "conv_general_dilated": _cut_of_convolution,
    "dot_general": _cut_of_dot,
}

_KEEPING = {"convert_element_type", "copy", "copy_p"}
_RESHAPING = {"expand_dims", "reshape", "squeeze"}


def free_axes(use: Use, where: int) -> list[int]:
    """Return the axes of a factor of a product that are its result's."""
    contracted, batches = use.operation.params["dimension_numbers"]
    taken = {*contracted[where], *batches[where]}
    return [a for a in range(len(use.operation.inputs[where].shape)) if a not in taken]


def first_free(use: Use, where: int) -> int:
    """Return where the free axes of a factor begin in the result."""
    batches = use.operation.params["dimension_numbers"][1][0]
    return len(batches) + (len(free_axes(use, 0)) if where == 1 else 0)


class View(NamedTuple):
    """A parameter as an operation uses it: reshaped, then with its axes permuted.

    Attributes:
        shape: the parameter's shape once it is reshaped.
        order: the axes of that shape in the order of the operation's input.
    """

    shape: tuple[int, ...]
    order: tuple[int, ...]


def view_of(use: Use, shape: Sequence[int]) -> View | None:
    """Return how an operation sees a parameter of a shape.

    None where it uses anything but one parameter, or that in another way.
    """
    if len(use.leaves) != 1 or sum(use.is_parameter) != 1:
        return None
    view = View(tuple(shape), tuple(range(len(shape))))
    for operation in use.prelude:
        if operation.name == "transpose":
            axes = operation.params["permutation"]
            view = view._replace(order=tuple(view.order[i] for i in axes))
        elif operation.name in _RESHAPING and list(view.order) == sorted(view.order):
            new = operation.outputs[0].shape
            view = View(new, tuple(range(len(new))))
        elif operation.name not in _KEEPING:
            return None
    return view


@dataclasses.dataclass(frozen=True)
class Slabs:
    """How a parameter's gradient comes about in slabs.

    Attributes:
        use: the use of the parameter.
        view: how the operation sees it. Its axes are those of the view's shape from here on.
        axis: the axis that is cut.
        cut: where input and cotangent are cut.
        width: how many indices of that axis a slab has.
    """

    use: Use
    view: View
    axis: int
    cut: Cut
    width: int

    def gradient(self, values: Sequence[Array], d: Array, first: int | Array, n: int) -> Array:
        """Return the gradients of all examples with respect to n indices of the axis.

        Args:
            values: the operation's inputs, those of examples with these along axis 0.
            d: the cotangent of its result, with the examples along axis 0.
            first: the first index.
            n: how many.
        """
        use, where, order = self.use, self.use.is_parameter.index(True), self.view.order
        part = lambda x, axis: x if axis is None else _part(x, first, n, 1 + axis)
        struct = values[where]
        shape = list(struct.shape)
        shape[order.index(self.axis)] = n

        def of_one(other, d):
            def output(parameter):
                given = [parameter if i == where else other for i in range(2)]
                return use.operation.apply(*given)[0]

            like = jax.ShapeDtypeStruct(tuple(shape), struct.dtype)
            return jax.linear_transpose(output, like)(d)[0]

        other = part(values[1 - where], self.cut.other)
        gradients = jax.vmap(of_one)(other, part(d, self.cut.cotangent))
        back = [order.index(axis) for axis in range(len(order))]
        return gradients.transpose(0, *(1 + axis for axis in back))


def _part(x: Array, first, n: int, axis: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, first, n, axis)


def slabs_of(use: Use, shape: Sequence[int], n: int, numbers: int) -> Slabs | None:
    """Return how to cut a parameter; None if one operation does not tell, or it is not needed.

    Args:
        use: the only use of the parameter.
        shape: of the parameter.
        n: number of examples.
        numbers: how many numbers the gradients of a slab may hold in all.
    """
    size = math.prod(shape)
    if n * size <= numbers or use.operation.name not in CUTS or not all(_are_real(use)):
        return None
    view = view_of(use, shape)
    if view is None or sum(use.is_batched) != 1:
        return None
    axes = range(len(view.shape))
    cuts = {a: CUTS[use.operation.name](use, view.order.index(a)) for a in axes}
    found = [(a, cut) for a, cut in cuts.items() if cut is not None]
    if not found:
        return None
    # The longest axis makes the thinnest slabs, of equally long ones the first the longest rows.
    axis, cut = max(found, key=lambda pair: view.shape[pair[0]])
    width = max(1, numbers * view.shape[axis] // (n * size))
    return Slabs(use, view, axis, cut, min(width, view.shape[axis]))


def _are_real(use: Use):
    values = (*use.operation.inputs, *use.operation.outputs)
    return (jnp.issubdtype(v.aval.dtype, jnp.floating) for v in values)


def outer_factors(
    use: Use, shape: Sequence[int], values: Sequence[Array], d: Array
) -> tuple[Array, Array]:
    """Return (left, right) with g_n = sum_t left_nt right_nt^T, (n, positions, rows or columns).

    Args:
        use: one for which `is_dense` holds.
        shape: of the parameter.
        values: the operation's inputs, those of examples with these along axis 0.
        d: the cotangent of its result, with the examples along axis 0.
    """
    where = use.is_parameter.index(True)
    contracted, _ = use.operation.params["dimension_numbers"]
    x = jnp.moveaxis(values[1 - where], 1 + contracted[1 - where][0], -1)
    d = d if where == 1 else jnp.moveaxis(d, 1, -1)
    x, d = (a.reshape(len(a), -1, a.shape[-1]) for a in (x, d))
    view = view_of(use, shape)
    assert view is not None
    return (x, d) if view.order[contracted[where][0]] == 0 else (d, x)


def is_dense(use: Use, shape: Sequence[int]) -> bool:
    """Whether an operation is the product of a matrix of parameters with vectors of examples."""
    if use.operation.name != "dot_general" or not all(_are_real(use)):
        return False
    contracted, batches = use.operation.params["dimension_numbers"]
    view = view_of(use, shape)
    is_matrix = view is not None and len(shape) == 2 and view.shape == tuple(shape)
    return is_matrix and not batches[0] and len(contracted[0]) == 1
