"""Which axes of a file's samples are the grid, and which numbers they may hold."""

import h5py
import numpy as np
import pytest

from tensorgrad_jax.data import DataError, batches, hdf5, open_dataset
from tensorgrad_jax.data.writing import write_resumably


def write(folder, resolution, x, y=None):
    with h5py.File(folder / f"p_train_{resolution}.hdf5", "w") as file:
        file["x"], file["y"] = x, x if y is None else y
    return x


def numbers(*shape, dtype=np.float32):
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


@pytest.mark.parametrize(
    ("shape", "told", "dimension"),
    [
        ((8,), (None, 1), 1),
        ((2, 8), (None, 1), 1),
        ((8, 8), (None, 2), 2),
        ((2, 8, 8), (None, 2), 2),
        ((8, 8, 8), (None, 3), 3),
        ((3, 8, 8, 8), (None, 3), 3),
        # As many channels as points, or more: for those who say the dimension alone.
        ((8, 8), (1,), 1),
        ((20, 8), (1,), 1),
        ((8, 8, 8), (2,), 2),
    ],
)
def test_layouts(tmp_path, shape, told, dimension):
    x = write(tmp_path, 8, numbers(3, *shape))
    for given in told:
        source = open_dataset(tmp_path, "p", "train", 8, dimension=given)
        assert source.dimension == dimension
        has_channels = len(shape) > dimension
        expected = np.moveaxis(x[2], 0, -1) if has_channels else x[2, ..., None]
        np.testing.assert_array_equal(source[2]["x"], expected)
        coarse = open_dataset(tmp_path, "p", "train", 4, dimension=given)
        every_second = (slice(None, None, 2),) * dimension
        np.testing.assert_array_equal(coarse[2]["y"], expected[every_second])


@pytest.mark.parametrize(
    ("x", "y", "told", "message"),
    [
        # 128x32 points in a file of 32 per axis are not 128 functions of one variable.
        (
            (128, 32),
            None,
            None,
            r"x has samples of shape \(128, 32\), expected \(\*grid\) or .* 32 ",
        ),
        ((128, 32), None, 2, r"x .* expected \(32, 32\) or \(C, 32, 32\): the dimension is 2"),
        ((32, 128), None, None, r"x has samples of shape \(32, 128\)"),
        ((32, 128), None, 1, r"x has samples of shape \(32, 128\), expected \(32,\) or \(C, 32\)"),
        ((64, 32, 32), None, None, r"x has samples of shape \(64, 32, 32\).* C < 32 channels"),
        ((16, 32), None, 2, r"x has samples of shape \(16, 32\), expected \(32, 32\)"),
        ((2, 3, 32, 32), None, None, r"x has samples of shape \(2, 3, 32, 32\)"),
        ((32, 32), (128, 32), None, r"y has samples of shape \(128, 32\)"),
        ((32, 32), (32,), None, "x and y have grids of different dimension.*data.dimension"),
        ((32, 32), (32,), 2, r"y has samples of shape \(32,\)"),
    ],
)
def test_what_is_no_layout_is_refused(tmp_path, x, y, told, message):
    write(tmp_path, 32, np.zeros((2, *x)), None if y is None else np.zeros((2, *y)))
    with pytest.raises(DataError, match=rf"p_train_32.hdf5: {message}") as caught:
        open_dataset(tmp_path, "p", "train", 32, dimension=told)
    assert "\n" not in str(caught.value)


def test_a_given_dimension_tells_channels_in_one_field_from_a_grid_in_the_other(tmp_path):
    write(tmp_path, 8, numbers(2, 8, 8), numbers(2, 8))
    sample = open_dataset(tmp_path, "p", "train", 8, dimension=1)[1]
    assert (sample["x"].shape, sample["y"].shape) == ((8, 8), (8, 1))


TOO_LARGE = [(1e39, "1e+39"), (-1.797e308, "-1.797e+308"), (np.nan, "nan"), (-np.inf, "-inf")]


@pytest.mark.parametrize(("value", "shown"), TOO_LARGE)
@pytest.mark.parametrize("in_memory_bytes", [0, 2**20])
def test_doubles_that_are_infinite_in_float32_are_refused(
    tmp_path, monkeypatch, in_memory_bytes, value, shown
):
    """Also those of a file that is read sample by sample; numbers count from the file's start."""
    monkeypatch.setattr(hdf5, "IN_MEMORY_BYTES", in_memory_bytes)
    y = numbers(6, 4, 4, dtype=np.float64)
    y[5, 1, 2] = value
    write(tmp_path, 4, numbers(6, 4, 4), y)
    assert len(open_dataset(tmp_path, "p", "train", 4, 5)) == 5
    with pytest.raises(DataError) as caught:
        list(batches(open_dataset(tmp_path, "p", "train", 4, start=2), 2, seed=0))
    path = tmp_path / "p_train_4.hdf5"
    expected = f"{path}: y holds values that are not finite in float32: {shown} in sample 5"
    assert expected in str(caught.value)


def test_doubles_that_float32_can_hold_are_read(tmp_path):
    largest = np.finfo(np.float32).max
    write(tmp_path, 2, np.full((1, 2, 2), float(largest)) * [1, -1])
    x = open_dataset(tmp_path, "p", "train", 2)[0]["x"]
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x[..., 0], [[largest, -largest]] * 2)


@pytest.mark.parametrize(("value", "shown"), TOO_LARGE)
def test_generated_samples_that_are_infinite_in_float32_are_not_written(tmp_path, value, shown):
    """What was made before stays, and a corrected generator continues there."""
    path = tmp_path / "p_train_4.hdf5"

    def make(numbers, bad=4):
        values = np.ones((len(numbers), 4, 4))
        values[[i == bad for i in numbers], 2, 3] = value
        return np.ones((len(numbers), 4, 4), np.float32), values

    def generate(make):
        return write_resumably(path, 6, (4, 4), {"seed": 0}, make, 2, lambda done: None)

    with pytest.raises(DataError) as caught:
        generate(make)
    assert f"p_train_4.hdf5: y holds values that are not finite in float32: {shown}" in str(
        caught.value
    )
    assert "in sample 4" in str(caught.value)
    assert not path.exists()
    made = []
    assert generate(lambda numbers: made.extend(numbers) or make(numbers, bad=None))
    assert made == [4, 5]
    assert len(open_dataset(tmp_path, "p", "train", 4)) == 6
