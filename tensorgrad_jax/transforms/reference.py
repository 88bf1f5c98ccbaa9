"""AdamW in a subspace by every convention of the PyTorch reference, to reproduce its runs.

Where it differs from `projected_adamw`, on purpose kept to this file:

- refreshes are at steps 0, 1, 1 + g, 1 + 2g, ...: the first asks no schedule, which is asked for
  the first time at step 1 and says yes;
- moments keep their numbers at a refresh, now read in another basis; those of single entries are
  set to zero where `reset_sparse` says so;
- eps is compared with the root of the uncorrected second moment, and the bias correction
  multiplies the step;
- weight decay acts on the updated parameter: p <- (p - update) (1 - lr wd).

Ranks and counts follow the reference's rule (`reference_ranks`, `reference_slice_counts`) if they
are given as such; Tucker(method="svd", n_iter=10, warm_restart=False) is its decomposition, with
the column phases made canonical.

Source: the implementation that accompanies S. Loeschcke et al., TensorGRaD, arXiv 2501.02379.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int32

from tensorgrad_jax.projections import Projection, StructuredSparse, UnstructuredSparse
from tensorgrad_jax.projections.composite import Residual, Sum
from tensorgrad_jax.projections.pairs import is_pair
from tensorgrad_jax.projections.plain import check_choice, decay, not_negative, number, rate
from tensorgrad_jax.transforms.leaves import Specs
from tensorgrad_jax.transforms.moments import ScaleByAdamState, scale_by_adam
from tensorgrad_jax.transforms.placeholders import is_placeholder, not_of_parameters
from tensorgrad_jax.transforms.subspace import Gap, in_subspace


class ReferenceAdamWState(NamedTuple):
    """State of `reference_adamw`.

    Attributes:
        count: int32 (), number of updates so far.
        subspace: the state of the compressed moments.
    """

    count: Int32[Array, ""]
    subspace: optax.OptState


def reference_adamw(
    learning_rate: optax.ScalarOrSchedule,
    projection: Projection | None,
    update_proj_gap: Gap = 200,
    weight_decay: float = 0.0,
    specs: Specs = None,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    correct_bias: bool = True,
    lambda_sparse: float | None = 1.0,
    reset_sparse: bool = False,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """AdamW of compressed gradients as the PyTorch reference computes it.

    Args:
        learning_rate: a number or a schedule.
        projection: what compresses every tensor; None for the reference's plain AdamW.
        update_proj_gap: steps between refreshes, or a schedule.
        weight_decay: decoupled weight decay, multiplied by the learning rate.
        specs: which leaves to compress, see `in_subspace`.
        b1: decay of the first moments.
        b2: decay of the second moments.
        eps: added to the root of the uncorrected second moments.
        correct_bias: whether the step is corrected for the moments' start at zero.
        lambda_sparse: weight of the sparse part of a composite, whose own weights are not used.
            None or a number <= 0: its elements over those of the low-rank core. 5.5 is special in
            the reference: the whole update is halved.
        reset_sparse: whether a refresh sets the moments of `UnstructuredSparse` parts of a
            composite to zero (the reference's reset_sparse_optimizer_states).
        seed: of random projections.

    Returns:
        A transformation; `update` needs the parameters.

    Raises:
        ValueError: if an argument is not one of these.
    """
    owner = "reference_adamw"
    learning_rate = rate(owner, "learning_rate", learning_rate)
    weight_decay = number(owner, "weight_decay", weight_decay)
    b1, b2 = decay(owner, "b1", b1), decay(owner, "b2", b2)
    eps = not_negative(owner, "eps", eps)
    check_choice(owner, "correct_bias", correct_bias, (True, False))
    check_choice(owner, "reset_sparse", reset_sparse, (True, False))
    moments = _raw_adam(b1, b2, eps)
    if isinstance(projection, Residual | Sum):
        projection = _weighted(projection, lambda_sparse)
    if projection is not None:

        def carry(leaf, moments, old, new):
            del old, new
            if not (reset_sparse and isinstance(leaf.projection, Residual | Sum)):
                return moments
            return {label: _forget(leaf.projection, m) for label, m in moments.items()}

        def gap(count):
            value = update_proj_gap
            if callable(value):
                # The schedule that is first asked at step 1 believes that it is step 0.
                value = value(jnp.where(count == 1, 0, count))
            return jnp.where(count == 0, 1, jnp.asarray(value).astype(jnp.int32))

        moments = in_subspace(moments, projection, gap, carry, specs=specs, seed=seed)
    moments = optax.with_extra_args_support(moments)

    def init_fn(params):
        if is_placeholder(params):
            return not_of_parameters(ReferenceAdamWState)
        return ReferenceAdamWState(jnp.zeros((), jnp.int32), moments.init(params))

    def update_fn(updates, state, params=None, **extra_args):
        if params is None:
            raise ValueError("reference_adamw: update needs the parameters, got None")
        count = cast(Array, optax.safe_increment(state.count))
        scaled, subspace = moments.update(updates, state.subspace, None, **extra_args)
        now = learning_rate(state.count) if callable(learning_rate) else learning_rate
        step = jnp.asarray(now, jnp.float32)
        if correct_bias:
            step = step * jnp.sqrt(1 - jnp.float32(b2) ** count) / (1 - jnp.float32(b1) ** count)

        def update(u, p):
            stepped = -step * u
            return (stepped - now * weight_decay * (p + stepped)).astype(u.dtype)

        return jax.tree.map(update, scaled, params), ReferenceAdamWState(count, subspace)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _raw_adam(b1, b2, eps):
    """m / (sqrt(v) + eps), without bias correction."""
    corrected = scale_by_adam(b1, b2, eps)

    def update_fn(updates, state, params=None):
        _, after = corrected.update(updates, state, params)
        after = cast(ScaleByAdamState, after)

        def divide(m, v):
            # The reference's spectral weights are complex: |g|^2, twice the mean over both numbers.
            root = jnp.sqrt(2 * v if is_pair(m) else v) + eps
            return jax.tree.map(lambda x: x / root, m)

        return jax.tree.map(divide, after.mu, after.nu, is_leaf=is_pair), after

    return optax.GradientTransformation(corrected.init, update_fn)


_SPARSE = (UnstructuredSparse, StructuredSparse)
_SPECIAL_LAMBDA = 5.5


class _ReferenceResidual(Residual):
    """What is left over is the tensor minus what `first` lifts, its scale included."""

    def _split(self, tensor, basis):
        compact = self.first.project(tensor, basis)
        return compact, self.first.add_lifted(tensor, compact, basis, -1.0)


class _CountWeighted:
    """A composite whose sparse part is weighted by elements of it / elements of the other."""

    def _lift_weights(self, compact):
        first, second = (sum(x.size for x in jax.tree.leaves(c)) for c in compact)
        first_is_sparse = isinstance(self.first, _SPARSE)  # pyright: ignore
        return (first / second, 1.0) if first_is_sparse else (1.0, second / first)


class _CountWeightedResidual(_CountWeighted, _ReferenceResidual):
    pass


class _CountWeightedSum(_CountWeighted, Sum):
    pass


def _weighted(projection: Residual | Sum, lambda_sparse: float | None) -> Residual | Sum:
    sparse = [isinstance(p, _SPARSE) for p in (projection.first, projection.second)]
    if sum(sparse) != 1:
        raise ValueError(
            "reference_adamw: a composite must have one sparse and one low-rank part, got "
            f"{projection!r}"
        )
    is_sum = isinstance(projection, Sum)
    if lambda_sparse is None or lambda_sparse <= 0:
        kind = _CountWeightedSum if is_sum else _CountWeightedResidual
        return kind(projection.first, projection.second)
    halved = 0.5 if lambda_sparse == _SPECIAL_LAMBDA else 1.0
    weights = [halved * lambda_sparse if s else halved for s in sparse]
    kind = Sum if is_sum else _ReferenceResidual
    return kind(projection.first, projection.second, (weights[0], weights[1]))


def _forget(projection: Projection, moment: Any) -> Any:
    """Set the moments of single entries to zero."""
    if isinstance(projection, Residual | Sum):
        return (_forget(projection.first, moment[0]), _forget(projection.second, moment[1]))
    if isinstance(projection, UnstructuredSparse):
        return jnp.zeros_like(moment)
    return moment


def reference_ranks(budget: float, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the reference's Tucker ranks of a float budget, which they overshoot.

    rank_i = max(1, int(budget^(1/n) d_i) + 1) with n modes of size above 1; 1 for the others.
    """
    n = max(1, sum(d > 1 for d in shape))
    return tuple(1 if d == 1 else min(d, max(1, int(budget ** (1 / n) * d) + 1)) for d in shape)


def reference_slice_counts(
    ratio: float | tuple[float, ...], shape: tuple[int, ...]
) -> tuple[int, ...]:
    """Return the reference's numbers of kept slices, for `StructuredSparse`.

    k_i = max(1, int(r_i d_i + 1)) with r_i = ratio^(1/n) for one float, n the number of modes of
    size above 1, and r_i = ratio_i^(1/ndim) for a tuple, whose last entry repeats.
    """
    if isinstance(ratio, tuple):
        filled = ratio + ratio[-1:] * (len(shape) - len(ratio))
        shares = [r ** (1 / len(shape)) for r in filled[: len(shape)]]
    else:
        shares = [ratio ** (1 / max(1, sum(d > 1 for d in shape)))] * len(shape)
    return tuple(max(1, int(s * d + 1)) for s, d in zip(shares, shape, strict=True))
