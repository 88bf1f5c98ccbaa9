r"""Write truegrad_curves.npz: 50 steps of truegrad 2.0.0's TGAdamW on handwritten digits.

Run by hand:

    python -m pip install torch==2.13.0 numpy scikit-learn
    python -m pip install --no-deps truegrad==2.0.0
    python make_truegrad_curves.py

Three models of truegrad.nn's layers: a multilayer perceptron, a convolutional network, a small
vision transformer. Step i sees the digits 16 i to 16 i + 16, modulo 256. Arrays are `images`,
`labels`, and per model `model/parameter` at the start and `model/curve`, the loss of every batch
before its step.
"""

import pathlib

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy, gelu, layer_norm
from truegrad import nn
from truegrad.functional import add, mul
from truegrad.optim import TGAdamW

HERE = pathlib.Path(__file__).parent
N_IMAGES, BATCH, STEPS, LEARNING_RATE = 256, 16, 50, 3e-3
WIDTH, HEADS = 16, 2
torch.set_default_dtype(torch.float64)


def mlp():
    """64 - 32 - 10."""
    layers = (nn.Linear(64, 32), torch.nn.ReLU(), nn.Linear(32, 10))
    return torch.nn.Sequential(torch.nn.Flatten(), *layers)


def cnn():
    """Two convolutions, the second with stride 2, and a dense layer."""
    return torch.nn.Sequential(
        torch.nn.Unflatten(1, (1, 8)),
        nn.Conv2d(1, 8, 3, padding=1),
        torch.nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        nn.Linear(128, 10),
    )


class Norm(torch.nn.Module):
    """Layer normalisation; truegrad 2.0.0's own does not take the last axis of three."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(WIDTH))
        self.bias = torch.nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x):
        """Normalise."""
        return add(mul(layer_norm(x, (WIDTH,)), self.weight), self.bias)


class ViT(torch.nn.Module):
    """Patches of 2 x 2, one block of attention and a pointwise network, a mean over patches."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Linear(4, WIDTH)
        self.position = torch.nn.Parameter(torch.randn(16, WIDTH) / 4)
        self.norm1, self.norm2 = Norm(), Norm()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.inner, self.outer = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x):
        """Return logits."""
        x = x.reshape(-1, 4, 2, 4, 2).transpose(2, 3).reshape(-1, 16, 4)
        x = add(self.patch(x), self.position)
        y = self.norm1(x)
        heads = lambda z: z.reshape(-1, 16, HEADS, WIDTH // HEADS).transpose(1, 2)
        q, k, v = (heads(layer(y)) for layer in (self.query, self.key, self.value))
        weights = (q @ k.transpose(2, 3) / (WIDTH // HEADS) ** 0.5).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(-1, 16, WIDTH))
        x = x + self.outer(gelu(self.inner(self.norm2(x))))
        return self.head(x.mean(1))


def main():
    """Train and write."""
    digits = load_digits()
    images, labels = digits.images[:N_IMAGES], digits.target[:N_IMAGES]
    out = {"images": images.astype(np.uint8), "labels": labels.astype(np.uint8)}
    for name, make in {"mlp": mlp, "cnn": cnn, "vit": ViT}.items():
        torch.manual_seed(0)
        model = make()
        for key, p in model.named_parameters():
            out[f"{name}/{key}"] = p.detach().numpy().copy()
        optimizer, curve = TGAdamW(model.parameters(), lr=LEARNING_RATE), []
        for step in range(STEPS):
            taken = np.arange(BATCH * step, BATCH * step + BATCH) % N_IMAGES
            x, y = torch.tensor(images[taken] / 16), torch.tensor(labels[taken])
            loss = cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
        out[f"{name}/curve"] = np.array(curve)
        print(name, curve[0], curve[-1])
    np.savez_compressed(HERE / "truegrad_curves.npz", **out)


if __name__ == "__main__":
    main()
