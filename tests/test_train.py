"""train.py as a user meets it: what it writes, how it fails, how it continues."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import yaml

import train
from tensorgrad_jax.data import generate_navier_stokes
from tensorgrad_jax.training import loop
from tensorgrad_jax.training.build import build_data, build_training
from tensorgrad_jax.training.config import parse

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    generate_navier_stokes(folder, n_train=23, n_test=5, resolution=16, t_end=0.5, dt=0.1)
    return folder


def arguments(data, runs, **options):
    """A run of 3 epochs of 5 steps, refreshed at steps 0, 4, 8, 12."""
    base = {
        "data.root": data, "data.t_end": 0.5, "data.dt": 0.1, "data.n_train": 20,
        "data.n_validation": 3,
        "data.train_resolution": 16, "data.test_resolutions": "[16,8]", "data.n_tests": "[5]",
        "data.test_batch_sizes": "[2]", "data.batch_size": 4, "fno.n_modes": "[4,4]",
        "fno.hidden_channels": 6, "fno.n_layers": 2, "opt.n_epochs": 3, "opt.update_proj_gap": 4,
        "opt.save_dir": runs,
    }  # fmt: skip
    chosen = base | {name.replace("__", "."): value for name, value in options.items()}
    return [str(x) for name, value in chosen.items() for x in (f"--{name}", value)]


def final_state(folder):
    """Every array of the newest checkpoint, by its path."""
    steps = [int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdecimal()]
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(
            (folder / "checkpoints" / str(max(steps)) / "state").absolute()
        )
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(restored)
    }


def metrics(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in rows]


def assert_same_run(a, b):
    first, second = final_state(a), final_state(b)
    assert first.keys() == second.keys()
    for path, leaf in first.items():
        np.testing.assert_array_equal(leaf, second[path], err_msg=path)
    assert metrics(a) == metrics(b)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    assert train.main(arguments(data, runs, name="whole")) == 0
    return runs / "whole"


def test_a_run_writes_its_folder(finished):
    assert {path.name for path in finished.iterdir()} == {
        "checkpoints", "config.yaml", "loss.png", "metrics.jsonl", "prediction.png",
        "prediction_8.png", "summary.json",
    }  # fmt: skip
    for picture in ("loss.png", "prediction.png", "prediction_8.png"):
        assert (finished / picture).read_bytes().startswith(b"\x89PNG")
    rows = metrics(finished)
    assert [(row["epoch"], row["step"]) for row in rows] == [(1, 5), (2, 10), (3, 15)]
    assert set(rows[0]["tests"]) == {"16", "8"}
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["steps"] == 15
    assert summary["train_loss"] == rows[-1]["train_loss"]
    assert summary["test_l2"] == rows[-1]["tests"]["16"]["l2"]
    assert summary["test_h1"] == rows[-1]["tests"]["16"]["h1"]
    assert summary["tests"] == rows[-1]["tests"]
    assert summary["validation"] == rows[-1]["validation"]
    assert set(summary["validation"]) == {"l2", "h1"}
    assert 0 < summary["data_seconds"] < summary["seconds"]
    assert summary["waiting_fraction"] == pytest.approx(
        summary["data_seconds"] / summary["seconds"], abs=1e-3
    )
    assert summary["peak_bytes"] > summary["optimizer_state_bytes"]
    # Bytes: two float32 moments for each parameter and one counter each for Adam and schedule.
    n_params = summary["n_params"]
    assert summary["adamw_state_bytes"] == 8 * n_params + 4
    assert summary["optimizer_state_bytes"] < summary["adamw_state_bytes"]
    state = final_state(finished)
    counted = sum(leaf.size for path, leaf in state.items() if path.startswith("['params']"))
    assert counted == n_params


def test_the_written_configuration_repeats_the_run(finished, data):
    config = parse(["--config_file", str(finished / "config.yaml")])
    assert config.opt.n_epochs == 3
    assert config == parse(arguments(data, finished.parent, name="whole"))
    assert yaml.safe_load((finished / "config.yaml").read_text())["opt"]["b2"] == 0.999


def test_training_lowers_the_loss(finished):
    losses = [row["train_loss"] for row in metrics(finished)]
    assert losses[-1] < 0.9 * losses[0]


def test_half_precision(data, tmp_path):
    half = {"fno__fno_block_precision": "mixed", "fno__fno_block_weights_precision": "half"}
    options = half | {
        "opt__n_epochs": 1, "opt__tensorgrad": True, "opt__profiling": True,
        "opt__enforce_full_complex_precision": False,
    }  # fmt: skip
    assert train.main(arguments(data, tmp_path, name="half", **options)) == 0
    state = final_state(tmp_path / "half")
    weights = [leaf for path, leaf in state.items() if "['params']" in path and "spectral" in path]
    first_moments = [
        leaf for path, leaf in state.items() if "['mu']" in path and "spectral" in path
    ]
    assert {str(x.dtype) for x in [*weights, *first_moments]} == {"bfloat16"}
    assert {str(leaf.dtype) for path, leaf in state.items() if "['nu']" in path} == {"float32"}
    assert metrics(tmp_path / "half")[0]["train_loss"] < 1
    # The profile that was asked for.
    assert (tmp_path / "half" / "memory.png").read_bytes().startswith(b"\x89PNG")
    memory = json.loads((tmp_path / "half" / "memory.json").read_text())
    ours, adamw = memory["this run"], memory["AdamW"]
    summary = json.loads((tmp_path / "half" / "summary.json").read_text())
    for name in ("parameters", "gradients"):
        assert ours[name] == adamw[name] == sum(x.nbytes for p, x in state.items() if "params" in p)
    n_bytes = ours["moments"] + ours["basis"] + ours["other"]
    assert n_bytes == summary["optimizer_state_bytes"]
    assert adamw["moments"] == 6 * summary["n_params"]
    assert adamw["refresh"] == 0 < ours["refresh"] < ours["peak"]
    assert ours["peak"] > ours["parameters"] + n_bytes + ours["activations"] // 2


@pytest.mark.parametrize("stop_at", [2, 5, 8])
def test_a_run_stopped_by_a_signal_continues_exactly(
    data, finished, tmp_path, monkeypatch, stop_at, capsys
):
    """Stopped within an epoch, at its end, and on a refresh: the same batches, the same bits."""
    original, used, steps = loop.batches, {}, [0]

    def interrupted(source, batch_size, **options):
        batches = original(source, batch_size, **options)
        if not options.get("shuffle", True):
            yield from batches
            return
        for i, batch in enumerate(batches, options["start"]):
            if steps[0] == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
                yield batch  # is not used any more
                return
            used[options["epoch"], i] = batch
            steps[0] += 1
            yield batch

    monkeypatch.setattr(loop, "batches", interrupted)
    assert train.main(arguments(data, tmp_path, name="whole")) == 130
    error = capsys.readouterr().err
    assert f"stopped after step {stop_at};" in error
    assert "--opt.resume_from_dir" in error
    folder = tmp_path / "whole"
    assert not (folder / "summary.json").exists()
    stop_at = None
    assert train.main(["--opt.resume_from_dir", str(folder)]) == 0
    assert_same_run(folder, finished)
    # Every batch once, each the one of its place in an epoch that is not interrupted.
    assert list(used) == [(epoch, i) for epoch in range(3) for i in range(5)]
    source = build_data(parse(arguments(data, tmp_path))).train
    for epoch in range(3):
        for i, batch in enumerate(original(source, 4, seed=0, epoch=epoch)):
            np.testing.assert_array_equal(used[epoch, i]["x"], batch["x"])


def test_a_killed_run_continues_exactly(data, finished, tmp_path):
    """SIGKILL leaves no time to save: the run goes on from the last complete checkpoint."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, ROOT / "train.py", *arguments(data, tmp_path, name="whole")],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        # The checkpoint of the first epoch is complete; that of the second may be under way.
        if line.startswith("epoch 2/3"):
            time.sleep(np.random.default_rng().uniform(0, 0.1))
            process.kill()
            break
    process.wait()
    folder = tmp_path / "whole"
    assert not (folder / "summary.json").exists()
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 3, "st')  # a line that was cut
    assert train.main(["--opt.resume_from_dir", str(folder)]) == 0
    assert_same_run(folder, finished)


def test_a_finished_run_resumed_only_reports(finished, tmp_path):
    before = final_state(finished), metrics(finished)
    assert train.main(["--opt.resume_from_dir", str(finished)]) == 0
    assert metrics(finished) == before[1]
    after = final_state(finished)
    assert all(np.array_equal(after[path], leaf) for path, leaf in before[0].items())


def test_a_diverging_run_says_so(data, tmp_path, capsys):
    options = {"opt.learning_rate": 1e30, "opt.optimizer_type": "adamw"}
    given = arguments(data, tmp_path, name="wild")
    given = [*given, *(str(x) for k, v in options.items() for x in ("--" + k, v))]
    i = given.index("--opt.update_proj_gap")
    assert train.main(given[:i] + given[i + 2 :]) == 3
    error = capsys.readouterr().err
    assert error.startswith("error: training diverged in epoch 1")
    assert "opt.learning_rate" in error
    last = tmp_path / "wild" / "checkpoints" / "0"
    assert f"the last checkpoint is {last}" in error
    assert all(np.isfinite(x).all() for x in final_state(tmp_path / "wild").values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"opt.learning_rat": 1}, "opt.learning_rate"),
        ({"opt.learning_rate": "fast"}, "opt.learning_rate"),
        ({"opt.n_epochs": 0}, "opt.n_epochs"),
        ({"data.n_train": 21}, "has 23 samples, 24 are wanted"),
        ({"data.viscosity": 0.5}, "made with viscosity=0.002, not 0.5"),
        ({"data.root": "/nowhere", "data.generate": "False"}, "no folder /nowhere"),
        ({"data.problem": "mine"}, "no mine_train_16.hdf5"),
        ({"config_file": "absent.yaml"}, "absent.yaml"),
        ({"opt.resume_from_dir": "/nowhere"}, "expected the folder of a run"),
        ({"fno.n_modes": "[4,4,4]"}, "fno.n_modes"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_written(data, tmp_path, capsys, change, message):
    given = arguments(data, tmp_path / "runs")
    if "data.problem" in change or "data.generate" in change:  # flags without effect are refused
        for name in ("--data.t_end", "--data.dt"):
            i = given.index(name)
            del given[i : i + 2]
    given += [str(x) for k, v in change.items() for x in ("--" + k, v)]
    assert train.main(given) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_folder_is_never_written_over(data, finished, capsys):
    assert train.main(arguments(data, finished.parent, name="whole")) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--seed", "1"], "seed: the run in .* has 0, got 1"),
        (["--fno.hidden_channels", "7"], "fno.hidden_channels: the run in .* has 6, got 7"),
        (["--opt.n_epochs", "9"], "opt.n_epochs: the run in .* has 3, got 9"),
    ],
)
def test_a_continued_run_cannot_change(finished, capsys, change, message):
    assert train.main(["--opt.resume_from_dir", str(finished), *change]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_the_step_reuses_the_buffers_of_its_state(data, tmp_path):
    """Parameters and optimizer state are donated: the compiled step aliases all their bytes."""
    config = parse(arguments(data, tmp_path))
    training = build_training(config, build_data(config))
    training.compile()
    state_bytes = sum(x.nbytes for x in jax.tree.leaves(training.state))
    assert training._compiled.memory_analysis().alias_size_in_bytes >= state_bytes
