"""From a configuration to the objects of a run: the model, its optimizer, its loss."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import tensorgrad_jax as tg

# Installed from models/, which type checkers do not see.
from tensorgrad_jax.models import FNO, tensor_specs  # pyright: ignore[reportMissingImports]
from tensorgrad_jax.training.config import ProjectionPart, resolve_projection_plan
from tensorgrad_jax.training.losses import h1_loss, lp_loss
from tensorgrad_jax.training.options import Config, OptConfig
from tensorgrad_jax.training.schedules import learning_rate_schedule


def build_model(config: Config, in_channels: int, out_channels: int) -> FNO:
    """Return the operator that the `fno` options describe, initialised from `config.seed`."""
    fno = config.fno
    return FNO(
        fno.n_modes,
        in_channels,
        out_channels,
        fno.hidden_channels,
        fno.n_layers,
        lifting_channel_ratio=fno.lifting_channel_ratio,
        projection_channel_ratio=fno.projection_channel_ratio,
        positional_embedding=fno.positional_embedding,
        use_channel_mlp=fno.use_channel_mlp,
        channel_mlp_expansion=fno.channel_mlp_expansion,
        norm=fno.norm,
        stabilizer=fno.stabilizer,
        domain_padding=fno.domain_padding,
        separable=fno.separable,
        transform=fno.transform,
        activation_checkpoint=fno.activation_checkpoint,
        fno_block_precision=fno.fno_block_precision,
        fno_block_weights_precision=fno.fno_block_weights_precision,
        rngs=nnx.Rngs(config.seed),
    )


def build_optimizer(config: Config, steps_per_epoch: int) -> optax.GradientTransformation:
    """Return the optimizer that the `opt` options describe."""
    opt = config.opt
    schedule = learning_rate_schedule(opt, steps_per_epoch)
    projection = build_projection(opt, config.fno.separable)
    mu_dtype = None if opt.enforce_full_complex_precision else jnp.bfloat16
    if projection is None:
        # optax.adamw, but with a float32 second moment for bfloat16 weights too: in bfloat16 its
        # decay by 0.999 would be rounded away.
        return optax.chain(
            tg.scale_by_adam(opt.b1, opt.b2, opt.eps, mu_dtype),
            optax.add_decayed_weights(opt.weight_decay),
            optax.scale_by_learning_rate(schedule),
        )
    chain = functools.partial(tg.projected_adamw, match_size=opt.match_update_size)
    if opt.optimizer_type == "subspace_momentum":
        chain = tg.subspace_momentum
    return chain(
        schedule,
        projection,
        update_proj_gap=build_gap(opt, steps_per_epoch * opt.n_epochs),
        weight_decay=opt.weight_decay,
        specs=tensor_specs,
        b1=opt.b1,
        b2=opt.b2,
        eps=opt.eps,
        mu_dtype=mu_dtype,
        on_refresh=opt.on_refresh,
        seed=config.seed,
        per_layer=opt.per_layer_opt,
    )


def build_gap(opt: OptConfig, total_steps: int) -> Any:
    """Return the gap between refreshes: a number, or a schedule over the whole training."""
    if opt.update_proj_gap_mode == "fixed":
        return opt.update_proj_gap
    schedules = {
        "linear": tg.linear_gap,
        "exponential": tg.exponential_gap,
        "exponential2": tg.exponential2_gap,
    }
    assert opt.update_proj_gap_end is not None
    schedule = schedules[opt.update_proj_gap_mode]
    return schedule(opt.update_proj_gap, opt.update_proj_gap_end, total_steps)


def build_projection(opt: OptConfig, separable: bool = False) -> tg.Projection | None:
    """Return the projection that the options ask for, None for plain AdamW.

    Args:
        opt: the options.
        separable: whether spectral weights have one axis of channels instead of two.
    """
    plan = resolve_projection_plan(opt)
    if plan.kind == "none":
        return None
    parts = [_build_part(part, opt, separable) for part in plan.parts]
    weights = [part.weight for part in plan.parts]
    if plan.kind == "single":
        # Every projection has a scale; not every one is told from its default by type checkers.
        return dataclasses.replace(parts[0], scale=weights[0])  # pyright: ignore
    pair = {"residual": tg.Residual, "sum": tg.Sum}[plan.kind]
    return pair(*parts, weights=tuple(weights))


def _build_part(part: ProjectionPart, opt: OptConfig, separable: bool) -> tg.Projection:
    if part.kind == "low_rank" and opt.naive_galore:
        assert isinstance(part.rank, int | float)
        rows = _galore_rows(opt.first_dim_rollup, separable)
        return tg.MatrixLowRank(part.rank, opt.galore_2d_proj_type, rows)
    if part.kind == "low_rank":
        assert part.rank is not None
        return tg.Tucker(
            part.rank, opt.n_iter_max_tucker, opt.svd_type, warm_restart=opt.tucker_warm_restart
        )
    assert part.sparse_ratio is not None
    assert part.sparse_type is not None
    options = (part.sparse_ratio, part.sparse_type, part.scale_by_mask_ratio)
    if part.kind == "structured_sparse":
        return tg.StructuredSparse(*options)
    reset = opt.reset_sparse_optimizer_states
    return (ForgottenEntries if reset else tg.UnstructuredSparse)(*options)


def _galore_rows(rollup: int, separable: bool) -> tuple[int, ...]:
    """Return the axes of our weights, (*modes, in, out), that are the first of (in, out, *modes).

    The order within rows and columns differs, which no low-rank projection notices.
    """
    channels = (-1,) if separable else (-2, -1)
    return (*channels, *range(rollup))[:rollup]


@dataclasses.dataclass(frozen=True)
class ForgottenEntries(tg.UnstructuredSparse):
    """Single entries whose moments start anew at every refresh, also those of entries that stay."""

    def transport(self, compact: Any, old: Any, new: Any) -> Any:
        """Return zeros."""
        return jnp.zeros_like(compact)

    def transport_squares(self, compact: Any, old: Any, new: Any) -> Any:
        """Return zeros."""
        return jnp.zeros_like(compact)


LOSSES: dict[str, Callable[..., jax.Array]] = {
    "l2": functools.partial(lp_loss, p=2, relative=True),
    "h1": functools.partial(h1_loss, relative=True),
}
"""The training losses and test errors by the names of `opt.training_loss`."""
