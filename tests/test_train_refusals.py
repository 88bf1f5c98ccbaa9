"""What train.py refuses before it writes anything: options, model and data that do not fit."""

import contextlib
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import optax
import pytest
from flax import nnx
from tensorgrad_jax.models import FNO

import train
from tensorgrad_jax.data import hdf5
from tensorgrad_jax.data.folders import FolderInUseError, locked
from tensorgrad_jax.training import run
from tensorgrad_jax.training.config import parse
from tensorgrad_jax.training.options import ConfigError, FnoConfig
from tensorgrad_jax.training.run_folder import make_run_folder, new_run_folder

ROOT = Path(__file__).resolve().parent.parent
FILL = -1.797e308


def write(folder, resolution, x, y=None, test_x=None, test_y=None):
    """Four training and four test samples; a shape stands for ones, which suffice to be refused."""
    values = lambda field: np.ones((4, *field)) if isinstance(field, tuple) else field
    train_fields = [x, x if y is None else y]
    test_fields = [test_x, test_y]
    for split, fields in (("train", train_fields), ("test", test_fields)):
        with h5py.File(folder / f"mine_{split}_{resolution}.hdf5", "w") as file:
            for name, field, default in zip("xy", fields, train_fields, strict=True):
                file[name] = values(default if field is None else field)


def arguments(folder, resolution, options):
    base = {
        "data.problem": "mine", "data.root": folder, "data.n_train": 4, "data.batch_size": 2,
        "data.n_tests": [4], "data.train_resolution": resolution,
        "data.test_resolutions": [resolution], "fno.n_modes": [4, 4], "fno.hidden_channels": 4,
        "fno.n_layers": 1, "opt.n_epochs": 1, "opt.save_dir": folder / "runs",
    }  # fmt: skip
    return [str(x).replace(" ", "") for k, v in (base | options).items() for x in (f"--{k}", v)]


def refused(folder, capsys, resolution, **options):
    """The one line on stderr; nothing was written."""
    before = sorted(folder.rglob("*"))
    options = {name.replace("__", "."): value for name, value in options.items()}
    assert train.main(arguments(folder, resolution, options)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert sorted(folder.rglob("*")) == before
    return error


@pytest.mark.parametrize(
    ("shape", "n_modes", "expected"),
    [
        ((8, 8), [4], "got [4], expected 2 entries"),
        ((8, 8), [4, 4, 4], "got [4,4,4], expected 2 entries"),
        ((8,), [4, 4], "got [4,4], expected 1 entry"),
        ((8, 8, 8), [4, 4], "got [4,4], expected 3 entries"),
        ((3, 8), [4, 4], "got [4,4], expected 1 entry"),
    ],
)
def test_modes_of_another_dimension_than_the_data(tmp_path, capsys, shape, n_modes, expected):
    write(tmp_path, 8, shape)
    error = refused(tmp_path, capsys, 8, fno__n_modes=n_modes)
    assert f"fno.n_modes: {expected}: the samples of {tmp_path / 'mine_train_8.hdf5'}" in error
    assert f"x {shape}" in error


def test_modes_of_another_dimension_end_the_process_with_status_2(tmp_path):
    write(tmp_path, 8, (8, 8))
    command = [sys.executable, ROOT / "train.py", *arguments(tmp_path, 8, {"fno.n_modes": [4]})]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: fno.n_modes: got [4], expected 2 entries: ")
    assert done.stderr.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"mine_train_8.hdf5", "mine_test_8.hdf5"}


@pytest.mark.parametrize("n_modes", [[4], [4, 4]])
def test_a_field_of_another_shape_than_its_name_says(tmp_path, capsys, n_modes):
    """128x32 in a file of resolution 32, which might pass for 1-D data of 128 channels."""
    write(tmp_path, 32, (128, 32))
    error = refused(tmp_path, capsys, 32, fno__n_modes=n_modes)
    assert "mine_train_32.hdf5: x has samples of shape (128, 32), expected (*grid) or (C" in error


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"data__dimension": 1}, "fno.n_modes: got [4,4], expected 1 entry: data.dimension is 1"),
        ({"data__dimension": 2}, "samples of shape (8,), expected (8, 8) or (C, 8, 8)"),
        (
            {"data__dimension": 0},
            "data.dimension: got '0', expected an integer in [1",
        ),
        (
            {"data__dimension": 3, "data__problem": "darcy"},
            "data.dimension: got 3, expected 2: data.problem darcy is 2-dimensional",
        ),
    ],
)
def test_a_given_dimension_binds_data_and_modes(tmp_path, capsys, options, expected):
    write(tmp_path, 8, (8,))
    assert expected in refused(tmp_path, capsys, 8, **options)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"test_x": (2, 8, 8)}, "mine_test_8.hdf5: x has 2 channels, expected 1 as in "),
        ({"test_y": (3, 8, 8)}, "mine_test_8.hdf5: y has 3 channels, expected 1 as in "),
        ({"test_x": (8,), "test_y": (8,)}, "mine_test_8.hdf5: x has samples of shape (8,)"),
    ],
)
def test_test_sets_that_the_model_cannot_take(tmp_path, capsys, fields, expected):
    """Found before the training, not after its first epoch."""
    write(tmp_path, 8, (8, 8), **fields)
    assert expected in refused(tmp_path, capsys, 8)


def filled(sample, value):
    values = np.random.default_rng(0).normal(size=(4, 8, 8))
    values[sample, 3, 3] = value
    return values


@pytest.mark.parametrize("in_memory_bytes", [0, 2**20])
@pytest.mark.parametrize(
    ("field", "file", "name"),
    [("x", "train", "x"), ("y", "train", "y"), ("test_x", "test", "x"), ("test_y", "test", "y")],
)
def test_numbers_that_are_infinite_in_float32(
    tmp_path, capsys, monkeypatch, in_memory_bytes, field, file, name
):
    """Files that are read sample by sample are read once before the training."""
    monkeypatch.setattr(hdf5, "IN_MEMORY_BYTES", in_memory_bytes)
    write(tmp_path, 8, **{"x": (8, 8)} | {field: filled(2, FILL)})
    error = refused(tmp_path, capsys, 8, data__encode_input="False", data__encode_output="False")
    assert f"mine_{file}_8.hdf5: {name} holds values that are not finite in float32" in error
    assert "-1.797e+308 in sample 2" in error


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"fno__channel_mlp_expansion": 0.1}, "fno.channel_mlp_expansion: got 0.1, expected"),
        ({"fno__lifting_channel_ratio": 0.2}, "fno.lifting_channel_ratio: got 0.2, expected"),
        ({"fno__projection_channel_ratio": 1e37}, "fno.projection_channel_ratio: got 1e+37"),
    ],
)
def test_options_of_which_nothing_can_be_built(tmp_path, capsys, options, expected):
    write(tmp_path, 8, (8, 8))
    assert expected in refused(tmp_path, capsys, 8, **options)


def test_what_cannot_be_compiled_leaves_no_folder(tmp_path):
    write(tmp_path, 8, (8, 8))

    def update(gradients, state, params=None):
        raise NotImplementedError

    broken = optax.GradientTransformation(lambda params: (), update)
    with pytest.raises(NotImplementedError):
        run.run(parse(arguments(tmp_path, 8, {})), lambda config, steps: broken)
    assert not (tmp_path / "runs").exists()


def made(config):
    """The folder of a run whose filling is a file, and the lock that it holds."""
    held = contextlib.ExitStack()
    return make_run_folder(config, lambda path: (path / "filled").touch(), held), held


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link", "file/below", "x" * 300, "/proc/runs"):
        config = parse(["--opt.save_dir", str(tmp_path / name)])
        for make in (new_run_folder, made):
            with pytest.raises(ConfigError, match=rf"opt.save_dir: got '.*{name}', expected a fol"):
                make(config)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "link"}


def test_a_folder_is_there_complete_or_not_at_all(tmp_path):
    config = parse(["--opt.save_dir", str(tmp_path), "--name", "mine"])
    (tmp_path / ".mine.new" / "checkpoints").mkdir(parents=True)  # of a process that was killed

    def full(path):
        raise OSError(28, "No space left on device")

    with contextlib.ExitStack() as held, pytest.raises(OSError, match="No space"):
        make_run_folder(config, full, held)
    assert not any(tmp_path.iterdir())
    folder, _ = made(config)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert [path.name for path in folder.iterdir()] == ["filled"]


def test_runs_that_start_together_get_a_folder_each(tmp_path):
    config = parse(["--opt.save_dir", str(tmp_path)])
    first, held = made(config)
    with pytest.raises(FolderInUseError), locked(first):
        pass
    held.close()
    with locked(first):
        pass
    other = tmp_path / f".{first.name}_2.new"
    other.mkdir()
    with locked(other):  # a run is just making the next one
        assert made(config)[0].name == first.name + "_3"
        named = parse(["--opt.save_dir", str(tmp_path), "--name", first.name + "_2"])
        with pytest.raises(ConfigError, match="another run is just making"):
            made(named)
    assert made(named)[0].name == first.name + "_2"


def test_one_number_cannot_be_normalised(tmp_path, capsys):
    write(tmp_path, 1, (1, 1))
    options = {"data__n_train": 1, "data__batch_size": 1, "fno__n_modes": [1, 1]}
    assert "data.n_train: got 1, expected at least 2" in refused(tmp_path, capsys, 1, **options)


@pytest.mark.parametrize("ratio", [0.1, 0.124, 0.125, 0.126, 0.25, 1.0])
@pytest.mark.parametrize(
    "name", ["lifting_channel_ratio", "projection_channel_ratio", "channel_mlp_expansion"]
)
def test_ratios_are_refused_exactly_where_the_model_refuses_them(name, ratio):
    config = lambda: FnoConfig(n_modes=(2,), hidden_channels=4, **{name: ratio})
    try:
        FNO((2,), 1, 1, 4, 1, **{name: ratio}, rngs=nnx.Rngs(0))
    except ValueError:
        with pytest.raises(ConfigError, match=f"fno.{name}: got {ratio}"):
            config()
    else:
        config()
