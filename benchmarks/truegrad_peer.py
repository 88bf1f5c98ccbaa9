"""truegrad 2.0.0 and BackPACK 1.7.1 for truegrad.py, in an interpreter that has them and torch.

    PYTHON truegrad_peer.py SETTINGS                 reads names from stdin, prints milliseconds
    PYTHON truegrad_peer.py SETTINGS --peak NAME     prints the bytes of a model and one gradient

A name is "model way"; the ways are plain, truegrad.nn (of mlp) and backpack.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent]


def mlp(linear, setting):
    """Return dense layers, each but the last with a ReLU."""
    layers = []
    for _ in range(setting["layers"]):
        layers += [linear(setting["width"], setting["width"]), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, n_in, n_out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(n_out), nn.BatchNorm2d(n_out)
        self.shortcut = nn.Sequential()
        if stride > 1 or n_in != n_out:
            conv = nn.Conv2d(n_in, n_out, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(n_out))

    def forward(self, x):
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """ResNet-18; averages in its norms, as BackPACK does not take others."""

    def __init__(self, width):
        super().__init__()
        stem = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        layers = [stem, nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        n_in = width
        for stage in range(4):
            for stride in (1 if stage == 0 else 2, 1):
                layers.append(Block(n_in, width * 2**stage, stride))
                n_in = width * 2**stage
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(n_in, 1000)
        self.eval()

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


class Layer(nn.Module):
    """Attention of dense layers and a pointwise network, norms in front."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.norms = heads, nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.inner, self.outer = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        y, (n, t, c) = self.norms[0](x), x.shape
        split = lambda z: z.reshape(n, t, self.heads, c // self.heads).transpose(1, 2)
        q, k, v = (split(layer(y)) for layer in (self.query, self.key, self.value))
        y = functional.softmax(q @ k.transpose(2, 3) / (c // self.heads) ** 0.5, -1) @ v
        x = x + self.out(y.transpose(1, 2).reshape(n, t, c))
        return x + self.outer(functional.gelu(self.inner(self.norms[1](x)), approximate="tanh"))


class ViT(nn.Module):
    """A vision transformer with a mean over patches."""

    def __init__(self, width, layers, heads, patch, size):
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.positions = nn.Parameter(0.02 * torch.randn((size // patch) ** 2, width))
        self.layers = nn.Sequential(*(Layer(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1000)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.layers(x)).mean(1))


def problem(name, settings):
    """Return the loss and a context for the backward pass of one way of one model."""
    model_name, way = name.split()
    setting = settings[model_name]
    torch.manual_seed(0)
    if model_name == "mlp":
        import truegrad.nn

        model = mlp(truegrad.nn.Linear if way == "truegrad.nn" else nn.Linear, setting)
        x = torch.randn(setting["n"], setting["width"])
        target, criterion = torch.randn(setting["n"], setting["width"]), nn.MSELoss()
    else:
        kept = {k: v for k, v in setting.items() if k != "n"}
        size = kept.pop("size") if model_name == "resnet" else kept["size"]
        model = (ResNet if model_name == "resnet" else ViT)(**kept)
        x = torch.randn(setting["n"], 3, size, size)
        target, criterion = torch.randint(0, 1000, (setting["n"],)), nn.CrossEntropyLoss()
    if way == "backpack":
        from backpack import backpack, extend, extensions

        model, criterion = extend(model), extend(criterion)
        context = lambda: backpack(extensions.SumGradSquared())
    else:
        from contextlib import nullcontext as context

    def run():
        """Return seconds of the forward pass and of the backward pass."""
        for p in model.parameters():
            p.grad = p.sum_grad_squared = None
        started = time.perf_counter()
        with context():
            loss = criterion(model(x), target)
            middle = time.perf_counter()
            loss.backward()
        return middle - started, time.perf_counter() - middle

    def squares():
        """Return how many parameters there are, and of how many there are no squares."""
        found = [getattr(p, "sum_grad_squared", None) for p in model.parameters()]
        return {"parameters": len(found), "without_squares": sum(s is None for s in found)}

    return run, squares


def resident(name):
    """Return the bytes that the process holds now (VmRSS) or held at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(x for x in lines if x.startswith(name)).split()[1])


def main():
    """Serve."""
    settings = json.loads(sys.argv[1])
    if sys.argv[2:3] == ["--peak"]:
        import backpack  # noqa: F401  before counting
        import truegrad.nn  # noqa: F401

        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = resident("VmRSS")
        run, squares = problem(sys.argv[3], settings)
        run()
        print(json.dumps({"peak": resident("VmHWM") - before, **squares()}))
        return
    print(json.dumps({"torch": torch.__version__, "numpy": np.__version__}), flush=True)
    runs = {}
    for line in sys.stdin:
        name = line.strip()
        if name not in runs:
            runs[name] = problem(name, settings)[0]
            runs[name]()
        forward, backward = runs[name]()
        print(json.dumps({"forward": 1e3 * forward, "backward": 1e3 * backward}), flush=True)


if __name__ == "__main__":
    main()
