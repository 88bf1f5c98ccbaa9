"""The examples run as they are, and what they print holds."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def output(name):
    command = [sys.executable, ROOT / "examples" / f"{name}.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def numbers(text):
    return [float(x.replace(",", "")) for x in re.findall(r"\d[\d,]*\.?\d*", text)]


def test_training():
    *epochs, state, last = output("training").splitlines()
    assert len(epochs) == 8
    losses = [numbers(line.partition("train L2")[2])[0] for line in epochs]
    assert losses[-1] < 0.1 * losses[0]
    ours, adamw = numbers(state)
    assert ours < 0.45 * adamw
    assert numbers(last.partition("points:")[2])[0] < 0.05


def test_own_loop():
    (adamw, compressed) = map(numbers, output("own_loop").splitlines())
    for first, last, _ in (adamw, compressed):
        assert last < 0.15 * first
    assert compressed[2] < 0.2 * adamw[2]


def test_fine_tune():
    _, fine_tuned = output("fine_tune").splitlines()
    before, after = numbers(fine_tuned.partition("error")[2])
    assert after < 0.2 * before


def test_compress_5d():
    head, _, *rows = output("compress_5d").splitlines()
    adam = numbers(head.partition("moments")[2])[0]
    names = [re.split("  +", row)[0] for row in rows]
    assert len(set(names)) == len(rows) == 5
    table = {name: numbers(row.removeprefix(name)) for name, row in zip(names, rows, strict=True)}
    for moments, basis, share, energy in table.values():
        assert moments + basis == pytest.approx(adam * share / 100, abs=1e-3 * adam)
        assert 0 < energy < 100
    # More budget keeps more; the largest entries keep more than random ones.
    energies = {name: row[-1] for name, row in table.items()}
    assert energies["Tucker 5%"] < energies["Tucker 25%"]
    assert energies["random 5%, then Tucker 20%"] < energies["largest 5%, then Tucker 20%"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_short_and_say_what_they_print(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 60
    assert "Prints" in text.split('"""')[1]
    assert f"examples/{path.name}" in (ROOT / "README.md").read_text(encoding="utf-8")
