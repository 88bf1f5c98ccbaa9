"""The original's low-rank layers in PyTorch, for oialr.py.

PYTHON oialr_peer.py CHECKOUT WIDTH        reads "dense" or "n/PART" from stdin, prints milliseconds
"""

import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

HERE = Path(__file__).resolve().parent
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != HERE]
sys.path.insert(0, str(HERE.parent / "tests" / "golden"))
from make_oialr import load  # noqa: E402

TOKENS, BATCH, HEADS, BLOCKS = 64, 8, 4, 2


class Encoder(nn.Module):
    """A block of a transformer, with the dense layers that `make` gives."""

    def __init__(self, width, make):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (make(width, width) for _ in range(4))
        self.inner, self.outer = make(width, 4 * width), make(4 * width, width)

    def forward(self, x):
        """Return tokens."""
        y = self.norm1(x)
        heads = lambda z: z.reshape(*z.shape[:2], HEADS, -1).transpose(1, 2)
        q, k, v = (heads(layer(y)) for layer in (self.query, self.key, self.value))
        mixed = functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).reshape(x.shape))
        return x + self.outer(functional.gelu(self.inner(self.norm2(x))))


def main():
    """Answer."""
    checkout, width = sys.argv[1], int(sys.argv[2])
    layer = load(checkout)["linearusvh"].SVDLinearUSVh
    torch.manual_seed(0)
    x = torch.randn(BATCH, TOKENS, width)
    steps = {}

    def step_of(name):
        make = nn.Linear
        if name != "dense":
            ratio = 1 / int(name.split("/")[1])
            make = lambda i, o: layer(i, o, inner_dim_init_ratio=ratio, start_bias=torch.zeros(o))
        net = nn.Sequential(*(Encoder(width, make) for _ in range(BLOCKS)))
        trained = [p for p in net.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-3)

        def step():
            optimizer.zero_grad()
            ((net(x) - 1) ** 2).mean().backward()
            optimizer.step()

        step()
        return step

    for line in sys.stdin:
        name = line.strip()
        step = steps.setdefault(name, None) or step_of(name)
        steps[name] = step
        began = time.perf_counter()
        step()
        print(1e3 * (time.perf_counter() - began), flush=True)


if __name__ == "__main__":
    main()
