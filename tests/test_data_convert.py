"""Reading neuraloperator's .pt files."""

import sys

import h5py
import numpy as np
import pytest

from tensorgrad_jax.data import convert as convert_function
from tensorgrad_jax.data import open_dataset
from tensorgrad_jax.data.__main__ import main


def error_of(capsys, *argv):
    assert main(["convert", *map(str, argv)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def test_without_pytorch_one_line_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    source = tmp_path / "a.pt"
    assert "a.pt: no such file" in error_of(capsys, source, tmp_path / "b.hdf5")
    source.write_bytes(b"")
    assert "pip install torch" in error_of(capsys, source, tmp_path / "b.hdf5")
    (tmp_path / "b.hdf5").write_bytes(b"kept")
    assert "b.hdf5: exists already" in error_of(capsys, source, tmp_path / "b.hdf5")
    assert (tmp_path / "b.hdf5").read_bytes() == b"kept"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pt", "b.hdf5"]


class Tensor:
    """What `convert` uses of a tensor of PyTorch."""

    def __init__(self, array):
        self.array = np.asarray(array)
        self.shape, self.ndim, self.dtype = self.array.shape, self.array.ndim, self.array.dtype

    def __getitem__(self, index):
        return Tensor(self.array[index])

    def detach(self):
        return self

    def float(self):
        with np.errstate(over="ignore"):
            return Tensor(self.array.astype(np.float32))

    def numel(self):
        return self.array.size

    def is_complex(self):
        return np.iscomplexobj(self.array)

    def numpy(self):
        return self.array


@pytest.fixture(params=["torch", "stand-in"])
def save(request, tmp_path, monkeypatch):
    """A function that writes {name: array} into a .pt file: by PyTorch where it is installed."""
    path = tmp_path / "darcy_train_4.pt"
    if request.param == "torch":
        torch = pytest.importorskip("torch")

        def save(content, **options):
            if isinstance(content, dict):
                content = {k: torch.as_tensor(v) for k, v in content.items()}
            torch.save(content, path, **options)
            return path

        return save

    from tensorgrad_jax.data import convert as package_name  # the function, not the module

    module = sys.modules[package_name.__module__]

    def save(content):
        path.write_bytes(b"")
        as_tensors = (
            {k: Tensor(v) for k, v in content.items()} if isinstance(content, dict) else content
        )
        monkeypatch.setattr(module, "_load", lambda source: as_tensors)
        return path

    return save


X = np.arange(7 * 4 * 4).reshape(7, 4, 4) % 3 == 0
Y = np.linspace(-1, 1, 7 * 4 * 4).reshape(7, 4, 4)


def with_one(value):
    """Y, but for one number of sample 5."""
    y = Y.copy()
    y[5, 1, 2] = value
    return y


def test_a_converted_file_is_a_data_set(tmp_path, save, capsys, monkeypatch):
    module = sys.modules[convert_function.__module__]
    monkeypatch.setattr(module, "_CHUNK_BYTES", 4 * 16 * 3)  # three samples at a time
    target = tmp_path / "new" / "darcy_train_4.hdf5"
    assert main(["convert", str(save({"x": X, "y": Y[:, None]})), str(target)]) == 0
    assert str(target) in capsys.readouterr().out
    with h5py.File(target) as file:
        assert file["x"].dtype == file["y"].dtype == np.float32
        assert file["x"].chunks == (1, 4, 4)
        assert file["y"].shape == (7, 1, 4, 4)
        np.testing.assert_array_equal(file["x"][:], X)
        np.testing.assert_array_equal(file["y"][:, 0], Y.astype(np.float32))
    sample = open_dataset(target.parent, "darcy", "train", 4)[6]
    assert sample["x"].shape == sample["y"].shape == (4, 4, 1)
    assert [p.name for p in target.parent.iterdir()] == [target.name]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "expected a dictionary with the tensors x and y, found list"),
        ({"x": Y}, "found ['x']"),
        ({"x": X, "y": Y[:5]}, "x has shape (7, 4, 4), y has (5, 4, 4)"),
        ({"x": X, "y": Y[..., :3]}, "not the same samples and grids"),
        ({"x": X[:, 0, 0], "y": Y}, "x has shape (7,)"),
        ({"x": X + 1j, "y": Y}, "complex128, expected real numbers"),
        ({"x": X, "y": Y + [[np.inf, 0, 0, 0]]}, "y holds values that are not finite"),
        ({"x": X, "y": with_one(1e39)}, "darcy_train_4.pt: y holds values"),
        ({"x": X, "y": with_one(-1.797e308)}, "float32: -inf in sample 5"),
    ],
)
def test_what_does_not_fit_is_one_line_and_nothing_is_written(
    tmp_path, save, capsys, content, message
):
    source = save(content)
    assert message in error_of(capsys, source, tmp_path / "b.hdf5")
    assert [p.name for p in tmp_path.iterdir()] == [source.name]


def test_a_damaged_file(tmp_path, capsys):
    pytest.importorskip("torch")
    source = tmp_path / "a.pt"
    for content in (b"PK half an archive", b"no file of torch"):
        source.write_bytes(content)
        assert "not a data file" in error_of(capsys, source, tmp_path / "b.hdf5")
