"""Files, their errors, normalizers, batches and the command that generates."""

import itertools
from pathlib import Path

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensorgrad_jax.data import (
    DataError,
    UnitGaussianNormalizer,
    batches,
    generate_navier_stokes,
    hdf5,
    n_batches,
    open_dataset,
)
from tensorgrad_jax.data.__main__ import main

GOLDEN = Path(__file__).parent / "golden"


def write(path, n=5, grid=(8, 8), channels=None, **arrays):
    shape = (n, *grid) if channels is None else (n, channels, *grid)
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    with h5py.File(path, "w") as file:
        for name, values in ({"x": x, "y": -x} | arrays).items():
            if values is not None:
                file[name] = values
    return x


def test_samples_have_channels_last(tmp_path):
    x = write(tmp_path / "p_train_8.hdf5")
    source = open_dataset(tmp_path, "p", "train", 8, 3)
    assert len(source) == 3
    np.testing.assert_array_equal(source[2]["x"], x[2][..., None])
    x = write(tmp_path / "q_train_8.hdf5", channels=2)
    sample = open_dataset(tmp_path, "q", "train", 8)[4]
    np.testing.assert_array_equal(sample["y"], -np.moveaxis(x[4], 0, -1))
    with pytest.raises(IndexError):
        source[3]


@pytest.mark.parametrize("in_memory_bytes", [0, 2**20])
def test_samples_from_a_start_on(tmp_path, monkeypatch, in_memory_bytes):
    monkeypatch.setattr(hdf5, "IN_MEMORY_BYTES", in_memory_bytes)
    x = write(tmp_path / "p_train_8.hdf5")
    rest = open_dataset(tmp_path, "p", "train", 8, start=3)
    assert len(rest) == 2
    np.testing.assert_array_equal(rest[0]["x"][..., 0], x[3])
    np.testing.assert_array_equal(
        open_dataset(tmp_path, "p", "train", 8, 1, 4)[0]["x"][..., 0], x[4]
    )
    with pytest.raises(DataError, match="2 samples wanted after the first 4, it has 5"):
        open_dataset(tmp_path, "p", "train", 8, 2, start=4)


def test_a_finer_file_is_read_with_a_stride(tmp_path):
    x = write(tmp_path / "p_test_12.hdf5", grid=(12, 12))
    write(tmp_path / "p_test_24.hdf5", grid=(24, 24))
    np.testing.assert_array_equal(
        open_dataset(tmp_path, "p", "test", 4)[1]["x"][..., 0], x[1, ::3, ::3]
    )


def test_large_files_are_read_sample_by_sample(tmp_path, monkeypatch):
    write(tmp_path / "p_test_8.hdf5", channels=2)
    in_memory = open_dataset(tmp_path, "p", "test", 4)
    monkeypatch.setattr(hdf5, "IN_MEMORY_BYTES", 0)
    streamed = open_dataset(tmp_path, "p", "test", 4)
    assert in_memory.arrays is not None
    assert streamed.arrays is None
    for i in range(5):
        for name in "xy":
            np.testing.assert_array_equal(streamed[i][name], in_memory[i][name])


@pytest.mark.parametrize("how", ["shorter", "other shape", "cut", "removed"])
def test_a_file_that_changes_in_use_is_told_by_name(how, tmp_path, monkeypatch):
    monkeypatch.setattr(hdf5, "IN_MEMORY_BYTES", 0)
    path = tmp_path / "mine_train_8.hdf5"

    def write(n, points):
        with h5py.File(path, "w") as file:
            for name in ("x", "y"):
                file[name] = np.ones((n, points), np.float32)

    write(6, 8)
    source = open_dataset(tmp_path, "mine", "train", 8)
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-200])
    elif how == "removed":
        path.unlink()
    else:
        write(*{"shorter": (3, 8), "other shape": (6, 9)}[how])
    with pytest.raises(DataError, match=r"mine_train_8.hdf5: "):
        source[5]
    with pytest.raises(DataError, match=r"mine_train_8.hdf5: "):
        list(batches(source, 4, seed=0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, r"no p_test_8.hdf5 in .*; found no file of that kind"),
        (lambda p: write(p / "p_test_9.hdf5", grid=(9, 9)), "found p_test_9.hdf5"),
        (lambda p: (p / "p_test_8.hdf5").write_bytes(b"x" * 99), "not a readable HDF5 file"),
        (lambda p: write(p / "p_test_8.hdf5", y=None), r"no data set 'y'; .* found \['x'\]"),
        (lambda p: write(p / "p_test_8.hdf5", n=3), "4 samples wanted, it has 3"),
        (lambda p: write(p / "p_test_8.hdf5", grid=(8, 9)), r"samples of shape \(8, 9\)"),
        (lambda p: write(p / "p_test_8.hdf5", y=np.zeros((2, 8, 8))), "x has 5 samples, y has 2"),
        (lambda p: write(p / "p_test_8.hdf5", y=np.zeros((5, 8))), "grids of different dimension"),
        (lambda p: write(p / "p_test_8.hdf5", y=np.zeros((5, 8, 8), int)), "type int64, expected"),
        (lambda p: write(p / "p_test_8.hdf5", y=np.full((5, 8, 8), np.nan)), "y holds values"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_one_line(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(tmp_path, "p", "test", 8, 4)
    assert "\n" not in str(caught.value)


def test_truncated_and_absent(tmp_path):
    path = tmp_path / "p_test_64.hdf5"
    write(path, grid=(64, 64), n=20)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"p_test_64.hdf5"):
        open_dataset(tmp_path, "p", "test", 64)
    with pytest.raises(DataError, match=r"data.root: no folder .*nowhere"):
        open_dataset(tmp_path / "nowhere", "p", "test", 8)


OPTIONS = {"n_train": 5, "n_test": 2, "resolution": 8, "t_end": 0.2, "dt": 0.1}


def read(path):
    with h5py.File(path) as file:
        return file["x"][:], file["y"][:]


def test_a_killed_generation_continues(tmp_path, monkeypatch):
    from tensorgrad_jax.data import generate

    monkeypatch.setattr(generate, "_CHUNK", 2)
    whole = generate_navier_stokes(tmp_path / "whole", **OPTIONS)

    made = []
    original = generate.navier_stokes_samples

    def killed_in_the_second_chunk(numbers, **options):
        if made:
            raise KeyboardInterrupt
        made.append(list(numbers))
        return original(numbers, **options)

    monkeypatch.setattr(generate, "navier_stokes_samples", killed_in_the_second_chunk)
    with pytest.raises(KeyboardInterrupt):
        generate_navier_stokes(tmp_path / "parts", **OPTIONS)
    assert not (tmp_path / "parts" / whole[0].name).exists()

    def counted(numbers, **options):
        made.append(list(numbers))
        return original(numbers, **options)

    monkeypatch.setattr(generate, "navier_stokes_samples", counted)
    parts = generate_navier_stokes(tmp_path / "parts", **OPTIONS)
    assert made == [[0, 1], [2, 3], [4], [0, 1]]  # the rest of train, then test
    for a, b in zip(whole, parts, strict=True):
        for u, v in zip(read(a), read(b), strict=True):
            np.testing.assert_array_equal(u, v)


def test_existing_files_are_used_or_refused(tmp_path):
    paths = generate_navier_stokes(tmp_path, **OPTIONS)
    times = [p.stat().st_mtime_ns for p in paths]
    assert generate_navier_stokes(tmp_path, **(OPTIONS | {"n_train": 3})) == paths
    assert [p.stat().st_mtime_ns for p in paths] == times
    with pytest.raises(DataError, match=r"made with viscosity=0.002, not 0.1"):
        generate_navier_stokes(tmp_path, viscosity=0.1, **OPTIONS)
    with pytest.raises(DataError, match="has 5 samples, 6 are wanted"):
        generate_navier_stokes(tmp_path, **(OPTIONS | {"n_train": 6}))


def test_the_generating_command(tmp_path, capsys):
    arguments = ["navier-stokes", "--out", str(tmp_path), "--n_train", "2", "--n_test", "1"]
    arguments += ["--resolution", "8", "--t_end", "0.1"]
    assert main(arguments) == 0
    assert len(open_dataset(tmp_path, "nsforcing", "train", 8)) == 2
    capsys.readouterr()
    assert main([*arguments, "--seed", "1"]) == 2
    assert "made with seed=0, not 1" in capsys.readouterr().err
    for wrong, message in (
        (["navier-stokes"], "--out"),
        ([*arguments, "--dt", "-1"], "must be positive, got -1"),
        ([*arguments, "--n_train", "two"], "--n_train"),
        (["stokes"], "stokes"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(wrong)
        error = capsys.readouterr().err
        assert caught.value.code == 2
        assert error.startswith("error: ")
        assert message in error
        assert error.count("\n") == 1


class Listed(list):
    """Samples that are already there."""


def golden_source(golden):
    return Listed({"x": np.moveaxis(sample, 0, -1)} for sample in golden["data"])


@pytest.mark.parametrize(
    ("name", "axes"), [("channel", None), ("point", (0,)), ("scalar", (0, 1, 2, 3))]
)
def test_normalizers_agree_with_the_reference(name, axes):
    golden = np.load(GOLDEN / "normalizer.npz")
    normalizer = UnitGaussianNormalizer.fit(golden_source(golden), "x", axes)
    last = lambda x: np.moveaxis(x, 1, -1)
    np.testing.assert_allclose(
        normalizer.mean[None], last(golden[f"{name}_fit_mean"]), rtol=1e-5, atol=1e-7
    )
    np.testing.assert_allclose(normalizer.std[None], last(golden[f"{name}_fit_std"]), rtol=1e-5)
    new = jnp.asarray(last(golden["new"]))
    encoded = jax.jit(lambda n, u: n.encode(u))(normalizer, new)
    np.testing.assert_allclose(encoded, last(golden[f"{name}_encoded"]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(normalizer.decode(encoded), new, rtol=1e-5, atol=1e-6)


def test_statistics_do_not_depend_on_the_number_of_samples_read_at_a_time():
    """130 samples are read in three batches; a large mean would spoil E[u^2] - E[u]^2."""
    samples = np.random.default_rng(0).normal(1e4, 1.0, size=(130, 4, 3)).astype(np.float32)
    normalizer = UnitGaussianNormalizer.fit(Listed({"x": s} for s in samples), "x")
    exact = samples.astype(np.float64).reshape(-1, 3)
    np.testing.assert_allclose(normalizer.std.ravel(), exact.std(axis=0, ddof=1), rtol=1e-6)
    with pytest.raises(ValueError, match="axes must hold 0"):
        UnitGaussianNormalizer.fit(Listed([{"x": samples[0]}]), "x", (1,))


def numbers(n):
    return Listed({"x": np.full((2,), i)} for i in range(n))


def test_batches_are_a_function_of_seed_epoch_and_index():
    source = numbers(11)
    take = lambda **options: [b["x"][:, 0].tolist() for b in batches(source, 3, **options)]
    first = take(seed=0)
    assert len(first) == n_batches(source, 3) == 4
    assert take(seed=0) == first
    assert take(seed=0, start=1) == first[1:]
    assert take(seed=0, start=4) == []
    assert take(seed=0, epoch=1) != first
    assert take(seed=1) != first
    # Every sample once, and one more to fill the last batch.
    in_order = list(itertools.chain(*first))
    assert sorted(in_order[:11]) == list(range(11))
    assert in_order[11] in range(11)
    assert take(seed=5, shuffle=False) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 0]]


def test_a_batch_may_be_larger_than_the_set():
    (batch,) = batches(numbers(2), 5, seed=0, shuffle=False)
    assert batch["x"][:, 0].tolist() == [0, 1, 0, 1, 0]
