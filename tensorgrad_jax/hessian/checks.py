"""Checks of arguments that several functions of this package take."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from tensorgrad_jax.projections.plain import check_dtype, shown


def check_operator(owner: str, operator: Any) -> None:
    """Raise ValueError unless this has what the functions need of an operator."""
    missing = [n for n in ("shape", "dtype", "symmetric", "mm") if not hasattr(operator, n)]
    if missing:
        raise ValueError(
            f"{owner}: operator must have shape, dtype, symmetric and mm, as "
            f"hessian.LinearOperator has, got {shown(operator)} without {', '.join(missing)}"
        )


def check_key(owner: str, key: Any) -> None:
    """Raise ValueError unless this is one key of `jax.random.key`."""
    is_key = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not is_key or key.shape != ():
        raise ValueError(f"{owner}: key must be one made by jax.random.key, got {shown(key)}")


def check_mesh(owner: str, mesh: Any) -> None:
    """Raise ValueError unless this is a mesh of devices or None."""
    if mesh is not None and not isinstance(mesh, Mesh):
        raise ValueError(f"{owner}: mesh must be a jax.sharding.Mesh or None, got {shown(mesh)}")


def check_flag(owner: str, name: str, value: Any) -> None:
    """Raise ValueError unless this is a truth value."""
    if not isinstance(value, bool):
        raise ValueError(f"{owner}: {name} must be True or False, got {shown(value)}")


def check_float(owner: str, dtype: Any) -> None:
    """Raise ValueError unless this is float32, float64 or None."""
    check_dtype(owner, "dtype", dtype)
    if dtype is not None and jnp.dtype(dtype).itemsize < 4:
        raise ValueError(f"{owner}: dtype must be float32 or float64, got {shown(dtype)}")


def symmetric_size(owner: str, operator: Any) -> int:
    """Return n of a symmetric operator (n, n).

    Raises:
        ValueError: if it is no operator or not symmetric.
    """
    check_operator(owner, operator)
    m, n = operator.shape
    if m != n or not operator.symmetric:
        raise ValueError(
            f"{owner}: operator must be symmetric, got shape {(m, n)} and symmetric="
            f"{operator.symmetric}; use ssvd"
        )
    return n
