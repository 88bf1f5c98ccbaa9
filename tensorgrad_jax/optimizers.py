"""Ready-made optimizers: each is a short chain of this library's and Optax's transformations."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from tensorgrad_jax.projections import Projection, Residual, Sum, Tucker, UnstructuredSparse
from tensorgrad_jax.projections.plain import (
    check_choice,
    decay,
    not_negative,
    number,
    positive,
    rate,
    shown,
)
from tensorgrad_jax.projections.ranks import RankSpec
from tensorgrad_jax.projections.selection import Selection
from tensorgrad_jax.transforms import (
    in_subspace,
    orthogonalize,
    scale_by_adam,
    scale_by_factored_rms,
)
from tensorgrad_jax.transforms.carrying import OnRefresh
from tensorgrad_jax.transforms.kinds import by_kind, with_axes_last
from tensorgrad_jax.transforms.leaves import Specs
from tensorgrad_jax.transforms.moments import check_moment_dtype, momentum
from tensorgrad_jax.transforms.orthogonalize import matrix_axes
from tensorgrad_jax.transforms.sizes import as_large_as
from tensorgrad_jax.transforms.subspace import Gap

# The polar factor of a matrix of few rows (input coordinates, output fields) is no more than a
# normalisation of each.
_SMALLEST_MATRIX = 8


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
    return _with_decay_and_rate("projected_adamw", scaled, weight_decay, mask, learning_rate)


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
        2328
    """
    b1 = decay("subspace_momentum", "b1", b1)
    check_moment_dtype("subspace_momentum", mu_dtype)
    check_choice("subspace_momentum", "match_size", match_size, (True, False))
    numerator = in_subspace(
        momentum(b1, mu_dtype),
        projection,
        update_proj_gap=update_proj_gap,
        on_refresh=on_refresh,
        complement="pass",
        specs=specs,
        stagger=stagger,
        seed=seed,
        per_layer=per_layer,
    )
    scaled = scale_by_factored_rms(b2, eps, specs, numerator, max_rms=1.0)
    if match_size:
        scaled = as_large_as(scale_by_adam(b1, b2, eps), scaled, specs, seed)
    return _with_decay_and_rate("subspace_momentum", scaled, weight_decay, mask, learning_rate)


def tensor_muon(
    learning_rate: optax.ScalarOrSchedule,
    projection: Projection | None = Tucker((..., 0.5, 0.5), factors="real"),  # noqa: B008 (frozen)
    update_proj_gap: Gap = 50,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    specs: Specs = None,
    b1: ArrayLike = 0.95,
    scale: float = 0.8,
    matrix_scale: float = 0.4,
    adam_b1: ArrayLike = 0.9,
    adam_b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    mu_dtype: Any = jnp.bfloat16,
    steps: int = 5,
    on_refresh: OnRefresh = "transport",
    mask: Any = None,
    stagger: bool = False,
    seed: int = 0,
    per_layer: bool = True,
) -> optax.GradientTransformationExtraArgs:
    r"""Muon for tensors: polar factors of the momentum, of spectral weights inside a Tucker core.

    Three kinds of leaves, with M the Nesterov momentum of what is averaged and polar(X) = U V^H for
    X = U S V^H, see `orthogonalize`:

        tensors (those with a spec)     core = project(G);  update = lift(polar(M(core)))
                                        for the matrix of two axes, the channels of a spectral
                                        weight, at every index of the others
        matrices of 8 x 8 and larger    update = polar(M(G))
        all other leaves                Adam's update

    followed by decoupled weight decay. One momentum and no second moment is kept of tensors and
    matrices. As the channels of a core are halved, its momentum has a quarter of the tensor's
    entries, in bfloat16 a sixteenth of the bytes of AdamW's two moments, and a polar factor takes
    an eighth of the operations.

    Args:
        learning_rate: a number or a schedule; one that suits AdamW.
        projection: the subspace of the tensors' momentum, which has the matrices' axes last, so
            that its default halves these two; None: none, the whole momentum is kept.
        update_proj_gap: steps between refreshes, see `in_subspace`.
        weight_decay: decoupled weight decay, a number or a schedule; times the learning rate.
        specs: which leaves are tensors, see `in_subspace`; `TensorSpec.matrix_axes` are the
            matrices' axes, by default the two largest. `tensorgrad_jax.models.tensor_specs` names
            the spectral weights of an FNO.
        b1: decay of the momentum, in [0, 1).
        scale: root mean square of the numbers of a polar factor's update in the core (the lifted
            one's is smaller by the root of the budget: half of it by default).
        matrix_scale: the same of matrices.
        adam_b1: decay of the first moments of other leaves.
        adam_b2: decay of their second moments.
        eps: added to the root of their corrected second moments.
        mu_dtype: dtype of the momentum of tensors and matrices, also int8, see `scale_by_adam`;
            None: the leaf's, at least float32.
        steps: Newton-Schulz rounds of a polar factor.
        on_refresh: what happens to the momentum at a refresh, see `in_subspace`.
        mask: which leaves to decay, see `optax.add_decayed_weights`.
        stagger: refresh the parameters at different steps, see `in_subspace`.
        seed: of random projections.
        per_layer: handle large parameters one after the other, see `in_subspace`.

    Returns:
        A transformation to be used as any of Optax's.

    Raises:
        ValueError: if an argument is not one of these.

    References:
        K. Jordan et al., Muon, 2024 (of matrices). T. Nguyen et al., Subset-norm and
        subspace-momentum, arXiv 2411.07120 (momentum in a subspace).
    """
    b1 = decay("tensor_muon", "b1", b1)
    adam_b1, adam_b2 = (
        decay("tensor_muon", name, x) for name, x in (("adam_b1", adam_b1), ("adam_b2", adam_b2))
    )
    eps = not_negative("tensor_muon", "eps", eps)
    scale = positive("tensor_muon", "scale", scale)
    matrix_scale = positive("tensor_muon", "matrix_scale", matrix_scale)
    check_moment_dtype("tensor_muon", mu_dtype)
    averaged = momentum(b1, mu_dtype, nesterov=True)

    def of_tensors(specs):
        if projection is None:
            last = {name: dataclasses.replace(s, matrix_axes=(-2, -1)) for name, s in specs.items()}
            return optax.chain(averaged, orthogonalize(last, scale, steps))
        return in_subspace(
            optax.chain(averaged, orthogonalize(None, scale, steps)),
            projection,
            update_proj_gap=update_proj_gap,
            on_refresh=on_refresh,
            specs=specs,
            stagger=stagger,
            seed=seed,
            per_layer=per_layer,
        )

    of_tensors({})  # wrong arguments are told here, not at init
    of_matrices = optax.chain(averaged, orthogonalize(None, matrix_scale, steps))
    of_others = scale_by_adam(adam_b1, adam_b2, eps)

    def kind(leaf, spec):
        large = len(leaf.shape) == 2 and min(leaf.shape) >= _SMALLEST_MATRIX
        return "tensor" if spec is not None else "matrix" if large else "other"

    scaled = by_kind(
        {
            "tensor": with_axes_last(of_tensors, lambda *leaf: matrix_axes(*leaf)[1:]),
            "matrix": lambda _: of_matrices,
            "other": lambda _: of_others,
        },
        kind,
        specs,
    )
    return _with_decay_and_rate("tensor_muon", scaled, weight_decay, mask, learning_rate)


def _with_decay_and_rate(
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
