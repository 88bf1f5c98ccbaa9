"""Tucker products of complex tensors with real factors.

Real and imaginary part are two tensors that share one basis of real orthonormal factors. All
products are real, every axis stays where it is, and a mode without a factor (None) is left alone.

A tensor (parts, a, d, b), a and b the sizes before and behind a mode, is multiplied from the left
by the small matrix for every (part, a): wide and contiguous where b is large. So tensors with
their truncated modes first and their channels last are fast, as spectral weights here are.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

from tensorgrad_jax.projections.base import Basis, scaled_to_one
from tensorgrad_jax.projections.leading import PRECISION, leading_of_gram
from tensorgrad_jax.projections.pairs import Pair, Tensor, as_pair


def refresh_real_factors(tensor: Tensor, ranks: tuple[int, ...]) -> Basis:
    """Return sequentially truncated factors from Gram matrices, None for modes of full rank."""
    parts = scaled_to_one(_parts(tensor))
    factors = []
    for mode, rank in enumerate(ranks):
        if rank == tensor.shape[mode]:
            factors.append(None)
            continue
        u = leading_of_gram(_gram(parts, mode), rank)
        factors.append(u)
        if any(r < d for r, d in zip(ranks[mode + 1 :], tensor.shape[mode + 1 :], strict=True)):
            parts = _mode_product(parts, u.T, mode)
    return tuple(factors)


def project_by_real_factors(tensor: Tensor, basis: Basis) -> Inexact[Array, ...]:
    """Return the core, complex for a complex tensor."""
    core = _parts(tensor)
    for mode, u in enumerate(basis):
        if u is not None:
            core = _mode_product(core, u.T, mode)
    return jax.lax.complex(core[0], core[1]) if len(core) == 2 else core[0]


def lift_by_real_factors(
    core: Float[Array, "parts ..."], basis: Basis, scale: float
) -> Float[Array, "parts ..."]:
    """Return the parts of the tensor whose core has these parts."""
    tensor = core if scale == 1.0 else scale * core
    for mode in reversed(range(len(basis))):
        if basis[mode] is not None:
            tensor = _mode_product(tensor, basis[mode], mode)
    return tensor


def _parts(tensor):
    """Return float32 or wider of shape (2, ...) for a complex tensor, (1, ...) for a real one."""
    if not isinstance(tensor, Pair):
        if not jnp.iscomplexobj(tensor):
            return tensor[None]
        tensor = as_pair(tensor)
    return tensor.parts.astype(jnp.finfo(tensor.dtype).dtype)


def _stack(parts, mode):
    """Return (a, d, b) with a of parts and modes before, b of modes behind."""
    d = parts.shape[mode + 1]
    return parts.reshape(math.prod(parts.shape[: mode + 1]), d, -1)


def _mode_product(parts, matrix, mode):
    stack, (m, d) = _stack(parts, mode), matrix.shape
    if stack.shape[2] == 1:
        product = jnp.matmul(stack.reshape(-1, d), matrix.T, precision=PRECISION)
    else:
        # Batched explicitly: a product of the matrix alone would move the axes of the large factor.
        product = jax.lax.dot_general(
            jnp.broadcast_to(matrix, (len(stack), m, d)),
            stack,
            (((2,), (1,)), ((0,), (0,))),
            precision=PRECISION,
        )
    return product.reshape(*parts.shape[: mode + 1], m, *parts.shape[mode + 2 :])


def _gram(parts, mode):
    stack = _stack(parts, mode)
    products = jax.lax.dot_general(stack, stack, (((2,), (2,)), ((0,), (0,))), precision=PRECISION)
    return products.sum(0)
