"""From a configuration to the objects of a run. Behind this file there is no configuration.

config -> model, data sets, projection, schedules -> optimizer -> training
"""

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
from tensorgrad_jax import oialr, truegrad
from tensorgrad_jax.data import FieldSource, open_dataset

# Installed from models/, which type checkers do not see.
from tensorgrad_jax.models import FNO, tensor_specs  # pyright: ignore[reportMissingImports]
from tensorgrad_jax.training.data_sets import DataSets, TestSet, data_sets, generate_missing
from tensorgrad_jax.training.loop import Training, steps_per_epoch
from tensorgrad_jax.training.memory import StepMemory, step_memory
from tensorgrad_jax.training.options import (
    GENERATOR_OPTIONS,
    MUONS,
    Config,
    DataConfig,
    OptConfig,
    check_modes,
)
from tensorgrad_jax.training.step import GradientsOf

OptimizerBuilder = Callable[[Config, int], optax.GradientTransformation]


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


def build_data(config: Config) -> DataSets:
    """Open the files that the `data` options name; make what is missing and can be generated.

    What the training would find out later is found here, before anything of the run is written:
    that model, training set and test sets do not fit each other, and numbers that are not finite.

    Raises:
        ConfigError: if `fno.n_modes` has not one entry per grid axis of the data.
        DataError: if a file is missing, damaged, or does not hold what the options ask for.
    """
    data = config.data
    if data.generate and data.problem in GENERATOR_OPTIONS:
        generate_missing(
            data.root,
            data.problem,
            train_resolution=data.train_resolution,
            test_resolutions=data.test_resolutions,
            n_train=data.n_train + data.n_validation,
            n_test=max(data.n_tests),
            seed=data.generator_seed,
            **{name: getattr(data, name) for name in GENERATOR_OPTIONS[data.problem]},
        )
    training_file = (data.root, data.problem, "train", data.train_resolution)
    train = open_dataset(*training_file, data.n_train, dimension=data.dimension)
    check_modes(config.fno.n_modes, train.dimension, _description(train, data))
    validation = None
    if data.n_validation:
        source = open_dataset(
            *training_file, data.n_validation, start=data.n_train, dimension=data.dimension
        )
        at_once = min(data.test_batch_sizes[0], data.n_validation)
        validation = TestSet(data.train_resolution, source, at_once)
    tests = []
    for resolution, n, batch_size in zip(
        data.test_resolutions, data.n_tests, data.test_batch_sizes, strict=True
    ):
        file = (data.root, data.problem, "test", resolution)
        source = open_dataset(*file, n, dimension=train.dimension)
        tests.append(TestSet(resolution, source, min(batch_size, n)))
    encode = {"encode_input": data.encode_input, "encode_output": data.encode_output}
    return data_sets(train, tests, validation, **encode)


def _description(train: FieldSource, data: DataConfig) -> str:
    """Return what tells the dimension of the data."""
    shapes = ", ".join(f"{name} {shape}" for name, shape in train.shapes.items())
    hint = "; where an axis holds channels, give data.dimension" if data.dimension is None else ""
    return f"the samples of {train.path} are {train.dimension}-dimensional ({shapes}){hint}"


def build_optimizer(config: Config, steps_per_epoch: int) -> optax.GradientTransformation:
    """Return the optimizer that the `opt` options describe."""
    opt = config.opt
    schedule = build_schedule(opt, steps_per_epoch)
    gap = build_gap(opt, steps_per_epoch * opt.n_epochs)
    if config.optimizer() in MUONS:
        return _build_muon(config, schedule, gap)
    projection = build_projection(opt, config.fno.separable)
    mu_dtype = None if opt.enforce_full_complex_precision else jnp.bfloat16
    if projection is None:
        if opt.second_moment == "per_example":
            return truegrad.tg_adamw(schedule, **_true_adam(opt), weight_decay=opt.weight_decay)
        # optax.adamw, but with a float32 second moment for bfloat16 weights too: in bfloat16 its
        # decay by 0.999 would be rounded away.
        return optax.chain(
            tg.scale_by_adam(opt.b1, opt.b2, opt.eps, mu_dtype),
            optax.add_decayed_weights(opt.weight_decay),
            optax.scale_by_learning_rate(schedule),
        )
    inner = None
    if opt.second_moment == "per_example":
        inner = truegrad.scale_by_true_adam(**_true_adam(opt))
    chain = functools.partial(tg.projected_adamw, match_size=opt.match_update_size, inner=inner)
    if opt.optimizer() == "subspace_momentum":
        chain = tg.subspace_momentum
    return chain(
        schedule,
        projection,
        update_proj_gap=gap,
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


def _build_muon(config: Config, schedule: Any, gap: Any) -> optax.GradientTransformation:
    """Return `tg.subspace_muon` or `tg.tensor_muon`."""
    opt = config.opt
    of_channels = tg.Tucker((..., opt.channel_share, opt.channel_share), factors="real")
    common = {
        "update_proj_gap": gap,
        "weight_decay": opt.weight_decay,
        "specs": tensor_specs,
        "adam_b1": opt.b1,
        "eps": opt.eps,
        "on_refresh": opt.on_refresh,
        "seed": config.seed,
        "per_layer": opt.per_layer_opt,
    }
    if config.optimizer() == "tensor_muon":
        projection = None if config.fno.low_rank is not None else of_channels
        own = {"b1": opt.momentum, "adam_b2": opt.b2}
        return tg.tensor_muon(schedule, projection, **own, **common)
    return tg.subspace_muon(
        schedule,
        tg.Tucker(opt.momentum_budget, factors="real"),
        b1=opt.b1,
        b2=opt.b2,
        polar_share=opt.polar_share,
        polar_projection=of_channels,
        matrix_b1=opt.momentum,
        **common,
    )


def _true_adam(opt: OptConfig) -> dict[str, Any]:
    """Return what the options say of Adam with squares of samples."""
    return {"betas": (opt.b1, opt.b2), "eps": opt.eps, "default_to_adam": True}


def build_gradients(config: Config) -> GradientsOf | None:
    """Return what makes gradients, and squares of samples' ones where the optimizer wants them."""
    if config.opt.second_moment == "batch":
        return None
    projection = build_projection(config.opt, config.fno.separable)

    def gradients_of(objective):
        if projection is None:
            plain = truegrad.value_and_grads(objective)
            grads = lambda opt_state, *arguments: plain(*arguments)
        else:
            grads = truegrad.value_and_grads_in_subspace(objective, projection, tensor_specs)

        def gradients(params, batch, opt_state):
            value, gradient, squares = grads(opt_state, params, batch)
            return value, gradient, {"sum_grad_squared": squares}

        return gradients

    return gradients_of


def build_training(
    config: Config, data: DataSets, optimizer_of: OptimizerBuilder = build_optimizer
) -> Training:
    """Return the training that the options describe, at its beginning.

    Args:
        config: the options.
        data: the data sets, see `build_data`.
        optimizer_of: makes the optimizer of the options and the steps per epoch.
    """
    steps = steps_per_epoch(data, config.data.batch_size, config.opt.max_batches)
    optimizer = optimizer_of(config, steps)
    return Training(
        build_model(config, data.in_channels, data.out_channels),
        optimizer,
        data,
        build_schedule(config.opt, steps),
        batch_size=config.data.batch_size,
        max_batches=config.opt.max_batches,
        loss=config.opt.training_loss,
        seed=config.seed,
        stochastic_rounding=config.opt.stochastic_rounding,
        gradients_of=build_gradients(config),
        low_rank=build_low_rank(config, optimizer),
    )


def build_low_rank(
    config: Config, optimizer: optax.GradientTransformation
) -> oialr.Controller | None:
    """Return what makes cores of the spectral weights while they train; None: they stay dense."""
    fno = config.fno
    if fno.low_rank is None:
        return None
    settling = fno.low_rank_freeze == "stability"
    options = oialr.Config(
        freeze=fno.low_rank_freeze,
        uvhthreshold=fno.low_rank_threshold if settling else None,
        delay=fno.low_rank_delay,
        stability_frequency=fno.low_rank_frequency,
        sigma_cutoff_fraction=fno.low_rank_cutoff,
        keep_last_layer=False,
        network_layer_perc_step=1.0,
        bucket=4,
    )
    return oialr.Controller(optimizer, options, oialr.spectral(fno.low_rank_share))


def build_step_memory(config: Config, in_channels: int = 1, out_channels: int = 1) -> StepMemory:
    """Return the bytes of a training step that the options describe; nothing is run."""
    grid = (config.data.train_resolution,) * len(config.fno.n_modes)
    field = lambda c: jax.ShapeDtypeStruct((config.data.batch_size, *grid, c), jnp.float32)
    return step_memory(
        nnx.eval_shape(lambda: build_model(config, in_channels, out_channels)),
        build_optimizer(config, steps_per_epoch=1),
        {"x": field(in_channels), "y": field(out_channels)},
        config.opt.training_loss,
        config.seed if config.opt.stochastic_rounding else None,
        build_gradients(config),
    )


def build_schedule(opt: OptConfig, steps_per_epoch: int) -> optax.Schedule:
    """Return the learning rate as a function of the step: constant within an epoch.

    With e = step // steps_per_epoch the epoch and a the option `learning_rate`:

        constant             a
        StepLR               a gamma^(e // step_size)
        CosineAnnealingLR    a (1 + cos(pi e / T)) / 2,   T = scheduler_T_max or n_epochs

    Beyond epoch T the cosine rises again, with period 2T.

    Args:
        opt: the options `learning_rate`, `scheduler` and those of that scheduler.
        steps_per_epoch: optimizer steps per epoch.

    Returns:
        A function of the step, a Python integer or an integer array, to a float32 array of the
        same shape.

    Raises:
        ValueError: steps_per_epoch is not positive.

    Source: the schedulers of the same names of PyTorch; the cosine is Loshchilov and Hutter, SGDR
    (2017), equation 5, without restarts.
    """
    if steps_per_epoch < 1:
        raise ValueError(f"steps_per_epoch must be an integer >= 1, got {steps_per_epoch!r}")
    t_max = opt.scheduler_T_max or opt.n_epochs

    def schedule(count):
        epoch = jnp.asarray(count) // steps_per_epoch
        if opt.scheduler == "StepLR":
            factor = jnp.power(jnp.float32(opt.gamma), epoch // opt.step_size)
        elif opt.scheduler == "CosineAnnealingLR":
            # Reduced first: a large float32 angle has lost the digits that the cosine needs.
            factor = (1 + jnp.cos(jnp.pi / t_max * (epoch % (2 * t_max)))) / 2
        else:
            factor = jnp.ones(epoch.shape)
        return (opt.learning_rate * factor).astype(jnp.float32)

    return schedule


def build_gap(opt: OptConfig, total_steps: int) -> Any:
    """Return the gap between refreshes: a number, or a schedule over the whole training."""
    start = opt.update_proj_gap or (50 if opt.optimizer() in MUONS else 200)
    if opt.update_proj_gap_mode == "fixed":
        return start
    schedules = {
        "linear": tg.linear_gap,
        "exponential": tg.exponential_gap,
        "exponential2": tg.exponential2_gap,
    }
    assert opt.update_proj_gap_end is not None
    schedule = schedules[opt.update_proj_gap_mode]
    return schedule(start, opt.update_proj_gap_end, total_steps)


def build_projection(opt: OptConfig, separable: bool = False) -> tg.Projection | None:
    """Return the projection that the options ask for, None for plain AdamW.

    1. Is the gradient compressed? `opt.tensorgrad` decides; where it is null, `opt.optimizer_type`
       does: adamw is plain AdamW, tensor_muon has a projection of its own, the others compress.
    2. One projection or two? A given `opt.second_proj_type` means two, a given `opt.proj_type`
       alone means one. With neither, tensorgrad and tensorgrad_sum take the setting of the
       TensorGRaD paper (5% random entries, then a Tucker core of 20%), adamw and
       subspace_momentum take one low-rank projection.
    3. A missing `opt.proj_type` is unstructured_sparse where there are two and low_rank where
       there is one.
    4. Two projections form a sum with tensorgrad_sum (both see the gradient) and a residual
       otherwise (the second sees what the first left over).

    The first projection takes `opt.rank`, `opt.sparse_ratio` and `opt.sparse_type`; the second
    takes `opt.second_rank`, `opt.second_sparse_ratio` and `opt.second_sparse_type`. `opt.scale`
    and `opt.scale_by_mask_ratio` belong to the first alone. In a composite,
    `opt.tensorgrad_sum_lambda_sparse` weighs the update of every sparse part. With
    `opt.naive_galore` low rank means that of a matrix view, which has one rank.

    Args:
        opt: the options.
        separable: whether spectral weights have one axis of channels instead of two.
    """
    kinds = opt.kinds()
    if not kinds:
        return None
    first = _build_part(opt, kinds[0], "", separable)
    if len(kinds) == 1:
        # Every projection has a scale; not every one is told from its default by type checkers.
        return dataclasses.replace(first, scale=opt.scale)  # pyright: ignore
    second = _build_part(opt, kinds[1], "second_", separable)
    of = lambda kind: 1.0 if kind == "low_rank" else opt.tensorgrad_sum_lambda_sparse
    pair = tg.Sum if opt.optimizer() == "tensorgrad_sum" else tg.Residual
    return pair(first, second, weights=(opt.scale * of(kinds[0]), 1.0 * of(kinds[1])))


def _build_part(opt: OptConfig, kind: str, prefix: str, separable: bool) -> tg.Projection:
    """Return one projection; the options of a second one start with `second_`."""
    of = lambda name: getattr(opt, prefix + name)
    if kind == "low_rank" and opt.naive_galore:
        rows = _galore_rows(opt.first_dim_rollup, separable)
        return tg.MatrixLowRank(of("rank"), opt.galore_2d_proj_type, rows)
    if kind == "low_rank":
        warm = opt.tucker_warm_restart
        return tg.Tucker(of("rank"), opt.n_iter_max_tucker, opt.svd_type, warm_restart=warm)
    options = (of("sparse_ratio"), of("sparse_type"), not prefix and opt.scale_by_mask_ratio)
    if kind == "structured_sparse":
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
