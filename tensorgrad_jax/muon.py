"""Muon for tensors: the recommended optimizer, and one of polar factors alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from tensorgrad_jax.optimizers import over_factored_rms, with_decay_and_rate
from tensorgrad_jax.projections import Projection, TensorSpec, Tucker
from tensorgrad_jax.projections.plain import decay, not_negative, number, positive, shown, whole
from tensorgrad_jax.transforms import (
    in_subspace,
    orthogonalize,
    scale_by_adam,
)
from tensorgrad_jax.transforms.blending import blended
from tensorgrad_jax.transforms.carrying import OnRefresh
from tensorgrad_jax.transforms.in_turn import in_turn
from tensorgrad_jax.transforms.kinds import by_kind, with_axes_last
from tensorgrad_jax.transforms.leaves import Specs, take_apart
from tensorgrad_jax.transforms.moments import check_moment_dtype, momentum
from tensorgrad_jax.transforms.orthogonalize import matrix_axes
from tensorgrad_jax.transforms.subspace import Gap

# The polar factor of a matrix of few rows (input coordinates, output fields) is no more than a
# normalisation of each.
_SMALLEST_MATRIX = 8


def subspace_muon(
    learning_rate: optax.ScalarOrSchedule,
    projection: Projection | None = Tucker(0.05, factors="real"),  # noqa: B008 (frozen)
    update_proj_gap: Gap = 50,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    specs: Specs = None,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    polar_share: ArrayLike = 0.5,
    polar_projection: Projection | None = Tucker((..., 0.5, 0.5), factors="real"),  # noqa: B008
    polar_scale: ArrayLike = 0.8,
    matrix_b1: ArrayLike = 0.95,
    matrix_scale: ArrayLike = 0.4,
    adam_b1: ArrayLike = 0.9,
    mu_dtype: Any = jnp.bfloat16,
    steps: int = 5,
    on_refresh: OnRefresh = "transport",
    mask: Any = None,
    stagger: bool = False,
    seed: int = 0,
    per_layer: bool = True,
) -> optax.GradientTransformationExtraArgs:
    r"""Half Adam in little memory, half Muon: the recommended optimizer for neural operators.

    Three kinds of leaves:

        tensors (those with a spec)     update = (1 - s) U + s P, below
        matrices of 8 x 8 and larger    update = polar(M), M the Nesterov momentum of gradients
        all other leaves                Adam's update

    followed by decoupled weight decay. U is the update of `subspace_momentum`: with c = project(G),
    its momentum m, and a second moment v of the gradient that is a product of means,

    $$
    U = \frac{\operatorname{lift}(m) + G - \operatorname{lift}(c)}{\sqrt{v} + \varepsilon},
    \qquad P = \operatorname{lift}'(\operatorname{polar}(\operatorname{project}'(U))) ,
    $$

    with the polar factor W V^H of W S V^H, see `orthogonalize`, for the matrix of two axes, the
    channels of a spectral weight, at every index of the others. U knows how noisy a gradient is, P
    uses that its entries are those of a matrix; where gradients are noisy the first is worth more,
    elsewhere the second, and the mean of both is nearly as good as the better of them everywhere.

    Of AdamW's two moments, a tensor keeps 5% of one in bfloat16, the means of v, and the bases.

    Args:
        learning_rate: a number or a schedule; one that suits AdamW.
        projection: the subspace of the tensors' momentum; what lies outside is passed on. None:
            the whole momentum is kept.
        update_proj_gap: steps between refreshes of both subspaces, see `in_subspace`.
        weight_decay: decoupled weight decay, a number or a schedule; times the learning rate.
        specs: which leaves are tensors, see `in_subspace`; `TensorSpec.matrix_axes` are the
            matrices' axes, by default the two largest, `TensorSpec.groups` those of v, see
            `scale_by_factored_rms`. `tensorgrad_jax.models.tensor_specs` names the spectral weights
            of an FNO.
        b1: decay of the tensors' momentum, in [0, 1).
        b2: decay of second moments, in [0, 1).
        eps: added to their corrected roots.
        polar_share: s, in [0, 1]. With 0 nothing is computed of P.
        polar_projection: where polar factors are taken; it has the matrices' axes last, so that its
            default halves these two and takes an eighth of the operations. None: of U itself.
        polar_scale: root mean square of the numbers of P.
        matrix_b1: decay of the matrices' momentum, in [0, 1).
        matrix_scale: root mean square of the numbers of their updates.
        adam_b1: decay of the first moments of other leaves, in [0, 1).
        mu_dtype: dtype of the momentum of tensors and matrices, also int8, see `scale_by_adam`;
            None: the leaf's, at least float32.
        steps: Newton-Schulz rounds of a polar factor.
        on_refresh: what happens to the momentum at a refresh, see `in_subspace`.
        mask: which leaves to decay, see `optax.add_decayed_weights`.
        stagger: refresh the parameters at different steps, see `in_subspace`.
        seed: of random projections.
        per_layer: handle large parameters one after the other, each from the gradient to the update
            (not with `stagger`).

    Returns:
        A transformation to be used as any of Optax's.

    Raises:
        ValueError: if an argument is not one of these.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> import tensorgrad_jax as tg
        >>> params = {"w": jnp.ones((2, 16, 9, 32, 32))}  # a complex weight as a pair
        >>> optimizer = tg.subspace_muon(1e-3, specs={"w": tg.TensorSpec(complex_axis=0)})
        >>> state = jax.eval_shape(optimizer.init, params)
        >>> tg.state_bytes(state)["total"]  # of 2359304 that optax.adamw has
        74280

    References:
        K. Jordan et al., Muon, 2024 (of matrices). T. Nguyen et al., Subset-norm and
        subspace-momentum, arXiv 2411.07120 (momentum in a subspace, the rest passed on). N. Shazeer
        and M. Stern, Adafactor, arXiv 1804.04235 (the second moment). C. Si et al., AdaMuon, arXiv
        2507.11005, and M. Zhang et al., NAMO, arXiv 2602.17080 (other ways to combine the two).
    """
    owner = "subspace_muon"
    b1, b2, matrix_b1, adam_b1 = (
        decay(owner, name, x)
        for name, x in (("b1", b1), ("b2", b2), ("matrix_b1", matrix_b1), ("adam_b1", adam_b1))
    )
    eps = not_negative(owner, "eps", eps)
    polar_share = number(
        owner, "polar_share", polar_share, "a number in [0, 1]", lambda x: (x >= 0) & (x <= 1)
    )
    polar_scale = positive(owner, "polar_scale", polar_scale)
    matrix_scale = positive(owner, "matrix_scale", matrix_scale)
    check_moment_dtype(owner, mu_dtype)
    seed = whole(owner, "seed", seed, 0, 2**32)
    for name, x in (("projection", projection), ("polar_projection", polar_projection)):
        if x is not None and not isinstance(x, Projection):
            raise ValueError(f"{owner}: {name} must be a Projection or None, got {shown(x)}")
    subspace = {
        "update_proj_gap": update_proj_gap,
        "on_refresh": on_refresh,
        "stagger": stagger,
        "per_layer": per_layer,
    }

    def of_group(specs, number=0):
        options = subspace | {"specs": specs, "seed": (seed + number) % 2**32}
        scaled = over_factored_rms(momentum(b1, mu_dtype), projection, b2, eps, options)
        factors = _polar_factors(polar_projection, polar_scale, steps, options)
        return blended(scaled, factors, polar_share)

    # Whose refreshes are spread over the steps is counted among all.
    of_tensors = in_turn(of_group) if per_layer and not stagger else of_group

    averaged = momentum(matrix_b1, mu_dtype, nesterov=True)
    scaled = _by_kind(
        of_tensors,
        optax.chain(averaged, orthogonalize(None, matrix_scale, steps)),
        scale_by_adam(adam_b1, b2, eps),
        specs,
    )
    return with_decay_and_rate(owner, scaled, weight_decay, mask, learning_rate)


def _polar_factors(
    projection: Projection | None,
    scale: ArrayLike,
    steps: int,
    options: dict[str, Any],
) -> optax.GradientTransformation:
    """Return polar factors inside a subspace whose lifted numbers have a root mean square."""
    if projection is None:
        return orthogonalize(_last_axes(options["specs"]), scale, steps)
    inside = in_subspace(orthogonalize(None, 1.0, steps), projection, **options)

    def with_size(updates, params=None):
        del params
        # Lifted, as many squares are shared by more numbers.
        leaves = take_apart(updates, projection, options["specs"]).compressed
        return {n: x * (scale / leaves[n].budget ** 0.5) for n, x in updates.items()}

    return optax.chain(inside, optax.stateless(with_size))


def tensor_muon(
    learning_rate: optax.ScalarOrSchedule,
    projection: Projection | None = Tucker((..., 0.5, 0.5), factors="real"),  # noqa: B008 (frozen)
    update_proj_gap: Gap = 50,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    specs: Specs = None,
    b1: ArrayLike = 0.95,
    scale: ArrayLike = 0.8,
    matrix_scale: ArrayLike = 0.4,
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
    b1, adam_b1, adam_b2 = (
        decay("tensor_muon", name, x)
        for name, x in (("b1", b1), ("adam_b1", adam_b1), ("adam_b2", adam_b2))
    )
    eps = not_negative("tensor_muon", "eps", eps)
    scale = positive("tensor_muon", "scale", scale)
    matrix_scale = positive("tensor_muon", "matrix_scale", matrix_scale)
    check_moment_dtype("tensor_muon", mu_dtype)
    averaged = momentum(b1, mu_dtype, nesterov=True)

    def of_tensors(specs):
        if projection is None:
            return optax.chain(averaged, orthogonalize(_last_axes(specs), scale, steps))
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

    scaled = _by_kind(
        of_tensors,
        optax.chain(averaged, orthogonalize(None, matrix_scale, steps)),
        scale_by_adam(adam_b1, adam_b2, eps),
        specs,
    )
    return with_decay_and_rate("tensor_muon", scaled, weight_decay, mask, learning_rate)


def _last_axes(specs: dict[str, TensorSpec]) -> dict[str, TensorSpec]:
    """Return specs of which the matrices are those of the last two axes."""
    return {name: dataclasses.replace(s, matrix_axes=(-2, -1)) for name, s in specs.items()}


def _by_kind(
    of_tensors: Callable[[dict[str, Any]], optax.GradientTransformation],
    of_matrices: optax.GradientTransformation,
    of_others: optax.GradientTransformation,
    specs: Specs,
) -> optax.GradientTransformationExtraArgs:
    """Return one transformation for tensors, one for matrices of 8 x 8 and more, one for the rest.

    Tensors are those with a spec; their matrices' axes are moved to the end.
    """
    of_tensors({})  # wrong arguments are told here, not at init

    def kind(leaf, spec):
        large = len(leaf.shape) == 2 and min(leaf.shape) >= _SMALLEST_MATRIX
        return "tensor" if spec is not None else "matrix" if large else "other"

    return by_kind(
        {
            "tensor": with_axes_last(of_tensors, lambda *leaf: matrix_axes(*leaf)[1:]),
            "matrix": lambda _: of_matrices,
            "other": lambda _: of_others,
        },
        kind,
        specs,
    )
