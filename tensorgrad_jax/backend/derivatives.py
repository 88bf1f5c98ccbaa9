"""Functions with a derivative of their own that is the one of what they compute.

A processor may want a derivative in another order of products than JAX's own. The numbers are the
same, but a program does not show it: what takes programs apart, as reductions of per-example
gradients do, has to treat a function with a derivative of its own as one piece. A mark says that it
need not.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core

# The name of a jitted function stays in the program through every transformation of JAX; no other
# function has this one.
_MARK = "tensorgrad_jax_same_derivative"


def same_derivative(
    function: Callable[..., Any], nondiff_argnums: Sequence[int] = ()
) -> jax.custom_jvp:
    """Return `jax.custom_jvp(function)`, marked: its derivative is that of `function` itself.

    Equal in exact arithmetic, that is, where the function is differentiable and everywhere else.
    What a program is taken apart for then uses JAX's derivative of `function`.

    Args:
        function: of arrays.
        nondiff_argnums: the arguments that have no derivative and are hashable.
    """

    @functools.wraps(function)
    def marked(*arguments):
        return function(*arguments)

    marked.__name__ = marked.__qualname__ = _MARK
    numbers = tuple(nondiff_argnums)
    return jax.custom_jvp(jax.jit(marked, static_argnums=numbers), nondiff_argnums=numbers)


def has_same_derivative(primitive: core.Primitive, params: dict[str, Any]) -> bool:
    """Whether an equation of a program is the call of a function that `same_derivative` marked."""
    body = params.get("call_jaxpr")
    if primitive.name != "custom_jvp_call" or not isinstance(body, core.ClosedJaxpr):
        return False
    names = [eqn.params.get("name") for eqn in body.jaxpr.eqns if "jaxpr" in eqn.params]
    return len(body.jaxpr.eqns) == 1 and names == [_MARK]
