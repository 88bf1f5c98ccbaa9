r"""Write oialr.npz: layers and a training run of the PyTorch implementation of OIALR.

Run by hand, with a checkout of https://github.com/Helmholtz-AI-Energy/OIALR (commit e9e885d):

    python -m pip install torch==2.13.0 numpy scikit-learn
    python make_oialr.py CHECKOUT

Its packages import torchvision, mpi4py and hydra; the files that matter are loaded behind empty
packages instead. Arrays:

- `NAME/weight`, and per check i of `CHECKS`: the weight before it, `NAME/before/i`, and behind it,
  `NAME/weight/i`, with `NAME/rank/i`. NAME is a layer; `conv*/x` and `conv*/y` are an input
  and the output with the weight of the last check.
- `run/parameter` at the start, `run/curve`, the loss of every step, `run/ranks` of the four
  factored layers behind every step: 40 steps of AdamW on digits.
"""

import importlib.util
import itertools
import pathlib
import sys
import types

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

HERE = pathlib.Path(__file__).parent
CHECKS = 4
WIDTHS = (64, 48, 48, 48, 48, 10)
STEPS, BATCH, DELAY, FREQUENCY, CUTOFF = 40, 32, 10, 10, 0.25


def load(checkout):
    """Return the modules of the original by name."""
    root = pathlib.Path(checkout) / "src" / "madonna" / "models"
    for name in ("madonna", "madonna.models", "madonna.models.oialr"):
        package = types.ModuleType(name)
        package.__path__ = []
        sys.modules[name] = package
    loaded = {}
    files = ("utils", "oialr.linearusvh", "oialr.convusvh", "oialr.attentionusvh", "oialr.model")
    for name in files:
        full = f"madonna.models.{name}"
        path = root / f"{name.replace('.', '/')}.py"
        spec = importlib.util.spec_from_file_location(full, path)
        module = sys.modules[full] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        loaded[name.split(".")[-1]] = module
    return loaded


def layers(original, out):
    """Factor, disturb and check single layers."""
    draw = np.random.default_rng(0).normal  # constructors of the layers seed PyTorch anew
    randn = lambda *shape: torch.tensor(draw(size=shape), dtype=torch.float32)
    linear = lambda i, o: lambda: original["linearusvh"].SVDLinearUSVh(
        i, o, start_weight=randn(o, i), bias=False, reinit_shapes=True, uvhthreshold=0.9,
        sigma_cutoff_fraction=0.3,
    )  # fmt: skip

    def conv(dims, i, o, stride=1, padding=0):
        make = getattr(original["convusvh"], f"SVDConv{dims}dUSVh")
        # As tuples: as numbers they would be pairs in one dimension too.
        sizes = {"kernel_size": 3, "stride": stride, "padding": padding, "dilation": 1}
        return lambda: make(
            i, o, **{k: (v,) * dims for k, v in sizes.items()}, bias=False, reinit_shapes=True,
            start_weight=randn(o, i, *[3] * dims), sigma_cutoff_fraction=0.3,
        )  # fmt: skip

    makers = {
        "tall": linear(12, 20),
        "wide": linear(20, 12),
        "square": linear(16, 16),
        "conv2": conv(2, 4, 10),
        "conv2_stride": conv(2, 3, 6, stride=2, padding=1),
        "conv1": conv(1, 5, 12),
    }
    for name, make in makers.items():
        layer = make()
        out[f"{name}/weight"] = layer.get_weight().detach().numpy().copy()
        for i in range(CHECKS):
            k = len(layer.s)
            change = randn(k, k) * 0.3 / k**0.5 * layer.s.detach().max()
            # A spectrum that fades: the later the column, the less of it.
            change *= torch.linspace(1, 0, k)[None] ** 2
            with torch.no_grad():
                layer.s += change
                layer.s *= torch.linspace(1, 0.2, k)[None]
            out[f"{name}/before/{i}"] = layer.get_weight().detach().numpy().copy()
            layer.test_stability_distributed(working_rank=0, name=name)
            out[f"{name}/rank/{i}"] = np.array(layer.inner_dim.item())
            out[f"{name}/weight/{i}"] = layer.get_weight().detach().numpy().copy()
        if name.startswith("conv"):
            x = randn(2, layer.in_channels, *[9] * int(name[4]))
            out[f"{name}/x"] = x.numpy()
            out[f"{name}/y"] = layer(x).detach().numpy()


def run(original, out):
    """Train a multilayer perceptron with the original's wrapper."""
    digits = load_digits()
    images = torch.tensor(digits.images[:256].reshape(256, 64) / 16, dtype=torch.float32)
    labels = torch.tensor(digits.target[:256])
    torch.manual_seed(0)
    pairs = list(itertools.pairwise(WIDTHS))
    made = [torch.nn.Linear(i, o) for i, o in pairs]
    parts = [x for layer in made[:-1] for x in (layer, torch.nn.ReLU())] + [made[-1]]
    net = torch.nn.Sequential(*parts)
    for key, p in net.named_parameters():
        out[f"run/{key}"] = p.detach().numpy().copy()
    model = original["model"].OIALRModel(
        net, stability_frequency=FREQUENCY, delay=DELAY, sigma_cutoff_fraction=CUTOFF,
        keep_last_layer=True, use_ddp=False, network_layer_perc_step=0.4,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.01)
    model.set_optimizer(optimizer)
    curve, ranks = [], []
    for step in range(STEPS):
        taken = np.arange(BATCH * step, BATCH * step + BATCH) % 256
        loss = cross_entropy(model(images[taken]), labels[taken])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
        ranks.append([m.inner_dim.item() if hasattr(m, "inner_dim") else 0 for m in net])
    out["run/curve"], out["run/ranks"] = np.array(curve), np.array(ranks)[:, [0, 2, 4, 6]]
    out["run/images"] = (images.numpy() * 16).astype(np.uint8)
    out["run/labels"] = labels.numpy().astype(np.uint8)
    print(curve[0], curve[9:12], curve[-1], out["run/ranks"][::5].tolist())


def main():
    """Write the file."""
    original, out = load(sys.argv[1]), {}
    layers(original, out)
    run(original, out)
    np.savez_compressed(HERE / "oialr.npz", **out)
    print(sum(x.nbytes for x in out.values()), {k: int(v) for k, v in out.items() if "/rank/" in k})


if __name__ == "__main__":
    main()
