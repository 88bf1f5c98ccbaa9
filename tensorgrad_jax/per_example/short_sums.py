"""Squares of gradients that are sums of a few terms, as products of the factors' products.

An example with T positions has g_n = sum_t x_nt d_nt^T, a matrix. Entry by entry

    sum_n g_n^2 = sum_n sum_{t <= s} (2 - [t = s]) (x_nt x_ns) (d_nt d_ns)^T,

a product of matrices as that of the gradient itself is, with T (T + 1) / 2 positions. For one
position it is that of the squares. For a few it costs less than to form every g_n: a complex
weight that is kept as a pair of real ones has two, its number's real and imaginary part.

Where terms cancel, the result is a small difference of large numbers. It is as near to the exact
one as the rounding of sum_n (sum_t |x_nt| |d_nt|)^2, and not below zero.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tensorgrad_jax.per_example.program import Operation
from tensorgrad_jax.per_example.reductions import wide
from tensorgrad_jax.per_example.slabs import first_free, free_axes
from tensorgrad_jax.per_example.uses import Use

MOST = 4
"""Positions up to which T (T + 1) / 2 products were faster than the gradients they replace."""


def position_axis(use: Use) -> int | None:
    """Return the axis of a product's other factor along which a few positions lie, or None."""
    where = use.is_parameter.index(True)
    shape = use.operation.inputs[1 - where].shape
    long = [axis for axis in free_axes(use, 1 - where) if shape[axis] != 1]
    return long[0] if len(long) == 1 and shape[long[0]] <= MOST else None


def squares_of_short_sums(use: Use, values: list[Array], d: Array) -> Array:
    """Return sum_n g_n^2 for a product of which `position_axis` names an axis.

    Args:
        use: the product, of one parameter and of examples.
        values: its inputs, those of examples with these along axis 0.
        d: the cotangent of its result, with the examples along axis 0.
    """
    where = use.is_parameter.index(True)
    axis = position_axis(use)
    assert axis is not None
    of_result = first_free(use, 1 - where) + free_axes(use, 1 - where).index(axis)
    x = _pairs(values[1 - where], 1 + axis, 1.0)
    d = _pairs(d, 1 + of_result, 2.0)
    # Rounded to fewer digits, what cancels would not.
    params = {**use.operation.params, "precision": jax.lax.Precision.HIGHEST}
    if params.get("preferred_element_type") is not None:
        params["preferred_element_type"] = d.dtype
    product = Operation(use.operation.primitive, params, (), ())

    def with_pairs(parameter):
        put = [parameter if i == where else x for i in range(2)]
        return product.apply_to_examples(put, use.is_batched)[0]

    struct = jax.ShapeDtypeStruct(values[where].shape, d.dtype)
    return jnp.maximum(jax.linear_transpose(with_pairs, struct)(d)[0], 0)


def _pairs(x: Array, axis: int, factor: float) -> Array:
    """Return the products of all pairs of positions, those of different ones times a factor."""
    x = x.astype(wide(x.dtype))
    parts = jnp.split(x, x.shape[axis], axis)
    pairs = itertools.combinations_with_replacement(range(len(parts)), 2)
    return jnp.concatenate(
        [parts[s] * parts[t] * (1.0 if s == t else factor) for s, t in pairs], axis
    )
