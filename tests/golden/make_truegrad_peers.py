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


def trajectories(optimizers):
    """Paths of optimizers."""
    random = np.random.default_rng(0)
    start, g = random.normal(size=(3, 4)), random.normal(size=(10, 3, 4))
    s = g**2 * (1 + 3 * random.random(g.shape))
    out = {"steps/start": start, "steps/gradients": g, "steps/squares": s}
    for name, make in optimizers.items():
        out[f"steps/{name}"] = steps(make, g, s, start)
    return out


def adamw(**options):
    """TGAdamW with these options, of the release that is imported."""
    from truegrad.optim import TGAdamW

    return lambda params: TGAdamW(params, lr=0.02, **options)


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
                "plain": adamw(),
                "no graft": adamw(graft=False),
                "two betas": adamw(betas=(0.8, 0.9), graft=False),
                "three betas": adamw(betas=(0.8, 0.9, 0.95)),
                "to init": adamw(decay_to_init=True, weight_decay=0.5),
                "large eps": adamw(eps=0.3, graft=False),
            }
        )
    )
    return out


def truegrad5():
    """Steps of the optimizers of release 5.0.0, which clamp roots to eps, and of its wrappers."""
    from truegrad.optim import Graft, Sign, TGLaProp, TGRMSProp

    lr, none = {"lr": 0.02}, {"lr": 0.02, "weight_decay": 0}
    sgd = lambda p: torch.optim.SGD(p, lr=1)
    rms = lambda p: TGRMSProp(p, **none, graft=False)
    return trajectories(
        {
            "clamp": adamw(eps=0.9, graft=False),
            "clamp, graft": adamw(),
            "laprop": lambda p: TGLaProp(p, **lr, graft=False),
            "laprop, graft": lambda p: TGLaProp(p, **lr, betas=(0.8, 0.9, 0.7, 0.95)),
            "rmsprop": lambda p: TGRMSProp(p, **lr, betas=0.8, graft=False),
            "rmsprop, graft": lambda p: TGRMSProp(p, **lr, betas=(0.8, 0.95)),
            "graft": lambda p: Graft(p, TGLaProp(p, **none), sgd(p)),
            "sign": lambda p: Sign(p, rms(p), graft_to_self=False, lr=0.02),
            "sign, graft": lambda p: Sign(p, rms(p)),
        }
    )


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
