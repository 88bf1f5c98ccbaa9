"""python -m tensorgrad_jax.trak as a user meets it: files, a picture, a line for every mistake."""

import json
import shutil

import jax
import numpy as np
import pytest
import scipy.stats

import train
from tensorgrad_jax.data import generate_burgers
from tensorgrad_jax.training.attribution import load_run, sample_loss_of
from tensorgrad_jax.training.attribution_command import main


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trak")
    options = {
        "n_train": 12,
        "n_test": 4,
        "resolution": 32,
        "solver_resolution": 64,
        "viscosity": 0.05,
    }
    generate_burgers(folder / "data", **options)
    given = {
        "data.problem": "burgers", "data.root": folder / "data", "data.generate": False,
        "data.n_train": 12, "data.train_resolution": 32, "data.test_resolutions": "[32,16]",
        "data.n_tests": "[4]", "data.test_batch_sizes": "[2]", "data.batch_size": 4,
        "fno.n_modes": "[4]", "fno.hidden_channels": 6, "fno.n_layers": 2, "opt.n_epochs": 2,
        "opt.optimizer_type": "adamw", "opt.save_dir": folder / "runs",
    }  # fmt: skip
    for seed in (0, 1):
        argv = [str(x) for n, v in given.items() for x in (f"--{n}", v)]
        assert train.main([*argv, "--name", f"seed{seed}", "--seed", str(seed)]) == 0
    return folder / "runs" / "seed0"


OPTIONS = ["--proj_dim", "16", "--chunk_size", "8", "--shown", "3"]


def test_a_run_is_attributed(run, capsys):
    assert main(["--run", str(run), "--test_samples", "0", "3", *OPTIONS]) == 0
    folder = run / "attribution"
    assert "attribution_3.png" in capsys.readouterr().out
    assert (folder / "attribution_0.png").stat().st_size > 10_000
    stored = np.load(folder / "scores.npz")
    assert stored["scores"].shape == (12, 2)
    assert stored["test_samples"].tolist() == [0, 3]
    assert stored["resolution"] == 32
    lines = [json.loads(line) for line in (folder / "attribution.jsonl").open()]
    assert [line["test_sample"] for line in lines] == [0, 3]
    for line, column in zip(lines, stored["scores"].T, strict=True):
        helpful = [row["sample"] for row in line["helpful"]]
        assert helpful == np.argsort(-column)[:3].tolist()
        assert [row["sample"] for row in line["harmful"]] == np.argsort(column)[:3].tolist()
        assert 0 < line["l2"] < 2
    # Again, from the features that are there.
    before = sorted(folder.glob("features_*.h5"))
    assert main(["--run", str(run), "--test_samples", "0", "3", *OPTIONS]) == 0
    assert sorted(folder.glob("features_*.h5")) == before
    np.testing.assert_array_equal(np.load(folder / "scores.npz")["scores"], stored["scores"])


def test_scores_are_those_of_whole_gradients(run, tmp_path):
    """The formula of TRAK on gradients written out."""
    options = ["--proj_dim", "1024", "--damping", "0.1", "--out", str(tmp_path)]
    assert main(["--run", str(run), "--test_samples", "1", "2", *options]) == 0
    loaded = load_run(run)
    output, params = sample_loss_of(loaded).output, loaded.training.state.params

    def gradients(samples):
        stacked = jax.tree.map(lambda *x: np.stack(x), *samples)
        g = jax.vmap(jax.grad(output), (None, 0))(params, stacked)
        return np.concatenate([x.reshape(len(x), -1) for x in jax.tree.leaves(g)], 1)

    rows = gradients([loaded.data.train[i] for i in range(12)]).astype(np.float64)
    targets = gradients([loaded.data.tests[0].source[i] for i in (1, 2)]).astype(np.float64)
    damping = 0.1 * np.sum(rows**2) / 12
    # F^T (F F^T + l)^-1 F without the matrix of all parameters.
    expected = np.linalg.solve(rows @ rows.T + damping * np.eye(12), rows @ targets.T)
    got = np.load(tmp_path / "scores.npz")["scores"]
    for a, b in zip(got.T, expected.T, strict=True):
        assert scipy.stats.spearmanr(a, b)[0] > 0.9


def test_runs_are_averaged(run, tmp_path):
    second = run.parent / "seed1"
    scores = []
    for runs in ([run], [second], [run, second]):
        out = tmp_path / str(len(scores))
        assert main(["--run", *map(str, runs), "--out", str(out), *OPTIONS]) == 0
        scores.append(np.load(out / "scores.npz")["scores"][:, 0])
    assert not np.allclose(scores[0], scores[2])
    assert len({tuple(np.argsort(s)) for s in scores}) > 1


@pytest.mark.parametrize("kind", ["sjlt", "srft", "kron", "normal"])
def test_every_kind(run, tmp_path, kind):
    argv = ["--run", str(run), "--proj_type", kind, "--out", str(tmp_path), "--resolution", "16"]
    assert main([*argv, *OPTIONS]) == 0
    assert np.load(tmp_path / "scores.npz")["resolution"] == 16


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the following arguments are required: --run"),
        (["--run", "nowhere"], "--run: expected the folder of a run with config.yaml"),
        (["--run", "RUN", "--proj_dim", "0"], "--proj_dim: must be an integer of at least 1"),
        (["--run", "RUN", "--proj_type", "gauss"], "--proj_type: invalid choice: 'gauss'"),
        (["--run", "RUN", "--test_samples", "4"], "--test_samples: must be from 0 to 3, got 4"),
        (["--run", "RUN", "--test_samples", "-1"], "must be an integer of at least 0, got -1"),
        (["--run", "RUN", "--resolution", "64"], "--resolution: must be one of [32, 16], got 64"),
        (["--run", "RUN", "--damping", "nan"], "--damping: must be a number of at least 0"),
        (["--run", "RUN", "--data_root", "nowhere"], "nowhere"),
        (["--run", "RUN", "--out", "RUN/config.yaml"], "config.yaml"),
        (["--run", "DAMAGED"], "is damaged: state/"),
        (["--run", "EMPTY"], "no complete checkpoint"),
    ],
)
def test_mistakes_are_one_line_and_status_2(run, tmp_path, capsys, argv, message):
    damaged, empty = tmp_path / "damaged", tmp_path / "empty"
    if "DAMAGED" in argv:
        shutil.copytree(run, damaged)
        for file in damaged.glob("checkpoints/*/state/**/*"):
            if file.is_file():
                file.write_bytes(b"")
    empty.mkdir()
    (empty / "checkpoints").mkdir()
    shutil.copy(run / "config.yaml", empty)
    names = {"DAMAGED": str(damaged), "EMPTY": str(empty)}
    argv = [names.get(a, a.replace("RUN", str(run))) for a in argv]
    try:
        status = main(argv)
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    assert status == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_the_hessian_of_a_run_is_measured(run, tmp_path, capsys):
    """From its checkpoint to eigenpairs, by the commands of tensorgrad_jax.hessian."""
    from tensorgrad_jax.hessian.records import read_log
    from tensorgrad_jax.training.hessian_command import main as hessian

    problem = f"PROBLEM={run}"
    assert hessian(["check", problem, "NUM_HESSIAN_DATAPOINTS=4"]) == 0
    words = [problem, "RANDOM_SEED=0", f"OUTPUT_DIR={tmp_path}", "NUM_HESSIAN_DATAPOINTS=4"]
    assert hessian(["gather", *words]) == 0
    folder = next(tmp_path.iterdir())
    log = next(folder.glob("*gather*.log"))
    facts = dict(read_log(log, ["GLOBALS"]))["GLOBALS"]
    size, step = facts["num_params"], facts["record_steps"][0]
    loaded = load_run(run)
    assert size == sum(x.size for x in jax.tree.leaves(loaded.training.state.params))
    assert step == loaded.step
    sketch = tmp_path / "sketch"
    sketch.mkdir()
    shape = ["--shape", f"{size},{size}", "--outer", "2", "--inner", "4", "--sym"]
    assert hessian(["create_hdf5_layout", "--hdf5dir", str(sketch), *shape]) == 0
    keys = [
        f"PARAMS_PATH={folder / folder.name}__params.h5", f"TRAINING_LOGPATH={log}",
        f"MEASUREMENTS_DIR={sketch}", f"STEP={step}",
    ]  # fmt: skip
    numbers = ["MEASUREMENT_IDXS=[0,1,2,3]", "NUM_INNER=4", "NUM_OUTER=2"]
    assert hessian(["measure", *keys, *numbers]) == 0
    assert hessian(["solve", *keys, "NUM_A_POSTERIORI=2"]) == 0
    found = {}
    for _, body in read_log(next(folder.glob("*solve*.log")), ["RESULT"]):
        found |= body
    assert len(found["core_S"]) == 2
    assert 0 < found["Frob(H-H_2)^2"] < np.inf
    capsys.readouterr()
    wrong = ["gather", *words, "RECORD_STEPS=[99999]"]
    assert hessian(wrong) == 2
    assert f"there is {step}, of its last checkpoint, got 99999" in capsys.readouterr().err
