"""Value, gradient and mean of squared gradients; which parameter gets it how."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from tensorgrad_jax.per_example import Method, Row, Squares, per_example, report
from tensorgrad_jax.per_example.engine import LossReduction


def value_and_grads(
    fun: Callable[..., Any],
    argnums: int | Sequence[int] = 0,
    batch_argnums: int | Sequence[int] = 1,
    *,
    granularity: Literal["example", "token"] = "example",
    normalisation: Literal["mean", "backpack"] = "mean",
    method: Method = "auto",
    microbatch_size: int | None = None,
    loss_reduction: LossReduction = "mean",
    check_independence: bool = True,
    has_aux: bool = False,
) -> Callable[..., tuple[Any, Any, Any]]:
    """`jax.value_and_grad` with one more result: the mean of squared gradients of examples.

    Args:
        fun: maps parameters and a batch to the mean of its examples' losses, see `per_example`.
        argnums: which arguments of `fun` hold parameters.
        batch_argnums: which hold examples, along axis 0 of every array.
        granularity: see `Squares`; "token" is what the original computes for layers that act at
            several positions of an example.
        normalisation: see `Squares`; "backpack" is what BackPACK computes of a mean.
        method: see `per_example`.
        microbatch_size: see `per_example`.
        loss_reduction: see `per_example`.
        check_independence: see `per_example`.
        has_aux: `fun` returns (loss, anything else). What else there is comes from `fun` on the
            whole batch, as it is: it may mix examples. It costs a forward pass of its own, of
            what it depends on.

    Returns:
        A function of the arguments of `fun` that returns (value, gradient, squares), with
        `has_aux` ((value, aux), gradient, squares).

    Raises:
        ValueError: see `per_example`; with `has_aux`, if `fun` does not return a pair.

    Examples:
        >>> import jax.numpy as jnp
        >>> loss = lambda w, batch: (jnp.mean(batch @ w), batch @ w)
        >>> batch = jnp.array([[1.0, 2.0], [3.0, -2.0]])
        >>> (value, outputs), gradient, squares = value_and_grads(loss, has_aux=True)(
        ...     jnp.ones(2), batch)
        >>> outputs.tolist(), squares.round(5).tolist()
        ([3.0, 1.0], [5.0, 4.0])
    """
    reduced = per_example(
        _first_of(fun) if has_aux else fun,
        Squares(granularity, normalisation),
        argnums,
        batch_argnums,
        microbatch_size,
        method,
        loss_reduction=loss_reduction,
        check_independence=check_independence,
    )
    if not has_aux:
        return reduced

    def with_aux(*arguments):
        aux = _pair(fun(*arguments))[1]
        value, gradient, squares = reduced(*arguments)
        return (value, aux), gradient, squares

    return with_aux


def _first_of(fun: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments: _pair(fun(*arguments))[0]


def _pair(out: Any) -> tuple[Any, Any]:
    if not (isinstance(out, tuple) and len(out) == 2):
        raise ValueError(
            f"value_and_grads: with has_aux fun must return (loss, aux), got {type(out).__name__}"
        )
    return out


def coverage(
    fun: Callable[..., Any],
    *arguments: Any,
    argnums: int | Sequence[int] = 0,
    batch_argnums: int | Sequence[int] = 1,
    granularity: Literal["example", "token"] = "example",
    check_independence: bool = True,
    has_aux: bool = False,
) -> list[Row]:
    """Print how the squares of every parameter come about, and what that costs.

    Args:
        fun: see `value_and_grads`.
        *arguments: its arguments, or their shapes and dtypes; nothing is computed.
        argnums: see `value_and_grads`.
        batch_argnums: see `value_and_grads`.
        granularity: see `value_and_grads`.
        check_independence: see `per_example`.
        has_aux: see `value_and_grads`.

    Returns:
        The rows of the table.

    Raises:
        ValueError: if examples are not independent, as under batch normalisation in training.
    """
    fun = _first_of(fun) if has_aux else fun
    rows = report(
        fun,
        Squares(granularity),
        argnums,
        batch_argnums,
        check_independence=check_independence,
    )(*arguments)
    table = [("parameter", "shape", "method", "used by", "how", "cost")]
    table += [
        (r.path, str(r.shape), r.method, ", ".join(r.uses) or "-", r.how, r.cost) for r in rows
    ]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    for row in table:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
    return rows
