"""Records what skerch 0.6 and curvlinops 3.0.1 make of small examples.

    python tests/golden/make_hessian.py FOLDER_OF_SKERCH_0.6

needs torch, curvlinops-for-pytorch 3.0.1 and, in the folder, the package skerch as
https://github.com/andres-fr/hessian_overlap bundles it. Writes hessian.npz and skerch_layout.zip.
"""

import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

sys.path.insert(0, sys.argv[1])
from curvlinops import GGNLinearOperator, HessianLinearOperator
from skerch.__main__ import main_wrapper
from skerch.a_posteriori import a_posteriori_error_bounds, scree_bounds
from skerch.a_priori import a_priori_hyperparams
from skerch.distributed_decompositions import core_pinv_solve, orthogonalize
from skerch.distributed_measurements import DistributedHDF5
from skerch.linops import DiagonalLinOp
from skerch.ssrft import SSRFT

HERE = Path(__file__).resolve().parent
found = {}
torch.manual_seed(0)

# Hessian and Gauss-Newton products, with a last batch that is smaller.
model = torch.nn.Sequential(
    torch.nn.Linear(6, 5),
    torch.nn.Tanh(),
    torch.nn.Linear(5, 4),
    torch.nn.Tanh(),
    torch.nn.Linear(4, 3),
).double()
x, y = torch.randn(10, 6).double(), torch.randint(0, 3, (10,))
batches = [(x[i : i + 4], y[i : i + 4]) for i in range(0, 10, 4)]
params = list(model.parameters())
for name, kind in (("hessian", HessianLinearOperator), ("ggn", GGNLinearOperator)):
    operator = kind(model, torch.nn.CrossEntropyLoss(), params, batches)
    found[name] = (operator @ torch.eye(operator.shape[1]).double()).numpy()
found |= {f"param{i}": p.detach().numpy() for i, p in enumerate(params)}
found |= {"x": x.numpy(), "y": y.numpy()}

# The core of a sketch from SSRFT noise, asymmetric as skerch leaves it.
D, k, s = 60, 8, 16
basis = torch.linalg.qr(torch.randn(D, D).double())[0]
values = torch.exp(-0.3 * torch.arange(D).double()) * (1 - 2 * (torch.arange(D) % 3 == 1).double())
A = basis * values @ basis.T
left, right = SSRFT((s, D), seed=11), SSRFT((s, D), seed=12)
rows = lambda op: torch.stack([torch.eye(s).double()[i] @ op for i in range(s)])
Y = torch.stack([A @ row for row in rows(right)], dim=1)
inner = torch.stack([left @ column for column in Y.T], dim=1)
Q = orthogonalize(Y[:, :k].clone())
U, S, Vt = torch.linalg.svd(inner)
core = core_pinv_solve(Q, left, U) @ (DiagonalLinOp(S) @ core_pinv_solve(Q, right, Vt.T).T)
found |= {"A": A, "left": rows(left), "right": rows(right), "core_QCQ": Q @ core @ Q.T}
found = {name: np.asarray(value) for name, value in found.items()}

for n, error in ((30, 0.5), (30, 0.25), (7, 1.0)):
    found[f"bounds_{n}_{error:g}"] = np.array(list(a_posteriori_error_bounds(n, error).values()))
spectrum = torch.tensor([3.0, -2.0, 1.0, 0.5])
found["scree"] = np.stack([np.asarray(b) for b in scree_bounds(spectrum, 4.0, 0.7)])
cases = [((7030, 7030), 400_000, True), ((100, 200), 12_345, False), ((5000, 5000), 10**6, True)]
found["budgets"] = np.array(
    [[*shape, b, sym, *a_priori_hyperparams(shape, b, hermitian=sym)] for shape, b, sym in cases]
)
np.savez_compressed(HERE / "hessian.npz", **found)

# A layout of their command, as it is made, and with some columns measured, and merged.
with TemporaryDirectory() as folder, zipfile.ZipFile(HERE / "skerch_layout.zip", "w", 8) as archive:
    for state in ("created", "measured"):
        path = Path(folder) / state
        path.mkdir()
        main_wrapper(
            ["create_hdf5_layout", "--hdf5dir", str(path), "--dtype", "float32", "--shape", "7,7"]
            + ["--outer", "2", "--inner", "3", "--sym"]
        )
        if state == "measured":
            for name, count, size in (("leftouter", 2, 7), ("inner", 3, 3)):
                for i in range(count):
                    data, flag, file = DistributedHDF5.load(path / f"{name}_{i:010d}.h5")
                    data[:] = np.arange(size) + 10 * i
                    flag[0] = "measured"
                    file.close()
                every = path / f"{name}_ALL.h5"
                DistributedHDF5.merge_all(str(every), str(path / f"{name}_MERGED.h5"))
        for file in sorted(path.iterdir()):
            archive.write(file, f"{state}/{file.name}")
