r"""Write truegrad_peers.npz: what BackPACK 1.7.1 and truegrad 2.0.0 and 5.0.0 compute.

Run by hand, with the peers in folders of their own (two releases of truegrad do not fit in one):

    python -m pip install torch==2.13.0 numpy
    python -m pip install --no-deps --target bp backpack-for-pytorch==1.7.1 \
        einops unfoldNd packaging
    python -m pip install --no-deps --target tg2 truegrad==2.0.0
    python -m pip install --no-deps --target tg5 truegrad==5.0.0
    for part in bp tg2 tg5; do PYTHONPATH=$part python make_truegrad_peers.py $part; done
    python make_truegrad_peers.py join

Every array of a case is named `case/array`. Losses are means of squares over all entries.
"""

import pathlib
import sys

import numpy as np
import torch

HERE = pathlib.Path(__file__).parent
torch.set_default_dtype(torch.float64)


def layers(nn):
    """Small layers and their inputs, from a seed."""
    torch.manual_seed(0)
    return {
        "linear": (nn.Linear(4, 3), torch.randn(5, 4)),
        "sequence": (nn.Linear(4, 3), torch.randn(5, 6, 4)),
        "conv": (nn.Conv2d(2, 3, (3, 2), stride=2, padding=1), torch.randn(5, 2, 6, 5)),
    }


def saved(out, case, layer, x, squares):
    """Note a layer's arrays under names."""
    out[f"{case}/x"] = x.numpy()
    for name, p in layer.named_parameters():
        out[f"{case}/{name}"] = p.detach().numpy()
        out[f"{case}/{name}/squares"] = squares(p).detach().numpy()


def backpack():
    """Sums of squared gradients of a mean over 5 examples."""
    from backpack import backpack, extend, extensions

    out = {}
    torch.manual_seed(1)
    cases = layers(torch.nn)
    cases["embedding"] = (torch.nn.Embedding(7, 3), torch.randint(0, 7, (5, 6)))
    for case, (layer, x) in cases.items():
        model = extend(torch.nn.Sequential(layer, torch.nn.Flatten()))
        loss = extend(torch.nn.MSELoss())
        y = model(x)
        with backpack(extensions.SumGradSquared()):
            loss(y, torch.zeros_like(y)).backward()
        saved(out, f"backpack {case}", layer, x, lambda p: p.sum_grad_squared)
    return out


def steps(optimizer, gradients, squares, start):
    """Ten steps of an optimizer on one parameter with given gradients and squares."""
    p = torch.nn.Parameter(torch.tensor(start))
    optimizer = optimizer([p])
    path = []
    for g, s in zip(gradients, squares, strict=True):
        p.grad = torch.tensor(g)
        p.sum_grad_squared = torch.tensor(s)
        optimizer.step()
        path.append(p.detach().numpy().copy())
    return np.stack(path)


def trajectories(cases):
    """Paths of TGAdamW under these options."""
    from truegrad.optim import TGAdamW

    random = np.random.default_rng(0)
    start, g = random.normal(size=(3, 4)), random.normal(size=(10, 3, 4))
    s = g**2 * (1 + 3 * random.random(g.shape))
    out = {"steps/start": start, "steps/gradients": g, "steps/squares": s}
    for name, options in cases.items():
        make = lambda params, options=options: TGAdamW(params, lr=0.02, **options)
        out[f"steps/{name}"] = steps(make, g, s, start)
    return out


def truegrad2():
    """Squares of terms, and steps of the optimizer of release 2.0.0."""
    from truegrad import nn

    out = {}
    for case, (layer, x) in layers(nn).items():
        layer(x).square().mean().backward()
        saved(out, f"truegrad {case}", layer, x, lambda p: p.sum_grad_squared)
    out.update(
        trajectories(
            {
                "plain": {},
                "no graft": {"graft": False},
                "two betas": {"betas": (0.8, 0.9), "graft": False},
                "three betas": {"betas": (0.8, 0.9, 0.95)},
                "to init": {"decay_to_init": True, "weight_decay": 0.5},
                "large eps": {"eps": 0.3, "graft": False},
            }
        )
    )
    return out


def truegrad5():
    """Steps of the optimizer of release 5.0.0, which clamps roots to eps."""
    paths = trajectories({"clamp": {"eps": 0.9, "graft": False}, "clamp, graft": {}})
    return {name: path for name, path in paths.items() if "clamp" in name}


if __name__ == "__main__":
    PART = sys.argv[1]
    if PART == "join":
        parts = [HERE / f"part_{name}.npz" for name in ("bp", "tg2", "tg5")]
        joined = {k: v for part in parts for k, v in np.load(part).items()}
        np.savez_compressed(HERE / "truegrad_peers.npz", **joined)
        for part in parts:
            part.unlink()
    else:
        make = {"bp": backpack, "tg2": truegrad2, "tg5": truegrad5}[PART]
        np.savez(HERE / f"part_{PART}.npz", **make())
