"""How good a decomposition is, from a few products more, and what to choose beforehand.

References:
    J. Tropp, A. Yurtsever, M. Udell, V. Cevher, Streaming low-rank matrix approximation with an
    application to scientific simulation, SIAM J. Sci. Comput. 41, 2019: sections 5.4 and 6.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tensorgrad_jax.hessian.checks import check_flag, check_key, check_operator
from tensorgrad_jax.hessian.eigenpairs import Eigh, Svd
from tensorgrad_jax.hessian.operators import LinearOperator
from tensorgrad_jax.projections.plain import not_negative, number, positive, shown, whole
from tensorgrad_jax.random_matrices import Normal

_PRECISION = jax.lax.Precision.HIGHEST


class PosteriorError(NamedTuple):
    """Unbiased estimates of squared Frobenius norms, for approximations A_k of several ranks.

    Attributes:
        ranks: k, (r,).
        operator: |A|^2.
        approximation: |A_k|^2, (r,).
        difference: |A - A_k|^2, (r,).
        samples: the `n` single values of |A|^2 and |A - A_k|^2, (1 + r, n).
    """

    ranks: tuple[int, ...]
    operator: Any
    approximation: Any
    difference: Any
    samples: Any

    @property
    def relative(self) -> Any:
        """|A - A_k| / |A|, (r,)."""
        return jnp.sqrt(self.difference / self.operator)


def a_posteriori_error(
    operator: LinearOperator,
    decomposition: Eigh | Svd,
    key: Any,
    n: int = 30,
    ranks: Sequence[int] | None = None,
) -> PosteriorError:
    """Estimate how far a decomposition is from its operator, by n products with new noise.

        |A - A_k|^2 = E |(A - A_k) g|^2,    g of independent standard normal numbers

    One block of products serves all ranks: A_k g needs no more than the coefficients of g in the
    decomposition's basis.

    Args:
        operator: A.
        decomposition: of A.
        key: of the noise; not that of the decomposition.
        n: number of products; see `post_bounds` for what they are worth.
        ranks: k, at most that of the decomposition; None for its own.

    Raises:
        ValueError: if n or a rank is none of its range, or the shapes differ.
    """
    owner = "a_posteriori_error"
    check_operator(owner, operator)
    check_key(owner, key)
    whole(owner, "n", n, 1, 2**31)
    if not isinstance(decomposition, Eigh | Svd):
        raise ValueError(
            f"{owner}: decomposition must be an Eigh or Svd, got {shown(decomposition)}"
        )
    most = decomposition.values.shape[0]
    if not isinstance(ranks, list | tuple | range | None):
        raise ValueError(f"{owner}: ranks must be a list of integers, got {shown(ranks)}")
    ranks = (most,) if ranks is None else tuple(ranks)
    for k in ranks:
        whole(owner, "ranks", k, 1, most + 1)
    if isinstance(decomposition, Eigh):
        left = right = decomposition.vectors()
    else:
        left, right = decomposition.left(), decomposition.right()
    if operator.shape != (left.shape[0], right.shape[0]):
        raise ValueError(
            f"{owner}: the operator has shape {operator.shape}, the decomposition "
            f"{(left.shape[0], right.shape[0])}"
        )
    G = normal_columns(key, operator.shape[1], n, operator.dtype)
    exact = operator.mm(G)
    samples, sizes = _estimates(exact, G, left, right, decomposition.values, jnp.asarray(ranks))
    means = samples.mean(1)
    return PosteriorError(ranks, means[0], sizes, means[1:], samples)


@jax.jit
def _estimates(exact, G, left, right, values, ranks):
    squares = lambda X: jnp.sum(jnp.abs(X) ** 2, 0)
    coefficients = values[:, None] * jnp.matmul(right.conj().T, G, precision=_PRECISION)

    def of_rank(k):
        kept = jnp.where(jnp.arange(values.size)[:, None] < k, coefficients, 0)
        difference = exact - jnp.matmul(left, kept, precision=_PRECISION)
        return squares(difference), squares(kept).mean()

    differences, sizes = jax.lax.map(of_rank, ranks)
    return jnp.concatenate([squares(exact)[None], differences]), sizes


def normal_columns(key: Any, rows: int, n: int, dtype: Any) -> Any:
    """Return n columns of numbers with E |g|^2 = 1; column i is the same for any n."""
    parts = 2 if jnp.issubdtype(dtype, jnp.complexfloating) else 1
    real = jnp.finfo(dtype).dtype
    G = Normal(rows, parts * n).columns_at(key, jnp.arange(parts * n), real)
    if parts == 1:
        return G.astype(dtype)
    return (jax.lax.complex(G[:, ::2], G[:, 1::2]) / math.sqrt(2)).astype(dtype)


def post_bounds(n: int, error: float, *, is_complex: bool = False) -> tuple[float, float]:
    """Return bounds for the probability that `a_posteriori_error` is far off.

        P(estimate <= (1 - error) truth) <= (e^error (1 - error))^(beta n / 2)
        P(estimate >= (1 + error) truth) <= (e^error / (1 + error))^(-beta n / 2)

    of *squared* norms, beta = 1 for real numbers and 2 for complex ones.

    Args:
        n: number of products.
        error: relative, in [0, 1].
        is_complex: whether the operator is.

    Raises:
        ValueError: if n is no positive integer or error is not in [0, 1].

    Examples:
        >>> [round(p, 4) for p in post_bounds(30, 0.5)]
        [0.0552, 0.2422]
    """
    whole("post_bounds", "n", n, 1, 2**31)
    error = number("post_bounds", "error", error, "a number in [0, 1]", lambda x: 0 <= x <= 1)
    check_flag("post_bounds", "is_complex", is_complex)
    half = n / 2 * (2 if is_complex else 1)
    return (math.exp(error) * (1 - error)) ** half, (math.exp(error) / (1 + error)) ** -half


def scree(values: Any, norm: Any, error: Any) -> tuple[Any, Any]:
    """Return bounds for the share of an operator that its first i eigenpairs leave over.

        tau_i^2 = sum_{j >= i} values_j^2,
        lower_i = (tau_i / norm)^2,    upper_i = ((tau_i + error) / norm)^2

    As functions of i they show by an elbow what rank is enough.

    Args:
        values: eigen- or singular values, by descending magnitude, (k,).
        norm: |A|, exact or estimated; Frobenius, not squared.
        error: |A - A_k|, likewise.

    Returns:
        (k,) each, for i = 0, ..., k - 1 kept eigenpairs.

    Raises:
        ValueError: if magnitudes ascend.
    """
    norm = positive("scree", "norm", norm)
    error = not_negative("scree", "error", error)
    sizes = np.asarray(values)
    if sizes.ndim != 1 or sizes.dtype.kind not in "fciu" or not np.all(np.isfinite(sizes)):
        raise ValueError(f"scree: values must be a vector of finite numbers, got {shown(values)}")
    sizes = np.abs(sizes)
    if np.any(np.diff(sizes) > 0):
        raise ValueError("scree: values must come by descending magnitude")
    tails = jnp.sqrt(jnp.cumsum(jnp.asarray(sizes)[::-1] ** 2)[::-1])
    return (tails / norm) ** 2, ((tails + error) / norm) ** 2


def prio_hpars(
    shape: tuple[int, int], budget: int, *, symmetric: bool = False, is_complex: bool = False
) -> tuple[int, int]:
    """Return (outer, inner) for a sketch of at most `budget` numbers: the most outer columns with
    inner >= 2 outer, then the most inner ones.

    Stored are outer (m + n) + inner^2 numbers, of a symmetric operator outer m + inner^2.

    Args:
        shape: (m, n).
        budget: numbers that may be stored.
        symmetric: one outer sketch is enough.
        is_complex: whether the operator is.

    Raises:
        ValueError: if a number is not positive, a symmetric shape not square, or the budget too
            small for one column.

    Examples:
        >>> prio_hpars((7030, 7030), 400_000, symmetric=True)
        (55, 115)
    """
    if not isinstance(shape, tuple | list) or len(shape) != 2:
        raise ValueError(f"prio_hpars: shape must be two integers, got {shown(shape)}")
    check_flag("prio_hpars", "symmetric", symmetric)
    check_flag("prio_hpars", "is_complex", is_complex)
    m, n = (whole("prio_hpars", "shape", size, 1, 2**62) for size in shape)
    whole("prio_hpars", "budget", budget, 1, 2**62)
    if symmetric and m != n:
        raise ValueError(f"prio_hpars: a symmetric operator must be square, got shape {(m, n)}")
    alpha, rows = (0 if is_complex else 1), (m if symmetric else m + n)
    linear = rows + 4 * alpha
    outer = math.floor((math.sqrt(linear**2 + 16 * (budget - alpha**2)) - linear) / 8)
    if outer < 1:
        raise ValueError(
            f"prio_hpars: budget must be enough for one outer column of {rows} numbers, got "
            f"{budget}"
        )
    return outer, math.isqrt(budget - outer * rows)
