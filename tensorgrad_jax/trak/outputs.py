"""What is attributed: a number per example, and how the loss depends on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@dataclasses.dataclass(frozen=True)
class ModelOutput:
    """A differentiable function of parameters and one example, and the weight of that example.

    Scores are positive where a training example helps the target: for margins as for losses.

    Attributes:
        output: f(params, example), a real scalar.
        weight: Q(params, example) = |d loss / d f|, a real scalar.
    """

    output: Callable[[Any, Any], Float[Array, ""]]
    weight: Callable[[Any, Any], Float[Array, ""]]


def margin(logits: Float[Array, " classes"], label: Any) -> Float[Array, ""]:
    """Return logit_y - logsumexp of the other logits = log(p_y / (1 - p_y))."""
    others = jnp.where(jnp.arange(logits.size) == label, -jnp.inf, logits)
    return logits[label] - jax.nn.logsumexp(others)


def classification(
    apply: Callable[[Any, Any], Float[Array, " classes"]], temperature: float = 1.0
) -> ModelOutput:
    """Return the margin of a classifier, with Q = 1 - p_y.

    Args:
        apply: maps parameters and one input to logits. Examples are pairs (input, label).
        temperature: the logits are divided by it where p_y is formed.

    References:
        S. M. Park et al., TRAK, arXiv 2303.14186, section 3.3.
    """

    def weight(params, example):
        x, label = example
        return 1 - jax.nn.softmax(apply(params, x) / temperature)[label]

    return ModelOutput(
        lambda params, example: margin(apply(params, example[0]), example[1]), weight
    )


def sample_loss(loss: Callable[[Any, Any], Float[Array, ""]]) -> ModelOutput:
    """Return the loss of a sample itself as what is attributed, with Q = 1: for operators.

    Args:
        loss: maps parameters and one example to its loss.
    """
    return ModelOutput(loss, lambda params, example: jnp.ones(()))
