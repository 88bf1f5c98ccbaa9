"""Options that have no effect beside the others, so that a flag in vain can be an error."""

from __future__ import annotations

from tensorgrad_jax.training.options import GENERATOR_OPTIONS, Config, DataConfig, OptConfig
from tensorgrad_jax.training.projection_plan import PART_OPTIONS, resolve_projection_plan

_FIRST = tuple(name for names in PART_OPTIONS.values() for name in names)
_SECOND = tuple("second_" + name for name in _FIRST)
_TYPES = ("proj_type", "second_proj_type")
_TUCKER = ("n_iter_max_tucker", "svd_type", "tucker_warm_restart")
_GALORE = ("galore_2d_proj_type", "first_dim_rollup")
_MASK, _RESET = "scale_by_mask_ratio", "reset_sparse_optimizer_states"
_REFRESH = (
    "update_proj_gap",
    "update_proj_gap_mode",
    "update_proj_gap_end",
    "on_refresh",
    "match_update_size",
    "per_layer_opt",
)
_LAMBDA = "tensorgrad_sum_lambda_sparse"
_GENERATOR = ("viscosity", "t_end", "dt", "solver_resolution", "generator_seed")


def unused_options(config: Config) -> dict[str, str]:
    """The options without effect in this configuration, by full name, each with the reason.

    After an explicit `opt.tensorgrad` False the options about projections do not count: AdamW is
    then the baseline of a comparison, and the other flags may stay where they are.
    """
    unused = {f"data.{name}": text for name, text in _unused_by_generator(config.data).items()}
    if not config.fno.use_channel_mlp:
        unused["fno.channel_mlp_expansion"] = "fno.use_channel_mlp is False"
    if config.fno.fno_block_weights_precision != "half":
        unused["opt.stochastic_rounding"] = "fno.fno_block_weights_precision is full"
    reason = f"opt.scheduler is {config.opt.scheduler}"
    if config.opt.scheduler != "StepLR":
        unused |= {"opt.step_size": reason, "opt.gamma": reason}
    if config.opt.scheduler != "CosineAnnealingLR":
        unused["opt.scheduler_T_max"] = reason
    if config.opt.update_proj_gap_mode == "fixed":
        unused["opt.update_proj_gap_end"] = "opt.update_proj_gap_mode is fixed"
    if config.opt.tensorgrad is not False:
        unused |= {f"opt.{name}": text for name, text in _unused_by_projection(config.opt).items()}
    return unused


def _unused_by_generator(data: DataConfig) -> dict[str, str]:
    if data.problem not in GENERATOR_OPTIONS:
        known = ", ".join(GENERATOR_OPTIONS)
        reason = f"data.problem is {data.problem}, and only {known} can be generated"
        # `generate` False is what happens in any case; True is what cannot be.
        return dict.fromkeys((*_GENERATOR, *(["generate"] if data.generate else [])), reason)
    if not data.generate:
        return dict.fromkeys(_GENERATOR, "data.generate is False")
    used = {*GENERATOR_OPTIONS[data.problem], "generator_seed"}
    reason = f"data.problem is {data.problem}"
    return {name: reason for name in _GENERATOR if name not in used}


def _unused_by_projection(opt: OptConfig) -> dict[str, str]:
    plan = resolve_projection_plan(opt)
    if plan.kind == "none":
        reason = "opt.optimizer_type adamw compresses nothing without opt.tensorgrad True"
        names = (*_TYPES, *_FIRST, *_SECOND, *_TUCKER, *_REFRESH, *_GALORE)
        return dict.fromkeys((*names, "scale", _MASK, "naive_galore", _RESET, _LAMBDA), reason)
    kinds = [part.kind for part in plan.parts]
    used = set()
    for prefix, kind in zip(("", "second_"), kinds, strict=False):
        used.update(prefix + name for name in PART_OPTIONS[kind])
    if "low_rank" in kinds:
        used.update(("naive_galore", *(_GALORE if opt.naive_galore else _TUCKER)))
    if kinds[0] != "low_rank":
        used.add(_MASK)
    if "unstructured_sparse" in kinds:
        used.add(_RESET)
    if len(kinds) == 2 and any(kind != "low_rank" for kind in kinds):
        used.add(_LAMBDA)
    reasons = {}
    for name in (*_FIRST, *_SECOND, *_TUCKER, *_GALORE, _MASK, "naive_galore", _RESET, _LAMBDA):
        if name not in used:
            other = name.removeprefix("second_") if name in _SECOND else "second_" + name
            hint = f"; did you mean opt.{other}, or another opt.proj_type?" if other in used else ""
            reasons[name] = f"the projection is {' + '.join(kinds)}{hint}"
    if "low_rank" in kinds:
        names = _TUCKER if opt.naive_galore else _GALORE
        reasons |= dict.fromkeys(names, f"opt.naive_galore is {opt.naive_galore}")
    if "tucker_warm_restart" not in reasons and opt.svd_type == "gram":
        reasons["tucker_warm_restart"] = "opt.svd_type is gram, which needs no start"
    if opt.optimizer_type == "subspace_momentum":
        reasons["match_update_size"] = "opt.optimizer_type subspace_momentum drops nothing"
    if _RESET not in reasons and opt.on_refresh != "transport":
        reasons[_RESET] = f"opt.on_refresh is {opt.on_refresh}, which holds for all moments"
    return reasons
