"""Eigen- and singular value decompositions from few products with an operator.

    decomposition = seigh(operator, jax.random.key(0), outer=100, inner=200)
    decomposition.values                 # by descending magnitude
    decomposition.vectors(10)            # (D, 10), computed now

| recovery     | products      | rounds | memory        | good for                                |
|--------------|---------------|--------|---------------|-----------------------------------------|
| oversampled  | inner         | 1      | D outer       | workers that know nothing of each other |
| hmt          | 2 outer       | 2      | D outer       | one process                             |
| nystrom      | outer         | 1      | D outer       | positive semidefinite operators only    |
| singlepass   | outer         | 1      | 2 D outer     | positive semidefinite operators only    |

`block_lanczos` comes closer to the best of all approximations at the same number of products, by
10 to 35 rounds one after the other.

References:
    J. Tropp, A. Yurtsever, M. Udell, V. Cevher, Streaming low-rank matrix approximation with an
    application to scientific simulation, SIAM J. Sci. Comput. 41, 2019.
    N. Halko, P.-G. Martinsson, J. Tropp, Finding structure with randomness, SIAM Rev. 53, 2011.
    A. Fernandez, F. Dangel, P. Hennig, F. Schneider, What apples tell about oranges: connecting
    pruning masks and Hessian eigenspaces, 2024.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from tensorgrad_jax.hessian.checks import (
    check_flag,
    check_key,
    check_mesh,
    check_operator,
    symmetric_size,
)
from tensorgrad_jax.hessian.cores import core_of, eigh_of_core, nystrom, singlepass
from tensorgrad_jax.hessian.eigenpairs import Eigh, Svd, eigh_in_basis
from tensorgrad_jax.hessian.mesh import by_columns, check_divides, everywhere, in_rows
from tensorgrad_jax.hessian.noise import Kind, Noise
from tensorgrad_jax.hessian.operators import LinearOperator
from tensorgrad_jax.hessian.orthogonal import factored, orthonormal
from tensorgrad_jax.projections.plain import check_choice, whole

_PRECISION = jax.lax.Precision.HIGHEST
Recovery = Literal["oversampled", "hmt", "nystrom", "singlepass"]


def seigh(
    operator: LinearOperator,
    key: Any,
    outer: int,
    inner: int | None = None,
    *,
    recovery: Recovery = "oversampled",
    noise: Kind = "srft",
    psd: bool = False,
    block_size: int | None = None,
    mesh: Mesh | None = None,
) -> Eigh:
    """Return the sketched eigendecomposition of a symmetric operator.

    "oversampled" measures Y = A V_r and keeps M = V_l^H Y and the first columns of Y, once more
    used as outer sketch: Q = orth(Y[:, :outer]), A ~ Q C Q^H with

        C = (V_l^H Q)^+ M ((V_r^H Q)^+)^H, symmetrised,

    which takes a twelfth off the error. "hmt" is the projection C = Q^H A Q, "nystrom"
    Y (V^H Y)^+ Y^H, "singlepass" the C of least squares in C (Q^H V) = Q^H Y.

    Args:
        operator: symmetric (Hermitian, if complex); it need not be positive.
        key: of the noise, a Threefry key.
        outer: how many eigenvalues, and columns of the sketch that is kept.
        inner: products of "oversampled", at least `outer`; None for twice as many.
        recovery: see the table of this file.
        noise: kind of random vectors, see `Noise`.
        psd: says that the operator has no negative eigenvalues.
        block_size: columns that are measured at once; None for all.
        mesh: columns are measured on its devices, spread over its first axis, and the sketch is
            kept there in rows.

    Returns:
        The decomposition, of `outer` values.

    Raises:
        ValueError: if the operator is not symmetric; if outer or inner do not fit its size or
            each other, or inner is given to another recovery; if an option is unknown; if columns
            or rows do not divide among the devices of the mesh.

    Warns:
        UserWarning: if "nystrom" or "singlepass" is not told that the operator is psd. A Hessian
            is not, and errors several times the size of the operator were measured.
    """
    n = symmetric_size("seigh", operator)
    check_key("seigh", key)
    check_mesh("seigh", mesh)
    check_flag("seigh", "psd", psd)
    check_choice("seigh", "recovery", recovery, get_args(Recovery))
    whole("seigh", "outer", outer, 1, n + 1)
    if inner is not None and recovery != "oversampled":
        raise ValueError(f"seigh: inner belongs to recovery='oversampled', got {recovery!r}")
    if recovery in ("nystrom", "singlepass") and not psd:
        warnings.warn(
            f"seigh: {recovery} is for positive semidefinite operators and blows up on others, as "
            "Hessians are; use oversampled or hmt, or say psd=True",
            stacklevel=2,
        )
    inner = min(2 * outer, n) if inner is None else inner
    count = outer if recovery != "oversampled" else whole("seigh", "inner", inner, outer, n + 1)
    right, left = Noise(noise, n, count), Noise(noise, n, count)
    key_right, key_left = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)
    times = lambda noise, key, X: _adjoint_times(noise, key, X, mesh)
    if mesh is not None:
        check_divides("seigh", mesh, outer=outer)
    Y = measure(operator, right, key_right, range(count), block_size, mesh)
    if recovery == "oversampled":
        Q = orthonormal(Y[:, :outer])
        M = times(left, key_left, Y)
        return eigh_of_core(Q, M, times(left, key_left, Q), times(right, key_right, Q))
    if recovery == "nystrom":
        V = right.block(key_right, range(count), operator.dtype)
        return nystrom(Y, V if mesh is None else in_rows(mesh, V))
    Q, R = factored(Y)
    if recovery == "singlepass":
        return singlepass(Y, Q, R, times(right, key_right, Q))
    multiply = operator.mm if mesh is None else by_columns(mesh, operator.mm)
    AQ = _columns(multiply, Q, block_size)
    AQ = AQ if mesh is None else in_rows(mesh, AQ)
    return eigh_in_basis(Q, jnp.matmul(Q.conj().T, AQ, precision=_PRECISION))


def ssvd(
    operator: LinearOperator,
    key: Any,
    outer: int,
    inner: int | None = None,
    *,
    noise: Kind = "srft",
    block_size: int | None = None,
) -> Svd:
    """Return the sketched singular value decomposition of any operator (m, n).

        Q = orth(A V_1),  P = orth(A^H V_2),  M = V_3^H A V_4,  A ~ Q C P^H,
        C = (V_3^H Q)^+ M ((V_4^H P)^+)^H

    with four independent sets of random vectors: `outer` products with the operator, `outer` with
    its adjoint, `inner` with the operator.

    Args:
        operator: with a product of its adjoint.
        key: of the noise.
        outer: how many singular values.
        inner: at least `outer`; None for twice as many.
        noise: kind of random vectors, see `Noise`.
        block_size: columns that are measured at once; None for all.

    Raises:
        ValueError: if outer or inner do not fit the operator or each other.
    """
    check_operator("ssvd", operator)
    check_key("ssvd", key)
    m, n = operator.shape
    whole("ssvd", "outer", outer, 1, min(m, n) + 1)
    inner = min(2 * outer, m, n) if inner is None else inner
    whole("ssvd", "inner", inner, outer, min(m, n) + 1)
    keys = [jax.random.fold_in(key, i) for i in range(4)]
    right, left = Noise(noise, n, outer), Noise(noise, m, outer)
    inner_left, inner_right = Noise(noise, m, inner), Noise(noise, n, inner)
    Q = orthonormal(measure(operator, right, keys[0], range(outer), block_size))
    P = orthonormal(measure(operator.adjoint, left, keys[1], range(outer), block_size))
    Y = measure(operator, inner_right, keys[3], range(inner), block_size)
    C = core_of(
        inner_left.adjoint_times(keys[2], Y),
        inner_left.adjoint_times(keys[2], Q),
        inner_right.adjoint_times(keys[3], P),
    )
    U, values, Vh = jnp.linalg.svd(C)
    return Svd(values, Q, U, P, Vh.conj().T)


def measure(
    operator: LinearOperator,
    noise: Noise,
    key: Any,
    numbers: range,
    block_size: int | None = None,
    mesh: Mesh | None = None,
) -> Any:
    """Return A V for the noise columns of these numbers, (m, len(numbers)).

    Args:
        operator: A.
        noise: of as many rows as A has columns.
        key: of the noise.
        numbers: which columns.
        block_size: columns at once; None for all.
        mesh: see `seigh`.

    Raises:
        ValueError: if columns or rows do not divide among the devices.
    """
    if block_size is not None:
        whole("measure", "block_size", block_size, 1, 2**31)
    size = block_size or len(numbers)
    product = operator.mm
    if mesh is not None:
        check_divides("measure", mesh, columns=len(numbers), block_size=size, rows=noise.rows)
        of_columns = by_columns(mesh, operator.mm)
        product = lambda V: in_rows(mesh, of_columns(V))
    parts = [
        product(noise.block(key, numbers[start : start + size], operator.dtype))
        for start in range(0, len(numbers), size)
    ]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


def _adjoint_times(noise: Noise, key: Any, X: Any, mesh: Mesh | None) -> Any:
    if mesh is None:
        return noise.adjoint_times(key, X)
    return everywhere(mesh, by_columns(mesh, lambda X: noise.adjoint_times(key, X))(X))


def _columns(function: Any, X: Any, block_size: int | None) -> Any:
    if block_size is None or block_size >= X.shape[1]:
        return function(X)
    parts = [function(X[:, i : i + block_size]) for i in range(0, X.shape[1], block_size)]
    return jnp.concatenate(parts, axis=1)
