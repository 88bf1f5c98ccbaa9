"""A sample of the attacks of tests/faults; `make faults` runs them all."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.faults import damage, fuzz, kills, library, places, runs, strangers


def held(cases):
    cases = list(cases)
    assert cases
    assert [case for case in cases if not case.held] == []


def test_fuzzed_command_lines():
    held(fuzz.command_lines(200))


def test_fuzzed_files(tmp_path):
    held(fuzz.files(tmp_path, 200))


def test_arguments_of_the_library(unchecked):
    """Every 29th of 1,900."""
    held(library.arguments(every=29))


def test_trees_that_do_not_fit(unchecked):
    held(library.trees())


@pytest.mark.parametrize(
    "attack",
    [strangers.yaml_files, strangers.hdf5_files, places.names],
    ids=["YAML", "HDF5", "names"],
)
def test_what_is_refused_before_anything_is_written(attack, tmp_path):
    held(attack(tmp_path))


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A run after two of three epochs, and what it comes to."""
    folder = tmp_path_factory.mktemp("half")
    return damage.half_way(folder)


def test_a_damaged_checkpoint_is_noticed_and_the_one_before_used(half, tmp_path):
    path, expected = half

    def change(run):
        file = run / "checkpoints" / "6" / "state" / "manifest.ocdbt"
        content = file.read_bytes()
        file.write_bytes(content[:50] + bytes([content[50] ^ 1]) + content[51:])

    found, trial = damage.continued(tmp_path, path, change)
    assert (found.status, found.error.count("\n")) == (0, 1)
    assert "state/manifest.ocdbt is not what was written; going on from" in found.error
    assert runs.result(trial) == expected
    aside = trial / "runs" / "run" / "damaged_checkpoints" / "6"
    assert aside.is_dir()


def test_records_are_what_the_checkpoint_knows(half, tmp_path):
    path, expected = half

    def change(run):
        (run / "metrics.jsonl").write_bytes(b"\x00{]")
        (run / "config.yaml").unlink()

    found, trial = damage.continued(tmp_path, path, change)
    assert (found.status, found.error) == (0, "")
    assert runs.result(trial) == expected
    assert (trial / "runs" / "run" / "config.yaml").read_text().startswith("name: run")


def test_a_signal_while_modules_are_imported(tmp_path):
    process = runs.start(runs.arguments(tmp_path))
    while not kills.catches(process.pid, 15):
        pass
    process.terminate()
    found = runs.ended(process)
    assert (found.status, found.error.count("\n")) == (130, 1)
    assert found.error.startswith("stopped; nothing was trained yet")
    assert not any(tmp_path.iterdir())
