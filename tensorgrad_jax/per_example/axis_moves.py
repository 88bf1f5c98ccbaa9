"""Rules of `batch_axis` for primitives that move, cut and join arrays."""

from __future__ import annotations

import math
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


def _moved(where: Callable[[Operation, int], int | None]) -> Rule:
    """A rule for primitives that move axes: `where` maps an input's axis to the result's."""

    def rule(operation, states, n):
        state, out = states[0], operation.outputs[0]
        source = operation.inputs[0].shape
        axes = range(len(source))
        if isinstance(state, Own):
            same = [to for a in axes if a in state.same and (to := where(operation, a)) is not None]
            counts = None if state.counts is None else where(operation, state.counts)
            return [own(out, same, counts=counts)]
        axis = where(operation, state.axis)
        if axis is None or out.shape[axis] != source[state.axis]:
            raise Mixed(f"{operation.name} changes the axis of examples")
        numbered = state.numbered if where(operation, len(source) - 1) == len(out.shape) - 1 else ()
        return [Examples(axis, state.inner, frozenset(numbered))]

    return rule


def _transposed(operation, axis):
    return tuple(operation.params["permutation"]).index(axis)


def _squeezed(operation, axis):
    gone = [int(d) % len(operation.inputs[0].shape) for d in operation.params["dimensions"]]
    return None if axis in gone else axis - sum(d < axis for d in gone)


squeeze = _moved(_squeezed)
transpose = _moved(_transposed)


def broadcast(operation: Operation, states: list[Placed], n: int) -> Sequence[Placed | Total]:
    """New axes, and axes of size 1 made longer: along these the result is the same."""
    del n
    state, out = states[0], operation.outputs[0]
    to = [int(axis) for axis in operation.params["broadcast_dimensions"]]
    source = operation.inputs[0].shape
    if isinstance(state, Examples):
        if out.shape[to[state.axis]] != source[state.axis]:
            raise Mixed("broadcast_in_dim changes the axis of examples")
        last = bool(source) and to[-1] == len(out.shape) - 1
        return [Examples(to[state.axis], state.inner, state.numbered if last else frozenset())]
    kept = [to[a] for a in range(len(source)) if a not in state.same and source[a] != 1]
    same = [axis for axis in range(len(out.shape)) if axis not in kept]
    counts = None if state.counts is None else to[state.counts]
    return [Own(frozenset(same), counts, state.is_zero)]


def reshape(operation: Operation, states: list[Placed], n: int) -> Sequence[Placed | Total]:
    """Follow the digit n of the row-major index of an entry."""
    state, source, out = states[0], operation.inputs[0].shape, operation.outputs[0]
    if isinstance(state, Own):
        groups = _groups(source, out.shape)
        same, counts = [], None
        for ins, outs in groups:
            if all(a in state.same or source[a] == 1 for a in ins):
                same += outs
            long_in = [a for a in ins if source[a] != 1]
            long_out = [a for a in outs if out.shape[a] != 1]
            if long_in == [state.counts] and len(long_out) == 1:
                counts = long_out[0]
        return [own(out, same, counts=counts, is_zero=state.is_zero)]
    # Entries between one example and the next of the row-major order.
    stride = state.inner * math.prod(source[state.axis + 1 :])
    for axis, size in enumerate(out.shape):
        below = math.prod(out.shape[axis + 1 :])
        if size == 1 or stride % below or (below * size) % (stride * n):
            continue
        return [Examples(axis, stride // below)]
    raise Mixed("reshape tears the examples apart")


def _groups(source: Sequence[int], target: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Pair the shortest runs of axes of two shapes that hold the same entries."""
    groups, i, j = [], 0, 0
    while i < len(source) or j < len(target):
        ins, outs, a, b = [], [], 1, 1
        while True:
            if i < len(source) and (a <= b or j == len(target)):
                a, i = a * source[i], i + 1
                ins.append(i - 1)
            elif j < len(target):
                b, j = b * target[j], j + 1
                outs.append(j - 1)
            if a == b and ins and (outs or j == len(target)):
                break
            if i == len(source) and j == len(target):
                break
        groups.append((ins, outs))
    return groups


def slices(operation: Operation, states: list[Placed], n: int) -> Sequence[Placed | Total]:
    """Part of an array: of the axis of examples, whole blocks of all examples alone."""
    state, source = states[0], operation.inputs[0].shape
    if isinstance(state, Own):
        return [own(operation.outputs[0], sorted(state.same))]
    start = operation.params["start_indices"][state.axis]
    stop = operation.params["limit_indices"][state.axis]
    strides = operation.params["strides"]
    block = n * state.inner
    is_whole = (start, stop) == (0, source[state.axis])
    by_block = start % block == 0 and stop % block == 0
    if (strides is not None and strides[state.axis] != 1) or not (is_whole or by_block):
        raise Mixed("slice takes some of the examples")
    return [Examples(state.axis, state.inner)]


def concatenate(operation: Operation, states: list[Placed], n: int) -> Sequence[Placed | Total]:
    """Arrays side by side; along the axis of examples they are further blocks of all examples."""
    del n
    dimension = int(operation.params["dimension"])
    placed = [s for s in states if isinstance(s, Examples)]
    if not placed:
        same = [s.same - {dimension} for s in states if isinstance(s, Own)]
        return [own(operation.outputs[0], sorted(frozenset.intersection(*same)))]
    first = placed[0]
    numbered, place = [], 0
    for atom, state in zip(operation.inputs, states, strict=True):
        if isinstance(state, Examples):
            if (state.axis, state.inner) != (first.axis, first.inner):
                raise Mixed("concatenate combines different examples")
        elif state.counts == first.axis and dimension == len(atom.shape) - 1 != first.axis:
            numbered += range(place, place + atom.shape[dimension])
        elif dimension == first.axis:
            raise Mixed("concatenate puts something else among the examples")
        else:
            need_same(operation, atom, state, first.axis)
        place += atom.shape[dimension]
    return [Examples(first.axis, first.inner, frozenset(numbered))]


def stack(operation: Operation, states: list[Placed], n: int) -> Sequence[Placed | Total]:
    """Arrays side by side along a new axis."""
    del n
    new, out = operation.params["axis"], aligned(operation, states)
    moved = lambda axis: axis + (axis >= new)
    if isinstance(out, Own):
        return [own(operation.outputs[0], [moved(axis) for axis in out.same])]
    return [Examples(moved(out.axis), out.inner)]


def unstack(operation: Operation, states: list[Placed], n: int) -> Sequence[Placed | Total]:
    """Its inverse."""
    del n
    state, gone = states[0], operation.params["axis"] % len(operation.inputs[0].shape)
    moved = lambda axis: axis - (axis > gone)
    if isinstance(state, Own):
        same = [moved(axis) for axis in state.same if axis != gone]
        return [own(v, same) for v in operation.outputs]
    if state.axis == gone:
        raise Mixed("unstack takes the examples one by one")
    return [Examples(moved(state.axis), state.inner)] * len(operation.outputs)


def tile(operation: Operation, states: list[Placed], n: int) -> Sequence[Placed | Total]:
    """Repeated along axes; along that of the examples these are further blocks of all of them."""
    del n
    state = states[0]
    if isinstance(state, Own):
        return [own(operation.outputs[0], sorted(state.same))]
    return [Examples(state.axis, state.inner)]


def dynamic_slices(operation: Operation, states: list[Placed], n: int) -> Sequence[Placed | Total]:
    """Parts at an offset that is the same for all examples; the axis of examples is whole."""
    arrays = 1 if operation.name == "dynamic_slice" else 2
    if not all(isinstance(s, Own) for s in states[arrays:]):
        raise Mixed(f"{operation.name} has another offset for every example")
    placed = [s for s in states[:arrays] if isinstance(s, Examples)]
    out = operation.outputs[0]
    if not placed:
        return [own(out)]
    first = placed[0]
    sizes = {
        out.shape[first.axis],
        *(a.shape[first.axis] for a in operation.inputs[:arrays]),
    }
    if len(sizes) > 1:
        raise Mixed(f"{operation.name} takes some of the examples")
    for atom, state in zip(operation.inputs[:arrays], states[:arrays], strict=True):
        if isinstance(state, Own):
            need_same(operation, atom, state, first.axis)
        elif (state.axis, state.inner) != (first.axis, first.inner):
            raise Mixed(f"{operation.name} combines different examples")
    return [Examples(first.axis, first.inner)]


def keys(operation: Operation, states: list[Placed], n: int) -> Sequence[Placed | Total]:
    """Random keys, what is drawn from them, bits: axes come and go behind those that stay."""
    del n
    state, out = states[0], operation.outputs[0]
    if isinstance(state, Own):
        return [own(out)]
    if state.axis >= min(len(operation.inputs[0].shape), len(out.shape)):
        raise Mixed(f"{operation.name} takes bits of more than one example")
    return [Examples(state.axis, state.inner)]


def iota(operation: Operation, states: list[Placed], n: int) -> Sequence[Placed | Total]:
    """0, 1, 2, ... along one axis."""
    del states, n
    out, dimension = operation.outputs[0], operation.params["dimension"]
    same = [axis for axis in range(len(out.shape)) if axis != dimension]
    return [own(out, same, counts=dimension)]
