"""What skerch 1.2 makes of its own synthetic matrices, and of a layout of files; for sketches.py.

    PYTHON benchmarks/sketches_peer.py matrices OUT.npz      needs torch and skerch 1.2
    PYTHON benchmarks/sketches_peer.py files FOLDER

Its tests decompose matrices of `exp` with a decay of 100, that is of a rank to rounding: the first
half of the cases here, with its seeds, shapes, noises and recoveries. The other half are the
families of its documentation (Tropp et al. 2019, 7.3.1), whose eigenvalues go on.
"""

import itertools
import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from skerch.algorithms import seigh, ssvd
from skerch.hdf5 import DistributedHDF5Tensor, create_hdf5_layout_lop
from skerch.synthmat import RandomLordMatrix

SEEDS = (-12345, 54321, 17265, 127419128)
TOLERANCES = {"float32": 1e-3, "complex64": 1e-3, "float64": 3e-8, "complex128": 3e-8}
NOISES = ("rademacher", "gaussian", "ssrft", "phase")
RECOVERIES = ("hmt", "singlepass", "nystrom", "oversampled")
OF_TESTS = {  # rows, columns, rank, outer, inner
    "seigh": ((30, 30, 5, 15, 20), (200, 200, 20, 35, 40)),
    "ssvd": ((30, 30, 5, 15, 20), (20, 30, 5, 15, 20), (30, 20, 5, 15, 20), (200, 150, 20, 35, 40)),
}
FAMILIES = {"exp": (0.01, 0.1, 0.5), "poly": (0.5, 1.0, 2.0), "noise": (1e-1, 1e-2, 1e-4)}
SIZE, RANK, OUTER, INNER = 100, 10, 20, 40


def in_tests():
    """Yield the matrices of skerch's tests of `seigh` and `ssvd`."""
    for of, seed, dtype in itertools.product(OF_TESTS, SEEDS, TOLERANCES):
        for m, n, rank, outer, inner in OF_TESTS[of]:
            matrix, _ = RandomLordMatrix.exp(
                (m, n), rank, decay=100, diag_ratio=0.0, symmetric=of == "seigh", psd=False,
                seed=seed, dtype=getattr(torch, dtype),
            )  # fmt: skip
            noises = NOISES if dtype.startswith("complex") else NOISES[:-1]
            about = {"of": of, "family": "of its tests", "dtype": dtype, "seed": seed}
            yield about | {"outer": outer, "inner": inner, "noises": noises}, matrix


def in_documentation():
    """Yield the families that its documentation names."""
    for family, parameters in FAMILIES.items():
        for parameter, psd, seed in itertools.product(parameters, (True, False), SEEDS):
            if family == "noise" and not psd:
                continue
            make = getattr(RandomLordMatrix, family)
            options = {"snr": parameter} if family == "noise" else {"decay": parameter, "psd": psd}
            matrix, _ = make((SIZE, SIZE), RANK, seed=seed, dtype=torch.float64, **options)
            about = {"of": "seigh", "family": family, "parameter": parameter, "psd": psd}
            about |= {"dtype": "float64", "seed": seed, "noises": ("ssrft",)}
            yield about | {"outer": OUTER, "inner": INNER}, matrix


def decomposed(about, matrix, noise, recovery):
    """Return the errors of a decomposition by skerch."""
    name = f"oversampled_{about['inner']}" if recovery == "oversampled" else recovery
    seed, size = about["seed"] + 1, max(matrix.shape)
    options = {"noise_type": noise, "recovery_type": name, "meas_blocksize": size}
    if about["of"] == "seigh":
        values, V = seigh(matrix, "cpu", matrix.dtype, about["outer"], seed, **options)
        U, Vh = V, V.mH
    else:
        U, values, Vh = ssvd(matrix, "cpu", matrix.dtype, about["outer"], seed, **options)
    array = lambda x: x.resolve_conj().numpy()
    return errors(*map(array, (matrix, U, values, Vh)))


def errors(matrix, U, values, Vh):
    """Return the largest entry of the residual, its norm, and how far U and V are from bases."""
    rest = matrix - (U * values) @ Vh
    beside = lambda G: float(np.abs(G - np.eye(len(G))).max())
    return {
        "entry": float(np.abs(rest).max()),
        "norm": float(np.linalg.norm(rest)),
        "basis": max(beside(U.conj().T @ U), beside(Vh @ Vh.conj().T)),
    }


def matrices(out):
    """Decompose all and write matrices and errors."""
    torch.set_num_threads(1)
    cases, arrays = [], {}
    for about, matrix in itertools.chain(in_tests(), in_documentation()):
        found = [
            {"noise": noise, "recovery": recovery} | decomposed(about, matrix, noise, recovery)
            for noise in about["noises"]
            for recovery in RECOVERIES
        ]
        arrays[f"matrix{len(cases)}"] = matrix.resolve_conj().numpy()
        cases.append(about | {"skerch": found})
    result = {"version": version("skerch"), "tolerances": TOLERANCES, "cases": cases}
    np.savez(out, result=np.array(json.dumps(result)), **arrays)


def files(folder):
    """Try skerch's functions on the layout in folder/ours; make one of its own in folder/theirs.

    Ours are of shapes (7, 2) and (3, 3), all columns measured, inner_MERGED.h5 merged by us.
    """
    ours, theirs = folder / "ours", folder / "theirs"
    load = lambda path, mode="r": DistributedHDF5Tensor.load(str(path), mode)

    def read(path):
        data, flags, file = load(path)
        with file:
            return data[:].tolist(), [flag.decode() for flag in flags[:]]

    def write(path):
        data, flags, file = load(path, "r+")
        with file:
            data[:], flags[:] = data[:] + 100, "by skerch"
        return read(path)

    def merge(kind):
        out = DistributedHDF5Tensor.merge(str(ours / f"{kind}_ALL.h5"), str(folder / f"{kind}.h5"))
        return read(out)

    attempts = {
        "read a column": lambda: read(ours / "leftouter_0000000000.h5"),
        "read the virtual file": lambda: read(ours / "inner_ALL.h5"),
        "read a merged file": lambda: read(ours / "inner_MERGED.h5"),
        "merge leftouter": lambda: merge("leftouter"),
        "merge inner": lambda: merge("inner"),
        "write a column": lambda: write(ours / "leftouter_0000000001.h5"),
    }
    found = {}
    for name, attempt in attempts.items():
        try:
            found[name] = attempt()
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    theirs.mkdir()
    create_hdf5_layout_lop(str(theirs), (7, 7), "float32", 2, lo_meas=2, inner_meas=3)
    found["its own files"] = sorted(path.name for path in theirs.iterdir())
    print(json.dumps(found))


if __name__ == "__main__":
    what, where = sys.argv[1:]
    matrices(where) if what == "matrices" else files(Path(where))
