"""The data of a run: what is made, what is used as it is, and which flags are refused."""

import h5py
import numpy as np
import pytest

from tensorgrad_jax.data import DataError
from tensorgrad_jax.training.build import build_data
from tensorgrad_jax.training.config import parse
from tensorgrad_jax.training.options import ConfigError


def config(root, problem, *flags):
    sizes = "--data.n_train 3 --data.n_tests [2] --data.batch_size 1 --data.train_resolution 8"
    modes = "[4]" if problem == "burgers" else "[4,4]"
    flags = [*sizes.split(), "--data.problem", problem, "--fno.n_modes", modes, *flags]
    return parse(["--data.root", str(root), *flags])


@pytest.mark.parametrize(("problem", "grid"), [("darcy", (8, 8)), ("burgers", (8,))])
def test_missing_files_are_made_at_the_finest_resolution(tmp_path, capsys, problem, grid):
    given = config(
        tmp_path, problem, "--data.test_resolutions", "[16,8]", "--data.solver_resolution", "128"
    )
    data = build_data(given)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"{problem}_test_16.hdf5", f"{problem}_train_16.hdf5",
    ]  # fmt: skip
    assert (len(data.train), data.train[0]["y"].shape) == (3, (*grid, 1))
    # Both test sets hold the same samples.
    fine, coarse = (test.source[1]["y"] for test in data.tests)
    np.testing.assert_array_equal(fine[(slice(None, None, 2),) * len(grid)], coarse)
    with h5py.File(tmp_path / f"{problem}_train_16.hdf5") as file:
        assert file.attrs["solver_resolution"] == 128
        if problem == "burgers":
            assert (file.attrs["viscosity"], file.attrs["dt"]) == (0.005, 0.005)
    assert "generated" in capsys.readouterr().out
    build_data(given)
    assert capsys.readouterr().out == ""
    with pytest.raises(DataError, match="made with seed=0, not 7"):
        build_data(
            config(
                tmp_path, problem, "--data.test_resolutions", "[16,8]",
                "--data.solver_resolution", "128", "--data.generator_seed", "7",
            )
        )  # fmt: skip


def test_files_made_elsewhere_are_used_as_they_are(tmp_path, capsys):
    x = np.random.default_rng(0).normal(size=(4, 8, 8)).astype(np.float32)
    for split in ("train", "test"):
        with h5py.File(tmp_path / f"darcy_{split}_8.hdf5", "w") as file:
            file["x"], file["y"] = x, -x
    flags = ["--data.test_resolutions", "[8]"]
    given = config(tmp_path, "darcy", *flags)
    data = build_data(given)
    np.testing.assert_array_equal(data.train[1]["x"][..., 0], x[1])
    assert data.validation is None
    assert "darcy_train_8.hdf5 was made elsewhere" in capsys.readouterr().out
    validated = build_data(config(tmp_path, "darcy", *flags, "--data.n_validation", "1"))
    assert validated.validation is not None
    assert (len(validated.train), len(validated.validation.source)) == (3, 1)
    np.testing.assert_array_equal(validated.validation.source[0]["x"][..., 0], x[3])
    # Nothing is generated beside them either: it would be of another kind.
    with pytest.raises(DataError, match=r"no darcy_test_16.hdf5"):
        build_data(config(tmp_path, "darcy", "--data.test_resolutions", "[16]"))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_problem_that_cannot_be_generated(tmp_path):
    with pytest.raises(ConfigError, match=r"--data.generate True: has no effect: .*is mine, and"):
        config(tmp_path, "mine", "--data.generate", "True")
    # What happens in any case may be said.
    with pytest.raises(DataError, match=r"no mine_train_8.hdf5"):
        build_data(config(tmp_path, "mine", "--data.generate", "False"))


@pytest.mark.parametrize(
    ("problem", "flag"),
    [("darcy", "--data.viscosity"), ("darcy", "--data.t_end"), ("mine", "--data.dt")],
)
def test_numbers_that_a_generator_does_not_use_are_refused(tmp_path, problem, flag):
    with pytest.raises(ConfigError, match=rf"{flag} 0.1: has no effect: data.problem is {problem}"):
        config(tmp_path, problem, flag, "0.1")
    config(tmp_path, "burgers", flag, "0.1")
