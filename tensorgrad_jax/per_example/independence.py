"""Is the gradient of an example that of this example alone?

`fun` is called with one example at a time. That is the same function only if, on a whole batch, it
is the mean (or the sum) of what it is on each example: not with a normalisation by the batch's
statistics, a loss that compares examples, a mask whose total is divided by. So it is traced with
the whole batch as well, and the examples are followed through every primitive to the result.
What cannot be followed is refused, by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from tensorgrad_jax.per_example.axis_rules import RULES
from tensorgrad_jax.per_example.batch_axis import (
    Examples,
    Mixed,
    Own,
    Placed,
    State,
    Total,
    need_same,
    of_total,
    own,
)
from tensorgrad_jax.per_example.program import Constant, Operation, Program, program_of, scan_counts

_ADVICE = "If you know that examples are independent all the same, say check_independence=False"


def check_independent(
    traced: Callable[[int], Program],
    parameters: Sequence[str],
    n: int,
    loss_reduction: str | None = None,
) -> None:
    """Raise unless a function of n examples is the mean or sum of a function of each.

    Args:
        traced: returns the program of a number of examples: inputs are parameters, then arrays
            with the examples along axis 0.
        parameters: names of the inputs that are parameters.
        n: number of examples.
        loss_reduction: "mean" or "sum"; None: either.

    Raises:
        ValueError: if examples are not independent, or cannot be shown to be. It names the
            primitive that mixes them and the parameters that were the last to be used before it.
    """
    if n == 1:
        return
    program = traced(n)
    states: list[State] = [own(v) for v in program.inputs[: len(parameters)]]
    states += [Examples(0) for _ in program.inputs[len(parameters) :]]
    try:
        (out,) = _Followed(n).outputs(program, _twice(traced, n), states)
        if loss_reduction is not None:
            _check_kind(out, loss_reduction)
    except Mixed as found:
        last = _last_used(program, found.operation, parameters)
        where = f", after parameter {' and '.join(last)}" if last else ""
        raise ValueError(
            f"per_example: examples of the batch are not independent: {found}{where}. {_ADVICE}"
        ) from None


def _last_used(
    program: Program, operation: Operation | None, parameters: Sequence[str]
) -> list[str]:
    """Return the parameters that the last operation before this one took, of those it rests on."""
    names = dict(zip(program.inputs, parameters, strict=False))
    if operation is None:
        return []
    needed: set[Any] = set(operation.inputs)
    before = program.operations[: program.operations.index(operation)]
    for maker in reversed(before):
        found = [names[atom] for atom in maker.inputs if atom in names]
        if needed.isdisjoint(maker.outputs):
            continue
        if found:
            return found
        needed.update(maker.inputs)
    return []


def _twice(traced: Callable[[int], Program], n: int) -> Program:
    try:
        return traced(2 * n)
    except (TypeError, ValueError) as error:
        raise Mixed(f"fun takes batches of {n} alone ({error})") from error


def _check_kind(out: State, loss_reduction: str) -> None:
    """Raise unless the result is the mean or the sum that it should be."""
    if isinstance(out, Own):
        if out.knows_n or loss_reduction == "sum":
            raise Mixed("the result depends on their number alone")
        return
    assert isinstance(out, Total)  # a scalar has no axis of examples
    if out.power != {"mean": 1, "sum": 0}[loss_reduction]:
        kind = {0: "sum", 1: "mean"}.get(out.power, "sum over a power of the number")
        raise Mixed(f"loss_reduction is {loss_reduction!r} but fun returns the {kind} of them")
    if out.shifted and loss_reduction == "sum":
        raise Mixed("fun adds something without examples to their sum, which belongs to none")


class _Followed:
    """Programs of n and of 2 n examples, followed side by side: what depends on n shows."""

    def __init__(self, n: int):
        self.n = n

    def outputs(self, program: Program, twice: Program, states: Sequence[State]) -> list[State]:
        """Return where the examples are in the outputs of a program."""
        if [a.name for a in program.operations] != [b.name for b in twice.operations]:
            raise Mixed("with more of them, fun is another program")
        known = dict(zip(program.inputs, states, strict=True))
        for a, b in zip(program.constants.items(), twice.constants.items(), strict=True):
            known[a[0]] = own(a[0], knows_n=not _equal(a[1], b[1]))

        def state(atom) -> State:
            return own(atom) if isinstance(atom, Constant) else known[atom]

        for a, b in zip(program.operations, twice.operations, strict=True):
            try:
                outs = self._step(a, b, [state(atom) for atom in a.inputs])
            except Mixed as found:
                found.operation = a  # of the outermost program, which is the last to come by
                raise
            known.update(zip(a.outputs, outs, strict=True))
        return [state(atom) for atom in program.outputs]

    def _step(self, operation: Operation, twice: Operation, ins: list[State]) -> list[State]:
        name = operation.name
        if name in _CALLS:
            return _CALLS[name](self, operation, twice, ins)
        seen = ins[:2] if name == "select_n" and isinstance(ins[0], Own) and ins[0].is_zero else ins
        changed = _changed_constant(operation, twice)
        if all(isinstance(s, Own) for s in ins):
            outs = RULES[name](operation, _placed(ins), self.n) if name in RULES else ()
            outs = [s for s in outs if isinstance(s, Own)] or [own(v) for v in operation.outputs]
            known = any(isinstance(s, Own) and s.knows_n for s in seen)
            if len(seen) == len(ins):
                known = known or changed is not None or _counts_examples(operation, twice)
            return [dataclasses.replace(s, knows_n=known) for s in outs]
        if name == "optimization_barrier":
            return ins
        if any(isinstance(s, Own) and s.knows_n for s in ins):
            raise Mixed(f"{name} combines them with something that depends on their number")
        if name not in RULES:
            raise Mixed(f"nothing is known of the primitive {name}")
        if any(isinstance(s, Total) for s in ins):
            outs = [of_total(operation, ins)] * len(operation.outputs)
        else:
            outs = RULES[name](operation, _placed(ins), self.n)
        return list(outs) if changed is None else [_rescaled(operation, s, changed) for s in outs]

    def body(self, operation: Operation, twice: Operation, name: str, ins: Sequence[State]):
        """Follow a program that an operation holds."""
        return self.outputs(_body(operation.params[name]), _body(twice.params[name]), ins)


def _placed(states: Sequence[State]) -> list[Placed]:
    return [s for s in states if not isinstance(s, Total)]


def _rescaled(operation: Operation, out: State, ratio: float) -> State:
    """Return a sum over examples divided once more by their number."""
    scales = operation.name == "mul" or operation.name == "div"
    powers = {0.5: 1, 2.0: -1} if operation.name == "mul" else {2.0: 1, 0.5: -1}
    if not isinstance(out, Total) or not scales or out.shifted or ratio not in powers:
        raise Mixed(f"{operation.name} uses their number otherwise than to divide their sum")
    return Total(out.power + powers[ratio])


def _changed_constant(operation: Operation, twice: Operation) -> float | None:
    """Return the ratio of constants that differ with the number of examples; None if none does."""
    for x, y in zip(operation.inputs, twice.inputs, strict=True):
        if isinstance(x, Constant) and isinstance(y, Constant) and not _equal(x.value, y.value):
            return float(np.asarray(y.value) / np.asarray(x.value)) if not x.shape else float("nan")
    return None


def _counts_examples(operation: Operation, twice: Operation) -> bool:
    """Whether an axis as long as the batch goes into something that does not have one."""
    shapes = lambda atoms: [atom.shape for atom in atoms]
    return shapes(operation.inputs) != shapes(twice.inputs) and shapes(operation.outputs) == shapes(
        twice.outputs
    )


def _equal(x: Any, y: Any) -> bool:
    """Whether two constants are equal, as far as they can be looked at."""
    if x is y:
        return True
    try:
        x, y = np.asarray(x), np.asarray(y)
    except (TypeError, jax.errors.TracerArrayConversionError):
        return jnp.shape(x) == jnp.shape(y)
    return x.shape == y.shape and bool(np.all((x == y) | ((x != x) & (y != y))))


def _body(jaxpr) -> Program:
    return program_of(jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else core.ClosedJaxpr(jaxpr, ()))


def _call(followed: _Followed, operation, twice, ins: list[State]) -> list[State]:
    name = "call_jaxpr" if "call_jaxpr" in operation.params else "jaxpr"
    return followed.body(operation, twice, name, ins)


def _branches(followed: _Followed, operation, twice, ins: list[State]) -> list[State]:
    if not isinstance(ins[0], Own):
        raise Mixed("cond chooses by the examples")
    pairs = zip(operation.params["branches"], twice.params["branches"], strict=True)
    results = [followed.outputs(_body(a), _body(b), ins[1:]) for a, b in pairs]
    out = results[0]
    for more in results[1:]:
        out = [
            _joined(operation, v, a, b)
            for v, a, b in zip(operation.outputs, out, more, strict=True)
        ]
    return out


def _joined(operation: Operation, atom, a: State, b: State) -> State:
    """The state of a value that is sometimes one and sometimes the other."""
    if isinstance(a, Own) and isinstance(b, Own):
        counts = a.counts if a.counts == b.counts else None
        return Own(a.same & b.same, counts, a.is_zero and b.is_zero, a.knows_n or b.knows_n)
    if isinstance(a, Own):
        a, b = b, a
    if isinstance(b, Own):
        if b.knows_n:
            raise Mixed(
                f"{operation.name} combines them with something that depends on their number"
            )
        if isinstance(a, Examples):
            need_same(operation, atom, b, a.axis)
            return a
        assert isinstance(a, Total)
        return Total(a.power, a.shifted or not b.is_zero)
    if a != b:
        raise Mixed(f"{operation.name} has examples in different places")
    return a


def _scan(followed: _Followed, operation, twice, ins: list[State]) -> list[State]:
    params = operation.params
    n_consts, n_carry = scan_counts(operation)
    first = n_consts + n_carry
    slices = [_slice_of(operation, s) for s in ins[first:]]
    body = _body(params["jaxpr"])
    step = lambda carry: followed.body(
        operation, twice, "jaxpr", [*ins[:n_consts], *carry, *slices]
    )
    carry, outs = _settled(operation, body.inputs[n_consts:first], ins[n_consts:first], step)
    stacked = []
    for v, s in zip(operation.outputs[n_carry:], outs[n_carry:], strict=True):
        if isinstance(s, Examples):
            stacked.append(Examples(s.axis + 1, s.inner))
        else:
            same = [] if isinstance(s, Total) else [a + 1 for a in s.same]
            stacked.append(s if isinstance(s, Total) else own(v, same, knows_n=s.knows_n))
    return [*carry, *stacked]


def _slice_of(operation: Operation, state: State) -> State:
    if isinstance(state, Examples):
        if state.axis == 0:
            raise Mixed("scan runs over the examples")
        return Examples(state.axis - 1, state.inner)
    if isinstance(state, Own):
        same = frozenset(a - 1 for a in state.same if a > 0)
        return Own(same, is_zero=state.is_zero, knows_n=state.knows_n)
    return state


def _while(followed: _Followed, operation, twice, ins: list[State]) -> list[State]:
    params = operation.params
    n_condition, n_consts = params["cond_nconsts"], params["body_nconsts"]
    consts = ins[n_condition : n_condition + n_consts]
    body = _body(params["body_jaxpr"])
    step = lambda carry: followed.body(operation, twice, "body_jaxpr", [*consts, *carry])
    variables = body.inputs[n_consts:]
    carry, _ = _settled(operation, variables, ins[n_condition + n_consts :], step)
    condition = [*ins[:n_condition], *carry]
    (goes_on,) = followed.body(operation, twice, "cond_jaxpr", condition)
    if not isinstance(goes_on, Own):
        raise Mixed("while ends by the examples")
    return carry


def _settled(operation, variables, carry: list[State], step):
    """Return the states of a loop's carry that a turn does not change, and those of its results."""
    # Every turn only takes knowledge away, axis by axis: this ends.
    while True:
        outs = step(carry)
        merged = [
            _joined(operation, v, a, b)
            for v, a, b in zip(variables, carry, outs[: len(carry)], strict=True)
        ]
        if merged == carry:
            return carry, outs
        carry = merged


_CALLS = {
    "checkpoint": _call,
    "cond": _branches,
    "custom_jvp_call": _call,
    "custom_vjp_call": _call,
    "custom_vjp_call_jaxpr": _call,
    "remat": _call,
    "remat2": _call,
    "scan": _scan,
    "while": _while,
}
