"""One backward pass that reduces the gradients of all examples on its way.

The program of one example is run for all of them, operation by operation. The result of every
operation that uses parameters passes through a *tap*: an identity whose derivative rule, when the
backward pass reaches it, has the cotangent of the result and the inputs of the operation, and
returns their reduction as the cotangent of a *probe*, an input that nothing depends on. So the
gradient with respect to the probes is the reduction. Taps also work within checkpoints and loops,
where what a backward pass needs is computed again or stacked; nothing is kept for them.

Features come from the factors of a dense layer's gradient, or from the gradients of all examples
with respect to a slab of a parameter (`slabs`). A tap that has formed the gradients of some
examples to reduce them has their sum, too: there the gradient itself is taken from the tap, not
computed a second time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from tensorgrad_jax.backend.ordering import LARGE_BYTES, after
from tensorgrad_jax.backend.pieces import blank, over_pieces
from tensorgrad_jax.per_example.chunks import (
    CHUNK_NUMBERS,
    chunk_size,
    numbers_of,
    over_chunks,
)
from tensorgrad_jax.per_example.program import Operation, Variable, read, run, scan_counts
from tensorgrad_jax.per_example.reductions import Leaf, Reduction, Squares, weighted
from tensorgrad_jax.per_example.rules import Rule, positions_of_dot, rule_for, rule_for_terms
from tensorgrad_jax.per_example.slabs import Slabs, is_dense, outer_factors, slabs_of
from tensorgrad_jax.per_example.uses import Analysis, Nested, Use


@dataclasses.dataclass(frozen=True)
class Taps:
    """What taps need besides an operation's values.

    Attributes:
        reduction: the reduction.
        leaves: all parameters.
        reduced: the leaves that are reduced here.
        n: number of examples.
        microbatch_size: how many to differentiate at a time, or None.
        scale: what cotangents are multiplied by to be those of the gradients to reduce.
    """

    reduction: Reduction
    leaves: Sequence[Leaf]
    reduced: frozenset[int]
    n: int
    microbatch_size: int | None
    scale: float = 1.0


def how(use: Use, leaf: Leaf, taps: Taps) -> str | None:
    """Return in words how a use is reduced; None if it is not."""
    if taps.reduction.of_terms:
        return None if rule_for_terms(use) is None else "squares of terms"
    if isinstance(taps.reduction, Squares) and (rule := rule_for(use)):
        return f"squares of factors, {rule[1]}"
    if _is_outer(use, leaf, taps):
        return "factors of outer products"
    if _slabs(use, leaf, taps):
        return "all examples' gradients of a slab at a time"
    return "a few examples' gradients at a time"


def _is_outer(use: Use, leaf: Leaf, taps: Taps) -> bool:
    if not (taps.reduction.takes_outer(leaf) and is_dense(use, leaf.shape)):
        return False
    return taps.reduction.prefers_outer(leaf, positions_of_dot(use))


def _slabs(use: Use, leaf: Leaf, taps: Taps) -> Slabs | None:
    # Who says how many examples at a time has them.
    if not taps.reduction.takes_slabs or taps.microbatch_size is not None:
        return None
    return slabs_of(use, leaf.shape, taps.n, CHUNK_NUMBERS)


def evaluate(
    analysis: Analysis,
    inputs: Sequence[Any],
    probes: Mapping[int, Any],
    operands: Mapping[int, Any],
    taps: Taps,
) -> list[Any]:
    """Run the program for all examples; return its outputs.

    Args:
        analysis: the program and its uses.
        inputs: its inputs; those that depend on the example with an axis 0 of examples.
        probes: what the reductions of leaves are cotangents of.
        operands: the reduction's arrays, for every leaf.
        taps: what remains to be known.
    """
    values: dict[Variable, Any] = dict(analysis.program.constants)
    values.update(zip(analysis.program.inputs, inputs, strict=True))
    parameters = {leaf: variable for variable, leaf in analysis.parameters.items()}
    for operation in analysis.program.operations:
        ins = [read(values, atom) for atom in operation.inputs]
        is_batched = [atom in analysis.batched for atom in operation.inputs]
        if operation in analysis.nested:
            nested = analysis.nested[operation]
            repeat = _loop if operation.name == "scan" else _checkpoint
            outs = repeat(operation, nested, is_batched, ins, probes, operands, taps)
        elif operation in analysis.uses:
            use = analysis.uses[operation]
            outs = _tapped(use, ins, values, parameters, probes, operands, taps)
        elif any(is_batched):
            outs = operation.apply_to_examples(ins, is_batched)
        else:
            outs = operation.apply(*ins)
        values.update(zip(operation.outputs, outs, strict=True))
    return [read(values, atom) for atom in analysis.program.outputs]


def _tapped(use: Use, ins, values, parameters, probes, operands, taps: Taps):
    """Apply an operation on parameters, with a tap on its results."""
    tapped = [leaf for leaf in use.leaves if leaf in taps.reduced]
    batched = use.is_batched
    if not tapped:
        return use.operation.apply_to_examples(ins, batched)
    reduce = _from_factors(use, taps)
    if reduce is not None:
        outs = use.operation.apply_to_examples(ins, batched)
        leaf_values = {}
        kept = (ins, [])
    else:
        stopped = [
            jax.lax.stop_gradient(x) if p else x for x, p in zip(ins, use.is_parameter, strict=True)
        ]
        outs = use.operation.apply_to_examples(stopped, batched)
        reduce = _by_gradients(use, parameters, taps)
        leaf_values = {leaf: values[parameters[leaf]] for leaf in use.leaves}
        # Values made of parameters are made again from the parameters.
        others = [None if p else x for x, p in zip(ins, use.is_parameter, strict=True)]
        kept = (others, [values[v] for v in _outside(use, parameters)])

    own_probes = {leaf: probes[leaf] for leaf in tapped}
    own_operands = {leaf: operands[leaf] for leaf in tapped}
    with_cotangents = [v in use.differentiable_outputs for v in use.operation.outputs]
    tappable = [y for y, c in zip(outs, with_cotangents, strict=True) if c]
    results = iter(_tap(reduce, tappable, own_probes, leaf_values, own_operands, kept))
    return [next(results) if c else y for y, c in zip(outs, with_cotangents, strict=True)]


def _from_factors(use: Use, taps: Taps):
    """Return how to reduce from the operation's inputs and cotangent alone, or None.

    The gradient itself is then none of the tap's business.
    """
    leaf = taps.leaves[use.leaves[0]]
    if taps.reduction.of_terms:
        rule = rule_for_terms(use)
        return None if rule is None else _by_rule(use, rule, leaf, taps)
    if isinstance(taps.reduction, Squares) and (found := rule_for(use)):
        return _by_rule(use, found[0], leaf, taps)
    if _is_outer(use, leaf, taps):
        return _by_outer_products(use, leaf, taps.reduction)
    slabs = _slabs(use, leaf, taps)
    return None if slabs is None else _by_slabs(slabs, leaf, taps.reduction)


def _outside(use: Use, parameters) -> list[Variable]:
    """Return what the prelude of a use reads that is neither a parameter nor made within it."""
    made = {v for operation in use.prelude for v in operation.outputs}
    made.update(parameters[leaf] for leaf in use.leaves)
    sources = [atom for operation in use.prelude for atom in operation.inputs]
    return list(dict.fromkeys(v for v in sources if isinstance(v, Variable) and v not in made))


def _tap(reduce, outs, probes, leaf_values, operands, kept):
    """Return `outs`; the cotangents of probes and leaves are those that `reduce` returns.

    Args:
        reduce: maps (cotangents of outs, leaf values, operands, kept) to the cotangents of probes
            and of leaf values, and returns those of outs as they are.
        outs: results of an operation.
        probes: by leaf.
        leaf_values: the parameters whose gradient comes from here, by leaf.
        operands: the reduction's arrays, by leaf.
        kept: what else `reduce` needs.
    """

    @jax.custom_vjp
    def tap(outs, probes, leaf_values, operands, kept):
        del probes, leaf_values, operands, kept
        return outs

    def forward(outs, probes, leaf_values, operands, kept):
        del probes
        return outs, (leaf_values, operands, kept)

    def backward(rest, cotangents):
        probes, leaf_values, cotangents = reduce(cotangents, *rest)
        return cotangents, probes, leaf_values, None, None

    tap.defvjp(forward, backward)
    stop = lambda tree: jax.tree.map(
        lambda x: jax.lax.stop_gradient(x) if isinstance(x, jax.Array) else x, tree
    )
    return tap(outs, probes, leaf_values, stop(operands), stop(kept))


# A rule squares whole activations. Where these are larger than the parameter they are squared in
# up to so many parts, one after the other, so that the copies are small beside what a backward
# pass keeps anyway; each part adds to all of the result.
_PARTS = 8
# Activations of fewer numbers are squared whenever the compiler likes.
_SMALL = 2**16


def _by_rule(use: Use, rule: Rule, leaf: Leaf, taps: Taps):
    """Reduce to squares by a rule of the primitive, then through the view of the parameter."""
    index = use.leaves[0]

    def reduce(cotangents, leaf_values, operands, kept):
        del operands
        (ins, _), (d,) = kept, cotangents

        def squares_of(arrays):
            given = iter(arrays[0])
            values = [next(given) if b else x for x, b in zip(ins, use.is_batched, strict=True)]
            return rule(use, values, weighted(arrays[1], taps.scale))

        batched = [x for x, b in zip(ins, use.is_batched, strict=True) if b]
        if d.size <= _SMALL:
            squares = squares_of((batched, d))
        else:
            parts = min(_PARTS, d.size // max(1, leaf.size), len(d))
            squares = _in_parts(squares_of, after(batched, d, LARGE_BYTES), d, parts)
            # The backward pass goes on when this is done, else all of it would be left to the end.
            d = after(d, squares, LARGE_BYTES)
        struct = jax.ShapeDtypeStruct(leaf.shape, squares.dtype)
        pulled = jax.linear_transpose(lambda p: _viewed(use, p), struct)(squares)[0]
        return {index: pulled}, leaf_values, [d]

    return reduce


def _by_outer_products(use: Use, leaf: Leaf, reduction: Reduction):
    """Reduce the gradients of a dense layer from its input and cotangent."""
    index = use.leaves[0]

    def reduce(cotangents, leaf_values, operands, kept):
        (ins, _), (d,) = kept, cotangents
        left, right = outer_factors(use, leaf.shape, ins, d)
        return {index: reduction.reduce_outer(leaf, operands[index], left, right)}, leaf_values, [d]

    return reduce


def _by_slabs(slabs: Slabs, leaf: Leaf, reduction: Reduction):
    """Reduce the gradients of all examples with respect to a slab of the parameter at a time."""
    index = slabs.use.leaves[0]
    # The rows of the random matrix are those of the parameter in any shape.
    viewed = leaf._replace(shape=slabs.view.shape)

    def reduce(cotangents, leaf_values, operands, kept):
        (ins, _), (d,) = kept, cotangents

        def part(first, n):
            gradients = slabs.gradient(ins, d, first, n).astype(leaf.dtype)
            return reduction.reduce_slab(viewed, operands[index], gradients, slabs.axis, first)

        struct = jax.eval_shape(lambda: part(0, slabs.width))
        add = lambda first, n, total: total + part(first, n)
        total = blank(struct.shape, struct.dtype, d)
        total = over_pieces(add, viewed.shape[slabs.axis], slabs.width, total)
        return {index: total}, leaf_values, [d]

    return reduce


def _in_parts(function, batched, d, parts: int):
    """Return the sum of a function of some examples over parts of them."""
    if parts <= 1:
        return function((batched, d))
    struct = jax.eval_shape(function, (batched, d))

    def add(first, number, total):
        cut = lambda x: jax.lax.dynamic_slice_in_dim(x, first, number)
        return total + function(jax.tree.map(cut, (batched, d)))

    start = blank(struct.shape, struct.dtype, d)
    return over_pieces(add, len(d), -(-len(d) // parts), start)


def _viewed(use: Use, parameter: Array) -> Array:
    """The view of one parameter that an operation uses, whatever the dtype."""
    out = parameter
    for operation in use.prelude:
        if operation.name != "convert_element_type":
            (out,) = operation.apply(out)
    return out


def _by_gradients(use: Use, parameters, taps: Taps):
    """Differentiate the operation for a few examples at a time, and reduce their gradients."""
    operations = (*use.prelude, use.operation)
    numbers = sum(taps.leaves[leaf].size for leaf in use.leaves)
    most = numbers_of(taps.reduction.rows)
    size = chunk_size(taps.n, numbers, taps.microbatch_size, most)

    def reduce(cotangents, leaf_values, operands, kept):
        others, outside = kept

        def gradients(batched, cotangents):
            """The gradients of one example with respect to the leaves."""
            given = iter(batched)
            ins = [next(given) if b else x for x, b in zip(others, use.is_batched, strict=True)]

            def outputs(leaf_values):
                values = dict(zip(_outside(use, parameters), outside, strict=True))
                values.update({parameters[leaf]: x for leaf, x in leaf_values.items()})
                for atom, x in zip(use.operation.inputs, ins, strict=True):
                    if isinstance(atom, Variable) and x is not None:
                        values[atom] = x
                run(operations, values)
                return [values[v] for v in use.differentiable_outputs]

            return jax.vjp(outputs, leaf_values)[1](cotangents)[0]

        def chunk(arrays):
            g = jax.vmap(gradients)(*arrays)
            parts = {leaf: _reduced(taps, leaf, operands, g) for leaf in operands}
            sums = jax.tree.map(_wide_sum, g)
            return ((sums, {}), parts) if taps.reduction.rows else ((sums, parts), {})

        batched = [x for x, b in zip(others, use.is_batched, strict=True) if b]
        (sums, parts), rows = over_chunks(chunk, (batched, cotangents), taps.n, size)
        sums = {leaf: sums[leaf].astype(x.dtype) for leaf, x in leaf_values.items()}
        return (rows if taps.reduction.rows else parts), sums, cotangents

    return reduce


def _reduced(taps: Taps, leaf: int, operands, gradients):
    own = weighted(gradients[leaf], taps.scale)
    return taps.reduction.reduce(taps.leaves[leaf], operands[leaf], own)


def _wide_sum(g: Array) -> Array:
    return g.astype(jnp.promote_types(g.dtype, jnp.float32)).sum(0)


def _checkpoint(operation: Operation, nested: Nested, is_batched, ins, probes, operands, taps):
    """Evaluate a checkpoint's program under a checkpoint."""
    del is_batched
    body = nested.body

    def evaluated(ins, probes, operands):
        return evaluate(body, ins, probes, operands, taps)

    repeat = jax.checkpoint(
        evaluated,
        prevent_cse=operation.params["prevent_cse"],
        policy=operation.params["policy"],
    )
    return repeat(ins, *_own(nested, probes, operands))


def _own(nested: Nested, probes, operands):
    own = [leaf for leaf in nested.leaves if leaf is not None and leaf in probes]
    return {leaf: probes[leaf] for leaf in own}, {leaf: operands[leaf] for leaf in own}


def _loop(operation: Operation, nested: Nested, is_batched, ins, probes, operands, taps: Taps):
    """Evaluate a loop: a turn uses one slice of its parameters, and has that slice of probes."""
    params, body = operation.params, nested.body
    n_consts, n_carry = scan_counts(operation)
    first = n_consts + n_carry
    own_probes, own_operands = _own(nested, probes, operands)
    slices = [
        leaf._replace(shape=leaf.shape[1:]) if i in nested.leaves else leaf
        for i, leaf in enumerate(taps.leaves)
    ]
    inner = dataclasses.replace(taps, leaves=slices)

    def turn(carry, xs):
        xs, probes = xs
        outs = evaluate(body, [*ins[:n_consts], *carry, *xs], probes, own_operands, inner)
        carry = [_as(out, old) for out, old in zip(outs[:n_carry], carry, strict=True)]
        return carry, outs[n_carry:]

    into = [v in body.batched for v in body.program.inputs]
    carry = [
        jnp.broadcast_to(x, (taps.n, *x.shape)) if inside and not outside else x
        for x, inside, outside in zip(
            ins[n_consts:first], into[n_consts:first], is_batched[n_consts:first], strict=True
        )
    ]
    # Examples lie along axis 0 outside, turns do for the loop.
    xs = [
        jnp.moveaxis(x, 1, 0) if b else x
        for x, b in zip(ins[first:], is_batched[first:], strict=True)
    ]
    carry, ys = jax.lax.scan(
        turn,
        carry,
        (xs, own_probes),
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    out = [v in body.batched for v in body.program.outputs[n_carry:]]
    return [*carry, *(jnp.moveaxis(y, 0, 1) if b else y for y, b in zip(ys, out, strict=True))]


def _as(new: Any, old: Any) -> Any:
    """Return a carry that stayed the same for all examples in the shape of one that does not."""
    return new if new.shape == old.shape else jnp.broadcast_to(new, old.shape)
