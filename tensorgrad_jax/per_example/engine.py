"""Value, gradient, and a reduction of the gradients of all examples: the entrance."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from tensorgrad_jax.per_example.chunks import CHUNK_NUMBERS, chunk_size, numbers_of
from tensorgrad_jax.per_example.exact import added, exact
from tensorgrad_jax.per_example.fast import Taps, evaluate, how
from tensorgrad_jax.per_example.independence import check_independent
from tensorgrad_jax.per_example.program import trace
from tensorgrad_jax.per_example.reductions import Leaf, Reduction
from tensorgrad_jax.per_example.uses import Analysis, Use, analyse

Method = Literal["exact", "fast", "auto"]
LossReduction = Literal["mean", "sum"]


class Row(NamedTuple):
    """How the gradients of one parameter are reduced.

    Attributes:
        path: the parameter.
        shape: its shape.
        method: "fast" or "exact".
        uses: the primitives that use it.
        how: which rule reduces them, or why none does.
        cost: what that takes beyond the gradient itself.
    """

    path: str
    shape: tuple[int, ...]
    method: str
    uses: tuple[str, ...]
    how: str
    cost: str


def per_example(
    fun: Callable[..., Any],
    reduction: Reduction,
    argnums: int | Sequence[int] = 0,
    batch_argnums: int | Sequence[int] = 1,
    microbatch_size: int | None = None,
    method: Method = "auto",
    *,
    loss_reduction: LossReduction = "mean",
    check_independence: bool = True,
) -> Callable[..., tuple[Array, Any, Any]]:
    r"""Return a function that gives value, gradient and a reduction of all examples' gradients.

    With N examples b_n, and l_n = fun(params, batch of b_n alone),

        value = 1/N sum_n l_n,   gradient = 1/N sum_n g_n,   reduction of g_1 ... g_N,
        g_n = d l_n / d params,

    and no more than a few of the g_n exist at a time.

    Args:
        fun: maps parameters and a batch to the mean (or sum) of its examples' losses, a real
            scalar. It is called with batches of one example and must not need others.
        reduction: what becomes of the gradients: `Squares`, `Project`, `InSubspace`, `Stack`.
        argnums: which arguments of `fun` hold parameters: one, or several.
        batch_argnums: which hold examples, along axis 0 of every array.
        microbatch_size: where gradients of examples are formed, of how many at a time; None: of
            so many (or of all with respect to so much of a parameter) that they hold about 4
            million numbers.
        method: "exact": gradients of a few examples at a time. "fast": one backward pass, in which
            every operation that uses a parameter reduces its gradients; raises where a parameter
            is used more than once. "auto": fast, and exact for the parameters that it cannot do.
        loss_reduction: "mean", or "sum" for a `fun` that adds up its examples: value and gradient
            are then those of the sum.
        check_independence: trace `fun` with the whole batch as well, and raise unless the gradient
            of an example provably depends on that example alone. False: you know that it does.

    Returns:
        A function of the arguments of `fun` that returns (value, gradient, reduction). It can be
        jitted.

    Raises:
        ValueError: if an argument is not one of these; when called, if parameters or batch do not
            fit, if examples are not independent, or with "fast" if a parameter is used in a way
            that it does not know. The message names the parameter or the primitive.

    Examples:
        >>> import jax.numpy as jnp
        >>> from tensorgrad_jax.per_example import Squares, per_example
        >>> loss = lambda w, batch: jnp.mean(batch @ w)
        >>> batch = jnp.array([[1.0, 2.0], [3.0, -2.0]])
        >>> value, gradient, squares = per_example(loss, Squares())(jnp.ones(2), batch)
        >>> gradient.tolist(), squares.round(5).tolist()
        ([2.0, 0.0], [5.0, 4.0])
    """
    setting = _setting(fun, reduction, argnums, batch_argnums, microbatch_size, method)
    _check_choice("loss_reduction", loss_reduction, ("mean", "sum"))

    def reduced(*arguments):
        problem = setting.problem(arguments)
        if check_independence:
            problem.check_independent(loss_reduction)
        total, gradients, result = problem.solved(loss_reduction == "mean")
        return total, jax.tree.unflatten(problem.structure, gradients), result

    return reduced


def report(
    fun: Callable[..., Any],
    reduction: Reduction,
    argnums: int | Sequence[int] = 0,
    batch_argnums: int | Sequence[int] = 1,
    method: Method = "auto",
    check_independence: bool = True,
) -> Callable[..., list[Row]]:
    """Return a function that says how `per_example` would do each parameter, and computes nothing.

    Args:
        fun: see `per_example`.
        reduction: see `per_example`.
        argnums: see `per_example`.
        batch_argnums: see `per_example`.
        method: see `per_example`.
        check_independence: see `per_example`; both sums and means pass.

    Returns:
        A function of the arguments of `fun`, or of their shapes and dtypes, that returns a row
        per parameter.
    """
    setting = _setting(fun, reduction, argnums, batch_argnums, None, method)

    def rows(*arguments):
        problem = setting.problem(arguments)
        if check_independence:
            problem.check_independent()
        return problem.rows()

    return rows


def _check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"per_example: {name} must be one of {allowed}, got {value!r}")


def _setting(fun, reduction, argnums, batch_argnums, microbatch_size, method) -> _Setting:
    if not callable(fun):
        raise ValueError(f"per_example: fun must be callable, got {fun!r}")
    if not isinstance(reduction, Reduction):
        raise ValueError(f"per_example: reduction must be a Reduction, got {reduction!r}")
    _check_choice("method", method, ("exact", "fast", "auto"))
    if microbatch_size is not None and (not _is_int(microbatch_size) or microbatch_size < 1):
        raise ValueError(
            f"per_example: microbatch_size must be a positive integer or None, "
            f"got {microbatch_size!r}"
        )
    chosen = {}
    for name, value in (("argnums", argnums), ("batch_argnums", batch_argnums)):
        numbers = value if isinstance(value, Sequence) else (value,)
        if not numbers or not all(_is_int(i) and i >= 0 for i in numbers):
            raise ValueError(
                f"per_example: {name} must be an argument's number or several, got {value!r}"
            )
        chosen[name] = tuple(numbers)
    if set(chosen["argnums"]) & set(chosen["batch_argnums"]):
        raise ValueError(
            f"per_example: an argument holds parameters or examples, got argnums={argnums!r} and "
            f"batch_argnums={batch_argnums!r}"
        )
    one = not isinstance(argnums, Sequence)
    numbers = (chosen["argnums"], chosen["batch_argnums"])
    return _Setting(fun, reduction, *numbers, one, microbatch_size, method)


def _refusal(row: Row, reduction: Reduction) -> str:
    where = f"parameter {row.path}: {row.how} (primitives: {', '.join(row.uses) or 'none'})"
    if reduction.of_terms:
        return f"per_example: granularity 'token' cannot do {where}; 'example' can"
    return f"per_example: method 'fast' cannot do {where}; 'auto' and 'exact' can"


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclasses.dataclass(frozen=True)
class _Setting:
    """The arguments of `per_example`, checked."""

    fun: Callable[..., Any]
    reduction: Reduction
    argnums: tuple[int, ...]
    batch_argnums: tuple[int, ...]
    one_argument: bool
    microbatch_size: int | None
    method: str

    def problem(self, arguments: Sequence[Any]) -> _Problem:
        """Return the problem that arguments of `fun` are, or raise."""
        highest = max(*self.argnums, *self.batch_argnums)
        if len(arguments) <= highest:
            raise ValueError(
                f"per_example: argnums={self.argnums} and batch_argnums={self.batch_argnums} need "
                f"{highest + 1} arguments, got {len(arguments)}"
            )
        params: Any = tuple(arguments[i] for i in self.argnums)
        params = params[0] if self.one_argument else params
        paths, structure = jax.tree_util.tree_flatten_with_path(params)
        leaves, offset = [], 0
        for path, value in paths:
            aval = jax.typeof(value) if not isinstance(value, jax.ShapeDtypeStruct) else value
            name = jax.tree_util.keystr(path) or "the parameter"
            if not jnp.issubdtype(aval.dtype, jnp.inexact):
                raise ValueError(
                    f"per_example: {name} of dtype {aval.dtype} has no gradient; parameters must "
                    "be floating-point or complex"
                )
            leaves.append(Leaf(name, tuple(aval.shape), aval.dtype, offset))
            offset += leaves[-1].size
        if not leaves:
            raise ValueError(f"per_example: arguments {self.argnums} hold no parameters")
        values = [value for _, value in paths]
        batch = [arguments[i] for i in self.batch_argnums]
        arrays, batch_structure = jax.tree.flatten(batch)
        return _Problem(
            self, arguments, leaves, values, structure, arrays, batch_structure, _count(batch)
        )


def _count(batch: Any) -> int:
    """Return the number of examples, or raise."""
    sizes = {}
    for path, x in jax.tree_util.tree_flatten_with_path(batch)[0]:
        name = f"batch{jax.tree_util.keystr(path)}"
        shape = jnp.shape(x)
        if not shape:
            raise ValueError(f"per_example: {name} is a scalar; examples lie along axis 0")
        sizes[name] = shape[0]
    if not sizes:
        raise ValueError("per_example: the batch holds no arrays")
    if len(set(sizes.values())) > 1:
        raise ValueError(f"per_example: arrays of the batch differ in their axis 0: {sizes}")
    n = next(iter(sizes.values()))
    if n == 0:
        raise ValueError("per_example: the batch holds no examples")
    return n


@dataclasses.dataclass(frozen=True)
class _Problem:
    """One call: parameters, examples, and the loss of one of them."""

    setting: _Setting
    arguments: Sequence[Any]
    leaves: list[Leaf]
    values: list[Any]
    structure: Any
    batch: list[Any]
    batch_structure: Any
    n: int

    def loss(self, values: Sequence[Any], batch: Sequence[Any]) -> Array:
        """Call `fun`."""
        setting, arguments = self.setting, list(self.arguments)
        params = jax.tree.unflatten(self.structure, values)
        for i, value in zip(
            setting.argnums, (params,) if setting.one_argument else params, strict=True
        ):
            arguments[i] = value
        examples = jax.tree.unflatten(self.batch_structure, batch)
        for i, value in zip(setting.batch_argnums, examples, strict=True):
            arguments[i] = value
        out = setting.fun(*arguments)
        if jnp.shape(out) or not jnp.issubdtype(jnp.result_type(out), jnp.floating):
            raise ValueError(
                f"per_example: fun must return a real scalar, got {jax.tree.map(jax.typeof, out)}"
            )
        return out

    def traced(self, n: int):
        """Return the program of n examples."""
        values = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in self.leaves]
        batch = [jax.ShapeDtypeStruct((n, *x.shape[1:]), x.dtype) for x in self.batch]
        return trace(self.loss, values, batch)[0]

    def check_independent(self, loss_reduction: LossReduction | None = None) -> None:
        """Raise if the gradient of an example depends on others, or may."""
        names = [leaf.path for leaf in self.leaves]
        check_independent(self.traced, names, self.n, loss_reduction)

    def analysis(self) -> Analysis:
        """Return the program of one example and its uses of parameters."""
        try:
            program = self.traced(1)
        except (TypeError, ValueError) as error:
            raise ValueError(f"per_example: fun cannot take a batch of one: {error}") from error
        parameters = {v: i for i, v in enumerate(program.inputs[: len(self.leaves)])}
        reduction = self.setting.reduction
        open_loops = reduction.elementwise and not reduction.rows
        return analyse(program, parameters, program.inputs[len(self.leaves) :], open_loops)

    def rows(self) -> list[Row]:
        """Return how each parameter is done."""
        return self._rows(self.analysis())

    def _rows(self, analysis: Analysis) -> list[Row]:
        uses = analysis.all_uses()
        return [self._row(i, leaf, analysis, uses) for i, leaf in enumerate(self.leaves)]

    def _row(self, i: int, leaf: Leaf, analysis: Analysis, uses: list[Use]) -> Row:
        own = [use for use in uses if i in use.leaves]
        names = tuple(use.operation.name for use in own)
        again = "another pass, all examples' gradients a few at a time"
        slow = lambda why: Row(leaf.path, leaf.shape, "exact", names, why, again)
        if self.setting.method == "exact":
            return slow("asked for")
        if i in analysis.ends:
            return slow("the result depends on it without any example")
        if not own:
            why = "unused: its gradients are zero"
            return Row(leaf.path, leaf.shape, "fast", names, why, "nothing")
        if len(own) > 1:
            return slow(f"used {len(own)} times")
        rule = how(own[0], leaf, self._taps([i]))
        if rule is None:
            return slow(f"no rule for {names[0]}")
        if rule.startswith("factors"):
            return Row(leaf.path, leaf.shape, "fast", names, rule, "products with its factors")
        if "slab" in rule:
            cost = f"{self.n} gradients of {CHUNK_NUMBERS // self.n} of {leaf.size} numbers"
            return Row(leaf.path, leaf.shape, "fast", names, rule, cost)
        by_rule = rule.startswith("squares")
        most = numbers_of(self.setting.reduction.rows)
        size = chunk_size(self.n, leaf.size, self.setting.microbatch_size, most)
        some = f"{size} of {self.n} gradients of {leaf.size} numbers at a time"
        cost = f"one more {names[0]}, of squares" if by_rule else some
        return Row(leaf.path, leaf.shape, "fast", names, rule, cost)

    def solved(self, mean: bool) -> tuple[Array, list[Array], Any]:
        """Return the sum, or mean, of losses, of gradients, and the reduction."""
        reduction, method = self.setting.reduction, self.setting.method
        if reduction.of_terms and method == "exact":
            raise ValueError(
                "per_example: method 'exact' knows no terms of gradients; granularity 'token' "
                "needs 'fast' or 'auto'"
            )
        operands = reduction.operands(self.leaves, self.structure)
        values = [jnp.asarray(value) for value in self.values]
        batch = [jnp.asarray(x) for x in self.batch]
        if method == "exact":
            every = range(len(self.leaves))
            total, gradients, parts = self._exact(values, batch, operands, every)
            if mean:
                total, gradients = total / self.n, [g / self.n for g in gradients]
        else:
            analysis = self.analysis()
            rows = self._rows(analysis)
            slow = [i for i, row in enumerate(rows) if row.method == "exact"]
            if slow and (method == "fast" or reduction.of_terms):
                raise ValueError(_refusal(rows[slow[0]], reduction))
            fast = [i for i in range(len(rows)) if i not in slow]
            total, gradients, parts = self._fast(analysis, values, batch, operands, fast, mean)
            if slow:
                more = self._exact(values, batch, operands, slow)[2]
                if reduction.adds_leaves:
                    # Both are sums over leaves; which leaf they are filed under means nothing.
                    sums = [*parts.values(), *more.values()]
                    parts, more = added(dict(enumerate(sums))), {}
                parts = {**parts, **more}
        results = [parts[i] for i in sorted(parts)]
        return total, gradients, reduction.combine(results, self.structure, self.n)

    def _exact(self, values, batch, operands, reduced):
        setting = self.setting
        return exact(
            self.loss,
            values,
            batch,
            setting.reduction,
            self.leaves,
            operands,
            list(reduced),
            setting.microbatch_size,
        )

    def _fast(self, analysis, values, batch, operands, reduced, mean):
        reduction = self.setting.reduction
        dtypes = [jnp.result_type(x) for x in (*values, *batch)]
        narrow = any(jnp.issubdtype(d, jnp.inexact) and jnp.finfo(d).bits < 32 for d in dtypes)
        # Losses that begin with 1/n make means without a pass over gradients. Features of examples
        # are to have the gradients' own bits; in half precision 1/n may be no number.
        first = mean and not narrow and reduction.weight(self.n) != 1.0
        factor = 1 / self.n if first else 1.0
        taps = dataclasses.replace(self._taps(reduced), scale=reduction.weight(self.n) / factor)
        examples = [x[:, None] for x in batch]

        def summed(values, probes):
            every = dict.fromkeys(reduced, probes.get(0)) if reduction.adds_leaves else probes
            inputs = [*values, *examples]
            (losses,) = evaluate(analysis, inputs, every, dict(enumerate(operands)), taps)
            wide = jnp.promote_types(jnp.result_type(losses), jnp.float32)
            losses = jnp.asarray(losses, wide)
            total = losses.sum() if losses.shape else self.n * losses
            return total * factor if first else total

        probed = [0] if reduction.adds_leaves and reduced else reduced
        probes = {i: self._probe(operands, i) for i in probed}
        total, (gradients, parts) = jax.value_and_grad(summed, (0, 1))(values, probes)
        if mean and not first:
            total, gradients = total / self.n, [g / self.n for g in gradients]
        return total, gradients, parts

    def _taps(self, reduced: Sequence[int]) -> Taps:
        setting = self.setting
        return Taps(
            setting.reduction, self.leaves, frozenset(reduced), self.n, setting.microbatch_size
        )

    def _probe(self, operands, i: int) -> Any:
        """Return zeros like the reduction of one parameter."""
        leaf, reduction = self.leaves[i], self.setting.reduction
        gradients = jax.ShapeDtypeStruct((self.n, *leaf.shape), leaf.dtype)
        struct = jax.eval_shape(lambda g: reduction.reduce(leaf, operands[i], g), gradients)
        return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), struct)
