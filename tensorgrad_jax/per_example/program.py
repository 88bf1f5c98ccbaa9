"""A traced function as a flat list of operations, each with variables of its own.

A jaxpr nests: a function that was jitted is one equation that holds another jaxpr, and two calls
share it, variables included. Here such calls are opened, so that "how often, and where, is this
parameter used?" is a question about one list.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
from jax.extend import core

from tensorgrad_jax.backend.derivatives import has_same_derivative

# Calls that only name a part of a program. Other operations that hold one (loops, checkpoints,
# functions with derivatives of their own) mean something and stay as they are; `parts_of` tells
# what may be opened all the same.
_OPENED = {"jit", "pjit", "closed_call", "core_call"}


@dataclasses.dataclass(eq=False, frozen=True)
class Variable:
    """One value of a program; two are the same only if they are the same object."""

    aval: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the value."""
        return self.aval.shape

    @property
    def dtype(self) -> Any:
        """Dtype of the value."""
        return self.aval.dtype


@dataclasses.dataclass(eq=False, frozen=True)
class Constant:
    """A number that stands in the program."""

    value: Any
    aval: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the number, () as a rule."""
        return self.aval.shape


Input = Variable | Constant


@dataclasses.dataclass(eq=False, frozen=True)
class Operation:
    """outputs = primitive(*inputs, **params)."""

    primitive: core.Primitive
    params: dict[str, Any]
    inputs: tuple[Input, ...]
    outputs: tuple[Variable, ...]

    @property
    def name(self) -> str:
        """Name of the primitive."""
        return self.primitive.name

    def apply(self, *values: Any) -> list[Any]:
        """Apply the primitive to values of the inputs."""
        out = self.primitive.bind(*values, **self.primitive.get_bind_params(self.params))
        return list(out) if self.primitive.multiple_results else [out]

    def apply_to_examples(self, values: Sequence[Any], is_batched: Sequence[bool]) -> list[Any]:
        """Apply it to every example: axis 0 of the values that are batched, and of all results."""
        if self.name == "dot_general" and list(is_batched) == [True, False]:
            rows = self._product_of_rows(*values)
            if rows is not None:
                return [rows]
        axes = tuple(0 if batched else None for batched in is_batched)
        return jax.vmap(self.apply, in_axes=axes)(*values)

    def _product_of_rows(self, x: Any, matrix: Any) -> Any:
        """Return the product of all examples' rows with one matrix, None where it is no such.

        Examples and rows are one axis then, and what is contracted in the gradient is this axis.
        Of two such axes, as `jax.vmap` would have it, XLA for CPUs makes one by transposing copies.
        """
        (contracted, _), (batches, _) = self.params["dimension_numbers"]
        rows = x.ndim - 1 - len(contracted)  # axes of an example that are not contracted
        trailing = list(contracted) == list(range(rows, x.ndim - 1))
        if batches or not trailing or self.params.get("out_sharding") is not None:
            return None
        merged = x.reshape(math.prod(x.shape[: 1 + rows]), *x.shape[1 + rows :])
        numbers = ((tuple(range(1, merged.ndim)), self.params["dimension_numbers"][0][1]), ((), ()))
        y = self.primitive.bind(merged, matrix, **{**self.params, "dimension_numbers": numbers})
        return y.reshape(*x.shape[: 1 + rows], *y.shape[1:])


@dataclasses.dataclass(eq=False, frozen=True)
class Program:
    """Operations in order, from inputs to outputs."""

    inputs: tuple[Variable, ...]
    outputs: tuple[Input, ...]
    operations: tuple[Operation, ...]
    constants: Mapping[Variable, Any]


def program_of(jaxpr: core.ClosedJaxpr, plain: bool = False) -> Program:
    """Return the program that a closed jaxpr is.

    Args:
        jaxpr: the closed jaxpr.
        plain: of what `jax.lax.platform_dependent` chooses between, take the default.
    """
    operations: list[Operation] = []
    constants: dict[Variable, Any] = {}

    def opened(jaxpr: core.ClosedJaxpr, inputs: Sequence[Input]) -> list[Input]:
        names: dict[Any, Input] = dict(zip(jaxpr.jaxpr.invars, inputs, strict=True))
        for var, value in zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True):
            names[var] = variable = Variable(var.aval)
            constants[variable] = value

        def read(atom):
            if isinstance(atom, core.Literal):
                return Constant(atom.val, atom.aval)
            return names[atom]

        for eqn in jaxpr.jaxpr.eqns:
            ins = [read(atom) for atom in eqn.invars]
            body = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
            default = _default_branch(eqn) if plain else None
            if default is not None:
                outs = opened(default, ins[1:])
            elif eqn.primitive.name in _OPENED and isinstance(body, core.ClosedJaxpr):
                outs = opened(body, ins)
            else:
                outs = [Variable(var.aval) for var in eqn.outvars]
                operations.append(Operation(eqn.primitive, eqn.params, tuple(ins), tuple(outs)))
            names.update(zip(eqn.outvars, outs, strict=True))
        return [read(atom) for atom in jaxpr.jaxpr.outvars]

    inputs = tuple(Variable(var.aval) for var in jaxpr.jaxpr.invars)
    outputs = opened(jaxpr, inputs)
    return Program(inputs, tuple(outputs), _needed(operations, outputs), constants)


def _default_branch(eqn) -> core.ClosedJaxpr | None:
    """Return what an equation computes on platforms that it does not name, if it names any."""
    platforms = eqn.params.get("branches_platforms")
    if eqn.primitive.name != "cond" or not platforms or None not in platforms:
        return None
    return eqn.params["branches"][platforms.index(None)]


def _needed(operations: Sequence[Operation], outputs: Sequence[Input]) -> tuple[Operation, ...]:
    """Return the operations that the outputs depend on."""
    wanted = set(outputs)
    kept = []
    for operation in reversed(operations):
        if not wanted.isdisjoint(operation.outputs):
            wanted.update(operation.inputs)
            kept.append(operation)
    return tuple(reversed(kept))


def body_of(operation: Operation) -> Program:
    """Return the program that a checkpoint or a scan repeats."""
    body = operation.params["jaxpr"]
    return program_of(body if isinstance(body, core.ClosedJaxpr) else core.ClosedJaxpr(body, ()))


def parts_of(operation: Operation) -> Program | None:
    """Return the program of a function whose own derivative is that of this program, else None."""
    if not has_same_derivative(operation.primitive, operation.params):
        return None
    return program_of(operation.params["call_jaxpr"], plain=True)


def read(values: Mapping[Variable, Any], atom: Input) -> Any:
    """Return the value of an input."""
    return atom.value if isinstance(atom, Constant) else values[atom]


def run(operations: Iterable[Operation], values: dict[Variable, Any]) -> None:
    """Apply operations in order, from and to `values`."""
    for operation in operations:
        outs = operation.apply(*(read(values, atom) for atom in operation.inputs))
        values.update(zip(operation.outputs, outs, strict=True))


def trace(function: Callable[..., Any], *arguments: Any) -> tuple[Program, Any]:
    """Trace a function; return its program, from flat arguments, and the structure of results."""
    jaxpr, out = jax.make_jaxpr(function, return_shape=True)(*arguments)
    return program_of(jaxpr), jax.tree.structure(out)


def scan_counts(operation: Operation) -> tuple[int, int]:
    """Return how many operands of a scan are constants of its body, and how many its carry."""
    params = operation.params
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    # Later versions of JAX keep the three groups of operands as a tree.
    consts, carry, _ = params["ft_in"].unpack()
    return len(list(consts)), len(list(carry))
