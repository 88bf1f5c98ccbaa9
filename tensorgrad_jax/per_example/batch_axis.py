"""Where the examples are in an array, and where every primitive puts them.

An array that depends on the examples holds them along one axis, perhaps together with what else a
reshape has put there: index = (o N + n) inner + i along that axis belongs to example n of N. A
rule says where the examples are in the results of a primitive, given where they are in its
inputs, or raises `Mixed` if the primitive lets one example act on another.

An array that does not depend on the examples may still hold something for each of them: the mask
of a dropout drawn for the whole batch, say. It may meet the examples only if it is the same along
their axis, which is why that is followed, too.

The rules stand in `axis_moves` (what moves arrays) and `axis_mixes` (what combines entries), their
table in `axis_rules`; elementwise primitives and sums over examples are here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from tensorgrad_jax.per_example.program import Constant, Input, Operation


class Mixed(ValueError):  # noqa: N818 -- a finding about the function, caught by its caller
    """A primitive lets examples act on each other, or is not known not to."""

    operation: Operation | None = None


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
# Rules know nothing of totals: what uses one is the same for all primitives (`of_total`).
Placed = Examples | Own
Rule = Callable[[Operation, list[Placed], int], Sequence[Placed | Total]]


def own(atom: Input, same: Sequence[int] = (), **rest: Any) -> Own:
    """Return the state of an array that is the same along these axes and those of size 1."""
    ones = [axis for axis, size in enumerate(atom.shape) if size == 1]
    if isinstance(atom, Constant) and not atom.shape:
        rest.setdefault("is_zero", bool(atom.value == 0))
    return Own(frozenset([*same, *ones]), **rest)


def elementwise(operation: Operation, states: list[Placed], n: int) -> Sequence[Placed | Total]:
    """Every entry of the results depends on the same entry of the inputs."""
    del n
    return [aligned(operation, states)] * len(operation.outputs)


def aligned(operation: Operation, states: Sequence[Placed]) -> Placed:
    """Return where the examples are in what several arrays of one shape are made into."""
    name, inputs = operation.name, operation.inputs
    placed = [s for s in states if isinstance(s, Examples)]
    if not placed:
        same = set(range(max((len(atom.shape) for atom in inputs), default=0)))
        for atom, state in zip(inputs, states, strict=True):
            if atom.shape and isinstance(state, Own):
                same &= own(atom, sorted(state.same)).same
        return Own(frozenset(same), *_counting(name, [s for s in states if isinstance(s, Own)]))
    first = placed[0]
    for atom, state in zip(inputs, states, strict=True):
        if isinstance(state, Own):
            if atom.shape:
                need_same(operation, atom, state, first.axis)
        elif (state.axis, state.inner) != (first.axis, first.inner):
            raise Mixed(f"{name} combines different examples")
    # Only a passage as it is keeps numbers of examples.
    return first if name in _PASSING else Examples(first.axis, first.inner)


_PASSING = {"convert_element_type", "copy", "copy_p", "stop_gradient"}


def _counting(name: str, states: Sequence[Own]) -> tuple[int | None, bool]:
    """Follow 0, 1, 2, ... through what indexing does to it: x < 0 ? x + N : x."""
    if name in _PASSING:
        return states[0].counts, states[0].is_zero
    if name == "lt" and states[0].counts is not None and states[1].is_zero:
        return None, True
    if name == "select_n" and states[0].is_zero:
        return states[1].counts, states[1].is_zero
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
    "dot_general",
    "expand_dims",
    "mul",
    "neg",
    "reduce_sum",
    "reshape",
    "slice",
    "squeeze",
    "stop_gradient",
    "sub",
    "transpose",
}


def of_total(operation: Operation, states: Sequence[State]) -> Total:
    """A linear function of sums over examples; no other function of them, and no example again."""
    name = operation.name
    totals = [s for s in states if isinstance(s, Total)]
    is_linear = name in _LINEAR and not any(isinstance(s, Examples) for s in states)
    if name in ("mul", "dot_general"):
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
