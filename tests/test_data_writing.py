"""What a writer of data sets must not lose or mix up, and what a reader of them must notice."""

import threading

import h5py
import jax
import numpy as np
import pytest

from tensorgrad_jax.data import (
    DataError,
    batches,
    generate,
    generate_navier_stokes,
    hdf5,
    open_dataset,
    periodic_gaussian_field,
)
from tensorgrad_jax.data.__main__ import main
from tensorgrad_jax.data.navier_stokes import navier_stokes_samples
from tensorgrad_jax.data.writing import write_resumably


def numbered(numbers):
    x = np.asarray(numbers, np.float32)[:, None, None] * np.ones((4, 4), np.float32)
    return x, -x


def killed_after(n):
    def make(numbers):
        if numbers.start >= n:
            raise KeyboardInterrupt
        return numbered(numbers)

    return make


def write(path, make=numbered, n=6, progress=lambda done: None, **options):
    return write_resumably(path, n, (4, 4), {"seed": 0} | options, make, 2, progress)


def read(path):
    with h5py.File(path) as file:
        return file["x"][:, 0, 0].tolist(), file["y"][:, 0, 0].tolist()


ALL = ([0, 1, 2, 3, 4, 5], [0, -1, -2, -3, -4, -5])


def test_unfinished_work_is_continued_and_never_thrown_away(tmp_path):
    path = tmp_path / "p_train_4.hdf5"
    with pytest.raises(KeyboardInterrupt):
        write(path, killed_after(4))
    for wrong, message in (({"seed": 1}, "seed=0, not 1"), ({"n": 8}, "begun for 6 samples")):
        with pytest.raises(DataError, match=message):
            write(path, **wrong)
    seen = []
    assert write(path, progress=seen.append)
    assert seen == [4, 6]
    assert read(path) == ALL
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("unfinished", ["empty", "damaged"])
def test_an_unfinished_file_without_samples_is_no_obstacle(tmp_path, unfinished):
    path = tmp_path / "p_train_4.hdf5"
    if unfinished == "damaged":
        (tmp_path / "p_train_4.hdf5.partial").write_bytes(b"half a header")
    else:  # by a process that had no time to clean up
        with h5py.File(f"{path}.partial", "w") as file:
            file.attrs.update(seed=1, done=0)
    assert write(path)
    assert read(path) == ALL
    with h5py.File(path) as file:
        assert file.attrs["seed"] == 0


def test_a_second_writer_waits_for_the_first(tmp_path):
    path = tmp_path / "p_train_4.hdf5"
    begun, go_on, results = threading.Event(), threading.Event(), {}

    def slow(numbers):
        begun.set()
        assert go_on.wait(20)
        return numbered(numbers)

    def run(name, make):
        results[name] = write(path, make)

    first = threading.Thread(target=run, args=("first", slow))
    second = threading.Thread(target=run, args=("second", numbered))
    first.start()
    assert begun.wait(20)
    second.start()
    second.join(0.3)
    assert second.is_alive()
    assert not path.exists()
    go_on.set()
    first.join(20)
    second.join(20)
    assert results == {"first": True, "second": False}
    assert read(path) == ALL


def test_streamed_samples_are_checked_too(tmp_path, monkeypatch):
    path = tmp_path / "p_train_4.hdf5"
    write(path)
    with h5py.File(path, "a") as file:
        file["y"][3, 1, 1] = np.nan
    monkeypatch.setattr(hdf5, "IN_MEMORY_BYTES", 0)
    source = open_dataset(tmp_path, "p", "train", 4)
    assert source[2]["y"].shape == (4, 4, 1)
    with pytest.raises(DataError, match=r"p_train_4.hdf5: y holds values that are not finite"):
        source[3]
    # The loader's threads hand the error on as it is.
    with pytest.raises(DataError, match="not finite"):
        list(batches(source, 2, seed=0))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("resolution", "2", "resolution: got 2, expected at least 4"),
        ("seed", "-1", "seed: got -1, expected an integer"),
        ("viscosity", "inf", "viscosity must be a positive number, not inf"),
        ("out", "/dev/null/data", "/dev/null/data: the folder cannot be made"),
    ],
)
def test_wrong_options_are_one_line_and_leave_no_obstacle(tmp_path, capsys, option, value, message):
    out = tmp_path / "new" / "folder"
    right = {"out": out, "n_train": 2, "n_test": 1, "resolution": 8, "t_end": 0.1}
    flags = [f"--{k}={v}" for k, v in (right | {option: value}).items()]
    assert main(["navier-stokes", *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()
    assert all(p.exists() for p in generate_navier_stokes(**right))


def test_a_time_step_that_is_too_large_can_be_corrected(tmp_path):
    options = {"n_train": 2, "n_test": 1, "resolution": 32}
    with pytest.raises(DataError, match=r"train_32.hdf5: dt=2.5 is too large for resolution 32"):
        generate_navier_stokes(tmp_path, dt=2.5, **options)
    assert not list(tmp_path.iterdir())
    assert all(p.exists() for p in generate_navier_stokes(tmp_path, dt=0.1, **options))


def test_a_draw_is_the_same_function_at_every_resolution():
    key = jax.random.key(0)
    coarse, fine = (np.fft.rfft2(periodic_gaussian_field(key, n)) / n**2 for n in (16, 24))
    np.testing.assert_allclose(fine[:8, :8], coarse[:8, :8], atol=1e-7)
    np.testing.assert_allclose(fine[-7:, :8], coarse[-7:, :8], atol=1e-7)


def test_double_precision_samples_are_the_same_draws():
    options = {
        "split": "test", "resolution": 16, "viscosity": 0.01, "t_end": 0.5, "dt": 0.1, "seed": 3,
    }  # fmt: skip
    single = navier_stokes_samples([0, 5], **options)
    double = navier_stokes_samples([0, 5], float64=True, **options)
    for a, b in zip(single, double, strict=True):
        assert (a.dtype, b.dtype) == (np.float32, np.float64)
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_chunks_of_samples_are_bounded_by_their_points(tmp_path, monkeypatch):
    """A finer solver makes fewer samples at a time, so that the memory does not grow with it."""
    asked = []

    def samples(numbers, *, resolution, **options):
        asked.append(len(numbers))
        shape = (len(numbers), resolution, resolution)
        return np.zeros(shape, np.float32), np.zeros(shape, np.float32)

    monkeypatch.setattr(generate, "navier_stokes_samples", samples)
    for i, (fine, expected) in enumerate(((64, [20, 4]), (512, [8, 8, 4, 4]), (2048, 24 * [1]))):
        asked.clear()
        generate_navier_stokes(
            tmp_path / str(i), n_train=20, n_test=4, resolution=4, solver_resolution=fine
        )
        assert asked == expected


def test_files_of_before_there_was_a_solver_resolution_are_used(tmp_path):
    options = {"n_train": 2, "n_test": 1, "resolution": 8, "t_end": 0.1}
    for path in generate_navier_stokes(tmp_path, **options):
        with h5py.File(path, "a") as file:
            del file.attrs["solver_resolution"]
    generate_navier_stokes(tmp_path, **options)
    with pytest.raises(DataError, match="made with solver_resolution=8, not 16"):
        generate_navier_stokes(tmp_path, solver_resolution=16, **options)
