"""Squares of per-example gradients without the gradients: a rule for each primitive.

With x the other input of an operation and d the cotangent of its result, all of them with the
examples along axis 0, every rule here returns sum_n g_n^2 with respect to the value made of a
parameter, or None where it does not apply. An operation without a rule is differentiated for a
few examples at a time, which is right for every primitive.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tensorgrad_jax.per_example.program import Operation
from tensorgrad_jax.per_example.reductions import wide
from tensorgrad_jax.per_example.short_sums import position_axis, squares_of_short_sums
from tensorgrad_jax.per_example.uses import Use

Rule = Callable[[Use, list[Array], Array], Array]


def terms_of_product(use: Use, values: list[Array], d: Array) -> Array:
    """Return sum_nt (x_nt d_nt)^2 for an operation that is linear in x and in the parameter.

    g = sum_t x_t d_t is the transpose of the operation with x, applied to d; this is the transpose
    of the operation with x^2, applied to d^2. Where each entry of g is one such term, it is g^2.
    """
    where = use.is_parameter.index(True)
    operation = _in_full(use.operation, d)

    def with_squares(parameter):
        put = [parameter if i == where else x for i, x in enumerate(squared)]
        return operation.apply_to_examples(put, use.is_batched)[0]

    squared = [None if i == where else _square(x) for i, x in enumerate(values)]
    struct = jax.ShapeDtypeStruct(values[where].shape, wide(d.dtype))
    return jax.linear_transpose(with_squares, struct)(_square(d))[0]


def terms_of_sum(use: Use, values: list[Array], d: Array) -> Array:
    """Return sum_nt d_nt^2: the same for an operation whose derivative is 1 or -1."""
    shape = values[use.is_parameter.index(True)].shape
    squares = _square(d).sum(0)
    stretched = [i for i, size in enumerate(shape) if size == 1]
    return squares.sum(stretched, keepdims=True) if shape else squares.sum()


def rows_of_table(use: Use, values: list[Array], d: Array) -> Array:
    """Return sum_n g_n^2 for a gather of rows of a table: an embedding.

    Rows that an example reads several times have the sum of their cotangents as gradient:
    c_t = sum_t' [i_t = i_t'] d_t', which the first t of each row alone contributes, squared.
    """
    table, indices = values
    n, width = len(d), table.size // len(table)
    rows = indices.reshape(n, -1)
    d = d.reshape(n, -1, width).astype(wide(d.dtype))
    equal = rows[:, :, None] == rows[:, None, :]
    is_first = ~jnp.any(jnp.tril(equal, -1), -1)
    # Sums of a few cotangents: rounded products would show in the squares.
    sums = jnp.einsum("nts,nsw->ntw", equal.astype(d.dtype), d, precision="highest")
    squares = jnp.where(is_first[..., None], sums * sums, 0)
    # The gather's own transpose knows what becomes of indices that are out of bounds.
    gather = lambda table: use.operation.apply_to_examples([table, indices], use.is_batched)[0]
    outputs = jax.eval_shape(gather, table.astype(d.dtype))
    return jax.linear_transpose(gather, table.astype(d.dtype))(squares.reshape(outputs.shape))[0]


def _square(x: Array) -> Array:
    x = x.astype(wide(x.dtype))
    return x * x


def _in_full(operation: Operation, d: Array) -> Operation:
    """Return the operation with results as wide as squares are."""
    params = operation.params
    if params.get("preferred_element_type") is not None:
        params = {**params, "preferred_element_type": wide(d.dtype)}
    return Operation(operation.primitive, params, operation.inputs, operation.outputs)


def positions_of_dot(use: Use) -> int:
    """Number of terms of an entry of the gradient: the free axes of the other factor."""
    other = 1 - use.is_parameter.index(True)
    contracted, batches = use.operation.params["dimension_numbers"]
    taken = {*contracted[other], *batches[other]}
    shape = use.operation.inputs[other].shape
    return math.prod(size for axis, size in enumerate(shape) if axis not in taken)


def _positions_of_convolution(use: Use) -> int:
    if use.is_parameter.index(True) != 1:
        return 0
    numbers = use.operation.params["dimension_numbers"].out_spec
    shape = use.operation.outputs[0].shape
    return shape[numbers[0]] * math.prod(shape[axis] for axis in numbers[2:])


def _positions_of_elements(use: Use) -> int:
    parameter = use.operation.inputs[use.is_parameter.index(True)]
    return use.operation.outputs[0].aval.size // max(1, parameter.aval.size)


def _reads_rows(use: Use) -> bool:
    """Whether a gather reads whole rows of a table, fewer per example than the table has."""
    params, (table, indices) = use.operation.params, use.operation.inputs
    numbers = params["dimension_numbers"]
    shape = table.shape
    # Under "clip" different indices may read the same row.
    modes = (
        jax.lax.GatherScatterMode.FILL_OR_DROP,
        jax.lax.GatherScatterMode.PROMISE_IN_BOUNDS,
    )
    reads = len(indices.aval.shape) and indices.aval.size
    output = use.operation.outputs[0].shape
    return bool(
        use.is_parameter == (True, False)
        and params["mode"] in modes
        and numbers.start_index_map == (0,)
        and numbers.collapsed_slice_dims == (0,)
        and not numbers.operand_batching_dims
        and params["slice_sizes"] == (1, *shape[1:])
        and numbers.offset_dims == tuple(range(len(output) - len(shape) + 1, len(output)))
        and reads
        and reads <= shape[0]
    )


_POSITIONS = {
    "dot_general": positions_of_dot,
    "conv_general_dilated": _positions_of_convolution,
    "mul": _positions_of_elements,
    "add": _positions_of_elements,
    "sub": _positions_of_elements,
}

_TERMS: dict[str, Rule] = {
    "dot_general": terms_of_product,
    "conv_general_dilated": terms_of_product,
    "mul": terms_of_product,
    "add": terms_of_sum,
    "sub": terms_of_sum,
}


def rule_for(use: Use) -> tuple[Rule, str] | None:
    """Return the rule that squares a use's gradients exactly, and why it does; None if none does.

    The rules are of real numbers, and of values that hold each number of a parameter once.
    """
    name = use.operation.name
    if not use.rearranges or not _is_real(use):
        return None
    if name in _TERMS and _POSITIONS[name](use) == 1:
        return _TERMS[name], "one position per example"
    if name == "dot_general" and position_axis(use) is not None:
        return squares_of_short_sums, f"{positions_of_dot(use)} positions per example"
    if name == "gather" and _reads_rows(use):
        return rows_of_table, "rows of a table"
    return None


def rule_for_terms(use: Use) -> Rule | None:
    """Return the rule that squares every term by itself, or None."""
    name = use.operation.name
    linear = all(o.name in _LINEAR_VIEWS for o in use.prelude)
    one = len(use.leaves) == 1 and sum(use.is_parameter) == 1
    if not (one and linear and _is_real(use)):
        return None
    if name in _TERMS and _POSITIONS[name](use) > 0:
        return _TERMS[name]
    return terms_of_rows if name == "gather" and use.is_parameter == (True, False) else None


def terms_of_rows(use: Use, values: list[Array], d: Array) -> Array:
    """Return sum_nt d_nt^2 for every entry of a table that a gather reads."""
    table, indices = values
    gather = lambda table: use.operation.apply_to_examples([table, indices], use.is_batched)[0]
    return jax.linear_transpose(gather, table.astype(wide(d.dtype)))(_square(d))[0]


# Views through which squares of terms are pulled back: no entry is scaled.
_LINEAR_VIEWS = {
    "broadcast_in_dim",
    "convert_element_type",
    "copy",
    "expand_dims",
    "reshape",
    "rev",
    "slice",
    "squeeze",
    "transpose",
}


def _is_real(use: Use) -> bool:
    values = (*use.operation.inputs, *use.operation.outputs)
    return not any(jnp.issubdtype(v.aval.dtype, jnp.complexfloating) for v in values)
