"""Leading singular vectors, Gram matrices, overlaps: what low-rank projections share."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, PRNGKeyArray

from tensorgrad_jax.backend.drawing import drawn

# On GPUs a float32 product defaults to TF32, whose 10 bits would spoil the orthogonality of the
# factors and the error of an exactly low-rank tensor.
PRECISION = jax.lax.Precision.HIGHEST

# Columns of a random sketch beyond the rank that is wanted.
_OVERSAMPLING = 8


def leading_by_gram(unfolding: Inexact[Array, "m n"], rank: int) -> Inexact[Array, "m r"]:
    """Return the `rank` leading left singular vectors from the Gram matrix."""
    if not jnp.iscomplexobj(unfolding):
        return leading_of_gram(gram(unfolding[None]), rank)
    rows = jnp.concatenate([unfolding.real, unfolding.imag])
    return leading_of_gram(complex_gram(gram(rows[None])), rank)


def leading_of_gram(matrix: Inexact[Array, "m m"], rank: int) -> Inexact[Array, "m r"]:
    """Return the `rank` leading eigenvectors of a Gram matrix."""
    # eigh sorts eigenvalues in ascending order.
    return with_fixed_phases(jnp.linalg.eigh(matrix)[1][:, : -rank - 1 : -1])


def leading_by_svd(unfolding: Inexact[Array, "m n"], rank: int) -> Inexact[Array, "m r"]:
    """Return the `rank` leading left singular vectors from an SVD."""
    wide = unfolding.shape[0] <= unfolding.shape[1]
    u = jnp.linalg.svd(unfolding, full_matrices=not wide)[0]
    return with_fixed_phases(u[:, :rank])


def leading_by_sketch(
    key: PRNGKeyArray,
    unfolding: Inexact[Array, "m n"],
    rank: int,
    rounds: int,
    start: Inexact[Array, "m r"] | None,
) -> Inexact[Array, "m r"]:
    """Return about the `rank` leading left singular vectors from a random sketch.

    The range of X Omega, with a Gaussian Omega of a few columns more than `rank`, nearly holds
    them; each further round multiplies it by X X^H. Columns of `start` take the place of random
    ones (as X X^H start): a subspace that was right once is a better guess than none.

    References:
        N. Halko, P. Martinsson, J. Tropp, Finding structure with randomness, 2011, algorithms
        4.4 and 5.1.
    """
    m, n = unfolding.shape
    width = rank + _OVERSAMPLING
    if width >= min(m, n):
        return leading_by_gram(unfolding, rank)
    product = lambda a, b: jnp.matmul(a, b, precision=PRECISION)
    adjoint = unfolding.conj().T
    n_random = width if start is None else _OVERSAMPLING
    normal = functools.partial(jax.random.normal, dtype=unfolding.real.dtype)
    omega = drawn(normal, key, (n, n_random))
    sketch = product(unfolding, omega.astype(unfolding.dtype))
    if start is not None:
        sketch = jnp.concatenate([product(unfolding, product(adjoint, start)), sketch], axis=1)
    basis = jnp.linalg.qr(sketch)[0]
    for _ in range(rounds - 1):
        basis = jnp.linalg.qr(product(unfolding, product(adjoint, basis)))[0]
    small = leading_by_gram(product(basis.conj().T, unfolding), rank)
    return with_fixed_phases(product(basis, small))


def gram(stack: Float[Array, "a d b"]) -> Float[Array, "d d"]:
    """Return the sum of X X^T over the matrices of a stack."""
    contracted = (((2,), (2,)), ((0,), (0,)))
    return jax.lax.dot_general(stack, stack, contracted, precision=PRECISION).sum(0)


def complex_gram(products: Float[Array, "_ _"]) -> Inexact[Array, "d d"]:
    """Return X X^H, given the Gram matrix of the rows (Re X, Im X)."""
    (rr, ri), (ir, ii) = (jnp.split(row, 2, axis=1) for row in jnp.split(products, 2))
    return jax.lax.complex(rr + ii, ir - ri)


def overlap(
    u: Inexact[Array, "d r"] | None, v: Inexact[Array, "d s"] | None
) -> Inexact[Array, "r s"] | None:
    """Return U^H V of two orthonormal bases, None where there are none."""
    if u is None or v is None:
        return None
    return jnp.matmul(u.conj().T, v, precision=PRECISION)


def squared(overlap: Inexact[Array, "r s"] | None) -> Float[Array, "r s"] | None:
    """Return |entries|^2: what carries the variances of uncorrelated numbers over."""
    return None if overlap is None else jnp.abs(overlap) ** 2


def scaled_to_one(tensor: Inexact[Array, "*shape"]) -> Inexact[Array, "*shape"]:
    """Return `tensor` over its largest magnitude, zeros as they are.

    The squares that subspaces and norms are found from leave float32's range long before
    gradients do.
    """
    largest = jnp.max(jnp.abs(tensor))
    return tensor / jnp.where(largest > 0, largest, 1)


def with_fixed_phases(u: Inexact[Array, "m r"]) -> Inexact[Array, "m r"]:
    """Make the entry of largest magnitude of every column real and positive.

    Singular vectors are defined up to a phase; this makes the choice the same on every backend.
    """
    pivot = jnp.take_along_axis(u, jnp.argmax(jnp.abs(u), axis=0)[None], axis=0)
    return u * (pivot.conj() / jnp.abs(pivot))
