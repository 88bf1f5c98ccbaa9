"""Block Lanczos: the eigenpairs of largest magnitude, as good as the number of products allows."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from tensorgrad_jax.hessian.checks import check_key, check_mesh, symmetric_size
from tensorgrad_jax.hessian.eigenpairs import Eigh, eigh_by_magnitude
from tensorgrad_jax.hessian.mesh import by_columns, check_divides, in_rows
from tensorgrad_jax.hessian.noise import Kind, Noise
from tensorgrad_jax.hessian.operators import LinearOperator
from tensorgrad_jax.hessian.orthogonal import orthonormal, orthonormal_beside
from tensorgrad_jax.projections.plain import whole

_PRECISION = jax.lax.Precision.HIGHEST


def block_lanczos(
    operator: LinearOperator,
    key: Any,
    k: int,
    products: int | None = None,
    *,
    block_size: int | None = None,
    noise: Kind = "gaussian",
    mesh: Mesh | None = None,
) -> Eigh:
    """Return k eigenpairs from the Krylov space span(V, A V, A^2 V, ...).

    Every block A V_j is made orthogonal to all columns before (twice, so that eigenvalues do not
    come back as ghosts), and the operator is projected onto all of them: T = V^H A V, A ~ V T V^H.
    The k eigenpairs of T of largest magnitude are returned. Memory: D times `products` numbers.
    With a block of one it is Lanczos' method.

    Args:
        operator: symmetric (Hermitian, if complex).
        key: of the first block, a Threefry key.
        k: how many eigenpairs.
        products: with the operator, at least k; rounded up to whole blocks. None for twice k, or
            as many as there are dimensions.
        block_size: columns per round; None for a tenth of the products. Fewer columns are more
            rounds, and better eigenpairs.
        noise: kind of random vectors of the first block, see `Noise`.
        mesh: as in `seigh`: columns are multiplied on all devices, the basis is kept in rows.

    Returns:
        The decomposition, of k values.

    Raises:
        ValueError: if the operator is not symmetric; if a number does not fit its size; if columns
            or rows do not divide among the devices of the mesh.

    References:
        G. Golub and R. Underwood, The block Lanczos method for computing eigenvalues, 1977.
        C. Musco and C. Musco, Randomized block Krylov methods for stronger and faster approximate
        singular value decomposition, NeurIPS 2015.
    """
    n = symmetric_size("block_lanczos", operator)
    check_key("block_lanczos", key)
    check_mesh("block_lanczos", mesh)
    whole("block_lanczos", "k", k, 1, n + 1)
    products = min(2 * k, n) if products is None else products
    whole("block_lanczos", "products", products, k, n + 1)
    block = max(1, products // 10) if block_size is None else block_size
    whole("block_lanczos", "block_size", block, 1, products + 1)
    rounds = min(-(-products // block), n // block)
    if rounds * block < k:
        raise ValueError(
            f"block_lanczos: block_size must leave room for k={k} columns in {n} dimensions, got "
            f"{block}"
        )
    first = Noise(noise, n, block)
    first.check_dtype(operator.dtype)
    block_now = orthonormal(first.block(key, range(block), operator.dtype))
    V = jnp.zeros((n, rounds * block), operator.dtype)
    product = operator.mm
    if mesh is not None:
        check_divides("block_lanczos", mesh, rows=n, block_size=block)
        of_columns = by_columns(mesh, operator.mm)
        product = lambda X: in_rows(mesh, of_columns(X))
        V, block_now = in_rows(mesh, V), in_rows(mesh, block_now)
    T = jnp.zeros((rounds * block,) * 2, operator.dtype)
    for j in range(rounds):
        V, start = _put(V, block_now, j * block), j * block
        W = product(block_now)
        T = jax.lax.dynamic_update_slice(T, _inner(V, W), (0, start))
        if j + 1 < rounds:
            block_now = orthonormal_beside(V, W)
    # What is above the diagonal blocks was computed for every column; below it is its adjoint.
    values, Z = eigh_by_magnitude(_from_upper(T, block))
    return Eigh(values[:k], V, Z[:, :k])


@jax.jit(donate_argnums=0)
def _put(V: Any, block: Any, start: Any) -> Any:
    return jax.lax.dynamic_update_slice_in_dim(V, block, start, axis=1)


@jax.jit
def _inner(V: Any, W: Any) -> Any:
    return jnp.matmul(V.conj().T, W, precision=_PRECISION)


def _from_upper(T: Any, block: int) -> Any:
    """Return the Hermitian matrix that has T's blocks above and on the diagonal."""
    place = jnp.arange(T.shape[0]) // block
    above = place[:, None] < place[None, :]
    on = place[:, None] == place[None, :]
    return jnp.where(above, T, 0) + jnp.where(above, T, 0).conj().T + jnp.where(on, T, 0)
