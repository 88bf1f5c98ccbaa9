"""Where a program uses each parameter: what of it depends on examples, and what on parameters.

The program is that of one example, to be run for all of them. Every value is of one of three
kinds: it depends on the example (*batched*), on parameters alone, or on neither. A value that
depends on parameters alone is a view of a parameter (its transpose, say), or any function of
several. A parameter is *used* where such a value meets a batched one. There the gradient of an
example comes about: from the other inputs of that operation and the cotangent of its result.

A parameter that is used once has all of its gradient from there. One that is used twice has two
terms, whose squares are not to be added.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax.numpy as jnp

from tensorgrad_jax.per_example.program import (
    Constant,
    Input,
    Operation,
    Program,
    Variable,
    body_of,
    parts_of,
    scan_counts,
)

_CHECKPOINTS = {"checkpoint", "remat", "remat2"}

# Views that hold every number of their input at most once. Their transposes carry the squares of
# the view's gradient to squares of the gradient.
_REARRANGING = {
    "copy",
    "copy_p",
    "convert_element_type",
    "expand_dims",
    "reshape",
    "rev",
    "slice",
    "squeeze",
    "transpose",
}


@dataclasses.dataclass(eq=False, frozen=True)
class Use:
    """An operation on parameters and examples.

    Attributes:
        operation: the operation.
        prelude: the operations that make its inputs from parameters, in order.
        leaves: the parameters that these inputs depend on, ascending.
        is_batched: which inputs depend on the example.
        is_parameter: which inputs depend on parameters.
    """

    operation: Operation
    prelude: tuple[Operation, ...]
    leaves: tuple[int, ...]
    is_batched: tuple[bool, ...]
    is_parameter: tuple[bool, ...]

    @property
    def rearranges(self) -> bool:
        """Whether one input holds one parameter, every number of it at most once."""
        return (
            len(self.leaves) == 1
            and sum(self.is_parameter) == 1
            and all(_rearranges(operation) for operation in self.prelude)
        )

    @property
    def differentiable_outputs(self) -> tuple[Variable, ...]:
        """The outputs that have cotangents."""
        return tuple(v for v in self.operation.outputs if is_inexact(v))


@dataclasses.dataclass(eq=False, frozen=True)
class Nested:
    """An operation that repeats a program, within which parameters are used.

    Attributes:
        body: the program and what is known of it. Its parameters are inputs of the operation.
        leaves: the parameter that every input of the body is, or None.
    """

    body: Analysis
    leaves: tuple[int | None, ...]


@dataclasses.dataclass(eq=False, frozen=True)
class Analysis:
    """A program, and which of its values depend on what.

    Attributes:
        program: the program of one example.
        parameters: the leaf that an input is.
        batched: the values that depend on the example.
        uses: the uses of parameters, by their operation.
        nested: the operations within which parameters are used.
        counts: how many uses every leaf has, those within nested programs included.
        ends: leaves on which an output of the program depends without any use.
    """

    program: Program
    parameters: Mapping[Variable, int]
    batched: frozenset[Variable]
    uses: Mapping[Operation, Use]
    nested: Mapping[Operation, Nested]
    counts: collections.Counter[int]
    ends: frozenset[int]

    def all_uses(self) -> list[Use]:
        """Return the uses, those within nested programs included."""
        nested = [use for inner in self.nested.values() for use in inner.body.all_uses()]
        return [*self.uses.values(), *nested]


def is_inexact(variable: Variable | Constant) -> bool:
    """Whether a value has a derivative."""
    return jnp.issubdtype(variable.aval.dtype, jnp.inexact)


def _rearranges(operation: Operation) -> bool:
    if len(operation.outputs) != 1 or not operation.inputs:
        return False
    source, out = operation.inputs[0], operation.outputs[0]
    if operation.name == "broadcast_in_dim":
        return source.shape != () and _size(source) == _size(out)
    return operation.name in _REARRANGING


def _size(atom: Input) -> int:
    return atom.aval.size


def analyse(
    program: Program,
    parameters: Mapping[Variable, int],
    batched: Iterable[Variable],
    open_loops: bool,
) -> Analysis:
    """Find the uses of parameters.

    Args:
        program: of one example.
        parameters: the leaf that an input is.
        batched: the inputs that depend on the example.
        open_loops: look for uses within loops over stacked parameters; each turn of the loop then
            uses a slice.
    """
    batched = set(batched)
    depends: dict[Input, frozenset[int]] = {
        v: frozenset([leaf]) for v, leaf in parameters.items() if is_inexact(v)
    }
    makers: dict[Variable, Operation] = {}
    uses, nested = {}, {}
    counts: collections.Counter[int] = collections.Counter()
    unopened = _Unopened(program)

    for operation in unopened:
        is_batched = tuple(atom in batched for atom in operation.inputs)
        is_parameter = tuple(atom in depends for atom in operation.inputs)
        leaves = frozenset().union(*(depends.get(a, ()) for a in operation.inputs))
        if operation.name == "stop_gradient":
            leaves = frozenset()
        makers.update(dict.fromkeys(operation.outputs, operation))
        if not any(is_batched):
            depends.update({v: leaves for v in operation.outputs if leaves and is_inexact(v)})
            continue
        if leaves and (parts := parts_of(operation)):
            unopened.open(operation, parts)
            continue
        inner = _nested(operation, parameters, is_batched, is_parameter, open_loops)
        if inner is not None:
            nested[operation] = inner
            for leaf, count in inner.body.counts.items():
                counts[leaf] += count
            flags = _outputs_batched(inner.body)
            batched.update(v for v, f in zip(operation.outputs, flags, strict=True) if f)
            continue
        batched.update(operation.outputs)
        if leaves and any(map(is_inexact, operation.outputs)):
            seeds = [a for a, p in zip(operation.inputs, is_parameter, strict=True) if p]
            prelude = _makers_of(seeds, depends, makers)
            uses[operation] = Use(
                operation, prelude, tuple(sorted(leaves)), is_batched, is_parameter
            )
            counts.update(leaves)

    program = unopened.result()
    ends = frozenset().union(*(depends.get(atom, ()) for atom in program.outputs))
    return Analysis(program, parameters, frozenset(batched), uses, nested, counts, ends)


class _Unopened:
    """The operations of a program in order, some of which are replaced by what they consist of."""

    def __init__(self, program: Program):
        self.program = program
        self.waiting = collections.deque(program.operations)
        self.done: list[Operation] = []
        self.constants = dict(program.constants)
        self.names: dict[Input, Input] = {}

    def __iter__(self) -> Iterator[Operation]:
        while self.waiting:
            operation = self.waiting.popleft()
            inputs = tuple(map(self._named, operation.inputs))
            if inputs != operation.inputs:
                operation = dataclasses.replace(operation, inputs=inputs)
            self.done.append(operation)
            yield operation

    def open(self, operation: Operation, parts: Program) -> None:
        """Go on with the parts of the operation that was the last."""
        self.done.pop()
        self.constants.update(parts.constants)
        self.names.update(zip(parts.inputs, operation.inputs, strict=True))
        self.names.update(zip(operation.outputs, parts.outputs, strict=True))
        self.waiting.extendleft(reversed(parts.operations))

    def result(self) -> Program:
        """Return the program with the parts in place of what was opened."""
        outputs = tuple(map(self._named, self.program.outputs))
        return Program(self.program.inputs, outputs, tuple(self.done), self.constants)

    def _named(self, atom: Input) -> Input:
        while atom in self.names:
            atom = self.names[atom]
        return atom


def _makers_of(seeds: Iterable[Input], depends, makers) -> tuple[Operation, ...]:
    """Return the operations that make values from parameters, in the order of the program."""
    found: dict[Operation, None] = {}

    def visit(atom):
        operation = makers.get(atom)
        if operation is None or operation in found:
            return
        for source in operation.inputs:
            if source in depends:
                visit(source)
        found[operation] = None

    for atom in seeds:
        visit(atom)
    return tuple(found)


def _outputs_batched(body: Analysis) -> list[bool]:
    return [atom in body.batched for atom in body.program.outputs]


def _nested(operation, parameters, is_batched, is_parameter, open_loops) -> Nested | None:
    """Return what is within a checkpoint or a loop, if its parameters can be followed into it."""
    # A value made of parameters is none of its inputs: the operation is then one use of them.
    own = [atom in parameters for atom in operation.inputs]
    if not any(is_parameter) or any(p and not o for p, o in zip(is_parameter, own, strict=True)):
        return None
    if operation.name in _CHECKPOINTS:
        body = body_of(operation)
        inner = _analysed_body(operation, body, parameters, is_batched, is_parameter, open_loops)
    elif operation.name == "scan" and open_loops:
        first = sum(scan_counts(operation))
        # What is used in every turn is used more than once.
        if any(is_parameter[:first]):
            return None
        body = body_of(operation)
        inner = _analysed_loop(operation, body, parameters, is_batched, is_parameter)
    else:
        return None
    # Parameters that leave the body without an example, as a function of themselves, would have to
    # be followed on from there.
    if inner.ends:
        return None
    return Nested(
        inner,
        tuple(
            parameters[atom] if p else None
            for atom, p in zip(operation.inputs, is_parameter, strict=True)
        ),
    )


def _analysed_body(
    operation, body, parameters, is_batched: Sequence[bool], is_parameter, open_loops
) -> Analysis:
    inner = {
        v: parameters[atom]
        for v, atom, p in zip(body.inputs, operation.inputs, is_parameter, strict=True)
        if p
    }
    batched = [v for v, b in zip(body.inputs, is_batched, strict=True) if b]
    return analyse(body, inner, batched, open_loops)


def _analysed_loop(operation, body, parameters, is_batched, is_parameter) -> Analysis:
    """Analyse the body of a scan: a carry that one turn makes batched enters the next so."""
    n_consts, n_carry = scan_counts(operation)
    flags = list(is_batched)
    while True:
        # A loop within this one would need one probe per turn of both.
        inner = _analysed_body(operation, body, parameters, flags, is_parameter, False)
        carry = _outputs_batched(inner)[:n_carry]
        merged = [a or b for a, b in zip(flags[n_consts : n_consts + n_carry], carry, strict=True)]
        if merged == flags[n_consts : n_consts + n_carry]:
            return inner
        flags[n_consts : n_consts + n_carry] = merged
