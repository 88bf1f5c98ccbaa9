"""The options of a training run: their names, defaults, allowed values and help texts.

The defaults are a small forced Navier-Stokes run that a laptop finishes in minutes.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Annotated, Literal

from tensorgrad_jax.training.allowed import (
    COUNT,
    COUNTS,
    DECAY_RATE,
    FRACTION,
    NON_NEGATIVE,
    POSITIVE,
    RANK,
    TEXT,
    Allowed,
    ConfigError,
    check_options,
    integer,
    list_of,
    number,
    show,
)

ProjectionKind = Literal["low_rank", "structured_sparse", "unstructured_sparse"]
SparseType = Literal["randk", "topk", "probability"]
# int before float: the first type that fits wins, and 3 is a rank, not a budget.
Rank = int | float | tuple[int | float, ...]

_SEED = Allowed("an integer in [0, 2**32)", lambda v: integer(0).holds(v) and v < 2**32)
_NAME = Allowed(
    "a file name of letters, digits and ._-",
    lambda v: isinstance(v, str) and re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", v) is not None,
)
# The problems whose data this package generates: their dimension, ...
_DIMENSIONS = {"nsforcing": 2, "darcy": 2, "burgers": 1}
# ... and what their generators want to know beside the seed, with the generators' own defaults.
GENERATOR_OPTIONS = {
    "nsforcing": {"viscosity": 2e-3, "t_end": 5.0, "dt": 0.05, "solver_resolution": None},
    "darcy": {"solver_resolution": None},
    "burgers": {"viscosity": 0.005, "t_end": 1.0, "dt": 0.005, "solver_resolution": None},
}


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The data set: which files, how many samples, at which resolutions.

    The files are `<root>/<problem>_{train,test}_<resolution>.hdf5`. The three lists about the
    test sets have one entry per test set; a list with one entry holds for all of them. Options of
    a generator that are null become the numbers of `GENERATOR_OPTIONS`.
    """

    problem: Annotated[
        str, _NAME, "name of the data set: nsforcing, darcy, burgers or your own"
    ] = "nsforcing"
    root: Annotated[str, TEXT, "folder of the data files"] = "datasets/ns_small"
    dimension: Annotated[
        int | None,
        COUNT,
        "number of grid axes; null: the problem's, of a problem of your own what the files' shapes "
        "say",
    ] = None
    generate: Annotated[bool, "make the files of nsforcing, darcy and burgers that are missing"] = (
        True
    )
    viscosity: Annotated[
        float | None, POSITIVE, "of the generated flow; null: 0.002, for burgers 0.005"
    ] = None
    t_end: Annotated[
        float | None, POSITIVE, "time of the generated targets; null: 5.0, for burgers 1.0"
    ] = None
    dt: Annotated[
        float | None, POSITIVE, "time step of the generator; null: 0.05, for burgers 0.005"
    ] = None
    solver_resolution: Annotated[
        int | None,
        COUNT,
        "grid points per axis of the generator; null: the data's, from 128 for darcy, from 256 "
        "for burgers",
    ] = None
    generator_seed: Annotated[int, _SEED, "seed of the generated samples"] = 0
    batch_size: Annotated[int, COUNT, "training samples per step"] = 8
    n_train: Annotated[int, COUNT, "training samples"] = 512
    n_validation: Annotated[
        int, integer(0), "samples behind those that are only evaluated, for choosing options"
    ] = 0
    train_resolution: Annotated[int, COUNT, "grid points per axis in training"] = 64
    n_tests: Annotated[tuple[int, ...], COUNTS, "test samples, per test set"] = (64,)
    test_resolutions: Annotated[tuple[int, ...], COUNTS, "grid points per axis, per test set"] = (
        64,
    )
    test_batch_sizes: Annotated[tuple[int, ...], COUNTS, "samples per batch, per test set"] = (16,)
    encode_input: Annotated[bool, "normalize the input to mean 0 and deviation 1"] = True
    encode_output: Annotated[bool, "normalize the target to mean 0 and deviation 1"] = True

    def __post_init__(self):
        check_options(self, "data.")
        known = _DIMENSIONS.get(self.problem)
        if self.dimension is None:
            object.__setattr__(self, "dimension", known)
        elif known not in (None, self.dimension):
            raise ConfigError(
                f"data.dimension: got {self.dimension}, expected {known}: data.problem "
                f"{self.problem} is {known}-dimensional"
            )
        for name, default in GENERATOR_OPTIONS.get(self.problem, {}).items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        if self.batch_size > self.n_train:
            raise ConfigError(
                f"data.batch_size: got {self.batch_size}, expected at most data.n_train = "
                f"{self.n_train}"
            )
        encoded = self.encode_input or self.encode_output
        if encoded and self.n_train == self.train_resolution == 1:
            raise ConfigError(
                "data.n_train: got 1, expected at least 2 with data.train_resolution 1, unless "
                "data.encode_input and data.encode_output are False: one number has no deviation"
            )
        if len(set(self.test_resolutions)) < len(self.test_resolutions):
            raise ConfigError(
                f"data.test_resolutions: got {show(self.test_resolutions)}, expected no entry twice"
            )
        for name in ("n_tests", "test_batch_sizes"):
            _repeat(self, "data.", name, len(self.test_resolutions), "data.test_resolutions")


@dataclasses.dataclass(frozen=True)
class FnoConfig:
    """The Fourier neural operator. The numbers of input and output channels come from the data."""

    n_modes: Annotated[tuple[int, ...], COUNTS, "Fourier modes kept per axis"] = (16, 16)
    hidden_channels: Annotated[int, COUNT, "width of the network"] = 32
    n_layers: Annotated[int, COUNT, "number of Fourier layers"] = 4
    positional_embedding: Annotated[
        Literal["grid"] | None, "coordinates appended to the input channels"
    ] = "grid"
    norm: Annotated[Literal["group_norm"] | None, "normalization in every layer"] = None
    stabilizer: Annotated[
        Literal["tanh"] | None, "function applied before every Fourier transform"
    ] = None
    domain_padding: Annotated[
        tuple[float, ...] | None,
        list_of(number("in [0, 1]", lambda v: 0 <= v <= 1), "[0.25,0.25]"),
        "zeros added to both ends of every axis, as a fraction of its length",
    ] = None
    use_channel_mlp: Annotated[bool, "a two-layer network over the channels in every layer"] = True
    channel_mlp_expansion: Annotated[
        float, POSITIVE, "inner width of that network / hidden_channels"
    ] = 0.5
    lifting_channel_ratio: Annotated[
        float, POSITIVE, "inner width of the lifting / hidden_channels"
    ] = 2.0
    projection_channel_ratio: Annotated[
        float, POSITIVE, "inner width of the projection to the output / hidden_channels"
    ] = 2.0
    separable: Annotated[bool, "spectral weights that do not mix channels"] = False
    activation_checkpoint: Annotated[
        bool, "compute activations anew in the backward pass: less memory, more time"
    ] = False
    transform: Annotated[
        Literal["auto", "fft", "matrix"],
        "the truncated Fourier transform: an FFT, matrix products, or whichever should be faster",
    ] = "auto"
    fno_block_precision: Annotated[
        Literal["full", "mixed", "half"],
        "float32; or bfloat16 with float32 transforms, norms and sums; or bfloat16 transforms too",
    ] = "full"
    fno_block_weights_precision: Annotated[
        Literal["full", "half"], "spectral weights stored in float32 or in bfloat16"
    ] = "full"

    def __post_init__(self):
        check_options(self, "fno.")
        if self.fno_block_weights_precision == "half" and self.fno_block_precision == "full":
            raise ConfigError(
                "fno.fno_block_weights_precision: got 'half', expected full with "
                "fno.fno_block_precision full; or choose mixed or half there"
            )
        if self.domain_padding is not None:
            _repeat(self, "fno.", "domain_padding", len(self.n_modes), "fno.n_modes")
        # Rounded as the FNO does it. A layer of no channels cannot be built, nor can one whose
        # number no array's shape may hold.
        rounding: dict[str, Callable[[float], int]] = {
            "lifting_channel_ratio": int,
            "projection_channel_ratio": int,
        }
        if self.use_channel_mlp:
            rounding["channel_mlp_expansion"] = round
        for name, rounded in rounding.items():
            width = getattr(self, name) * self.hidden_channels
            if width >= 2**31 or rounded(width) < 1:
                raise ConfigError(
                    f"fno.{name}: got {getattr(self, name)}, expected a ratio that leaves from 1 "
                    f"to 2^31 - 1 channels of fno.hidden_channels = {self.hidden_channels}"
                )


@dataclasses.dataclass(frozen=True)
class OptConfig:
    """The optimizer and the training loop.

    How the options from `optimizer_type` to `second_sparse_type` select a projection is told in
    `tensorgrad_jax.training.projection_plan`.
    """

    optimizer_type: Annotated[
        Literal["adamw", "tensorgrad", "tensorgrad_sum", "subspace_momentum"],
        "plain AdamW; Adam on a projection and a second one of what the first left over, or of the "
        "same gradient; momentum alone on a projection, the rest of the gradient passed on",
    ] = "tensorgrad"
    tensorgrad: Annotated[
        bool | None, "whether to compress gradients; null: unless optimizer_type is adamw"
    ] = None
    proj_type: Annotated[
        ProjectionKind | None,
        "the first projection; null: unstructured_sparse with a second one, else low_rank",
    ] = None
    rank: Annotated[Rank, RANK, "Tucker rank of the first projection, or its budget"] = 0.25
    sparse_ratio: Annotated[float, FRACTION, "entries kept by the first projection"] = 0.05
    sparse_type: Annotated[SparseType, "how the first projection selects entries"] = "randk"
    scale: Annotated[float, POSITIVE, "factor of the first projection's update"] = 1.0
    scale_by_mask_ratio: Annotated[
        bool, "first projection, if sparse: another factor, sqrt(entries / kept entries)"
    ] = False
    second_proj_type: Annotated[
        ProjectionKind | None, "the second projection; null: low_rank if proj_type is null too"
    ] = None
    second_rank: Annotated[Rank, RANK, "Tucker rank of the second projection, or its budget"] = 0.20
    second_sparse_ratio: Annotated[float, FRACTION, "entries kept by the second projection"] = 0.05
    second_sparse_type: Annotated[SparseType, "how the second projection selects entries"] = "randk"
    tensorgrad_sum_lambda_sparse: Annotated[
        float, POSITIVE, "weight of the sparse part of a composite update"
    ] = 1.0
    update_proj_gap: Annotated[int, COUNT, "steps between refreshes of the projections"] = 200
    update_proj_gap_mode: Annotated[
        Literal["fixed", "linear", "exponential", "exponential2"], "how the gap changes in training"
    ] = "fixed"
    update_proj_gap_end: Annotated[
        int | None, COUNT, "gap at the end, unless the mode is fixed"
    ] = None
    n_iter_max_tucker: Annotated[int, COUNT, "sweeps of the Tucker decomposition"] = 1
    svd_type: Annotated[Literal["gram", "svd", "randomized"], "how Tucker factors are computed"] = (
        "gram"
    )
    tucker_warm_restart: Annotated[
        bool, "svd and randomized start from the factors of the refresh before"
    ] = True
    naive_galore: Annotated[bool, "low_rank is GaLore's: of a matrix view, not of the tensor"] = (
        False
    )
    galore_2d_proj_type: Annotated[
        Literal["std", "reverse_std", "left", "right", "full"],
        "naive_galore: the side of the basis; std is the shorter one",
    ] = "std"
    first_dim_rollup: Annotated[
        int, COUNT, "naive_galore: leading axes of (in, out, *modes) that are the matrix's rows"
    ] = 1
    on_refresh: Annotated[
        Literal["transport", "keep", "reset"],
        "moments at a refresh: carried to the new basis, left as numbers, or started anew",
    ] = "transport"
    reset_sparse_optimizer_states: Annotated[
        bool, "moments of single entries start anew at a refresh, others are carried"
    ] = False
    learning_rate: Annotated[float, POSITIVE, "step size"] = 1e-2
    weight_decay: Annotated[float, NON_NEGATIVE, "decoupled weight decay"] = 1e-4
    b1: Annotated[float, DECAY_RATE, "decay of the first moment"] = 0.9
    b2: Annotated[float, DECAY_RATE, "decay of the second moment"] = 0.999
    eps: Annotated[float, POSITIVE, "added to the root of the second moment"] = 1e-8
    enforce_full_complex_precision: Annotated[
        bool, "float32 moments; False keeps the first moments in bfloat16"
    ] = True
    match_update_size: Annotated[
        bool, "compressed updates are made as large as AdamW's, as measured on a sample of entries"
    ] = True
    per_layer_opt: Annotated[
        bool, "compress large gradients one after the other, as the backward pass makes them"
    ] = True
    stochastic_rounding: Annotated[
        bool, "of updated bfloat16 weights; False rounds to the nearest and loses small updates"
    ] = True
    n_epochs: Annotated[int, COUNT, "passes over the training data"] = 6
    training_loss: Annotated[Literal["l2", "h1"], "relative loss that is minimized"] = "l2"
    scheduler: Annotated[
        Literal["constant", "StepLR", "CosineAnnealingLR"], "the learning rate over the epochs"
    ] = "CosineAnnealingLR"
    step_size: Annotated[int, COUNT, "StepLR: epochs between two reductions"] = 100
    gamma: Annotated[float, FRACTION, "StepLR: factor of one reduction"] = 0.5
    scheduler_T_max: Annotated[  # noqa: N815 (the name of PyTorch's scheduler)
        int | None, COUNT, "CosineAnnealingLR: epochs until zero; null: n_epochs"
    ] = None
    save_every: Annotated[int, COUNT, "epochs between checkpoints"] = 1
    save_dir: Annotated[str, TEXT, "folder that holds the folders of the runs"] = "runs"
    resume_from_dir: Annotated[str | None, TEXT, "folder of the run to continue"] = None
    profiling: Annotated[
        bool, "write memory.json and memory.png: the bytes of a step, beside those of AdamW"
    ] = False
    max_batches: Annotated[int | None, COUNT, "batches per epoch at most"] = None

    def __post_init__(self):
        check_options(self, "opt.")
        if self.update_proj_gap_mode != "fixed" and self.update_proj_gap_end is None:
            raise ConfigError(
                f"opt.update_proj_gap_end: got null, expected an integer >= 1 with "
                f"opt.update_proj_gap_mode {self.update_proj_gap_mode}"
            )


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything a training run depends on."""

    name: Annotated[str | None, _NAME, "name of the run's folder; null: chosen by the run"] = None
    seed: Annotated[int, _SEED, "seed of everything random but the generated data"] = 0
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    fno: FnoConfig = dataclasses.field(default_factory=FnoConfig)
    opt: OptConfig = dataclasses.field(default_factory=OptConfig)

    def __post_init__(self):
        check_options(self)
        n_modes, resolution = self.fno.n_modes, self.data.train_resolution
        if self.data.dimension is not None:
            dimension, problem = self.data.dimension, self.data.problem
            known = f"data.problem {problem} is {dimension}-dimensional"
            told = f"data.dimension is {dimension}"
            check_modes(n_modes, dimension, known if problem in _DIMENSIONS else told)
        if max(n_modes) > resolution:
            raise ConfigError(
                f"fno.n_modes: got {show(n_modes)}, expected at most data.train_resolution = "
                f"{resolution}: no sample would reach the modes beyond"
            )
        axes = len(n_modes) + (1 if self.fno.separable else 2)
        if self.opt.naive_galore and self.opt.first_dim_rollup >= axes:
            raise ConfigError(
                f"opt.first_dim_rollup: got {self.opt.first_dim_rollup}, expected at most "
                f"{axes - 1}: a spectral weight has {axes} axes, and columns are needed too"
            )
        for name in ("rank", "second_rank"):
            rank = getattr(self.opt, name)
            if isinstance(rank, tuple) and len(rank) != axes:
                raise ConfigError(
                    f"opt.{name}: got {show(rank)}, expected {axes} entries, one per axis of a "
                    "spectral weight: its channels and fno.n_modes"
                )


def check_modes(n_modes: tuple[int, ...], dimension: int, reason: str) -> None:
    """Raise a ConfigError, which ends with the reason, unless there is an entry per grid axis."""
    if len(n_modes) != dimension:
        entries = "1 entry" if dimension == 1 else f"{dimension} entries"
        raise ConfigError(f"fno.n_modes: got {show(n_modes)}, expected {entries}: {reason}")


def _repeat(config, prefix, name, length, other):
    """Repeats a list with one entry; any other length but `length` is an error."""
    values = getattr(config, name)
    if len(values) not in (1, length):
        entries = "1 entry" if length == 1 else f"1 entry or {length}"
        raise ConfigError(f"{prefix}{name}: got {show(values)}, expected {entries}, like {other}")
    if len(values) == 1:
        object.__setattr__(config, name, values * length)
