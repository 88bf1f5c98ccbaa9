"""From a configuration to the objects of a run: the model, its optimizer, its loss."""

from __future__ import annotations

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
    projection = build_projection(opt)
    mu_dtype = None if opt.enforce_full_complex_precision else jnp.bfloat16
    if projection is None:
        # optax.adamw, but with a float32 second moment for bfloat16 weights too: in bfloat16 its
        # decay by 0.999 would be rounded away.
        return optax.chain(
            tg.scale_by_adam(opt.b1, opt.b2, opt.eps, mu_dtype),
            optax.add_decayed_weights(opt.weight_decay),
            optax.scale_by_learning_rate(schedule),
        )
    return tg.projected_adamw(
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


def build_projection(opt: OptConfig) -> tg.Projection | None:
    """Return the projection that the options ask for, None for plain AdamW."""
    plan = resolve_projection_plan(opt)
    if plan.kind == "none":
        return None
    parts = [_build_part(part, opt) for part in plan.parts]
    if plan.kind == "single":
        return parts[0]
    pair = {"residual": tg.Residual, "sum": tg.Sum}[plan.kind]
    return pair(*parts, weights=tuple(part.weight for part in plan.parts))


def _build_part(part: ProjectionPart, opt: OptConfig) -> tg.Projection:
    if part.kind == "low_rank":
        assert part.rank is not None
        return tg.Tucker(part.rank, n_iter=opt.n_iter_max_tucker, method=opt.svd_type)
    assert part.sparse_ratio is not None
    assert part.sparse_type is not None
    if part.kind == "structured_sparse":
        return tg.StructuredSparse(part.sparse_ratio, part.sparse_type)
    return tg.UnstructuredSparse(part.sparse_ratio, part.sparse_type)


LOSSES: dict[str, Callable[..., jax.Array]] = {
    "l2": functools.partial(lp_loss, p=2, relative=True),
    "h1": functools.partial(h1_loss, relative=True),
}
"""The training losses and test errors by the names of `opt.training_loss`."""
