"""Checks of the arguments of modules: one line that names the argument and what is allowed."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float


def check_positive(owner: str, **numbers: int) -> None:
    """Raise a ValueError that names the first argument that is not an integer of at least 1."""
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{owner}: {name} must be an integer >= 1, got {value!r}")


def check_choice(
    owner: str, name: str, value: object, allowed: Sequence[object], hint: str = ""
) -> None:
    """Raise a ValueError that names the argument and what is allowed, and ends with `hint`."""
    if value not in allowed:
        choices = ", ".join(map(repr, allowed))
        raise ValueError(f"{owner}: {name} must be one of {choices}, got {value!r}{hint}")


def check_modes(owner: str, n_modes: Sequence[int]) -> tuple[int, ...]:
    """`n_modes` as a tuple; a ValueError if it is not a sequence of integers of at least 1."""
    if not isinstance(n_modes, Sequence) or isinstance(n_modes, str) or not n_modes:
        raise ValueError(f"{owner}: n_modes must be a sequence of integers, got {n_modes!r}")
    for m in n_modes:
        check_positive(owner, **{f"every entry of n_modes = {tuple(n_modes)}": m})
    return tuple(n_modes)


def as_real(owner: str, x: ArrayLike) -> Float[Array, "..."]:
    """`x` as floating-point numbers: integers and booleans in float32; a ValueError if complex."""
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise ValueError(
            f"{owner}: expected real numbers, got {x.dtype}; give real and imaginary part as "
            "channels of their own"
        )
    inexact = jnp.issubdtype(x.dtype, jnp.inexact)
    return x if inexact else x.astype(jnp.promote_types(x.dtype, jnp.float32))
