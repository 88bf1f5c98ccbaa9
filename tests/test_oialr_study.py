"""The experiments on digits: configurations compose, a short run works and is tested again."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STUDY = ROOT / "studies" / "oialr"


@pytest.fixture(scope="module", autouse=True)
def _path():
    sys.path.insert(0, str(STUDY))
    yield
    sys.path.remove(str(STUDY))


def compose(*arguments):
    import configuration

    return configuration.compose(list(arguments))


def test_later_configurations_override_earlier_ones():
    base = compose()
    assert base["model"]["name"] == "vit"
    assert base["training"]["fixing_method"]["sigma_cutoff_fraction"] == 0.1
    experiment = compose("experiment=digits-minivit")
    assert experiment["training"]["fixing_method"]["sigma_cutoff_fraction"] == 0.15
    assert experiment["training"]["optimizer"] == base["training"]["optimizer"]
    both = compose("model=cnn", "experiment=digits-minivit")
    assert both["model"]["name"] == "vit"  # the experiment has the last word before ...
    line = compose("experiment=digits-minivit", "training.fixing_method.delay=7", "seed=3")
    assert line["training"]["fixing_method"]["delay"] == 7  # ... the command line
    assert line["seed"] == 3
    assert compose("model=mlp")["model"] == {"name": "mlp", "width": 128, "depth": 3}
    assert compose("experiment=cifar10-minivit")["model"]["embed_dim"] == 768


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("model=lstm", r"model must be one of \['cnn', 'mlp', 'vit'\], got 'lstm'"),
        ("training.rate=1", "there is no option 'training.rate'; there are"),
        ("nothing", "an option is given as name=value, got 'nothing'"),
    ],
)
def test_wrong_options_are_one_line(argument, message):
    with pytest.raises(ValueError, match=message):
        compose(argument)


def command(program, *arguments):
    return subprocess.run(
        [sys.executable, STUDY / program, *map(str, arguments)], capture_output=True, text=True
    )


def test_a_short_run_and_its_test(tmp_path):
    from training import run

    # Twelve steps, cores from the fourth on.
    config = compose(
        "model=mlp", "model.width=32", "data.local_batch_size=120", "training.epochs=1",
        "training.lr_schedule.warmup_epochs=0", "tracking.stability_every=5", f"out={tmp_path}",
        "name=short", "training.fixing_method.delay=4",
        "training.fixing_method.stability_frequency=4",
    )  # fmt: skip
    lines = []
    result = run(config, lines.append)
    assert any("trainable" in line for line in lines)
    assert result["steps"] == 11
    assert result["trainable_percent"] < 100
    files = {p.name for p in (tmp_path / "short").iterdir()}
    expected = {"config.yaml", "result.json", "checkpoint.npz", "record.json", "stability.png"}
    assert expected <= files
    assert json.loads((tmp_path / "short" / "result.json").read_text())["ranks"]
    tested = command("test.py", tmp_path / "short")
    assert tested.stdout == f"short: test {result['accuracy']:.2f}%\n"
    assert tested.returncode == 0


def test_what_is_missing_is_said(tmp_path):
    cifar = command("train.py", "data=cifar10", f"data.data_dir={tmp_path}", f"out={tmp_path}")
    assert cifar.returncode == 2
    assert cifar.stderr.startswith("error: data.data_dir: ")
    assert cifar.stderr.count("\n") == 1
    nothing = command("test.py", tmp_path)
    assert nothing.returncode == 2
    assert "no run of train.py is there" in nothing.stderr


def test_the_launch_script_says_what_is_unset():
    script = STUDY / "launch_run.sbatch"
    done = subprocess.run(["bash", script], capture_output=True, text=True, env={"PATH": "/bin"})
    assert done.returncode != 0
    assert "submit with sbatch --account=ACCOUNT" in done.stderr
