"""The configuration: precedence, round trips, one-line errors, projection plans, schedules."""

import math
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

import tensorgrad_jax as tg
from tensorgrad_jax.training.build import build_projection, build_schedule
from tensorgrad_jax.training.config import CONFIG_FOLDER, parse, to_yaml
from tensorgrad_jax.training.options import (
    Config,
    ConfigError,
    Count,
    Counts,
    DataConfig,
    FnoConfig,
    OptConfig,
    Options,
    option,
)

CONFIG = Path(__file__).parents[1] / "config"


def error_of(*argv):
    with pytest.raises(ConfigError) as caught:
        parse(list(argv))
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return str(path)

    return write


# --- values ---------------------------------------------------------------------------------


def test_no_arguments_give_the_default_which_is_ns_small():
    assert parse([]) == Config()
    assert parse(["--config_file", "ns_small.yaml"]) == Config()


def test_flags_override_the_file_wherever_they_stand(write):
    file = write("opt:\n  n_epochs: 3\n  learning_rate: 5e-3\n")
    for argv in (
        ["--config_file", file, "--opt.n_epochs", "7"],
        ["--opt.n_epochs", "7", "--config_file", file],
        ["--opt.n_epochs=7", f"--config_file={file}"],
        ["--opt.n_epochs=5", f"--config_file={file}", "--opt.n_epochs=7"],
    ):
        opt = parse(argv).opt
        assert (opt.n_epochs, opt.learning_rate) == (7, 5e-3)


@pytest.mark.parametrize("name", [path.name for path in sorted(CONFIG.glob("*.yaml"))])
def test_shipped_files_are_found_by_name_from_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse(["--config_file", name]) == parse(["--config_file", name.removesuffix(".yaml")])
    (tmp_path / name).write_text("seed: 17\n")
    assert parse(["--config_file", name]).seed == 17


def test_darcy_file():
    config = parse(["--config_file", "darcy_tensorgrad_config"])
    assert config.data.test_resolutions == (16, 32)
    assert build_projection(config.opt) == PAPER
    argv = "--config_file darcy_tensorgrad_config --opt.proj_type low_rank --opt.rank 0.25"
    assert build_projection(parse(argv.split()).opt) == tg.Tucker(0.25)


@pytest.mark.parametrize(
    ("text", "value"), [("True", True), ("true", True), ("False", False), ("false", False)]
)
def test_booleans(text, value):
    assert parse(["--opt.tensorgrad", text]).opt.tensorgrad is value
    assert parse([f"--data.encode_input={text}"]).data.encode_input is value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.25", 0.25),
        ("1", 1),
        ("1.0", 1.0),
        ("[8,8,4,4]", (8, 8, 4, 4)),
        ("[.5, 1.0, .5, 1.0]", (0.5, 1.0, 0.5, 1.0)),
    ],
)
def test_the_type_of_a_rank_survives(text, value, write):
    config = parse(["--opt.proj_type", "low_rank", "--opt.rank", text])
    again = parse(["--config_file", write(to_yaml(config))])
    for rank in (config.opt.rank, again.opt.rank):
        assert rank == value
        assert type(rank) is type(value)
        if isinstance(value, tuple):
            assert type(rank[0]) is type(value[0])


def test_lists_of_one_entry_hold_for_all_test_sets():
    data = parse(["--data.test_resolutions", "[32, 64]"]).data
    assert data.n_tests == (64, 64)
    assert len(data.test_batch_sizes) == 2
    fno = parse(["--fno.domain_padding", "[0.25]"]).fno
    assert fno.domain_padding == (0.25, 0.25)


VARIED = Config(
    name="null",
    seed=3,
    data=DataConfig(problem="burgers", root="a: b", n_tests=(3, 4), test_resolutions=(8, 64)),
    fno=FnoConfig(n_modes=(4,), positional_embedding=None, domain_padding=(0.5,)),
    opt=OptConfig(rank=(2, 3, 4), second_rank=1.0, tensorgrad=True, eps=1e-30, save_dir="12"),
)


@pytest.mark.parametrize("config", [Config(), VARIED])
def test_round_trip(config, write):
    text = to_yaml(config)
    assert parse(["--config_file", write(text)]) == config
    sections = yaml.safe_load(text)
    for section in ("data", "fno", "opt"):
        fields = type(getattr(config, section)).model_fields
        assert list(sections[section]) == list(fields)


def test_empty_file_and_empty_section(write):
    assert parse(["--config_file", write("")]) == Config()
    assert parse(["--config_file", write("opt:\n")]) == Config()
    assert parse(["--config_file", write("name: 2024\n")]).name == "2024"


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as caught:
        parse(["--opt.n_epochs", "3", "--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    for section in ("data", "fno", "opt"):
        for field in type(getattr(Config(), section)).model_fields:
            assert f"--{section}.{field}" in printed
    assert "a number in (0, 1]" in printed


# --- errors ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        ("--opt.n_epochs 0", ["opt.n_epochs", "'0'", "integer in [1, 2**31)"]),
        ("--opt.n_epochs 2.5", ["opt.n_epochs", "2.5", "integer"]),
        ("--opt.n_epochs null", ["opt.n_epochs", "null", "integer"]),
        ("--opt.learning_rate -1", ["opt.learning_rate", "-1", "number in [1e-37, 1e38]"]),
        ("--opt.learning_rate .inf", ["opt.learning_rate", "inf", "number in [1e-37, 1e38]"]),
        ("--opt.learning_rate nan", ["opt.learning_rate", "nan", "number in [1e-37, 1e38]"]),
        ("--opt.b2 1.0", ["opt.b2", "1.0", "[0, 1 - 1e-7]"]),
        ("--opt.proj_type sparse", ["sparse", "structured_sparse", "unstructured_sparse"]),
        ("--opt.sparse_type random", ["opt.sparse_type", "randk, topk, probability"]),
        ("--opt.update_proj_gap_mode linear", ["opt.update_proj_gap_end", "null", "linear"]),
        ("--opt.update_proj_gap_end 9", ["no effect", "opt.update_proj_gap_mode is fixed"]),
        ("--opt.tensorgrad maybe", ["opt.tensorgrad", "maybe", "True or False"]),
        ("--opt.rank 1.5", ["opt.rank", "1.5", "(0, 1]"]),
        ("--opt.rank [8,0.5,8,8]", ["opt.rank", "[8,0.5,8,8]"]),
        ("--opt.proj_type low_rank --opt.rank [8,8]", ["opt.rank", "[8,8]", "4 entries"]),
        ("--fno.n_modes []", ["fno.n_modes", "[]", "[64,64]"]),
        ("--fno.n_modes [8]", ["fno.n_modes", "[8]", "2 entries", "nsforcing"]),
        ("--fno.n_modes [80,80]", ["fno.n_modes", "80", "data.train_resolution", "64"]),
        ("--fno.domain_padding [0.1,0.1,0.1]", ["fno.domain_padding", "2"]),
        ("--data.n_tests [64,64]", ["data.n_tests", "[64,64]", "data.test_resolutions"]),
        ("--data.test_resolutions [64,64]", ["data.test_resolutions", "twice"]),
        ("--data.batch_size 1000", ["data.batch_size", "1000", "512"]),
        ("--data.root=", ["data.root", "''", "not empty"]),
        ("--name a/b", ["name", "a/b"]),
        ("--seed -1", ["seed", "-1"]),
        ("--learning_rate 1", ["--learning_rate", "mean --opt.learning_rate?"]),
        ("--opt.learning_rte 1", ["--opt.learning_rte", "mean --opt.learning_rate?"]),
        ("--data.n_train_ 1", ["mean --data.n_train?"]),
        ("-opt.rank 1", ["-opt.rank", "mean --opt.rank?"]),
        ("--opt.second_scale 2", ["--opt.second_scale", "unknown"]),
        ("--opt.scale 0", ["opt.scale", "'0'", "number in [1e-37, 1e38]"]),
        ("--opt.scale 2 --opt.optimizer_type adamw", ["no effect", "compresses nothing"]),
        (
            "--opt.match_update_size False --opt.optimizer_type subspace_momentum",
            ["no effect", "drops nothing"],
        ),
        (
            "--opt.scale_by_mask_ratio True --opt.proj_type low_rank",
            ["no effect", "the projection is low_rank"],
        ),
        (
            "--opt.naive_galore True --opt.proj_type unstructured_sparse",
            ["no effect", "the projection is unstructured_sparse"],
        ),
        (
            "--opt.tensorgrad True --opt.galore_2d_proj_type left",
            ["no effect", "opt.naive_galore is False"],
        ),
        (
            "--opt.tensorgrad True --opt.first_dim_rollup 2",
            ["no effect", "opt.naive_galore is False"],
        ),
        (
            "--opt.tensorgrad True --opt.naive_galore True --opt.svd_type svd",
            ["no effect", "naive_galore is True"],
        ),
        (
            "--opt.tensorgrad True --opt.naive_galore True --opt.first_dim_rollup 4",
            ["opt.first_dim_rollup", "got 4", "at most 3"],
        ),
        (
            "--opt.tensorgrad True --opt.naive_galore True --opt.second_rank [8,8,8,8]",
            ["opt.second_rank", "[8,8,8,8]", "opt.naive_galore"],
        ),
        ("--opt.galore_2d_proj_type up", ["opt.galore_2d_proj_type", "'up'", "reverse_std"]),
        (
            "--opt.tensorgrad True --opt.tucker_warm_restart False",
            ["no effect", "opt.svd_type is gram"],
        ),
        (
            "--opt.tensorgrad True --opt.reset_sparse_optimizer_states True --opt.on_refresh reset",
            ["no effect", "opt.on_refresh is reset"],
        ),
        (
            "--opt.reset_sparse_optimizer_states True --opt.proj_type low_rank",
            ["no effect", "the projection is low_rank"],
        ),
        ("--opt.n_epochs", ["--opt.n_epochs", "no value", "integer"]),
        ("--opt.n_epochs --seed 1", ["--opt.n_epochs", "no value"]),
        ("--data.n_tests [64, 64]", ["64]", "quotes"]),
        ("--config_file ns_smal.yaml", ["ns_smal.yaml", "mean ns_small.yaml?"]),
        (
            "--opt.tensorgrad True --opt.rank 0.1",
            ["--opt.rank 0.1", "no effect", "opt.second_rank"],
        ),
        ("--opt.rank 0.1", ["no effect", "subspace_muon, which has its own", "tensorgrad True"]),
        ("--opt.scale 2", ["no effect", "subspace_muon, which has its own"]),
        (
            "--opt.optimizer_type tensor_muon --opt.polar_share .3",
            ["no effect", "opt.optimizer_type is tensor_muon"],
        ),
        (
            "--opt.optimizer_type subspace_muon --fno.low_rank oialr",
            ["opt.optimizer_type", "'subspace_muon'", "tensor_muon"],
        ),
        ("--opt.momentum_budget 0", ["opt.momentum_budget", "(0, 1]"]),
        ("--opt.enforce_full_complex_precision True", ["no effect", "momentum in bfloat16"]),
        (
            "--opt.optimizer_type adamw --opt.momentum .9",
            ["no effect", "opt.optimizer_type is adamw"],
        ),
        ("--fno.separable True", ["opt.optimizer_type", "'subspace_muon'", "fno.separable True"]),
        ("--opt.tensorgrad_sum_lambda_sparse 2 --opt.proj_type low_rank", ["no effect"]),
        ("--opt.optimizer_type adamw --opt.update_proj_gap 9", ["no effect", "opt.tensorgrad"]),
        ("--opt.step_size 3", ["no effect", "CosineAnnealingLR"]),
        ("--opt.scheduler_T_max 3 --opt.scheduler StepLR", ["no effect", "StepLR"]),
        ("--fno.channel_mlp_expansion 2 --fno.use_channel_mlp False", ["no effect"]),
        ("--data.dt 0.1 --data.generate False", ["no effect", "data.generate"]),
        ("--data.dt 0.1 --data.problem darcy", ["no effect", "darcy"]),
        (
            "--opt.optimizer_type adamw --opt.per_layer_opt False",
            ["no effect", "compresses nothing"],
        ),
        ("--opt.stochastic_rounding False", ["no effect", "fno.fno_block_weights_precision"]),
        ("--fno.fno_block_precision float16", ["'float16'", "full, mixed, half"]),
        ("--fno.fno_block_weights_precision half", ["'half'", "fno.fno_block_precision"]),
        ("--opt.optimizer_type tensorgrad_sum --opt.proj_type low_rank", ["second_proj_type"]),
    ],
)
def test_errors_on_the_command_line(argv, parts, capsys):
    message = error_of(*argv.split())
    for part in parts:
        assert part in message
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("opt:\n  learning_rte: 1\n", ["opt.learning_rte", "mean opt.learning_rate?"]),
        ("optt:\n  rank: 1\n", ["optt", "mean opt?"]),
        (
            "opt:\n  n_epochs: many\n",
            ["opt.n_epochs", "'many'", "integer in [1", "run.yaml"],
        ),
        ("opt:\n  n_epochs: {a: 1}\n", ["opt.n_epochs", "{'a': 1}", "integer in [1, 2**31)"]),
        ("opt:\n  n_epochs: 1\n  n_epochs: 2\n", ["line 3", "n_epochs", "twice"]),
        ("opt: 3\n", ["opt", "3", "mapping"]),
        ("- 1\n", ["list", "mapping"]),
        ("opt: [\n", ["line 2"]),
        ("name: 2024-13-45\n", ["run.yaml"]),
        ("data:\n  root: null\n", ["data.root", "null"]),
        ("data:\n  root: true\n", ["data.root", "True"]),
        ("data:\n  root: \x00\n", ["run.yaml"]),
    ],
)
def test_errors_in_a_file(text, parts, write):
    message = error_of("--config_file", write(text))
    for part in parts:
        assert part in message


def test_a_missing_file_lists_what_is_there():
    message = error_of("--config_file", "zzz")
    for path in CONFIG_FOLDER.glob("*.yaml"):
        assert path.name in message


def test_values_are_checked_at_construction_too():
    for construct in (
        lambda: OptConfig(rank=-1),
        lambda: OptConfig(n_epochs=0),
        lambda: DataConfig(n_tests=()),
        lambda: FnoConfig(n_modes=(0, 1)),
        lambda: Config(fno=FnoConfig(n_modes=(16,))),
    ):
        with pytest.raises(ConfigError, match="expected"):
            construct()


class Small(Options):
    prefix = "small."
    sizes: Counts = option((1,), "a list becomes a tuple")
    kind: Literal["a", "b"] | None = "a"
    flag: bool | None = True
    count: Count = 1


def test_types_are_checked_at_construction():
    assert Small(sizes=[1, 2]).sizes == (1, 2)
    assert Small(kind=None, flag=None) == Small(sizes=(1,), kind=None, flag=None)
    with pytest.raises(ConfigError, match=r"small.colour: got 'red', expected an option that"):
        Small(colour="red")
    with pytest.raises(ValueError, match="frozen"):
        Small().count = 2
    for wrong in ({"sizes": 1}, {"kind": "c"}, {"flag": 1}, {"count": True}, {"count": None}):
        with pytest.raises(ConfigError, match=f"small.{next(iter(wrong))}: got .*, expected"):
            Small(**wrong)


def test_leftovers_in_a_file_are_no_error(write):
    file = write(to_yaml(Config()))
    given = parse(["--config_file", file, "--opt.optimizer_type", "adamw"])
    assert build_projection(given.opt) is None
    # A baseline beside the flags of the comparison.
    parse(["--opt.tensorgrad", "False", "--opt.rank", "0.25"])


# --- projections ----------------------------------------------------------------------------

FIVE_PERCENT = tg.UnstructuredSparse(0.05, "randk")
PAPER = tg.Residual(FIVE_PERCENT, tg.Tucker(0.20))
LOW_RANK = tg.Tucker(0.25)


@pytest.mark.parametrize(
    ("argv", "projection"),
    [
        ("", None),  # subspace_muon has projections of its own
        ("--opt.optimizer_type tensor_muon --opt.tensorgrad True", None),
        ("--opt.optimizer_type tensorgrad", PAPER),
        ("--opt.tensorgrad True", PAPER),
        ("--opt.tensorgrad False", None),
        ("--opt.optimizer_type adamw", None),
        ("--opt.optimizer_type adamw --opt.tensorgrad False", None),
        ("--opt.optimizer_type adamw --opt.tensorgrad True", LOW_RANK),
        ("--opt.optimizer_type subspace_momentum", LOW_RANK),
        ("--opt.optimizer_type subspace_momentum --opt.tensorgrad False", None),
        ("--opt.tensorgrad True --opt.proj_type low_rank --opt.rank 0.25", LOW_RANK),
        ("--opt.proj_type unstructured_sparse", FIVE_PERCENT),
        (
            "--opt.proj_type unstructured_sparse --opt.sparse_ratio 0.05 --opt.sparse_type randk "
            "--opt.second_proj_type low_rank --opt.second_rank 0.20",
            PAPER,
        ),
        ("--opt.second_proj_type low_rank", PAPER),
        ("--opt.optimizer_type adamw --opt.tensorgrad True --opt.second_proj_type low_rank", PAPER),
        (
            "--opt.proj_type low_rank --opt.rank [4,4,2,2] --opt.second_proj_type "
            "unstructured_sparse --opt.second_sparse_ratio 0.1 --opt.second_sparse_type topk "
            "--opt.tensorgrad_sum_lambda_sparse 2",
            tg.Residual(
                tg.Tucker((4, 4, 2, 2)), tg.UnstructuredSparse(0.1, "topk"), weights=(1.0, 2.0)
            ),
        ),
        (
            "--opt.optimizer_type tensorgrad_sum --opt.second_rank 3",
            tg.Sum(FIVE_PERCENT, tg.Tucker(3)),
        ),
    ],
)
def test_projection(argv, projection):
    assert build_projection(parse(argv.split()).opt) == projection


# --- schedules ------------------------------------------------------------------------------


def rates(opt, n_epochs, steps_per_epoch=3):
    schedule = build_schedule(opt, steps_per_epoch)
    steps = jnp.arange(n_epochs * steps_per_epoch)
    values = jax.jit(schedule)(steps)
    assert values.dtype == jnp.float32
    assert schedule(4) == values[4]
    by_epoch = np.asarray(values).reshape(n_epochs, steps_per_epoch)
    assert (by_epoch == by_epoch[:, :1]).all()
    return by_epoch[:, 0]


def test_constant():
    np.testing.assert_allclose(rates(OptConfig(scheduler="constant", learning_rate=0.3), 4), 0.3)


def test_step_lr():
    opt = OptConfig(scheduler="StepLR", learning_rate=0.3, step_size=2, gamma=0.1)
    np.testing.assert_allclose(rates(opt, 5), [0.3, 0.3, 0.03, 0.03, 0.003], rtol=1e-6)


@pytest.mark.parametrize(("t_max", "period"), [(None, 6), (4, 4)])
def test_cosine(t_max, period):
    opt = OptConfig(learning_rate=0.3, n_epochs=6, scheduler_T_max=t_max)
    expected = [0.15 * (1 + math.cos(math.pi * e / period)) for e in range(11)]
    np.testing.assert_allclose(rates(opt, 11), expected, rtol=1e-5, atol=1e-8)


def test_schedule_needs_steps():
    with pytest.raises(ValueError, match="got 0"):
        build_schedule(OptConfig(), 0)
