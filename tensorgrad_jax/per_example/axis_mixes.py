"""Rules of `batch_axis` for primitives that combine entries: sums, products, reading, writing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tensorgrad_jax.per_example.batch_axis import (
    Examples,
    Mixed,
    Own,
    Placed,
    Rule,
    Total,
    aligned,
    need_same,
    own,
)
from tensorgrad_jax.per_example.program import Operation


def reduction(operation: Operation, states: list[Placed], n: int) -> Sequence[Placed | Total]:
    """Sums over examples are totals; other reductions over them mix."""
    del n
    axes = set(map(int, operation.params["axes"]))
    state, rank = states[0], len(operation.inputs[0].shape)
    moved = lambda axis: axis - sum(a < axis for a in axes)
    if isinstance(state, Own):
        same = [moved(a) for a in range(rank) if a in state.same and a not in axes]
        return [own(out, same) for out in operation.outputs]
    if state.axis not in axes:
        return [Examples(moved(state.axis), state.inner)] * len(operation.outputs)
    if operation.name != "reduce_sum":
        raise Mixed(f"{operation.name} reduces over the examples")
    return [Total()]


def along(axes_of: Callable[[Operation, int], Sequence[int]]) -> Rule:
    """A rule for primitives that keep axes but mix along some of them."""

    def rule(operation, states, n):
        for atom, state in zip(operation.inputs, states, strict=True):
            if isinstance(state, Examples) and state.axis in axes_of(operation, len(atom.shape)):
                raise Mixed(f"{operation.name} mixes along the axis of examples")
        out = aligned(operation, states)
        if isinstance(out, Own):
            same = out.same - set(axes_of(operation, len(operation.inputs[0].shape)))
            return [own(v, sorted(same)) for v in operation.outputs]
        return [Examples(out.axis, out.inner)] * len(operation.outputs)

    return rule


def _place_in_dot(operation: Operation, side: int, axis: int) -> int | None:
    """Return where a free axis of a factor is in the result; None if it is not free."""
    contracted, batches = operation.params["dimension_numbers"]
    if axis in (*contracted[side], *batches[side]):
        return None
    before = sum(a not in (*contracted[side], *batches[side]) for a in range(axis))
    if side == 1:
        before += len(operation.inputs[0].shape) - len(contracted[0]) - len(batches[0])
    return len(batches[0]) + before


def dot(operation: Operation, states: list[Placed], n: int) -> Sequence[Placed | Total]:
    """Examples along a free axis of one factor, or a batch axis of both; contracted, a total."""
    del n
    contracted, batches = operation.params["dimension_numbers"]
    placed = [
        [place for axis in s.same if (place := _place_in_dot(operation, side, axis)) is not None]
        for side, s in enumerate(states)
        if isinstance(s, Own)
    ]
    if len(placed) == 2:
        return [own(operation.outputs[0], [axis for axes in placed for axis in axes])]
    found = []
    for side in (0, 1):
        state, other = states[side], states[1 - side]
        if not isinstance(state, Examples):
            continue
        for pairs, result in ((contracted, None), (batches, "batch")):
            if state.axis not in pairs[side]:
                continue
            partner = pairs[1 - side][tuple(pairs[side]).index(state.axis)]
            if isinstance(other, Own):
                need_same(operation, operation.inputs[1 - side], other, partner)
            elif (other.axis, other.inner) != (partner, state.inner):
                raise Mixed("dot_general combines different examples")
            if result is None:
                return [Total()]
            return [Examples(tuple(pairs[side]).index(state.axis), state.inner)]
        place = _place_in_dot(operation, side, state.axis)
        assert place is not None  # neither contracted nor a batch axis
        found.append(Examples(place, state.inner))
    if len(found) > 1:
        raise Mixed("dot_general multiplies every example with every other")
    return found


def convolution(operation: Operation, states: list[Placed], n: int) -> Sequence[Placed | Total]:
    """Examples along the batch axis of the input, and a kernel that is the same for all."""
    del n
    if all(isinstance(s, Own) for s in states):
        return [own(operation.outputs[0])]
    numbers, (x, kernel) = operation.params["dimension_numbers"], states
    is_one_kernel = isinstance(kernel, Own) and operation.params["batch_group_count"] == 1
    if not isinstance(x, Examples) or x.axis != numbers.lhs_spec[0] or not is_one_kernel:
        raise Mixed("conv_general_dilated has examples elsewhere than in its batch")
    return [Examples(numbers.out_spec[0], x.inner)]


def gather(operation: Operation, states: list[Placed], n: int) -> Sequence[Placed | Total]:
    """Examples in the indices, in the operand, or in both side by side."""
    del n
    operand, indices = states
    if all(isinstance(s, Own) for s in states):
        return [own(operation.outputs[0])]
    numbers, sizes = operation.params["dimension_numbers"], operation.params["slice_sizes"]
    shape, rank = operation.inputs[0].shape, len(operation.outputs[0].shape)
    batch_axes = [a for a in range(rank) if a not in numbers.offset_dims]
    if isinstance(indices, Examples):
        if indices.axis == len(operation.inputs[1].shape) - 1:
            raise Mixed("gather takes indices of different examples together")
        result = Examples(batch_axes[indices.axis], indices.inner)
        if isinstance(operand, Own):
            if indices.axis in numbers.start_indices_batching_dims:
                at = tuple(numbers.start_indices_batching_dims).index(indices.axis)
                partner = numbers.operand_batching_dims[at]
                need_same(operation, operation.inputs[0], operand, partner)
            return [result]
        pairs = zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True)
        is_paired = (operand.axis, indices.axis) in pairs and operand.inner == indices.inner
        columns = [c for c, axis in enumerate(numbers.start_index_map) if axis == operand.axis]
        is_own_number = (
            operand.inner == indices.inner == 1
            and shape[operand.axis] == operation.inputs[1].shape[indices.axis]
            and sizes[operand.axis] == 1
            and bool(columns)
            and columns[0] in indices.numbered
        )
        if not (is_paired or is_own_number):
            raise Mixed("gather reads other examples")
        return [result]
    assert isinstance(operand, Examples)
    axis = operand.axis
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    if axis in gone or sizes[axis] != shape[axis]:
        raise Mixed("gather takes some of the examples")
    kept = [a for a in range(len(shape)) if a not in gone]
    return [Examples(numbers.offset_dims[kept.index(axis)], operand.inner)]


def scatter(operation: Operation, states: list[Placed], n: int) -> Sequence[Placed | Total]:
    """Updates at places that are the same for all examples, each update whole along their axis."""
    del n
    operand, indices, updates = states
    if all(isinstance(s, Own) for s in states):
        return [own(operation.outputs[0])]
    numbers = operation.params["dimension_numbers"]
    placed = [s for s in (operand, updates) if isinstance(s, Examples)]
    if not isinstance(indices, Own) or not placed:
        raise Mixed(f"{operation.name} writes at another place for every example")
    shape, window = operation.inputs[0].shape, numbers.update_window_dims
    gone = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    kept = [axis for axis in range(len(shape)) if axis not in gone]
    to_operand = dict(zip(window, kept, strict=True))
    axis = to_operand.get(placed[0].axis) if isinstance(operand, Own) else operand.axis
    if axis is None or axis in (*gone, *numbers.scatter_dims_to_operand_dims):
        raise Mixed(f"{operation.name} writes to other examples")
    of_updates = window[kept.index(axis)]
    if operation.inputs[2].shape[of_updates] != shape[axis]:
        raise Mixed(f"{operation.name} writes to some of the examples")
    for atom, state, at in ((0, operand, axis), (2, updates, of_updates)):
        if isinstance(state, Own):
            need_same(operation, operation.inputs[atom], state, at)
        elif (state.axis, state.inner) != (at, placed[0].inner):
            raise Mixed(f"{operation.name} combines different examples")
    return [Examples(axis, placed[0].inner)]
