"""Orthonormal bases of tall matrices, on one device or with rows spread over several."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

_PRECISION = jax.lax.Precision.HIGHEST


def orthonormal(Y: Any) -> Any:
    """Return Q (D, k) with orthonormal columns whose span holds that of Y (D, k).

    Rows that lie on several devices stay there: every device factors its own rows, one of the
    stacked triangles is factored, and what goes over the wire is k x k per device (TSQR). It is as
    stable as a QR decomposition in one place, other than Cholesky's of Y^H Y, which fails from a
    condition of 3000 on in float32; sketches of matrices that decay are worse.

    Args:
        Y: at least as many rows as columns, on every device too where rows are sharded.

    References:
        J. Demmel, L. Grigori, M. Hoemmen, J. Langou, Communication-optimal parallel and sequential
        QR and LU factorizations, SIAM J. Sci. Comput. 34, 2012.
    """
    return factored(Y)[0]


def factored(Y: Any) -> tuple[Any, Any]:
    """Return Q and R of Y = Q R, as `orthonormal` does."""
    sharded = rows_sharded(Y)
    if sharded is None or Y.shape[0] // sharded.mesh.shape[sharded.spec[0]] < Y.shape[1]:
        return jnp.linalg.qr(Y)
    return _tsqr(sharded.mesh, sharded.spec[0])(Y)


def rows_sharded(Y: Any) -> NamedSharding | None:
    """Return the sharding of an array whose rows are spread over one axis of a mesh."""
    sharding = None if isinstance(Y, Tracer) else Y.sharding
    if not isinstance(sharding, NamedSharding):
        return None
    axis = sharding.spec[0] if len(sharding.spec) else None
    if not isinstance(axis, str) or sharding.mesh.shape[axis] == 1:
        return None
    return sharding


@functools.cache
def _tsqr(mesh: Any, axis: str) -> Any:
    rows, whole = PartitionSpec(axis, None), PartitionSpec()

    def local(Y):
        Q, R = jnp.linalg.qr(Y)
        k = R.shape[0]
        every = jax.lax.all_gather(R, axis, tiled=True)
        outer, top = jnp.linalg.qr(every)
        mine = jax.lax.dynamic_slice_in_dim(outer, jax.lax.axis_index(axis) * k, k)
        return jnp.matmul(Q, mine, precision=_PRECISION), top

    # All devices compute the same small triangle; that cannot be told from the program.
    mapped = jax.shard_map(
        local, mesh=mesh, in_specs=(rows,), out_specs=(rows, whole), check_vma=False
    )
    return jax.jit(mapped)


def orthonormal_beside(V: Any, W: Any) -> Any:
    """Return orthonormal columns that are orthogonal to V and span what W has outside of it.

    Three times over: rounding leaves parts along V, which are as large as the rest where W has
    little outside; and where it has nothing, what QR puts in the place of a column is only made
    orthogonal to V by the next time.

    Args:
        V: orthonormal columns, or zeros in the place of such as are not there yet.
        W: of as many rows.
    """
    for _ in range(3):
        W = orthonormal(_outside(V, W))
    return W


@jax.jit
def _outside(V: Any, W: Any) -> Any:
    inner = jnp.matmul(V.conj().T, W, precision=_PRECISION)
    return W - jnp.matmul(V, inner, precision=_PRECISION)
