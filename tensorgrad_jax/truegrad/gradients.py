"""Value, gradient and mean of squared gradients; which parameter gets it how."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from jax import Array

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
) -> Callable[..., tuple[Array, Any, Any]]:
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

    Returns:
        A function of the arguments of `fun` that returns (value, gradient, squares).

    Raises:
        ValueError: see `per_example`.
    """
    return per_example(
        fun,
        Squares(granularity, normalisation),
        argnums,
        batch_argnums,
        microbatch_size,
        method,
        loss_reduction=loss_reduction,
        check_independence=check_independence,
    )


def coverage(
    fun: Callable[..., Any],
    *arguments: Any,
    argnums: int | Sequence[int] = 0,
    batch_argnums: int | Sequence[int] = 1,
    granularity: Literal["example", "token"] = "example",
) -> list[Row]:
    """Print how the squares of every parameter come about, and what that costs.

    Args:
        fun: see `value_and_grads`.
        *arguments: its arguments, or their shapes and dtypes; nothing is computed.
        argnums: see `value_and_grads`.
        batch_argnums: see `value_and_grads`.
        granularity: see `value_and_grads`.

    Returns:
        The rows of the table.
    """
    rows = report(fun, Squares(granularity), argnums, batch_argnums)(*arguments)
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
