"""Parameters in bfloat16: updates that are rounded without being lost."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, BFloat16, Float32, PRNGKeyArray, PyTree, UInt32

from tensorgrad_jax.projections.hashing import hashed
from tensorgrad_jax.transforms.leaves import check_fits


def apply_updates(params: PyTree, updates: PyTree, key: PRNGKeyArray | None = None) -> PyTree:
    r"""Add updates to parameters, rounding stochastically where parameters are bfloat16.

    bfloat16 keeps 8 significant bits: added and rounded to the nearest, an update below 1/512 to
    1/256 of a weight changes nothing, however often it comes. Rounded stochastically, p + u becomes
    one of its two neighbours a < b in bfloat16, b with probability (p + u - a) / (b - a): right
    in the mean, so that small updates add up.

    Args:
        params: a pytree of arrays.
        updates: a pytree like it; None leaves a parameter as it is.
        key: of the rounding; give every step another one, for instance
            `jax.random.fold_in(key, step)`. None rounds to the nearest, as Optax does.

    Returns:
        The sums, in the parameters' dtypes. What is not bfloat16 is exactly
        `optax.apply_updates(params, updates)`.

    Raises:
        ValueError: if a parameter is float16: it would need loss scaling, bfloat16 does not.

    Examples:
        >>> import jax, jax.numpy as jnp, tensorgrad_jax as tg
        >>> p, u = jnp.ones(10_000, jnp.bfloat16), jnp.full(10_000, 1e-3)
        >>> float(optax.apply_updates(p, u).astype(jnp.float32).mean())
        1.0
        >>> rounded = tg.apply_updates(p, u, jax.random.key(0))
        >>> round(float(rounded.astype(jnp.float32).mean()), 4)
        1.001

    References:
        S. Gupta et al., Deep learning with limited numerical precision, ICML 2015, section 3.1.
    """
    paths, _ = jax.tree_util.tree_flatten_with_path(params)
    if params is None and updates is not None:
        raise ValueError("apply_updates: params must be a tree like the updates, got None")
    check_fits("apply_updates", "update", updates, params)
    for path, p in paths:
        if jnp.asarray(p).dtype == jnp.float16:
            raise ValueError(
                f"apply_updates: parameter {jax.tree_util.keystr(path)} is float16, expected "
                "bfloat16 or wider: float16 needs loss scaling"
            )
    # One number per leaf; the entries' bits are hashed from it and from their places.
    n_leaves = len(jax.tree.leaves(updates, is_leaf=lambda x: x is None))
    bits = None if key is None else jax.random.bits(key, (max(1, n_leaves),), jnp.uint32)
    seeds = itertools.repeat(None) if bits is None else iter(bits)

    def apply(update, p):
        seed = next(seeds)
        if update is None:
            return p
        if seed is None or jnp.asarray(p).dtype != jnp.bfloat16:
            return optax.apply_updates(p, update)
        return stochastically_rounded(p.astype(jnp.float32) + update.astype(jnp.float32), seed)

    return jax.tree.map(apply, updates, params, is_leaf=lambda x: x is None)


def stochastically_rounded(
    x: Float32[Array, "*shape"], seed: UInt32[Array, ""]
) -> BFloat16[Array, "*shape"]:
    """Return `x` rounded to one of its neighbours in bfloat16, with mean `x`.

    A bfloat16 is the upper half of a float32. Adding 16 random bits to the lower half carries
    over with the probability that is wanted.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    noise = hashed(places(x.shape), seed) >> 16
    rounded = (bits + noise) & jnp.uint32(0xFFFF0000)
    rounded = jax.lax.bitcast_convert_type(rounded, jnp.float32).astype(jnp.bfloat16)
    # The largest number would become infinite by a carry, infinity and NaN another NaN.
    exact = jnp.isfinite(x) & jnp.isfinite(rounded)
    return jnp.where(exact, rounded, x.astype(jnp.bfloat16))


def places(shape: tuple[int, ...]) -> Any:
    """Return the place of every entry, counted modulo 2^32, axis by axis: shards stay apart."""
    places, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        counter = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        places += counter * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    return places
