"""curvlinops and skerch 0.6 for hessian.py, in an interpreter that has them and torch.

    PYTHON hessian_peer.py FILE SKERCH     reads names from stdin, prints milliseconds, of CPUs too

FILE holds weights, biases, examples and columns; SKERCH is the folder of the package skerch 0.6.
The names: block (all columns at once), single (ten of them one by one), seigh (50/100). What they
found is written beside FILE, as result_NAME.npy.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent]


def operator(file):
    """Return the Hessian of the same network at the same weights over the same examples."""
    from curvlinops import HessianLinearOperator

    layers = []
    n = sum(name.startswith("weight") for name in file)
    for i in range(n):
        weight, bias = (torch.from_numpy(file[f"{part}{i}"].copy()) for part in ("weight", "bias"))
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.weight.data, linear.bias.data = weight, bias
        layers += [linear, nn.Tanh()]
    model = nn.Sequential(*layers[:-1])
    batch = torch.from_numpy(file["x"].copy()), torch.from_numpy(file["y"].astype(np.int64))
    return HessianLinearOperator(
        model, nn.CrossEntropyLoss(), list(model.parameters()), [batch], check_deterministic=False
    )


def main():
    """Serve."""
    path = Path(sys.argv[1])
    with np.load(path) as arrays:
        file = dict(arrays)
    sys.path.insert(0, sys.argv[2])
    from skerch.decompositions import seigh

    H = operator(file)
    columns = torch.from_numpy(file["columns"].copy())

    def one_by_one():
        return torch.stack([H @ columns[:, i] for i in range(10)], 1)

    def decompose():
        Q, U, S = seigh(H, "cpu", torch.float32, 50, 100)
        return torch.cat([S[None], Q @ U])

    runs = {"block": lambda: H @ columns, "single": one_by_one, "seigh": decompose}
    print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads()}), flush=True)
    for line in sys.stdin:
        name = line.strip()
        started, cpu = time.perf_counter(), time.process_time()
        result = runs[name]()
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        np.save(path.with_name(f"result_{name}.npy"), result.detach().numpy())
        print(json.dumps({"ms": 1e3 * seconds, "cpu_ms": 1e3 * cpu}), flush=True)


if __name__ == "__main__":
    main()
