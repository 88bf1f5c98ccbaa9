"""Ready-made optimizers: each is a short chain of this library's and Optax's transformations."""

from __future__ import annotations

from typing import Any, Literal

import jax
import numpy as np
import optax
from jax.typing import ArrayLike

from tensorgrad_jax.projections import Projection, Residual, Sum, Tucker, UnstructuredSparse
from tensorgrad_jax.projections.plain import (
    check_choice,
    decay,
    number,
    rate,
    shown,
    whole,
)
from tensorgrad_jax.projections.ranks import RankSpec
from tensorgrad_jax.projections.selection import Selection
from tensorgrad_jax.transforms import (
    in_subspace,
    scale_by_adam,
    scale_by_factored_rms,
)
from tensorgrad_jax.transforms.carrying import OnRefresh
from tensorgrad_jax.transforms.in_turn import in_turn
from tensorgrad_jax.transforms.kinds import by_kind
from tensorgrad_jax.transforms.leaves import Specs
from tensorgrad_jax.transforms.moments import check_moment_dtype, momentum
from tensorgrad_jax.transforms.sizes import as_large_as
from tensorgrad_jax.transforms.subspace import Gap


def tensorgrad(
    learning_rate: optax.ScalarOrSchedule,
    rank: RankSpec = 0.20,
    sparse_ratio: float = 0.05,
    sparse_type: Selection = "randk",
    mode: Literal["residual", "sum"] = "residual",
    order: Literal["sparse_first", "low_rank_first"] = "sparse_first",
    lambda_sparse: float = 1.0,
    update_proj_gap: Gap = 200,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    specs: Specs = None,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    mu_dtype: Any = None,
    n_iter: int = 1,
    on_refresh: OnRefresh = "transport",
    mask: Any = None,
    seed: int = 0,
    match_size: bool = True,
    inner: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    """TensorGRaD: AdamW on a few single entries of each gradient tensor plus a Tucker core.

    One part compresses the gradient, the other what the first leaves over of it; each has its own
    Adam moments; the update is lift(low rank) + lambda_sparse * lift(sparse), followed by
    decoupled weight decay as in `optax.adamw`. Leaves that are not compressed get AdamW.

    The update of a compressed leaf is made as large as AdamW's, so that AdamW's learning rate fits.
    (What AdamW's would be is measured on a fixed sample of 1,024 of the leaf's entries.) The
    published method leaves it smaller, about sqrt(budget) as large where gradients are noise:
    `match_size=False`, and a learning rate that makes up for it.

    Args:
        learning_rate: a number or a schedule.
        rank: of the Tucker part, see `Tucker`; a float is a budget.
        sparse_ratio: share of the entries that the sparse part keeps.
        sparse_type: how it chooses them, see `UnstructuredSparse`.
        mode: "residual": the second part compresses what the first leaves over; "sum": both
            compress the gradient itself.
        order: which part comes first.
        lambda_sparse: weight of the sparse part's update.
        update_proj_gap: steps between refreshes, see `in_subspace`.
        weight_decay: decoupled weight decay, a number or a schedule; times the learning rate.
        specs: which leaves to compress, see `in_subspace`; `tensorgrad_jax.models.tensor_specs`
            names the spectral weights of an FNO.
        b1: decay of the first moments.
        b2: decay of the second moments.
        eps: added to the root of the corrected second moments.
        mu_dtype: dtype of the first moments, see `scale_by_adam`; bfloat16 halves them.
        n_iter: sweeps of the Tucker decomposition at a refresh.
        on_refresh: what happens to the moments at a refresh, see `in_subspace`.
        mask: which leaves to decay, see `optax.add_decayed_weights`.
        seed: of the random selection.
        match_size: make the update as large as AdamW's, see `in_subspace`.
        inner: what runs in the compact space instead of `scale_by_adam(b1, b2, eps, mu_dtype)`,
            which then have no effect: `truegrad.scale_by_true_adam`, say.

    Returns:
        A transformation to be used as any of Optax's.

    Raises:
        ValueError: if an argument is not one of these.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> import tensorgrad_jax as tg
        >>> params = {"w": jnp.ones((16, 16, 8)), "b": jnp.ones(16)}
        >>> state = jax.eval_shape(tg.tensorgrad(1e-3).init, params)
        >>> tg.state_bytes(state)["total"]  # of 16516 that optax.adamw has
        6024

    References:
        S. Loeschcke et al., TensorGRaD, arXiv 2501.02379.
    """
    composites = {"residual": Residual, "sum": Sum}
    check_choice("tensorgrad", "mode", mode, ("residual", "sum"))
    check_choice("tensorgrad", "order", order, ("sparse_first", "low_rank_first"))
    lambda_sparse = number("tensorgrad", "lambda_sparse", lambda_sparse)
    sparse, low_rank = UnstructuredSparse(sparse_ratio, sparse_type), Tucker(rank, n_iter)
    if order == "sparse_first":
        projection = composites[mode](sparse, low_rank, (lambda_sparse, 1.0))
    else:
        projection = composites[mode](low_rank, sparse, (1.0, lambda_sparse))
    return projected_adamw(
        learning_rate,
        projection,
        update_proj_gap=update_proj_gap,
        weight_decay=weight_decay,
        specs=specs,
        b1=b1,
        b2=b2,
        eps=eps,
        mu_dtype=mu_dtype,
        on_refresh=on_refresh,
        mask=mask,
        seed=seed,
        match_size=match_size,
        inner=inner,
    )


def projected_adamw(
    learning_rate: optax.ScalarOrSchedule,
    projection: Projection,
    update_proj_gap: Gap = 200,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    specs: Specs = None,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    mu_dtype: Any = None,
    on_refresh: OnRefresh = "transport",
    mask: Any = None,
    stagger: bool = False,
    seed: int = 0,
    per_layer: bool = True,
    match_size: bool = True,
    inner: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AdamW whose moments live in the compact space of any projection.

    Args:
        learning_rate: a number or a schedule.
        projection: what compresses every tensor; `Tucker`, `Residual`, ...
        update_proj_gap: steps between refreshes, see `in_subspace`.
        weight_decay: decoupled weight decay, a number or a schedule; times the learning rate.
        specs: which leaves to compress, see `in_subspace`.
        b1: decay of the first moments.
        b2: decay of the second moments.
        eps: added to the root of the corrected second moments.
        mu_dtype: dtype of the first moments, see `scale_by_adam`; bfloat16 halves them.
        on_refresh: what happens to the moments at a refresh, see `in_subspace`.
        mask: which leaves to decay, see `optax.add_decayed_weights`.
        stagger: refresh the parameters at different steps, see `in_subspace`.
        seed: of random projections.
        per_layer: handle large parameters one after the other, see `in_subspace`.
        match_size: make the update as large as AdamW's, see `in_subspace`.
        inner: what runs in the compact space instead of `scale_by_adam(b1, b2, eps, mu_dtype)`,
            which then have no effect: `truegrad.scale_by_true_adam`, say.

    Returns:
        A transformation to be used as any of Optax's.

    Raises:
        ValueError: if an argument is not one of these.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> import tensorgrad_jax as tg
        >>> params = {"w": jnp.ones((16, 16, 8)), "b": jnp.ones(16)}
        >>> state = jax.eval_shape(tg.projected_adamw(1e-3, tg.Tucker(0.1)).init, params)
        >>> tg.state_bytes(state)["total"]  # of 16516 that optax.adamw has
        3244
    """
    scaled = in_subspace(
        scale_by_adam(b1, b2, eps, mu_dtype) if inner is None else inner,
        projection,
        update_proj_gap=update_proj_gap,
        on_refresh=on_refresh,
        specs=specs,
        stagger=stagger,
        seed=seed,
        per_layer=per_layer,
        match_size=match_size,
    )
    return with_decay_and_rate("projected_adamw", scaled, weight_decay, mask, learning_rate)


def subspace_momentum(
    learning_rate: optax.ScalarOrSchedule,
    projection: Projection = Tucker(0.05),  # noqa: B008 (frozen)
    update_proj_gap: Gap = 100,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    specs: Specs = None,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    mu_dtype: Any = None,
    on_refresh: OnRefresh = "transport",
    mask: Any = None,
    stagger: bool = False,
    seed: int = 0,
    per_layer: bool = True,
    match_size: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""AdamW with momentum in a small subspace and a factored second moment: nothing is dropped.

    Per compressed leaf, with c = project(G) and the momentum m of c,

    $$
    \text{update} =
    \frac{\operatorname{lift}(m) + G - \operatorname{lift}(c)}{\sqrt{v} + \varepsilon},
    $$

    the gradient with its part inside the subspace averaged over time, divided by the root of a
    second moment v of the whole gradient that is a product of means over groups of axes. The part
    outside the subspace keeps moving the parameters, which no state is needed for. Other leaves get
    AdamW.

    The root mean square of a compressed leaf's update is bounded by 1 (times the learning rate). As
    the gradient outside the subspace is not averaged, it is near 1 where AdamW's is between .2, of
    noise alone, and 1: AdamW's learning rate fits, but the steps are not AdamW's.

    Args:
        learning_rate: a number or a schedule; one that suits AdamW.
        projection: the subspace of the momentum.
        update_proj_gap: steps between refreshes, see `in_subspace`.
        weight_decay: decoupled weight decay, a number or a schedule; times the learning rate.
        specs: which leaves to compress, see `in_subspace`; `TensorSpec.groups` are those of the
            second moment, see `scale_by_factored_rms`.
        b1: decay of the momentum.
        b2: decay of the second moment.
        eps: added to the root of the corrected second moment.
        mu_dtype: dtype of the momentum; bfloat16 halves it, int8 quarters it, see `scale_by_adam`.
        on_refresh: what happens to the momentum at a refresh, see `in_subspace`.
        mask: which leaves to decay, see `optax.add_decayed_weights`.
        stagger: refresh the parameters at different steps, see `in_subspace`.
        seed: of random projections.
        per_layer: handle large parameters one after the other, see `in_subspace`.
        match_size: make the update as large as AdamW's, as measured on a sample of entries. Not the
            default: at AdamW's rate the larger steps were the more accurate ones.

    Returns:
        A transformation to be used as any of Optax's.

    Raises:
        ValueError: if an argument is not one of these.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> import tensorgrad_jax as tg
        >>> params = {"w": jnp.ones((16, 16, 8)), "b": jnp.ones(16)}
        >>> state = jax.eval_shape(tg.subspace_momentum(1e-3).init, params)
        >>> tg.state_bytes(state)["total"]  # of 16516 that optax.adamw has
        2336
    """
    b1 = decay("subspace_momentum", "b1", b1)
    check_moment_dtype("subspace_momentum", mu_dtype)
    check_choice("subspace_momentum", "match_size", match_size, (True, False))
    seed = whole("subspace_momentum", "seed", seed, 0, 2**32)

    def of_group(specs, number=0):
        options = {
            "update_proj_gap": update_proj_gap,
            "on_refresh": on_refresh,
            "specs": specs,
            "stagger": stagger,
            "seed": (seed + number) % 2**32,
            "per_layer": per_layer,
        }
        return over_factored_rms(momentum(b1, mu_dtype), projection, b2, eps, options)

    # Whose refreshes are spread over the steps is counted among all.
    of_tensors = in_turn(of_group) if per_layer and not stagger else of_group
    of_tensors({})  # wrong arguments are told here, not at init
    scaled = by_kind(
        {
            "tensor": of_tensors,
            "other": lambda specs: scale_by_factored_rms(b2, eps, specs, momentum(b1, mu_dtype)),
        },
        lambda leaf, spec: "other" if spec is None else "tensor",
        specs,
    )
    if match_size:
        scaled = as_large_as(scale_by_adam(b1, b2, eps), scaled, specs, seed)
    return with_decay_and_rate("subspace_momentum", scaled, weight_decay, mask, learning_rate)


def over_factored_rms(
    numerator: optax.GradientTransformation,
    projection: Projection | None,
    b2: ArrayLike,
    eps: ArrayLike,
    options: dict[str, Any],
) -> optax.GradientTransformation:
    """Return a numerator in a subspace, what is outside passed on, over a factored second moment.

    Args:
        numerator: a momentum.
        projection: None: the numerator is that of the whole tensor.
        b2: of the second moment.
        eps: of its root.
        options: the others of `in_subspace`.
    """
    if projection is not None:
        numerator = in_subspace(numerator, projection, complement="pass", **options)
    return scale_by_factored_rms(b2, eps, options["specs"], numerator, max_rms=1.0)


def with_decay_and_rate(
    owner: str,
    scaled: optax.GradientTransformation,
    weight_decay: optax.ScalarOrSchedule,
    mask: Any,
    learning_rate: optax.ScalarOrSchedule,
) -> optax.GradientTransformationExtraArgs:
    """Return what AdamW does to scaled gradients: decoupled decay, then the step size."""
    learning_rate = rate(owner, "learning_rate", learning_rate)
    weight_decay = rate(owner, "weight_decay", weight_decay)
    if mask is not None and not callable(mask):
        of_leaves = jax.tree.leaves(mask)
        if not of_leaves or not all(isinstance(x, bool | np.bool_) for x in of_leaves):
            raise ValueError(
                f"{owner}: mask must be a tree of truth values like the parameters, or a function "
                f"that makes one of them, got {shown(mask)}"
            )
    return optax.chain(
        scaled,
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )
