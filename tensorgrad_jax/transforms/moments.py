"""Adam moments that are right for complex numbers and for half precision."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Int32, PyTree

from tensorgrad_jax.projections.pairs import is_pair
from tensorgrad_jax.projections.plain import check_dtype, decay, not_negative
from tensorgrad_jax.transforms import eight_bits
from tensorgrad_jax.transforms.leaves import check_fits
from tensorgrad_jax.transforms.packing import packed_like, times_real, unpacked


class ScaleByAdamState(NamedTuple):
    """State of `scale_by_adam`.

    Attributes:
        count: int32 (), number of updates so far.
        mu: first moments, shaped like the parameters; complex for complex parameters, or where
            `mu_dtype` is given their real and imaginary part along a new axis 0.
        nu: second moments, shaped like the parameters; always real.
    """

    count: Int32[Array, ""]
    mu: PyTree[Array]
    nu: PyTree[Array]


def scale_by_adam(
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
) -> optax.GradientTransformation:
    r"""Rescale updates by Adam, with one real second moment per entry.

    $$
    m \leftarrow b_1 m + (1 - b_1) g, \quad v \leftarrow b_2 v + (1 - b_2) |g|^2, \quad
    u = \frac{m / (1 - b_1^t)}{\sqrt{v / (1 - b_2^t)} + \varepsilon} .
    $$

    For complex g this is the update along g that does not depend on the phase convention, and it
    stores 12 bytes per complex64 entry; `optax.scale_by_adam` keeps v in a complex array (16).
    Compact forms of complex tensors that are stored as real pairs are such numbers too, with one
    v = mean of the squares of both real numbers: their updates are as large as those of real ones.

    Args:
        b1: decay of the first moment, in [0, 1).
        b2: decay of the second moment, in [0, 1).
        eps: added to the root of the corrected second moment.
        mu_dtype: dtype of the first moments, of complex parameters that of real and imaginary
            part; default: the parameter's, at least float32. bfloat16 halves them, int8 quarters
            them: whole numbers times a scale per block, rounded stochastically (`EightBits`).
        nu_dtype: dtype of the second moments; default: float32, float64 for 64-bit parameters.

    Returns:
        A transformation whose updates have the dtype of the gradients, as Optax's have; they are
        computed in float32 or wider.

    Raises:
        ValueError: if a decay is outside [0, 1), eps is negative or a dtype is not a real
            floating-point one.

    Examples:
        >>> import jax.numpy as jnp
        >>> transform = scale_by_adam()
        >>> params = jnp.zeros(2, jnp.complex64)
        >>> update, state = transform.update(jnp.array([3 + 4j, 1j]), transform.init(params))
        >>> [complex(round(z.real, 4), round(z.imag, 4)) for z in update.tolist()]
        [(0.6+0.8j), 1j]
        >>> state.nu.dtype
        dtype('float32')

    References:
        D. P. Kingma and J. Ba, Adam, arXiv 1412.6980, algorithm 1.
    """
    b1, b2 = decay("scale_by_adam", "b1", b1), decay("scale_by_adam", "b2", b2)
    eps = not_negative("scale_by_adam", "eps", eps)
    check_moment_dtype("scale_by_adam", mu_dtype)
    check_dtype("scale_by_adam", "nu_dtype", nu_dtype)

    def second_zeros(p):
        dtype = nu_dtype or jnp.finfo(jnp.promote_types(p.dtype, jnp.float32)).dtype
        # Not jnp.zeros: of a sharded parameter the moments are sharded alike.
        return jnp.zeros(p.shape, dtype) if is_pair(p) else jnp.zeros_like(p, dtype)

    def init_fn(params):
        return ScaleByAdamState(
            count=jnp.zeros((), jnp.int32),
            mu=_first_zeros(params, mu_dtype),
            nu=jax.tree.map(second_zeros, params, is_leaf=is_pair),
        )

    def update_fn(updates, state, params=None):
        check_fits("scale_by_adam", "gradient", updates, params)
        count = cast(Array, optax.safe_increment(state.count))

        def second(g, v):
            squared = mean_squares(g)
            return b2 * v.astype(squared.dtype) + (1 - b2) * squared

        mu = _averaged(updates, state.mu, b1)
        nu = jax.tree.map(second, updates, state.nu, is_leaf=is_pair)

        def scale(g, m, v):
            first, second = (bias_correction(b, count, v.dtype) for b in (b1, b2))
            factor = 1 / (first * (jnp.sqrt(v / second) + eps))
            return jax.tree.map(lambda g, m: times_real(m, factor).astype(g.dtype), g, m)

        scaled = jax.tree.map(scale, updates, mu, nu, is_leaf=is_pair)
        nu = jax.tree.map(packed_like, nu, state.nu)
        return scaled, ScaleByAdamState(count, _stored(mu, state.mu, count), nu)

    return optax.GradientTransformation(init_fn, update_fn)


class MomentumState(NamedTuple):
    """State of `momentum`: `count` and `mu` as in `ScaleByAdamState`."""

    count: Int32[Array, ""]
    mu: PyTree[Array]


def momentum(
    b1: ArrayLike = 0.9, mu_dtype: Any = None, nesterov: bool = False
) -> optax.GradientTransformation:
    """Average gradients as Adam's corrected first moment does; `optax.ema` for complex numbers too.

    Args:
        b1: decay, in [0, 1).
        mu_dtype: see `scale_by_adam`, whose stored moments these are.
        nesterov: average the new gradient in once more: b1 m + (1 - b1) g, corrected likewise.
    """

    def init_fn(params):
        return MomentumState(jnp.zeros((), jnp.int32), _first_zeros(params, mu_dtype))

    def update_fn(updates, state, params=None):
        del params
        count = cast(Array, optax.safe_increment(state.count))
        mu = _averaged(updates, state.mu, b1)

        def corrected_as(g, m):
            # The weights of m add up to 1 - b1^t, those with g once more to 1 - b1^(t + 1).
            correct = bias_correction(b1, count + nesterov, jnp.finfo(m.dtype).dtype)
            if nesterov:
                m = times_real(m, b1) + times_real(g.astype(m.dtype), 1 - b1)
            return times_real(m, 1 / correct).astype(g.dtype)

        corrected = jax.tree.map(corrected_as, updates, mu)
        return corrected, MomentumState(count, _stored(mu, state.mu, count))

    return optax.GradientTransformation(init_fn, update_fn)


def check_moment_dtype(owner: str, mu_dtype: Any) -> None:
    """Raise ValueError unless first moments can be stored in a dtype: real floating, or int8."""
    if not _is_int8(mu_dtype):
        check_dtype(owner, "mu_dtype", mu_dtype)


def _is_int8(dtype: Any) -> bool:
    # An array is compared entry by entry.
    return isinstance(dtype, str | type | np.dtype) and dtype in (
        jnp.int8,
        "int8",
        np.dtype("int8"),
    )


def _first_zeros(params, mu_dtype):
    """Return first moments at their start, complex ones packed where `mu_dtype` is given."""

    def zeros(p):
        packed = mu_dtype is not None and jnp.issubdtype(p.dtype, jnp.complexfloating)
        if _is_int8(mu_dtype):
            return eight_bits.zeros(p, (2, *p.shape) if packed else p.shape)
        dtype = jnp.dtype(mu_dtype or jnp.promote_types(p.dtype, jnp.float32))
        return jnp.zeros((2, *p.shape), dtype) if packed else jnp.zeros_like(p, dtype)

    return jax.tree.map(zeros, params)


def _stored(mu, like, count):
    """Return first moments as they are stored; every array and step rounds with other bits."""
    leaves, treedef = jax.tree.flatten(mu)
    seeds = count * np.int32(7919) + np.arange(len(leaves), dtype=np.int32)
    stored = map(packed_like, leaves, treedef.flatten_up_to(like), seeds)
    return treedef.unflatten(stored)


def _averaged(updates, stored, b1):
    """Return the next first moments, unpacked and in float32 or wider."""

    def average(g, m):
        wide = jnp.promote_types(g.dtype, jnp.float32)
        old = unpacked(m, g).astype(wide)
        return times_real(old, b1) + times_real(g.astype(wide), 1 - b1)

    return jax.tree.map(average, updates, stored)


def bias_correction(decay: ArrayLike, count: Int32[Array, ""], dtype: Any) -> Array:
    """Return 1 - decay^count in `dtype`, of a running mean that started at zero."""
    return (1 - jnp.asarray(decay, dtype) ** count).astype(dtype)


def mean_squares(g: Any) -> Array:
    """Return |g|^2, of a pair the mean of the squares of both real numbers; float32 or wider."""
    if is_pair(g):
        squares = abs_squared(g.parts)
        return (squares[0] + squares[1]) / 2
    return abs_squared(g)


def abs_squared(g: Array) -> Array:
    """Return |g|^2, real, in float32 or wider."""
    g = g.astype(jnp.promote_types(g.dtype, jnp.float32))
    return g.real**2 + g.imag**2 if jnp.iscomplexobj(g) else g**2
