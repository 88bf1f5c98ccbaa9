"""Sketches in files: skerch's protocol, killed workers, damaged files, commands."""

import contextlib
import io
import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import zipfile

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensorgrad_jax.hessian import layout
from tensorgrad_jax.hessian.layout import LayoutError
from tensorgrad_jax.hessian.measuring import reset
from tensorgrad_jax.hessian.problems import mnist_mini
from tensorgrad_jax.hessian.records import ParameterFile, read_log
from tensorgrad_jax.training.hessian_command import main

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent
OUTER, INNER = 3, 6
D = 7030


@pytest.fixture(scope="module")
def skerch(tmp_path_factory):
    """Files that skerch's commands wrote."""
    folder = tmp_path_factory.mktemp("skerch")
    with zipfile.ZipFile(HERE / "golden" / "skerch_layout.zip") as archive:
        archive.extractall(folder)
    return folder


def properties(path):
    with h5py.File(path) as file:
        of = lambda d: (
            d.shape, d.dtype, d.maxshape, d.chunks, d.compression, d.is_virtual,
            [(s.file_name, s.dset_name, s.vspace.get_select_bounds()) for s in d.virtual_sources()]
            if d.is_virtual else d[()].tolist(),
        )  # fmt: skip
        return {name: of(file[name]) for name in file}


def test_a_layout_is_that_of_skerch(skerch, tmp_path):
    layout.create(tmp_path, (7, 7), "float32", 2, 3, symmetric=True)
    theirs = skerch / "created"
    names = sorted(path.name for path in theirs.iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for name in names:
        assert properties(tmp_path / name) == properties(theirs / name), name


def test_columns_that_skerch_measured_are_read_and_merged_as_it_does(skerch, tmp_path):
    theirs = skerch / "measured"
    column = layout.read_column(theirs / "leftouter_0000000001.h5")
    np.testing.assert_array_equal(column, np.arange(7) + 10)
    for name in ("leftouter", "inner"):
        out = tmp_path / f"{name}.h5"
        layout.merge(theirs / f"{name}_ALL.h5", out, "measured")
        assert properties(out) == properties(theirs / f"{name}_MERGED.h5")
        merged = layout.read_merged(theirs / f"{name}_MERGED.h5")
        np.testing.assert_array_equal(merged, layout.read_merged(out))


def test_columns_of_ours_have_what_skerch_looks_at(tmp_path):
    layout.create(tmp_path, (7, 7), "float32", 2, 3, symmetric=True)
    path = layout.path_of(tmp_path, layout.LEFT, 1)
    layout.write_column(path, np.arange(7), "measured", "somebody")
    with h5py.File(tmp_path / "leftouter_ALL.h5") as file:
        np.testing.assert_array_equal(file["data"][:, 1], np.arange(7))
        assert [flag.decode() for flag in file["flags"]] == ["initialized", "measured"]


def test_operators_that_are_not_symmetric_have_both_sides(tmp_path):
    made = layout.create(tmp_path, (9, 7), "complex64", 2, 3, symmetric=False)
    assert {kind: layout.shape_of(path) for kind, path in made.items()} == {
        layout.LEFT: (7, 2), layout.RIGHT: (9, 2), layout.INNER: (3, 3),
    }  # fmt: skip


def test_more_files_than_a_process_may_open_are_merged(tmp_path):
    layout.create(tmp_path, (160, 160), "float32", 1, 150, symmetric=True)
    for i in range(150):
        path = layout.path_of(tmp_path, layout.INNER, i)
        layout.write_column(path, np.full(150, i), "measured", "x")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 100
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken + 20, limits[1]))
    try:
        layout.merge(tmp_path / "inner_ALL.h5", tmp_path / "m.h5", "measured")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    np.testing.assert_array_equal(layout.read_merged(tmp_path / "m.h5")[0], np.arange(150))


# Steps


def command(*words):
    """Run a command here; return (status, stdout, stderr)."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(list(map(str, words)))
        except SystemExit as end:
            status = end.code
    return status, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def gathered(tmp_path_factory):
    """A training of three steps, and the keys that the steps after it need."""
    out = tmp_path_factory.mktemp("gathered")
    status, text, _ = command(
        "gather", "RANDOM_SEED=3", f"OUTPUT_DIR={out}", "RECORD_STEPS=[0,2]", "MAX_STEPS=3",
        "NUM_HESSIAN_DATAPOINTS=10", "STORE_GRADS=true", "OUTDIR_SUFFIX=t",
    )  # fmt: skip
    assert status == 0
    folder = pathlib.Path(text.splitlines()[-1])
    log = next(folder.glob("*gather*.log"))
    params = folder / f"{folder.name}__params.h5"
    return folder, [f"PARAMS_PATH={params}", f"TRAINING_LOGPATH={log}"]


def made_layout(folder):
    folder.mkdir()
    layout.create(folder, (D, D), "float32", OUTER, INNER, symmetric=True)
    return folder


def words_of(gathered, folder, numbers=range(INNER), step=2):
    return [
        "measure", *gathered[1], f"MEASUREMENTS_DIR={folder}", f"STEP={step}",
        f"MEASUREMENT_IDXS={json.dumps(list(numbers))}", f"NUM_INNER={INNER}", f"NUM_OUTER={OUTER}",
        "BLOCK_SIZE=1",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def measured(gathered, tmp_path_factory):
    folder = made_layout(tmp_path_factory.mktemp("m") / "measured")
    assert command(*words_of(gathered, folder))[0] == 0
    return folder


def columns(folder):
    kinds = ((layout.LEFT, OUTER), (layout.INNER, INNER))
    return {
        (kind, i): layout.read_column(layout.path_of(folder, kind, i))
        for kind, n in kinds
        for i in range(n)
    }


def test_training_is_logged_and_recorded(gathered):
    folder, _ = gathered
    log = next(folder.glob("*gather*.log"))
    headers = [header for header, _ in read_log(log)]
    assert headers[:2] == ["CONFIG", "GLOBALS"]
    assert {"HDF5", "TRAINING BATCH", "EVAL ROUND", "FINAL EVALUATION"} <= set(headers)
    facts = dict(read_log(log, ["GLOBALS"]))["GLOBALS"]
    assert facts["num_params"] == D
    assert facts["record_steps"] == [0, 2]
    assert len(facts["H_train_idxs"]) == 10
    start = jnp.concatenate([x.ravel() for x in jax.tree.leaves(mnist_mini(3).params)])
    file = ParameterFile(folder / f"{folder.name}__params.h5")
    np.testing.assert_array_equal(file.read(0), start)
    assert not np.array_equal(file.read(2), start)
    assert np.linalg.norm(
        ParameterFile(folder / f"{folder.name}__gradients_train.h5").read(2)
    ) > 0  # fmt: skip


def test_columns_are_products_with_the_hessian(gathered, measured):
    from tensorgrad_jax.hessian import Noise, hvp_operator
    from tensorgrad_jax.hessian.measuring import recorded
    from tensorgrad_jax.hessian.settings import Measure, parse
    from tensorgrad_jax.training.hessian_command import problem_of

    settings = parse(Measure, words_of(gathered, measured)[1:])
    what = recorded(settings, problem_of)
    problem = mnist_mini(3)
    params = jax.tree.unflatten(
        jax.tree.structure(problem.params), jax.tree.leaves(what.operator.unravel(what.params))
    )
    H = hvp_operator(problem.loss, params, problem.examples(10, test=False))
    right, left = what.keys()
    Y = H.mm(Noise("srft", D, INNER).block(right, range(INNER), jnp.float32))
    M = Noise("srft", D, INNER).adjoint_times(left, Y)
    found = columns(measured)
    for i in range(INNER):
        np.testing.assert_allclose(found[layout.INNER, i], M[:, i], atol=1e-6)
    for i in range(OUTER):
        np.testing.assert_allclose(found[layout.LEFT, i], Y[:, i], atol=1e-6)


def test_the_log_of_a_solution_holds_what_the_papers_figures_need(gathered, measured):
    keys = [*gathered[1], f"MEASUREMENTS_DIR={measured}", "STEP=2"]
    status, text, error = command("solve", *keys, "NUM_A_POSTERIORI=5", "SAVE_VECTORS=true")
    assert (status, error) == (0, "")
    log = pathlib.Path(text.splitlines()[-1])
    found = {}
    for header, body in read_log(log, ["RESULT"]):
        assert header == "RESULT"
        found |= body
    assert len(found["core_S"]) == len(found["frob_Qtop^2"]) == len(found["scree_lower"]) == OUTER
    for key in ("Frob(H)^2", "Frob(H_3)^2", "Frob(H_2)^2", "Frob(H-H_1)^2", "P(err<=0.5x)"):
        assert found[key] >= 0
    assert len(found["largest_absparams"]) == OUTER
    vector = ParameterFile(gathered[0] / f"{gathered[0].name}__params.h5").read(2)
    assert found["largest_absparams"][0] == np.argmax(np.abs(vector))
    with h5py.File(next(log.parent.glob("*eigenpairs.h5"))) as file:
        V, values = file["vectors"][:], file["values"][:]
    np.testing.assert_allclose(V.T @ V, np.eye(OUTER), atol=1e-5)
    np.testing.assert_allclose(values, found["core_S"], rtol=1e-6)
    pictures = {path.name.rsplit("__", 1)[1] for path in log.parent.glob("*.png")}
    assert pictures == {"spectrum.png", "overlap.png", "scree.png"}


def test_a_killed_worker_is_resumed_and_no_column_is_measured_twice(gathered, measured, tmp_path):
    folder = made_layout(tmp_path / "killed")
    worker = subprocess.Popen(
        [sys.executable, "-m", "tensorgrad_jax.hessian", *words_of(gathered, folder)],
        stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert worker.stdout is not None
    for line in worker.stdout:
        if "Performed measurement" in line and '"idx": 1' in line:
            break
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    states = [layout.flag_of(layout.path_of(folder, layout.INNER, i))[0] for i in range(INNER)]
    done = [i for i, state in enumerate(states) if state == "measured"]
    assert done[:2] == [0, 1]
    assert len(done) < INNER
    stamps = {i: layout.path_of(folder, layout.INNER, i).stat().st_mtime_ns for i in done}
    status, text, _ = command(*words_of(gathered, folder))
    assert status == 0
    again = [i for i in range(INNER) if f'"idx": {i},' in text]
    assert again == [i for i in range(INNER) if i not in done]
    for i, stamp in stamps.items():
        assert layout.path_of(folder, layout.INNER, i).stat().st_mtime_ns == stamp
    expected = columns(measured)
    for place, column in columns(folder).items():
        np.testing.assert_array_equal(column, expected[place])
    assert not list(folder.glob(".*.h5*"))


def test_a_column_that_another_process_is_at_is_left_to_it(gathered, tmp_path):
    folder = made_layout(tmp_path / "two")
    hold = (
        "import sys, pathlib; from tensorgrad_jax.hessian.layout import claimed\n"
        f"with claimed(pathlib.Path({str(folder)!r}), [0, 4]) as mine:\n"
        "    print(mine, flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        cwd=ROOT,
    )  # fmt: skip
    assert other.stdout is not None
    assert other.stdout.readline() == "[0, 4]\n"
    status, text, _ = command(*words_of(gathered, folder, [0, 1, 4]))
    other.communicate()
    assert status == 0
    assert '{"measured": 1, "of": 3}' in text
    assert layout.flag_of(layout.path_of(folder, layout.INNER, 0))[0] == "initialized"
    assert '{"measured": 2, "of": 3}' in command(*words_of(gathered, folder, [0, 1, 4]))[1]


def test_a_finished_column_of_another_hessian_is_not_overwritten(gathered, measured, tmp_path):
    before = columns(measured)
    status, _, error = command(*words_of(gathered, measured, step=0))
    assert status == 2
    assert "holds a finished measurement of mnist_mini, seed 3, step 2" in error
    assert "reset_hdf5" in error
    after = columns(measured)
    assert all(np.array_equal(after[place], before[place]) for place in before)
    keys = [*gathered[1], f"MEASUREMENTS_DIR={measured}", "STEP=0"]
    status, _, error = command("solve", *keys)
    assert status == 2
    assert "is a measurement of mnist_mini, seed 3, step 2" in error


def test_a_layout_serves_one_hessian_after_the_other(gathered, tmp_path):
    folder = made_layout(tmp_path / "again")
    assert command(*words_of(gathered, folder))[0] == 0
    assert command("reset_hdf5", "--hdf5dir", folder)[0] == 0
    assert command(*words_of(gathered, folder, step=0))[0] == 0
    keys = [*gathered[1], f"MEASUREMENTS_DIR={folder}", "STEP=0"]
    status, text, _ = command("solve", *keys, "WITH_A_POSTERIORI=false", "DELETE_MERGED_SUBFILES=1")
    assert status == 0
    assert "scree_lower" not in text
    assert sorted(path.name for path in folder.glob("*.h5")) == [
        "inner_ALL.h5", "inner_MERGED.h5", "leftouter_ALL.h5", "leftouter_MERGED.h5",
    ]  # fmt: skip


def damage(path, how):
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif how == "another":
        with h5py.File(path, "w") as file:
            file["something"] = 1
    elif how == "unfinished":
        layout.write_column(path, None, layout.PROCESSING, "x")
    else:
        with h5py.File(path, "r+") as file:
            file["data"][0] = np.nan


@pytest.mark.parametrize("how", ["missing", "empty", "cut", "another", "unfinished", "nan"])
def test_a_damaged_file_among_150_is_named_and_made_anew(how, tmp_path):
    layout.create(tmp_path, (160, 160), "float32", 1, 150, symmetric=True)
    for i in range(150):
        path = layout.path_of(tmp_path, layout.INNER, i)
        layout.write_column(path, np.full(150, i), "measured", "x")
    bad = layout.path_of(tmp_path, layout.INNER, 77)
    damage(bad, how)
    out = tmp_path / "merged.h5"
    with pytest.raises(LayoutError, match="inner_0000000077"):
        layout.merge(tmp_path / "inner_ALL.h5", out, "measured")
    assert not out.exists()
    status, text, _ = command("reset_hdf5", "--hdf5dir", tmp_path, "--only_damaged")
    assert (status, text) == (0, f"{0 if how == 'unfinished' else 1} files made anew\n")
    layout.write_column(bad, np.full(150, 77), "measured", "x")
    layout.merge(tmp_path / "inner_ALL.h5", out, "measured")
    np.testing.assert_array_equal(layout.read_merged(out)[0], np.arange(150))


def test_a_merge_that_fails_leaves_what_was_there(tmp_path):
    layout.create(tmp_path, (7, 7), "float32", 1, 2, symmetric=True)
    virtual = tmp_path / "inner_ALL.h5"
    before = virtual.read_bytes()
    with pytest.raises(LayoutError, match="Subfile flag not equal done"):
        layout.merge(virtual, virtual, "done", delete_subfiles=True)
    assert virtual.read_bytes() == before
    assert command("merge_hdf5", "--in_path", virtual, "--ok_flag", "initialized")[0] == 0
    assert layout.shape_of(virtual) == (2, 2)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small") / "layout"
    folder.mkdir()
    layout.create(folder, (7, 7), "float32", 2, 3, symmetric=True)
    return folder


G = ["NUM_HESSIAN_DATAPOINTS=10", "RANDOM_SEED=0"]
C = ["create_hdf5_layout", "--hdf5dir", "EMPTY", "--shape", "7,7", "--outer", "2", "--inner", "3"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nonsense"], "COMMAND must be one of gather, measure"),
        (["gather"], "NUM_HESSIAN_DATAPOINTS: is mandatory"),
        (["gather", *G, "PROBLEM=cifar"], "PROBLEM: must be mnist_mini or the folder of a run"),
        (["gather", *G, "COLOUR=red"], "expected KEY=VALUE with a key of"),
        (["gather", *G, "MAX_STEPS"], "expected KEY=VALUE"),
        (["gather", *G, "MAX_STEPS=-1"], "MAX_STEPS: must be an integer from 0"),
        (["gather", *G, "MAX_STEPS=2", "MAX_STEPS=3"], "MAX_STEPS: is given twice"),
        (["gather", *G, "RECORD_STEPS=[1,1]"], "RECORD_STEPS: must be a list of integers"),
        (["gather", *G, "RECORD_STEPS=5"], "RECORD_STEPS: must be a list"),
        (["gather", *G, "RECORD_STEPS=[9]", "MAX_STEPS=3"], "RECORD_STEPS: of mnist_mini"),
        (["gather", *G, "WITH_EVAL=perhaps"], "WITH_EVAL: must be true or false"),
        (["gather", *G, "OPTIMIZER=Adam"], "OPTIMIZER: must be SGD, got Adam"),
        (["gather", *G, "TUNING_CONF=nowhere.yaml"], "TUNING_CONF: nowhere.yaml must hold"),
        (["gather", "NUM_HESSIAN_DATAPOINTS=15"], "must be a multiple of the 10 classes"),
        (["gather", "NUM_HESSIAN_DATAPOINTS=5000"], "some class has but"),
        (["gather", *G, "OBS_DATASETS=EMPTY"], "OBS_DATASETS: expected a file mnist.npz"),
        (["check", *G, "PROBLEM=EMPTY"], "config.yaml"),
        (["exhaustive", *G, "RECORD_STEPS=[0]", "NUM_INNER=3"], "must be from NUM_OUTER 355"),
        (["exhaustive", *G, "RECORD_STEPS=[0]", "WITH_TEST_HESSIAN=0", "WITH_TRAIN_HESSIAN=0"],
         "at least one of WITH_TEST_HESSIAN"),
        ([*C[:4], "7,8", *C[5:], "--sym"], "Non-square matrix can't be symmetric"),
        ([*C[:4], "7", *C[5:]], "must be two positive integers"),
        ([*C[:4], "7,-1", *C[5:]], "must be two positive integers"),
        ([*C, "--dtype", "floatx"], "--dtype: must be one of float32"),
        ([*C[:-1], "1"], "--outer: must not exceed --inner 1, got 2"),
        ([*C[:-1], "9"], "--inner: must be from 1 to 7, got 9"),
        (["create_hdf5_layout", *C[3:]], "--hdf5dir"),
        (["create_hdf5_layout", "--hdf5dir", "LAYOUT", *C[3:]], "Directory must be empty!"),
        (["create_hdf5_layout", "--hdf5dir", "nowhere", *C[3:]], "there is no folder nowhere"),
        (["reset_hdf5", "--hdf5dir", "EMPTY"], "there is no layout in"),
        (["merge_hdf5", "--in_path", "nowhere.h5", "--out_path", "x.h5"], "no file nowhere.h5"),
        (["merge_hdf5", "--in_path", "LAYOUT/inner_ALL.h5", "--out_path", "EMPTY/x.h5", "--ok_flag",
          "measured"], "inner_0000000000.h5: Subfile flag not equal measured! It is 'initialized'"),
        (["merge_hdf5", "--in_path", "LAYOUT/inner_0000000000.h5", "--out_path", "EMPTY/x.h5"],
         "is not a virtual data set"),
        (["post_bounds", "--apost_n", "0"], "must be a positive integer"),
        (["post_bounds", "--apost_err", "2"], "error must be a number in [0, 1]"),
        (["prio_hpars", "--shape", "7,8", "--budget", "100", "--sym"], "must be square"),
        (["prio_hpars", "--shape", "700,800", "--budget", "100"], "budget must be enough"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_leaves_nothing(words, message, small, tmp_path, unchecked):
    empty = tmp_path / "empty"
    empty.mkdir()
    words = [w.replace("EMPTY", str(empty)).replace("LAYOUT", str(small)) for w in words]
    if words[0] in ("gather", "exhaustive"):
        words.append(f"OUTPUT_DIR={tmp_path / 'out'}")
    status, _, error = command(*words)
    assert status == 2
    assert error.count("\n") == 1
    assert error.startswith("error: ")
    assert message in error
    assert not list(empty.iterdir())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"STEP": "1"}, "STEP: Step 1 not available! There are [0, 2]"),
        ({"PARAMS_PATH": "nowhere.h5"}, "PARAMS_PATH: there is no file nowhere.h5"),
        ({"PARAMS_PATH": "GRAVEL"}, "PARAMS_PATH"),
        ({"TRAINING_LOGPATH": "GRAVEL"}, "is no log of gather"),
        ({"TRAINING_LOGPATH": "nowhere.log"}, "is no log of gather"),
        ({"MEASUREMENT_IDXS": "[0,6]"}, "MEASUREMENT_IDXS: must be below NUM_INNER 6, got 6"),
        ({"MEASUREMENT_IDXS": "[]"}, "MEASUREMENT_IDXS: must be a list"),
        ({"NUM_OUTER": "7"}, "NUM_OUTER: must not exceed NUM_INNER 6, got 7"),
        ({"NUM_INNER": "8"}, "these parameters, NUM_OUTER and NUM_INNER need (8, 8)"),
        ({"MEASUREMENTS_DIR": "nowhere"}, "there is no file nowhere/leftouter_ALL.h5"),
        ({"NOISE": "white"}, "NOISE: must be one of srft"),
        ({"SUCCESS_FLAG": ""}, "SUCCESS_FLAG: must be a text"),
    ],
)
def test_bad_input_of_a_worker_is_one_line(change, message, gathered, measured, tmp_path):
    gravel = tmp_path / "gravel"
    gravel.write_text("[1, 2]\nnonsense")
    words = words_of(gathered, measured)
    given = dict(word.split("=", 1) for word in words[1:])
    given |= {key: value.replace("GRAVEL", str(gravel)) for key, value in change.items()}
    status, _, error = command("measure", *(f"{k}={v}" for k, v in given.items()))
    assert status == 2
    assert error.count("\n") == 1
    assert message in error


def test_numbers_of_the_two_small_commands():
    _, text, _ = command("post_bounds")
    assert "0.0551770" in text
    assert "0.2421922" in text
    _, text, _ = command("prio_hpars", "--shape", "7030,7030", "--budget", "400000", "--sym")
    assert "Outer measurements: 55\n  Inner measurements: 115" in text
    assert "= 399875" in text


def test_help_names_every_key():
    _, text, _ = command("measure", "--help")
    for key in ("MEASUREMENT_IDXS", "BLOCK_SIZE", "PARAMS_PATH", "STEP", "NOISE"):
        assert key in text
    assert "reset_hdf5" in command("--help")[1]


def test_the_sequence_of_commands_ends_with_the_solution(tmp_path):
    small = {"OUTER": "4", "INNER": "8", "STEPS": "3", "EXAMPLES": "10", "PYTHON": sys.executable}
    ran = subprocess.run(
        ["bash", ROOT / "examples/hessian/sequence.sh", tmp_path / "out"],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | small, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    log = pathlib.Path(ran.stdout.splitlines()[-1])
    results = {}
    for _, body in read_log(log, ["RESULT"]):
        results |= body
    assert len(results["core_S"]) == 4
    assert results["Frob(H)^2"] > 0


def test_the_job_script_says_what_is_not_set_and_measures_its_share(gathered, tmp_path):
    script = ["bash", ROOT / "examples/hessian/measure.sbatch"]
    missing = subprocess.run(script, capture_output=True, text=True, check=False)
    assert missing.returncode != 0
    assert "set RUN, the folder that gather made" in missing.stderr
    folder = made_layout(tmp_path / "job")
    given = {
        "RUN": gathered[0], "MEASUREMENTS": folder, "STEP": "2", "INNER": INNER, "OUTER": OUTER,
        "SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "3", "PYTHON": sys.executable,
    }  # fmt: skip
    env = os.environ | {key: str(value) for key, value in given.items()}
    ran = subprocess.run(script, capture_output=True, text=True, cwd=ROOT, env=env, check=False)
    assert ran.returncode == 0, ran.stderr
    flags = [layout.flag_of(layout.path_of(folder, layout.INNER, i))[0] for i in range(INNER)]
    assert [i for i, flag in enumerate(flags) if flag == "measured"] == [1, 4]


def test_workers_of_one_machine_measure_and_solve(gathered, measured, tmp_path):
    folder = made_layout(tmp_path / "workers")
    keys = [*gathered[1], f"MEASUREMENTS_DIR={folder}", "STEP=2"]
    words = ["run", *keys, f"NUM_INNER={INNER}", f"NUM_OUTER={OUTER}", "NUM_A_POSTERIORI=2"]
    status, text, error = command(*words)
    assert (status, error) == (0, "")
    assert pathlib.Path(text.splitlines()[-1]).exists()
    expected = columns(measured)
    for place, column in columns(folder).items():
        np.testing.assert_allclose(column, expected[place], atol=1e-6)


def test_a_worker_that_fails_is_told(gathered, tmp_path):
    folder = made_layout(tmp_path / "failing")
    damage(layout.path_of(folder, layout.INNER, 1), "cut")
    keys = [*gathered[1], f"MEASUREMENTS_DIR={folder}", "STEP=2"]
    status, _, error = command("run", *keys, f"NUM_INNER={INNER}", f"NUM_OUTER={OUTER}")
    assert status == 1
    assert "worker 1 of 2 ended with status 2" in error


def test_exhaustive_and_check_of_a_small_problem(tmp_path, monkeypatch):
    from tensorgrad_jax.hessian import exhaustive as module
    from tensorgrad_jax.hessian.commands import main as run
    from tensorgrad_jax.hessian.problems import Problem

    # The problem itself would take a minute.
    data = {"x": np.linspace(-1, 1, 40).reshape(20, 2).astype(np.float32)}
    params = {"w": jnp.linspace(0.1, 1, 12).reshape(2, 6)}
    loss = lambda p, b: jnp.mean(jnp.sum(jnp.tanh(b["x"] @ p["w"]) ** 2, 1))
    problem = Problem("small", params, loss, data, data, None, 5, 4, 0.1)
    found = lambda *_: problem
    words = ["NUM_HESSIAN_DATAPOINTS=8", "RANDOM_SEED=1", f"OUTPUT_DIR={tmp_path}"]
    more = ["RECORD_STEPS=[0,2]", "NUM_OUTER=4", "NUM_INNER=12", "NUM_A_POSTERIORI=3"]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert run(["exhaustive", *words, *more], found) == 0
        assert run(["check", *words[:2]], found) == 0
    log = pathlib.Path(next(x for x in out.getvalue().splitlines() if x.endswith(".log")))
    lines = read_log(log, ["H_TRAIN RESULT", "H_TEST RESULT"])
    assert {body["step"] for _, body in lines} == {0, 2}
    values = next(body["H_eigvals"] for _, body in lines if "H_eigvals" in body)
    assert len(values) == 12
    core = next(body["core_S"] for _, body in lines if "core_S" in body)
    # Twelve of twelve columns: the sketch's leading pairs are the operator's.
    residuals = next(body["eigvec_resnorm"] for _, body in lines if "eigvec_resnorm" in body)
    np.testing.assert_allclose(abs(core[0]), np.max(np.abs(values)), rtol=0.05)
    assert residuals[0] < 0.2
    monkeypatch.setattr(module, "LARGEST", 5)
    error = io.StringIO()
    with contextlib.redirect_stderr(error):
        assert run(["exhaustive", *words, *more], found) == 2
    assert "may have 5 parameters at most" in error.getvalue()
    broken = Problem("b", params, lambda p, b: jnp.sum(p["w"]) / 0 * jnp.sum(p["w"]), data, data)
    with contextlib.redirect_stdout(io.StringIO()):
        assert run(["check", *words[:2]], lambda *_: broken) == 1


def test_reset_makes_a_whole_layout_anew(tmp_path):
    layout.create(tmp_path, (7, 7), "float32", 1, 2, symmetric=True)
    layout.write_column(layout.path_of(tmp_path, layout.INNER, 0), np.ones(2), "measured", "x")
    assert reset(tmp_path) == 3
    assert layout.flag_of(layout.path_of(tmp_path, layout.INNER, 0)) == ("initialized", None)
