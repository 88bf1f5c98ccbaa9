"""Records what skerch 1.2 makes of a small matrix, and a layout of files as it splits them.

    python tests/golden/make_skerch.py

needs torch and skerch 1.2.0. Writes skerch.npz and skerch_rows.zip. (What skerch 0.6 does, which
the scripts of the paper use, is in hessian.npz and skerch_layout.zip.)
"""

import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from skerch.__main__ import main_wrapper
from skerch.a_posteriori import apost_error_bounds
from skerch.recovery import hmt_h, nystrom_h, oversampled, oversampled_h, singlepass_h
from skerch.synthmat import RandomLordMatrix
from skerch.utils import gaussian_noise

HERE = Path(__file__).resolve().parent
D, k, s = 30, 8, 16
found = {}
draw = lambda seed, *shape: gaussian_noise(shape, seed=seed, dtype=torch.float64, device="cpu")
V, right, left = draw(1, D, k), draw(2, D, s), draw(3, s, D)
found |= {"V": V, "right": right, "left": left}

# Recoveries of one matrix from one set of random vectors; `singlepass` and `nystrom` are for
# positive ones, where all have small residuals.
for name, psd in (("positive", True), ("indefinite", False)):
    A, _ = RandomLordMatrix.exp((D, D), 3, decay=0.1, seed=7, dtype=torch.float64, psd=psd)
    Y, inner = A @ V, left @ (A @ right)
    cores = {
        "hmt": hmt_h(Y, A, as_eigh=False),
        "singlepass": singlepass_h(Y, V, as_eigh=False),
        "nystrom": nystrom_h(Y, V, as_eigh=False),
        "oversampled": oversampled_h(Y, inner, left, right, as_eigh=False),
    }
    found |= {f"{name}_{recovery}": Q @ C @ Q.T for recovery, (C, Q) in cores.items()}
    found[name] = A
B, _ = RandomLordMatrix.exp((D, D), 3, decay=0.1, seed=8, dtype=torch.float64, symmetric=False)
P, Ch = oversampled(B @ V, draw(4, k, D) @ B, left @ (B @ right), left, right, as_svd=False)
found |= {"general": B, "general_left": draw(4, k, D), "general_oversampled": P @ Ch}
found = {name: value.numpy() for name, value in found.items()}

cases = [(10, 0.0, True), (10, 1.0, True), (1000, 0.1, True), (1000, 0.1, False), (30, 0.5, False)]
found["bounds"] = np.array([[*case, *apost_error_bounds(*case).values()] for case in cases])
np.savez_compressed(HERE / "skerch.npz", **found)

with TemporaryDirectory() as folder, zipfile.ZipFile(HERE / "skerch_rows.zip", "w", 8) as archive:
    for part in (1, 2):
        path = Path(folder) / str(part)
        path.mkdir()
        main_wrapper(
            ["create_hdf5_layout_lop", "--hdf5dir", str(path), "--lop_shape", "7,7"]
            + ["--lo", "2", "--inner", "3", "--partsize", str(part)]
        )
        for file in sorted(path.iterdir()):
            archive.write(file, f"{part}/{file.name}")
