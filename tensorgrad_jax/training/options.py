"""The options of a training run: their names, types, defaults and help texts.

To add an option, add its line to a class: check, --help, docs/train.md and the written config.yaml
follow. Where it has no effect beside another option, a row of `_NEEDS` says so.
"""

import math
import typing
from collections.abc import Iterator
from operator import attrgetter
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, InstanceOf, ValidationError

# Types with their constraints, and how the two read in a sentence.
# Counters on the device are int32, and numbers float32, in which 1 - 1e-8 is 1.
Count = Annotated[int, Field(ge=1, lt=2**31), "an integer in [1, 2**31)"]
Few = Annotated[int, Field(ge=1, le=1000), "an integer in [1, 1000]"]
Natural = Annotated[int, Field(ge=0, lt=2**31), "an integer in [0, 2**31)"]
Seed = Annotated[int, Field(ge=0, lt=2**32), "an integer in [0, 2**32)"]
Positive = Annotated[float, Field(ge=1e-37, le=1e38), "a number in [1e-37, 1e38]"]
NonNegative = Annotated[float, Field(ge=0, le=1e38), "a number in [0, 1e38]"]
Fraction = Annotated[float, Field(gt=0, le=1), "a number in (0, 1]"]
Part = Annotated[float, Field(ge=0.001, le=0.999), "a number in [0.001, 0.999]"]
Below = Annotated[float, Field(ge=0, le=0.999), "a number in [0, 0.999]"]
Share = Annotated[float, Field(ge=0, le=1), "a number in [0, 1]"]
Decay = Annotated[float, Field(ge=0, le=1 - 1e-7), "a number in [0, 1 - 1e-7]"]
# A file may be called anything but with a NUL character.
Text = Annotated[str, Field(pattern=r"^[^\x00]*[^\s\x00][^\x00]*$"), "a text that is not empty"]
_WORD = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=100)
Name = Annotated[str, _WORD, "a file name of at most 100 letters, digits and ._-"]
_LIST = Field(min_length=1, strict=False)  # a list becomes a tuple
_COUNTS = "a list such as [64,64], each item an integer in [1, 2**31)"
_SHARES = "a list such as [0.25,0.25], each item a number in [0, 1]"
Counts = Annotated[tuple[Count, ...], _LIST, _COUNTS]
Shares = Annotated[tuple[Share, ...], _LIST, _SHARES]
# The type of the numbers decides: 1 is a rank of one, 1.0 keeps everything.
_Budget = Annotated[InstanceOf[float], Field(gt=0, le=1)]
_RANK = (
    "a number in (0, 1], an integer in [1, 2**31), or a list of one of the two such as [8,8,4,4]"
)
Rank = Annotated[Count | _Budget | Counts | Annotated[tuple[_Budget, ...], _LIST], _RANK]
Optimizer = Literal[
    "subspace_muon", "tensor_muon", "adamw", "tensorgrad", "tensorgrad_sum", "subspace_momentum"
]
MUONS = ("subspace_muon", "tensor_muon")  # they have projections of their own
Kind = Literal["low_rank", "structured_sparse", "unstructured_sparse"]
Selection = Literal["randk", "topk", "probability"]
Side = Literal["std", "reverse_std", "left", "right", "full"]
GapMode = Literal["fixed", "linear", "exponential", "exponential2"]
Schedule = Literal["constant", "StepLR", "CosineAnnealingLR"]
Transform = Literal["auto", "fft", "matrix"]
Precision = Literal["full", "mixed", "half"]
Weights = Literal["full", "half"]
LowRank = Literal["oialr"]
Freeze = Literal["delay", "stability"]
Refresh = Literal["transport", "keep", "reset"]
SecondMoment = Literal["batch", "per_example"]
# The problems whose data this package generates: their dimension, and what their generators want
# to know beside the seed, with the generators' own defaults.
DIMENSIONS = {"nsforcing": 2, "darcy": 2, "burgers": 1}
GENERATOR_OPTIONS: dict[str, dict[str, float | None]] = {
    "nsforcing": {"viscosity": 2e-3, "t_end": 5.0, "dt": 0.05, "solver_resolution": None},
    "darcy": {"solver_resolution": None},
    "burgers": {"viscosity": 0.005, "t_end": 1.0, "dt": 0.005, "solver_resolution": None},
}


class ConfigError(ValueError):
    """A wrong option or value. The message is one line: the option, the value, what is allowed."""


def wrong(name: str, value: Any, expected: str, source: str = "") -> ConfigError:
    """The error for a value that is not allowed; `source` is the file it came from, if any."""
    got = f"{show(value)} in {source}" if source else show(value)
    return ConfigError(f"{name}: got {got}, expected {expected}")


def show(value: Any) -> str:
    """A value as it is written in a configuration file, on one line."""
    if isinstance(value, tuple | list):
        return "[" + ",".join(show(item) for item in value) + "]"
    text = "null" if value is None else repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


def allowed(option: Any) -> str:
    """What an option, or one of a certain type, may be, as it reads in a sentence."""
    hint = getattr(option, "annotation", option)
    said = getattr(option, "metadata", getattr(option, "__metadata__", ()))
    parts = [text for text in said if isinstance(text, str)] or typing.get_args(hint)
    if typing.get_origin(hint) is Literal and len(parts) > 1:
        return f"one of {', '.join(parts)}"
    words = {bool: "True or False", type(None): "null"}
    return words.get(hint) or " or ".join(p if isinstance(p, str) else allowed(p) for p in parts)


def describe(row: str) -> str:
    """A line for every option: `row` with name, default, help and what is allowed as its {}."""
    cells = lambda name, o: (name, show(o.default), o.description, allowed(o))
    return "\n".join(row.format(*cells(name, option)) for name, option in OPTIONS.items())


# One option, with its default and its line of help.
option: Any = lambda default, help: Field(default, description=help)


class Options(BaseModel):
    """A group of options, frozen; values must be of their option's type. `prefix` begins names."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    prefix: ClassVar[str] = ""

    def __init__(self, **values: Any):
        try:
            super().__init__(**values)
        except ValidationError as error:
            name = str(error.errors()[0]["loc"][0])
            field = type(self).model_fields.get(name)
            expected = allowed(field) if field else "an option that there is"
            raise wrong(self.prefix + name, values[name], expected) from None
        for bad, name, value, expected in self._rules():
            if bad:
                raise wrong(self.prefix + name, value, expected)

    def _rules(self) -> Iterator[tuple[bool, str, Any, str]]:
        """What options forbid each other: whether they do, the one to blame, what is expected."""
        yield from ()

    def _repeated(self, name: str, length: int, other: str) -> tuple[bool, str, Any, str]:
        """Repeat a list with one entry; of other lengths only `length` is right."""
        values = getattr(self, name)
        entries = "1 entry" if length == 1 else f"1 entry or {length}"
        object.__setattr__(self, name, values * length if len(values) == 1 else values)
        return len(values) not in (1, length), name, values, f"{entries}, like {other}"


class DataConfig(Options):
    """The data set: the files `<root>/<problem>_{train,test}_<resolution>.hdf5` and their use."""

    prefix = "data."
    problem: Name = option("nsforcing", "the data set: nsforcing, darcy, burgers or your own")
    root: Text = option("datasets/ns_small", "folder of the data files")
    dimension: Count | None = option(None, "grid axes; null: the problem's, or the files'")
    generate: bool = option(True, "make missing files of nsforcing, darcy and burgers")
    viscosity: Positive | None = option(None, "of the flow; null: 0.002, for burgers 0.005")
    t_end: Positive | None = option(None, "time of the targets; null: 5.0, for burgers 1.0")
    dt: Positive | None = option(None, "the generator's step; null: 0.05, for burgers 0.005")
    solver_resolution: Count | None = option(None, "null: the data's; darcy from 128, burgers 256")
    generator_seed: Seed = option(0, "seed of the generated samples")
    batch_size: Count = option(8, "training samples per step")
    n_train: Count = option(512, "training samples")
    n_validation: Natural = option(0, "samples behind those, only evaluated, to choose options by")
    train_resolution: Count = option(64, "grid points per axis in training")
    n_tests: Counts = option((64,), "test samples, per test set; one entry holds for all")
    test_resolutions: Counts = option((64,), "grid points per axis, per test set")
    test_batch_sizes: Counts = option((16,), "samples per batch, per test set or for all")
    encode_input: bool = option(True, "normalize the input to mean 0 and deviation 1")
    encode_output: bool = option(True, "normalize the target to mean 0 and deviation 1")

    def _rules(self):
        known, tests = DIMENSIONS.get(self.problem), self.test_resolutions
        defaults = {"dimension": known, **GENERATOR_OPTIONS.get(self.problem, {})}
        for name, default in defaults.items():
            value = getattr(self, name)
            object.__setattr__(self, name, default if value is None else value)
        due = f"{known}: data.problem {self.problem} is {known}-dimensional"
        yield known not in (None, self.dimension), "dimension", self.dimension, due
        if self.dt is not None and self.t_end is not None:
            due = f"at least 1e-7 data.t_end = {1e-7 * self.t_end:.3g}"
            yield self.dt < 1e-7 * self.t_end, "dt", self.dt, due
        due = f"at most data.n_train = {self.n_train}"
        yield self.batch_size > self.n_train, "batch_size", self.batch_size, due
        alone = self.n_train == self.train_resolution == 1
        due = "at least 2 with data.train_resolution 1, unless data.encode_input and "
        due += "data.encode_output are False: one number has no deviation"
        yield alone and (self.encode_input or self.encode_output), "n_train", 1, due
        yield len({*tests}) < len(tests), "test_resolutions", tests, "no entry twice"
        yield self._repeated("n_tests", len(tests), "data.test_resolutions")
        yield self._repeated("test_batch_sizes", len(tests), "data.test_resolutions")


class FnoConfig(Options):
    """The Fourier neural operator. The numbers of input and output channels come from the data."""

    prefix = "fno."
    n_modes: Counts = option((16, 16), "Fourier modes kept per axis")
    hidden_channels: Count = option(32, "width of the network")
    n_layers: Few = option(4, "number of Fourier layers")
    positional_embedding: Literal["grid"] | None = option("grid", "coordinates as further inputs")
    norm: Literal["group_norm"] | None = option(None, "normalization in every layer")
    stabilizer: Literal["tanh"] | None = option(None, "applied before every Fourier transform")
    domain_padding: Shares | None = option(None, "zeros at both ends of every axis / its length")
    use_channel_mlp: bool = option(True, "a two-layer network over the channels in every layer")
    channel_mlp_expansion: Positive = option(0.5, "inner width of that network / hidden_channels")
    lifting_channel_ratio: Positive = option(2.0, "inner width of the lifting / hidden_channels")
    projection_channel_ratio: Positive = option(2.0, "that of the projection to the output")
    separable: bool = option(False, "spectral weights that do not mix channels")
    activation_checkpoint: bool = option(False, "compute activations anew: less memory, more time")
    transform: Transform = option("auto", "an FFT, matrix products, or what should be faster")
    fno_block_precision: Precision = option("full", "mixed: float32 in transforms; half: bfloat16")
    fno_block_weights_precision: Weights = option("full", "spectral weights: float32, bfloat16")
    low_rank: LowRank | None = option(None, "oialr: spectral weights become cores between bases")
    low_rank_share: Part = option(0.5, "of the channels that cores begin with, on both sides")
    low_rank_delay: Count = option(200, "the step at which they do, counted from 1")
    low_rank_frequency: Count = option(100, "steps between checks of their ranks")
    low_rank_cutoff: Below = option(0.1, "of the largest singular value, below which one is cut")
    low_rank_freeze: Freeze = option("delay", "all at that step; stability: each axis once settled")
    low_rank_threshold: Fraction = option(0.99, "overlap with the last check at which an axis is")

    def _rules(self):
        half = self.fno_block_weights_precision == "half" and self.fno_block_precision == "full"
        due = "full with fno.fno_block_precision full; or choose mixed or half there"
        yield half, "fno_block_weights_precision", "half", due
        if self.domain_padding is not None:
            yield self._repeated("domain_padding", len(self.n_modes), "fno.n_modes")
        # Rounded as the FNO does it. A layer of no channels cannot be built, nor can one whose
        # number no array's shape may hold.
        rounded = {"lifting_channel_ratio": int, "projection_channel_ratio": int}
        rounded |= {"channel_mlp_expansion": round} if self.use_channel_mlp else {}
        due = "a ratio that leaves from 1 to 2^31 - 1 channels of fno.hidden_channels = "
        wide = 2 * math.prod(self.n_modes) * self.hidden_channels**2 > 2**40
        few = "fewer: a spectral weight would have more than 2^40 numbers"
        yield wide, "hidden_channels", self.hidden_channels, few
        for name, rounding in rounded.items():
            ratio = getattr(self, name)
            width = ratio * self.hidden_channels
            yield width >= 2**31 or rounding(width) < 1, name, ratio, f"{due}{self.hidden_channels}"


class OptConfig(Options):
    """The optimizer and the training loop."""

    prefix = "opt."
    optimizer_type: Optimizer | None = option(
        None, "null: subspace_muon; tensorgrad with opt.tensorgrad True or a proj_type"
    )
    momentum_budget: Fraction = option(0.05, "subspace_muon: momentum of tensors that is kept")
    polar_share: Share = option(0.5, "subspace_muon: weight of the polar factor")
    channel_share: Fraction = option(0.5, "muons: channels in which polar factors are taken")
    momentum: Decay = option(0.95, "muons: decay of momentum, subspace_muon's of matrices alone")
    tensorgrad: bool | None = option(None, "compress gradients; null: unless optimizer_type adamw")
    proj_type: Kind | None = option(None, "null: low_rank, unstructured_sparse if there are two")
    rank: Rank = option(0.25, "Tucker rank of the first projection, or its budget")
    sparse_ratio: Fraction = option(0.05, "entries kept by the first projection")
    sparse_type: Selection = option("randk", "how the first projection selects entries")
    scale: Positive = option(1.0, "factor of the first projection's update")
    scale_by_mask_ratio: bool = option(False, "sparse: one more, sqrt(entries / kept entries)")
    second_proj_type: Kind | None = option(None, "null: low_rank if proj_type is null, else none")
    second_rank: Rank = option(0.20, "Tucker rank of the second projection, or its budget")
    second_sparse_ratio: Fraction = option(0.05, "entries kept by the second projection")
    second_sparse_type: Selection = option("randk", "how the second projection selects entries")
    tensorgrad_sum_lambda_sparse: Positive = option(1.0, "weight of a composite's sparse part")
    update_proj_gap: Count | None = option(None, "steps to a refresh; null: 200, muons 50")
    update_proj_gap_mode: GapMode = option("fixed", "how the gap changes in training")
    update_proj_gap_end: Count | None = option(None, "gap at the end, unless the mode is fixed")
    n_iter_max_tucker: Few = option(1, "sweeps of the Tucker decomposition")
    svd_type: Literal["gram", "svd", "randomized"] = option("gram", "how factors are computed")
    tucker_warm_restart: bool = option(True, "svd and randomized start from the factors before")
    naive_galore: bool = option(False, "low_rank is GaLore's: of a matrix view, not of the tensor")
    galore_2d_proj_type: Side = option("std", "naive_galore: side of the basis; std: the shorter")
    first_dim_rollup: Few = option(1, "naive_galore: row axes, the first of (in, out, *modes)")
    on_refresh: Refresh = option("transport", "moments: carried over, left as they are, new")
    reset_sparse_optimizer_states: bool = option(False, "moments of single entries start anew")
    learning_rate: Positive = option(1e-2, "step size")
    weight_decay: NonNegative = option(1e-4, "decoupled weight decay")
    b1: Decay = option(0.9, "decay of the first moment")
    b2: Decay = option(0.999, "decay of the second moment")
    eps: Positive = option(1e-8, "added to the root of the second moment")
    second_moment: SecondMoment = option("batch", "squares of the batch's gradient or of samples'")
    enforce_full_complex_precision: bool = option(True, "False: first moments in bfloat16")
    match_update_size: bool = option(True, "make compressed updates as large as AdamW's")
    per_layer_opt: bool = option(True, "compress large gradients in turn, as they are made")
    stochastic_rounding: bool = option(True, "of updated bfloat16 weights; else to the nearest")
    n_epochs: Count = option(6, "passes over the training data")
    training_loss: Literal["l2", "h1"] = option("l2", "relative loss that is minimized")
    scheduler: Schedule = option("CosineAnnealingLR", "the learning rate over the epochs")
    step_size: Count = option(100, "StepLR: epochs between two reductions")
    gamma: Fraction = option(0.5, "StepLR: factor of one reduction")
    scheduler_T_max: Count | None = option(None, "cosine: epochs until zero; null: all")  # noqa: N815
    save_every: Count = option(1, "epochs between checkpoints")
    save_dir: Text = option("runs", "folder that holds the folders of the runs")
    resume_from_dir: Text | None = option(None, "folder of the run to continue")
    allow_changes: bool = option(False, "continue though options or data are not the run's")
    profiling: bool = option(False, "write memory.json, memory.png: the bytes of a step, AdamW's")
    max_batches: Count | None = option(None, "batches per epoch at most")

    def _rules(self):
        endless = self.update_proj_gap_mode != "fixed" and self.update_proj_gap_end is None
        due = f"an integer in [1, 2**31) with opt.update_proj_gap_mode {self.update_proj_gap_mode}"
        yield endless, "update_proj_gap_end", None, due

    def optimizer(self) -> str:
        """The optimizer's type, also where it is null: what names a projection means TensorGRaD."""
        if self.tensorgrad is False:
            return "adamw"
        named = self.tensorgrad or self.proj_type or self.second_proj_type
        return self.optimizer_type or ("tensorgrad" if named else "subspace_muon")

    def kinds(self) -> tuple[str, ...]:
        """The kinds of the projections, none, one or two: the rules of `build_projection`."""
        of_its_own = self.optimizer() in MUONS
        compressed = not of_its_own and (self.tensorgrad or self.optimizer() != "adamw")
        first, second = self.proj_type, self.second_proj_type
        paper = not first and self.optimizer() in ("tensorgrad", "tensorgrad_sum")
        both = (first or "unstructured_sparse", second or "low_rank")
        return () if not compressed else both if second or paper else (first or "low_rank",)


class Config(Options):
    """Everything a training run depends on."""

    name: Name | None = option(None, "name of the run's folder; null: chosen by the run")
    seed: Seed = option(0, "seed of everything random but the generated data")
    data: DataConfig = DataConfig()
    fno: FnoConfig = FnoConfig()
    opt: OptConfig = OptConfig()

    def _rules(self):
        modes, data, opt, kinds = self.fno.n_modes, self.data, self.opt, self.opt.kinds()
        if data.dimension is not None:
            known = f"data.problem {data.problem} is {data.dimension}-dimensional"
            told = f"data.dimension is {data.dimension}"
            check_modes(modes, data.dimension, known if data.problem in DIMENSIONS else told)
        due = f"at most data.train_resolution = {data.train_resolution}: no sample would reach "
        yield max(modes) > data.train_resolution, "fno.n_modes", modes, due + "the modes beyond"
        steps = opt.n_epochs * min(-(-data.n_train // data.batch_size), opt.max_batches or 2**31)
        due = "fewer: more than 2**31 steps cannot be counted"
        yield steps >= 2**31, "opt.n_epochs", opt.n_epochs, due
        axes, rows = len(modes) + (1 if self.fno.separable else 2), opt.first_dim_rollup
        due = f"at most {axes - 1}: a spectral weight has {axes} axes, and columns are needed too"
        yield opt.naive_galore and rows >= axes, "opt.first_dim_rollup", rows, due
        lengths = f"{axes} entries, one per axis of a spectral weight: its channels and fno.n_modes"
        due = "a number in (0, 1] or an integer with opt.naive_galore: a matrix has one rank"
        for name, kind in zip(("rank", "second_rank"), (*kinds, None, None), strict=False):
            rank = getattr(opt, name)
            many, matrix = isinstance(rank, tuple), opt.naive_galore and kind == "low_rank"
            yield many and len(rank) != axes, f"opt.{name}", rank, lengths
            yield many and matrix, f"opt.{name}", rank, due
        if self.fno.low_rank is not None:
            cores = "with fno.low_rank oialr"
            due = f"tensor_muon, or adamw without opt.tensorgrad, {cores}: a core is small already"
            subspace = bool(kinds) or self.optimizer() == "subspace_muon"
            yield subspace, "opt.optimizer_type", opt.optimizer_type, due
            due = f"False {cores}: a core has two axes of channels"
            yield self.fno.separable, "fno.separable", True, due
            due = f"full {cores}: bases are kept in float32"
            half = self.fno.fno_block_weights_precision == "half"
            yield half, "fno.fno_block_weights_precision", "half", due
            per_example = opt.second_moment == "per_example"
            yield per_example, "opt.second_moment", "per_example", f"batch {cores}"
        name = self.optimizer()
        due = f"another one with fno.separable True: {name} needs matrices of channels"
        yield name in MUONS and self.fno.separable, "opt.optimizer_type", name, due
        due = "a second projection with opt.optimizer_type tensorgrad_sum and a given "
        due += "opt.proj_type: a sum has two parts"
        alone = opt.optimizer_type == "tensorgrad_sum" and len(kinds) == 1
        yield alone, "opt.second_proj_type", None, due

    def optimizer(self) -> str:
        """The optimizer's type: as `opt.optimizer` says, but for what is no use to small cores."""
        free = self.opt.optimizer_type is None and self.fno.low_rank is not None
        chosen = self.opt.optimizer()
        return "tensor_muon" if free and chosen == "subspace_muon" else chosen

    def unused(self) -> dict[str, str]:
        """The options without effect beside the others, by full name, each with the reason.

        Not those of projections with `opt.tensorgrad` False, the baseline of a comparison.
        """
        opt, kinds = self.opt, self.opt.kinds()
        first, second = (*kinds, None, None)[:2]
        sparse = {"structured_sparse", "unstructured_sparse"}
        effects = {
            "rank": first == "low_rank",
            "sparse_ratio sparse_type scale_by_mask_ratio": first in sparse,
            "second_rank": second == "low_rank",
            "second_sparse_ratio second_sparse_type": second in sparse,
            f"naive_galore {_TUCKER} {_GALORE}": "low_rank" in kinds,
            "reset_sparse_optimizer_states": "unstructured_sparse" in kinds,
            "tensorgrad_sum_lambda_sparse": bool(second and sparse & {*kinds}),
        }
        used = {name for names in effects if effects[names] for name in names.split()}
        about = " ".join([_PROJECTED, _REFRESHED, *effects]).split()
        none = "opt.optimizer_type adamw compresses nothing without opt.tensorgrad True"
        if self.optimizer() in MUONS:
            none = f"opt.optimizer_type is {self.optimizer()}, which has its own; "
            none += "see opt.tensorgrad True"
            about = " ".join([_PROJECTED, *effects]).split()
        unused = {} if kinds else {f"opt.{name}": none for name in about}
        for name in " ".join(effects).split():
            other = name[7:] if name.startswith("second_") else "second_" + name
            hint = f"; did you mean opt.{other}, or another opt.proj_type?" if other in used else ""
            if name not in used:
                unused.setdefault(f"opt.{name}", f"the projection is {' + '.join(kinds)}{hint}")
        for name, values, others, why in _NEEDS:
            is_type = name == "opt.optimizer_type"
            value = self.optimizer() if is_type else str(attrgetter(name)(self))
            if value not in values.split():
                unused = dict.fromkeys(others.split(), why.format(name, value)) | unused
        if opt.resume_from_dir is None:
            unused["opt.allow_changes"] = "opt.resume_from_dir is null"
        # What cannot be made is not made in any case.
        off = {"data.generate"} if not self.data.generate else set()
        about = [*about, *_OF_MUONS.split()]
        off |= {f"opt.{name}" for name in about} if opt.tensorgrad is False else set()
        return {name: reason for name, reason in unused.items() if name not in off}


def check_modes(n_modes: tuple[int, ...], dimension: int, reason: str) -> None:
    """Raise a ConfigError, which ends with the reason, unless there is an entry per grid axis."""
    if len(n_modes) != dimension:
        entries = "1 entry" if dimension == 1 else f"{dimension} entries"
        raise wrong("fno.n_modes", n_modes, f"{entries}: {reason}")


_TUCKER = "n_iter_max_tucker svd_type tucker_warm_restart"
_GALORE = "galore_2d_proj_type first_dim_rollup"
_PROJECTED = "proj_type second_proj_type scale match_update_size"
_REFRESHED = "on_refresh per_layer_opt update_proj_gap update_proj_gap_mode update_proj_gap_end"
_OF_MUONS = "momentum_budget polar_share channel_share momentum"
_FLOW = "data.viscosity data.t_end data.dt"
_MADE = f"{_FLOW} data.solver_resolution data.generator_seed"
_CORES = "fno.low_rank_share fno.low_rank_delay fno.low_rank_frequency fno.low_rank_cutoff"
_CORES += " fno.low_rank_freeze fno.low_rank_threshold"
_SMALL = "{} is {}, whose cores are not projected again"
_IS = "{} is {}"
_NO_START = "{} is {}, which needs no start"
_FOR_ALL = "{} is {}, which holds for all moments"
_OURS = "{} is {}, and only nsforcing, darcy, burgers can be generated"
_ADAMS = "adamw tensorgrad tensorgrad_sum"
_WIDE = f"{_ADAMS} subspace_momentum"
_ALL_WIDE = "{} {} keeps all moments in float32"
_HALF = "{} {} keeps momentum in bfloat16"
_NEEDS = [  # an option, the values with which others have an effect, those others, why not else
    ("opt.naive_galore", "True", "opt.galore_2d_proj_type opt.first_dim_rollup", _IS),
    ("opt.naive_galore", "False", "opt." + _TUCKER.replace(" ", " opt."), _IS),
    ("opt.svd_type", "svd randomized", "opt.tucker_warm_restart", _NO_START),
    ("opt.on_refresh", "transport", "opt.reset_sparse_optimizer_states", _FOR_ALL),
    ("opt.update_proj_gap_mode", "linear exponential exponential2", "opt.update_proj_gap_end", _IS),
    ("opt.optimizer_type", _ADAMS, "opt.match_update_size", "{} {} drops nothing"),
    ("opt.optimizer_type", _ADAMS, "opt.second_moment", "{} {} is not AdamW, nor has it inside"),
    ("opt.second_moment", "batch", "opt.enforce_full_complex_precision", _ALL_WIDE),
    ("opt.optimizer_type", _WIDE, "opt.enforce_full_complex_precision", _HALF),
    ("opt.optimizer_type", "subspace_muon tensor_muon", "opt.channel_share opt.momentum", _IS),
    ("opt.optimizer_type", "subspace_muon", "opt.momentum_budget opt.polar_share", _IS),
    ("opt.scheduler", "StepLR", "opt.step_size opt.gamma", _IS),
    ("opt.scheduler", "CosineAnnealingLR", "opt.scheduler_T_max", _IS),
    ("fno.fno_block_weights_precision", "half", "opt.stochastic_rounding", _IS),
    ("fno.low_rank", "oialr", _CORES, _IS),
    ("fno.low_rank_freeze", "stability", "fno.low_rank_threshold", _IS),
    ("fno.low_rank", "None", f"opt.channel_share opt.{_REFRESHED.replace(' ', ' opt.')}", _SMALL),
    ("fno.use_channel_mlp", "True", "fno.channel_mlp_expansion", _IS),
    ("data.problem", "nsforcing darcy burgers", f"data.generate {_MADE}", _OURS),
    ("data.generate", "True", _MADE, _IS),
    ("data.problem", "nsforcing burgers", _FLOW, _IS),
]
_GROUPS = (Config, DataConfig, FnoConfig, OptConfig)
# Every option by its full name.
OPTIONS = {g.prefix + n: f for g in _GROUPS for n, f in g.model_fields.items() if f.description}
