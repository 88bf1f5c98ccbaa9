"""train.py on grids of one and three axes, and on data that do not fit into memory."""

import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

import train
from tensorgrad_jax.data import hdf5
from tensorgrad_jax.training import report

ROOT = Path(__file__).resolve().parent.parent


def write(folder, dimension, resolution, n=12):
    """Smooth periodic fields and the same fields moved by an eighth of the period."""
    r = np.random.default_rng(0)
    grid = np.meshgrid(*[np.arange(resolution) / resolution] * dimension, indexing="ij")
    amplitudes = r.normal(size=(n, 2, 2))
    moved = lambda k, shift: 2 * np.pi * (k + 1) * (sum(grid) - shift)
    waves = lambda shift: sum(
        np.multiply.outer(amplitudes[:, k, 0], np.sin(moved(k, shift)))
        + np.multiply.outer(amplitudes[:, k, 1], np.cos(moved(k, shift)))
        for k in range(2)
    )
    for split in ("train", "test"):
        with h5py.File(folder / f"waves_{split}_{resolution}.hdf5", "w") as file:
            for name, shift in (("x", 0), ("y", 1 / 8)):
                file.create_dataset(
                    name, data=np.float32(waves(shift)), chunks=(1, *[resolution] * dimension)
                )


def arguments(data, runs, dimension, **options):
    base = {
        "name": "run", "data.problem": "waves", "data.root": data, "data.n_train": 12,
        "data.n_tests": [4], "data.test_batch_sizes": [4], "data.batch_size": 4,
        "fno.n_modes": [4] * dimension, "fno.hidden_channels": 6, "fno.n_layers": 1,
        "opt.n_epochs": 2, "opt.proj_type": "low_rank", "opt.save_dir": runs,
    }  # fmt: skip
    chosen = base | {name.replace("__", "."): value for name, value in options.items()}
    return [str(x).replace(" ", "") for k, v in chosen.items() for x in (f"--{k}", v)]


@pytest.mark.parametrize(("dimension", "trained", "tests"), [(1, 16, [32, 16]), (3, 8, [8])])
def test_every_test_resolution_gets_its_errors_and_its_picture(
    tmp_path, dimension, trained, tests, capsys, monkeypatch
):
    """The coarser data are a finer file, read with a stride; the test on it is zero-shot."""
    write(tmp_path, dimension, max(tests))
    drawn = {}
    monkeypatch.setattr(
        report,
        "plot_prediction",
        lambda x, y, prediction, path: drawn.update({path.name: (x, y, prediction)}),
    )
    given = arguments(
        tmp_path, tmp_path, dimension, data__train_resolution=trained, data__test_resolutions=tests
    )
    assert train.main(given) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [int(r) for r in summary["tests"]] == tests
    names = {r: "prediction.png" if r == trained else f"prediction_{r}.png" for r in tests}
    assert set(drawn) == set(names.values())
    for resolution, name in names.items():
        x, y, prediction = drawn[name]
        assert x.shape == y.shape == prediction.shape == (*[resolution] * dimension, 1)
        # Of the first sample of this test set, in its own units: as good as the mean error says.
        error = np.linalg.norm(prediction - y) / np.linalg.norm(y)
        assert 0.1 < error / summary["tests"][str(resolution)]["l2"] < 10
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(row)["train_loss"] for row in rows]
    assert losses[-1] < losses[0]
    last_line = capsys.readouterr().out.splitlines()[-1]
    assert all(name in last_line for name in names.values())


# Peak memory of a process that reads a file of 1.3 GB once, less what it had before.
STREAM = """
import resource, sys
from tensorgrad_jax.data import batches, open_dataset

peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
source = open_dataset(sys.argv[1], "large", "train", 512)
assert source.arrays is None
before, n = peak(), 0
for batch in batches(source, 8, seed=0):
    n += len(batch["x"])
print(n, before, peak())
"""


def test_a_file_larger_than_memory_is_streamed(tmp_path):
    """A sparse file: nothing is stored, yet every sample is read as an array of its own."""
    n, shape = 640, (512, 512)
    with h5py.File(tmp_path / "large_train_512.hdf5", "w") as file:
        for name in "xy":
            file.create_dataset(name, (n, *shape), np.float32, chunks=(1, *shape))
    assert 2 * n * 4 * 512**2 > 1.2 * hdf5.IN_MEMORY_BYTES
    command = [sys.executable, "-c", STREAM, str(tmp_path)]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    read, before, after = map(float, printed.split())
    assert read == n
    # A batch is 16 MiB: a handful of them are on their way, the file has 1280 MiB.
    assert after - before < 250
