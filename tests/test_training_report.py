"""Figures are written for every dimension and for diverged runs; tables and summaries are exact."""

import inspect
import json

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

from tensorgrad_jax.training import figures
from tensorgrad_jax.training.report import (
    MemoryRow,
    memory_table,
    picture_names,
    plot_loss,
    plot_prediction,
    write_summary,
)


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    monkeypatch.setattr(figures, "_DPI", 30)


@pytest.fixture
def drawn(monkeypatch):
    """The figures as they were saved."""
    saved = []
    save = Figure.savefig

    def savefig(self, *args, **kwargs):
        saved.append(self)
        return save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return saved


def epoch(i, loss=0.5):
    tests = {"16": {"l2": 0.1 / i, "h1": 0.2 / i}, "32": {"l2": 0.3, "h1": 0.4}}
    return {"epoch": i, "step": 8 * i, "train_loss": loss, "tests": tests}


def test_plot_loss(tmp_path, drawn):
    plot_loss([epoch(1), epoch(2, float("nan")), epoch(3)], tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    (axes,) = drawn[0].axes
    assert axes.get_yscale() == "log"
    lines = {line.get_label(): line.get_ydata() for line in axes.get_lines()}
    assert list(lines) == ["training", *(f"test {r}, {e}" for r in (16, 32) for e in ("L2", "H1"))]
    np.testing.assert_allclose(lines["test 16, H1"], [0.2, 0.1, 0.2 / 3])
    np.testing.assert_array_equal(lines["training"], [0.5, np.nan, 0.5])


def test_plot_loss_of_one_epoch_and_of_a_diverged_run(tmp_path):
    plot_loss([epoch(1)], tmp_path / "one.png")
    plot_loss([{"epoch": 1, "train_loss": float("nan"), "tests": {}}], tmp_path / "nan.png")
    with pytest.raises(ValueError, match="at least one epoch"):
        plot_loss([], tmp_path / "none.png")


@pytest.mark.parametrize(("grid", "channels"), [((16,), 1), ((8, 6), 2), ((6, 8, 4), 1)])
def test_plot_prediction(grid, channels, tmp_path, drawn):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(*grid, 1))
    y = rng.normal(size=(*grid, channels))
    plot_prediction(x, jnp.asarray(y), 1.5 * y, tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 0
    figure = drawn[0]
    assert "0.5" in figure.get_suptitle()
    if len(grid) == 1:
        curves = {line.get_label(): line for axes in figure.axes for line in axes.get_lines()}
        np.testing.assert_allclose(curves["target"].get_ydata(), y[:, 0], rtol=1e-6)
        np.testing.assert_allclose(curves["prediction"].get_ydata(), 1.5 * y[:, 0], rtol=1e-6)
    else:
        images = [axes.images[0] for axes in figure.axes if axes.images]
        assert len(images) == 4 * channels
        _, target, prediction, error = images[:4]
        assert target.get_clim() == prediction.get_clim()
        low, high = error.get_clim()
        assert low == -high < 0
        expected = y[..., 0] if len(grid) == 2 else y[:, :, 2, 0]
        np.testing.assert_allclose(target.get_array(), expected.T, rtol=1e-6)
        np.testing.assert_allclose(error.get_array(), 0.5 * expected.T, rtol=1e-4)


@pytest.mark.parametrize("grid", [(16,), (8, 6)])
def test_plot_prediction_survives_divergence_and_constants(grid, tmp_path):
    y = np.ones((*grid, 1))
    plot_prediction(y, y, y * np.nan, tmp_path / "nan.png")
    plot_prediction(y, 0 * y, 0 * y, tmp_path / "zero.png")


def test_plot_prediction_rejects_shapes(tmp_path):
    # The annotations, which are checked in the tests only, would notice the first one earlier.
    unchecked = inspect.unwrap(plot_prediction)
    with pytest.raises(ValueError, match="same grid"):
        unchecked(np.ones((4, 1)), np.ones((5, 1)), np.ones((5, 1)), tmp_path / "p.png")
    with pytest.raises(ValueError, match="at least one grid axis"):
        unchecked(*[np.ones(1)] * 3, tmp_path / "p.png")


def test_of_a_field_of_more_axes_the_middle_slice_is_drawn(tmp_path, drawn):
    y = np.random.default_rng(0).normal(size=(4, 3, 6, 2, 5, 1))
    plot_prediction(y, y, 1.5 * y, tmp_path / "p.png")
    (figure,) = drawn
    assert figure.get_suptitle() == "relative L2 error 0.5, slice x3 = 0.5, x4 = 0.5, x5 = 0.4"
    target = next(axes for axes in figure.axes if axes.get_title() == "target")
    np.testing.assert_allclose(target.images[0].get_array(), y[:, :, 3, 1, 2, 0].T, rtol=1e-6)


def test_figures_do_not_pile_up_in_pyplot(tmp_path):
    before = plt.get_fignums()
    plot_loss([epoch(1)], tmp_path / "loss.png")
    assert plt.get_fignums() == before


def test_picture_names():
    assert picture_names([64], 64) == ["prediction.png"]
    assert picture_names([32, 16, 8], 16) == [
        "prediction_32.png", "prediction.png", "prediction_8.png",
    ]  # fmt: skip
    assert picture_names([32, 64], 16) == ["prediction.png", "prediction_64.png"]


def test_memory_table():
    table = memory_table(
        [
            MemoryRow("adamw", 1_000_000, 2_000_000, 0, 8, adamw=2_000_008),
            MemoryRow("tensorgrad", 1_000_000, 480_000, 20_000, 2, adamw=2_000_008),
            MemoryRow("empty", 0, 0, 0, 0, adamw=0),
        ]
    )
    header, adamw, tensorgrad, empty = table.splitlines()
    assert header.split() == ["parameters", "moments", "basis", "other", "total", "of", "AdamW"]
    assert adamw.split()[-2:] == ["2,000,008", "100.0%"]
    assert tensorgrad.split()[1:] == ["1,000,000", "480,000", "20,000", "2", "500,002", "25.0%"]
    assert empty.endswith("-")
    assert len({len(line) for line in table.splitlines()}) == 1


def test_write_summary(tmp_path):
    path = tmp_path / "summary.json"
    summary = {
        "n_params": np.int64(3),
        "train_loss": jnp.float32(0.5),
        "test_l2": float("nan"),
        "tests": {16: {"l2": np.float32("inf")}, "sizes": (1, 2)},
    }
    write_summary(path, summary)
    assert json.loads(path.read_text()) == {
        "n_params": 3,
        "train_loss": 0.5,
        "test_l2": None,
        "tests": {"16": {"l2": None}, "sizes": [1, 2]},
    }
    with pytest.raises(TypeError):
        write_summary(path, {"bad": object()})
    assert json.loads(path.read_text())["n_params"] == 3
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]
