"""Files that somebody else made: YAML, HDF5, half-finished ones. No code in them ever runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np

from . import runs
from .runs import Case

_LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(20)
)
YAML = {
    "nested 1000 deep": "opt: " + "[" * 1000 + "]" * 1000,
    "nested 100,000 deep": "opt: " + "{a: " * 100_000,
    "an alias of itself": "fno: {n_modes: &a [*a]}",
    "a mapping in itself": "&a opt: *a",
    "aliases of aliases": _LAUGHS,
    "code": "!!python/object/apply:os.system ['touch /tmp/tensorgrad_code_ran']",
    "code in an option": "seed: !!python/object/apply:os.system ['touch /tmp/tensorgrad_code_ran']",
    "a tag that there is not": "seed: !mine 3",
    "an empty integer": "seed: !!int ''",
    "a truth value that is none": "data: {generate: !!bool maybe}",
    "a time that is none": "seed: !!timestamp soon",
    "a set": "opt: !!set {a, b}",
    "an unhashable key": "? [a, b]\n: 1",
    "a key that is a number": "1: 2",
    "no key": "null: 2",
    "two documents": "seed: 1\n---\nseed: 2",
    "binary": "\x00\x01\x02",
    "not UTF-8": b"seed: \xff\xfe",
    "a list": "- seed",
    "an integer of 5000 digits": "seed: " + "9" * 5000,
    "a section that is a text": "opt: fast",
    "a dotted name": "opt.b2: 0.9",
    "tabs": "opt:\n\tb2: 0.9",
}


def yaml_files(folder: Path) -> Iterator[Case]:
    """Configuration files of every odd kind: one line, status 2, nothing written."""
    folder.mkdir(parents=True, exist_ok=True)
    marker = Path("/tmp/tensorgrad_code_ran")
    marker.unlink(missing_ok=True)
    file = folder / "given.yaml"
    for what, text in YAML.items():
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        found = runs.within([*runs.arguments(folder), "--config_file", str(file)])
        held = found.status == 2 and found.one_line and not marker.exists()
        held = held and sorted(p.name for p in folder.iterdir()) == ["given.yaml"]
        yield Case("YAML", what, held, "" if held else str(found))


def _fields(file: h5py.File, **changed) -> None:
    for name in ("x", "y"):
        values = np.random.default_rng(0).normal(size=(15, 16)).astype(np.float32)
        file[name] = changed.get(name, values)


def _write(path: Path, make: Callable[[h5py.File], None]) -> None:
    with h5py.File(path, "w") as file:
        make(file)


def _circle(file):
    file["x"] = h5py.SoftLink("/y")
    file["y"] = h5py.SoftLink("/x")


def _external(file):
    _fields(file)
    del file["x"]
    file["x"] = h5py.ExternalLink("/etc/passwd", "/x")


def _elsewhere(file):
    """Values that lie in another file, raw."""
    _fields(file)
    del file["x"]
    file.create_dataset("x", (15, 16), "float32", external=[("/etc/passwd", 0, 960)])


def _virtual(file):
    """Values of a file that there is not, which HDF5 reads as zeros."""
    _fields(file)
    del file["x"]
    layout = h5py.VirtualLayout((15, 16), "float32")
    layout[:] = h5py.VirtualSource("absent.hdf5", "x", (15, 16))
    file.create_virtual_dataset("x", layout)


def _compound(file):
    _fields(file, x=np.zeros(15, [("re", "f4"), ("im", "f4")]))


def _group(file):
    _fields(file)
    del file["x"]
    file.create_group("x")


HDF5 = {
    "links in a circle": _circle,
    "a link to another file": _external,
    "values in another file": _elsewhere,
    "values in an absent file": _virtual,
    "numbers with two parts": _compound,
    "a group": _group,
    "texts": lambda file: _fields(file, x=np.full((15, 16), b"a")),
    "complex numbers": lambda file: _fields(file, x=np.ones((15, 16), complex)),
    "beyond float32": lambda file: _fields(file, x=np.full((15, 16), 1e300)),
    "NaN": lambda file: _fields(file, y=np.full((15, 16), np.nan)),
    "no samples": lambda file: _fields(file, x=np.ones((0, 16)), y=np.ones((0, 16))),
    "fewer y than x": lambda file: _fields(file, y=np.ones((3, 16), np.float32)),
    "five axes too many": lambda file: _fields(file, x=np.ones((15, 1, 1, 1, 1, 1, 16))),
    "a scalar": lambda file: _fields(file, x=np.float32(3)),
    "nothing": lambda file: None,
}


def hdf5_files(folder: Path) -> Iterator[Case]:
    """Data files of every odd kind: one line that names the file, status 2, nothing written."""
    given = {"data.problem": "mine", "data.dimension": 1}
    argv = runs.arguments(folder, **given)
    generated = ("--data.viscosity", "--data.t_end", "--data.dt", "--data.solver_resolution")
    for name in generated:
        at = argv.index(name)
        del argv[at : at + 2]
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    _write(data / "mine_test_16.hdf5", _fields)
    train_file = data / "mine_train_16.hdf5"

    def attempt(what: str) -> Case:
        found = runs.within(argv)
        held = found.status == 2 and found.one_line and "mine_train_16.hdf5" in found.error
        held = held and not (folder / "runs").exists()
        shutil.rmtree(folder / "runs", ignore_errors=True)
        return Case("HDF5", what, held, "" if held else str(found))

    for what, make in HDF5.items():
        _write(train_file, make)
        yield attempt(what)
    _write(train_file, _fields)
    content = train_file.read_bytes()
    for what, cut in {
        "cut": content[: len(content) // 2], "empty": b"", "a text": b"hello",
        "zeros": bytes(len(content)),
    }.items():  # fmt: skip
        train_file.write_bytes(cut)
        yield attempt(what)
    train_file.unlink()
    (data / "mine_train_0.hdf5").write_bytes(content)
    yield attempt("a resolution of 0")
    train_file.mkdir()
    yield attempt("a folder")


def unfinished_files(folder: Path) -> Iterator[Case]:
    """An unfinished file of generated data that is not what it should be."""
    argv = runs.arguments(folder)
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    partial = data / "burgers_train_16.hdf5.partial"

    def claims(count):
        def make(file):
            _fields(file)
            file.attrs["done"] = count

        return make

    for what, make in {
        "a negative count": claims(-1), "more than there are": claims(10**6),
        "a count that is a text": claims("many"), "a count that is a list": claims([1, 2]),
        "half a sample": claims(2.5),
    }.items():  # fmt: skip
        _write(partial, make)
        found = runs.within(argv)
        held = found.status == 2 and found.one_line and str(partial) in found.error
        yield Case("unfinished data", what, held, "" if held else str(found))
        partial.unlink(missing_ok=True)
    for what, content in {"empty": b"", "no HDF5": b"hello"}.items():
        partial.write_bytes(content)
        found = runs.within([*argv, "--opt.n_epochs", "1"])
        held = found.status == 0 and found.error == ""
        yield Case("unfinished data", what, held, "" if held else str(found))
        for path in (data, folder / "runs"):
            for left in sorted(path.rglob("*"), reverse=True):
                left.rmdir() if left.is_dir() else left.unlink()
