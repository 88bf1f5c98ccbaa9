"""Where the examples are in an array, and where every primitive puts them.

An array that depends on the examples holds them along one axis, perhaps together with what else a
reshape has put there: index = (o N + n) inner + i along that axis belongs to example n of N. A
rule says where the examples are in the results of a primitive, given where they are in its
inputs, or raises `Mixed` if the primitive lets one example act on another.

An array that does not depend on the examples may still hold something for each of them: the mask
of a dropout drawn for the whole batch, say. It may meet the examples only if it is the same along
their axis, which is why that is followed, too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from tensorgrad_jax.per_example.program import Constant, Input, Operation


class Mixed(ValueError):  # noqa: N818 -- a finding about the function, caught by its caller
    """A primitive lets examples act on each other, or is not known not to."""


@dataclasses.dataclass(frozen=True)
class Examples:
    """The examples lie along `axis`, at (o N + n) inner + i.

    `numbered` are the places along the last axis that hold the number of the example itself.
    """

    axis: int
    inner: int = 1
    numbered: frozenset[int] = frozenset()


@dataclasses.dataclass(frozen=True)
class Total:
    """A sum over examples, or a linear function of one.

    Attributes:
        power: how often it was divided by the number of examples: 1 for a mean.
        shifted: whether something that does not depend on examples was added to it.
    """

    power: int = 0
    shifted: bool = False


@dataclasses.dataclass(frozen=True)
class Own:
    """Does not depend on the examples.

    Attributes:
        same: the axes along which it is constant.
        counts: the axis along which it is 0, 1, 2, ...; None if there is none.
        is_zero: it is known to be zero, or False, everywhere.
        knows_n: it depends on how many examples there are.
    """

    same: frozenset[int] = frozenset()
    counts: int | None = None
    is_zero: bool = False
    knows_n: bool = False


State = Examples | Total | Own
Rule = Callable[[Operation, list[State], int], list[State]]


def own(atom: Input, same: Sequence[int] = (), **rest: Any) -> Own:
    """Return the state of an array that is the same along these axes and those of size 1."""
    ones = [axis for axis, size in enumerate(atom.shape) if size == 1]
    if isinstance(atom, Constant) and not atom.shape:
        rest.setdefault("is_zero", bool(atom.value == 0))
    return Own(frozenset([*same, *ones]), **rest)


def elementwise(operation: Operation, states: list[State], n: int) -> list[State]:
    """Every entry of the results depends on the same entry of the inputs."""
    name, inputs = operation.name, operation.inputs
    if any(isinstance(s, Total) for s in states):
        return [_of_total(operation, states)] * len(operation.outputs)
    placed = {s.axis: s for s in states if isinstance(s, Examples)}
    out = operation.outputs[0]
    rank = len(out.shape)
    if not placed:
        same = set(range(rank))
        for atom, state in zip(inputs, states, strict=True):
            if atom.shape:
                same &= set(own(atom, sorted(state.same)).same)
        counts, is_zero = _counting(operation, states)
        return [Own(frozenset(same), counts, is_zero)] * len(operation.outputs)
    first = next(iter(placed.values()))
    for atom, state in zip(inputs, states, strict=True):
        if isinstance(state, Examples):
            if (state.axis, state.inner) != (first.axis, first.inner):
                raise Mixed(f"{name} combines different examples")
        elif atom.shape and not isinstance(state, Total):
            need_same(operation, atom, state, first.axis)
    # Only a passage as it is keeps numbers of examples.
    keeps = name in _PASSING
    return [first if keeps else Examples(first.axis, first.inner)] * len(operation.outputs)


_PASSING = {"convert_element_type", "copy", "copy_p", "stop_gradient"}


def _counting(operation, states):
    """Follow 0, 1, 2, ... through what indexing does to it: x < 0 ? x + N : x."""
    counts = [s.counts for s in states]
    if operation.name in _PASSING:
        return counts[0], states[0].is_zero
    if operation.name == "lt" and counts[0] is not None and states[1].is_zero:
        return None, True
    if operation.name == "select_n" and states[0].is_zero:
        return counts[1], states[1].is_zero
    return None, False


def need_same(operation: Operation, atom: Input, state: State, axis: int) -> None:
    """Raise unless an array without examples is the same along the axis of examples."""
    if isinstance(state, Own) and axis not in state.same and atom.shape[axis] != 1:
        raise Mixed(
            f"{operation.name} gives every example something of its own that is not part of the "
            "batch (a mask drawn for the whole batch? Put a key per example into the batch)"
        )


_LINEAR = {
    "add",
    "add_any",
    "broadcast_in_dim",
    "convert_element_type",
    "copy",
    "copy_p",
    "div",
    "expand_dims",
    "mul",
    "neg",
    "optimization_barrier",
    "reduce_sum",
    "reshape",
    "slice",
    "squeeze",
    "stop_gradient",
    "sub",
    "transpose",
}


def _of_total(operation: Operation, states: Sequence[State]) -> Total:
    """A linear function of sums over examples; no other function of them, and no example again."""
    name = operation.name
    totals = [s for s in states if isinstance(s, Total)]
    is_linear = name in _LINEAR and not any(isinstance(s, Examples) for s in states)
    if name == "mul":
        is_linear = is_linear and len(totals) == 1
    if name == "div":
        is_linear = is_linear and not isinstance(states[1], Total)
    if not is_linear:
        raise Mixed(f"{name} uses a sum over the batch (statistics of the batch? a mask's total?)")
    powers = {s.power for s in totals}
    if len(powers) > 1:
        raise Mixed(f"{name} combines a mean over examples with a sum over them")
    adds = name in ("add", "add_any", "sub") and any(
        isinstance(s, Own) and not s.is_zero for s in states
    )
    return Total(totals[0].power, adds or any(s.shifted for s in totals))


def linear(rule: Rule) -> Rule:
    """Let a rule for one input pass sums over examples, of which the primitive is linear."""

    def with_totals(operation, states, n):
        if any(isinstance(s, Total) for s in states):
            return [_of_total(operation, states)]
        return rule(operation, states, n)

    return with_totals


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

    return linear(rule)


def _transposed(operation, axis):
    return tuple(operation.params["permutation"]).index(axis)


def _squeezed(operation, axis):
    gone = [int(d) % len(operation.inputs[0].shape) for d in operation.params["dimensions"]]
    return None if axis in gone else axis - sum(d < axis for d in gone)


def broadcast(operation: Operation, states: list[State], n: int) -> list[State]:
    """New axes, and axes of size 1 made longer: along these the result is the same."""
    del n
    state, out = states[0], operation.outputs[0]
    if isinstance(state, Total):
        return [_of_total(operation, states)]
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


def reshape(operation: Operation, states: list[State], n: int) -> list[State]:
    """Follow the digit n of the row-major index of an entry."""
    state, source, out = states[0], operation.inputs[0].shape, operation.outputs[0]
    if isinstance(state, Total):
        return [_of_total(operation, states)]
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


def slices(operation: Operation, states: list[State], n: int) -> list[State]:
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


def concatenate(operation: Operation, states: list[State], n: int) -> list[State]:
    """Arrays side by side; along the axis of examples they are further blocks of all examples."""
    dimension = int(operation.params["dimension"])
    placed = [s for s in states if isinstance(s, Examples)]
    if not placed or any(isinstance(s, Total) for s in states):
        out = elementwise(operation, states, n)[0]
        return [own(operation.outputs[0], sorted(out.same - {dimension}))]
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


def stack(operation: Operation, states: list[State], n: int) -> list[State]:
    """Arrays side by side along a new axis."""
    new, out = operation.params["axis"], elementwise(operation, states, n)[0]
    moved = lambda axis: axis + (axis >= new)
    if isinstance(out, Own):
        return [own(operation.outputs[0], [moved(axis) for axis in out.same])]
    return [Examples(moved(out.axis), out.inner)]


def unstack(operation: Operation, states: list[State], n: int) -> list[State]:
    """Its inverse."""
    del n
    state, gone = states[0], operation.params["axis"] % len(operation.inputs[0].shape)
    moved = lambda axis: axis - (axis > gone)
    if isinstance(state, Total):
        raise Mixed("unstack uses a sum over the batch")
    if isinstance(state, Own):
        same = [moved(axis) for axis in state.same if axis != gone]
        return [own(v, same) for v in operation.outputs]
    if state.axis == gone:
        raise Mixed("unstack takes the examples one by one")
    return [Examples(moved(state.axis), state.inner)] * len(operation.outputs)


def tile(operation: Operation, states: list[State], n: int) -> list[State]:
    """Repeated along axes; along that of the examples these are further blocks of all of them."""
    del n
    state = states[0]
    if isinstance(state, Total):
        raise Mixed("tile uses a sum over the batch")
    if isinstance(state, Own):
        return [own(operation.outputs[0], sorted(state.same))]
    return [Examples(state.axis, state.inner)]


def reduction(operation: Operation, states: list[State], n: int) -> list[State]:
    """Sums over examples are totals; other reductions over them mix."""
    del n
    axes = set(map(int, operation.params["axes"]))
    if any(isinstance(s, Total) for s in states):
        return [_of_total(operation, states)]
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
            if isinstance(state, Total):
                _of_total(operation, states)
            if isinstance(state, Examples) and state.axis in axes_of(operation, len(atom.shape)):
                raise Mixed(f"{operation.name} mixes along the axis of examples")
        out = elementwise(operation, states, n)
        if isinstance(out[0], Own):
            same = out[0].same - set(axes_of(operation, len(operation.inputs[0].shape)))
            return [own(v, sorted(same)) for v in operation.outputs]
        return [Examples(out[0].axis, out[0].inner)] * len(operation.outputs)

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


def dot(operation: Operation, states: list[State], n: int) -> list[State]:
    """Examples along a free axis of one factor, or a batch axis of both; contracted, a total."""
    del n
    contracted, batches = operation.params["dimension_numbers"]
    if any(isinstance(s, Total) for s in states):
        if sum(not isinstance(s, Own) for s in states) > 1:
            raise Mixed("dot_general uses a sum over the batch")
        return [next(s for s in states if isinstance(s, Total))]
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


def convolution(operation: Operation, states: list[State], n: int) -> list[State]:
    """Examples along the batch axis of the input, and a kernel that is the same for all."""
    del n
    if all(isinstance(s, Own) for s in states):
        return [own(operation.outputs[0])]
    numbers, (x, kernel) = operation.params["dimension_numbers"], states
    is_plain = isinstance(x, Examples) and x.axis == numbers.lhs_spec[0]
    if not is_plain or not isinstance(kernel, Own) or operation.params["batch_group_count"] != 1:
        raise Mixed("conv_general_dilated has examples elsewhere than in its batch")
    return [Examples(numbers.out_spec[0], x.inner)]


def gather(operation: Operation, states: list[State], n: int) -> list[State]:
    """Examples in the indices, in the operand, or in both side by side."""
    del n
    operand, indices = states
    if any(isinstance(s, Total) for s in states):
        raise Mixed("gather uses a sum over the batch")
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
    axis = operand.axis
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    if axis in gone or sizes[axis] != shape[axis]:
        raise Mixed("gather takes some of the examples")
    kept = [a for a in range(len(shape)) if a not in gone]
    return [Examples(numbers.offset_dims[kept.index(axis)], operand.inner)]


def dynamic_slices(operation: Operation, states: list[State], n: int) -> list[State]:
    """Parts at an offset that is the same for all examples; the axis of examples is whole."""
    arrays = 1 if operation.name == "dynamic_slice" else 2
    if not all(isinstance(s, Own) for s in states[arrays:]):
        raise Mixed(f"{operation.name} has another offset for every example")
    if any(isinstance(s, Total) for s in states):
        raise Mixed(f"{operation.name} uses a sum over the batch")
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


def scatter(operation: Operation, states: list[State], n: int) -> list[State]:
    """Updates at places that are the same for all examples, each update whole along their axis."""
    del n
    operand, indices, updates = states
    if all(isinstance(s, Own) for s in states):
        return [own(operation.outputs[0])]
    numbers = operation.params["dimension_numbers"]
    placed = [s for s in (operand, updates) if isinstance(s, Examples)]
    if not isinstance(indices, Own) or not placed or any(isinstance(s, Total) for s in states):
        raise Mixed(f"{operation.name} writes at another place for every example")
    shape, window = operation.inputs[0].shape, numbers.update_window_dims
    gone = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    kept = [axis for axis in range(len(shape)) if axis not in gone]
    to_operand = dict(zip(window, kept, strict=True))
    axis = operand.axis if isinstance(operand, Examples) else to_operand.get(updates.axis)
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


def each_by_itself(operation: Operation, states: list[State], n: int) -> list[State]:
    """Every result is the input of its place."""
    del operation, n
    return list(states)


def keys(operation: Operation, states: list[State], n: int) -> list[State]:
    """Random keys, what is drawn from them, bits: axes come and go behind those that stay."""
    del n
    state, out = states[0], operation.outputs[0]
    if isinstance(state, Own):
        return [own(out)]
    if isinstance(state, Total) or state.axis >= min(
        len(operation.inputs[0].shape), len(out.shape)
    ):
        raise Mixed(f"{operation.name} takes bits of more than one example")
    return [Examples(state.axis, state.inner)]


def iota(operation: Operation, states: list[State], n: int) -> list[State]:
    """0, 1, 2, ... along one axis."""
    del states, n
    out, dimension = operation.outputs[0], operation.params["dimension"]
    same = [axis for axis in range(len(out.shape)) if axis != dimension]
    return [own(out, same, counts=dimension)]


_padded = lambda operation, rank: [
    axis for axis, config in enumerate(operation.params["padding_config"]) if any(config)
]
_windowed = lambda operation, rank: [
    axis for axis, size in enumerate(operation.params["window_dimensions"]) if size != 1
]
_one = lambda name: lambda operation, rank: [operation.params[name] % rank]
_matrix = lambda operation, rank: [rank - 2, rank - 1]

_ELEMENTWISE = """abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e
    cbrt ceil clamp clz complex conj convert_element_type copy copy_p cos cosh digamma div eq eq_to
    erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igamma_grad_a igammac imag integer_pow
    is_finite le le_to lgamma log log1p logistic lt lt_to max min mul name ne neg nextafter not or
    polygamma population_count pow random_fold_in random_gamma real reduce_precision
    regularized_incomplete_beta rem round rsqrt select_n sharding_constraint shift_left
    shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient sub tan tanh
    threefry2x32 xor zeta""".split()

RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, elementwise),
    **dict.fromkeys(
        "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor argmax "
        "argmin".split(),
        reduction,
    ),
    **dict.fromkeys("cumsum cumprod cummax cummin cumlogsumexp".split(), along(_one("axis"))),
    **dict.fromkeys(
        "reduce_window reduce_window_sum reduce_window_max reduce_window_min".split(),
        along(_windowed),
    ),
    **dict.fromkeys("cholesky eigh lu qr svd triangular_solve".split(), along(_matrix)),
    "argsort": along(_one("dimension")),
    "broadcast_in_dim": broadcast,
    "concatenate": concatenate,
    "conv_general_dilated": convolution,
    "dot_general": dot,
    "dynamic_slice": dynamic_slices,
    "dynamic_update_slice": dynamic_slices,
    "expand_dims": reshape,
    "fft": along(lambda op, rank: range(rank - len(op.params["fft_lengths"]), rank)),
    "gather": gather,
    "iota": iota,
    "optimization_barrier": each_by_itself,
    "pad": along(_padded),
    "bitcast_convert_type": keys,
    "random_bits": keys,
    "random_seed": keys,
    "random_split": keys,
    "random_unwrap": keys,
    "random_wrap": keys,
    "reshape": reshape,
    "rev": along(lambda op, rank: op.params["dimensions"]),
    **dict.fromkeys("scatter scatter-add scatter-mul scatter-min scatter-max".split(), scatter),
    "slice": linear(slices),
    "sort": along(_one("dimension")),
    "split": along(_one("axis")),
    "squeeze": _moved(_squeezed),
    "stack": stack,
    "tile": tile,
    "top_k": along(lambda op, rank: [op.params.get("axis", -1) % rank]),
    "transpose": _moved(_transposed),
    "unstack": unstack,
}
