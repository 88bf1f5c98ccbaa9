"""The networks of the study: a multilayer perceptron, a small residual network, a mini-ViT."""

from __future__ import annotations

import itertools
from typing import Any

import jax.numpy as jnp
from flax import nnx


class MLP(nnx.Module):
    """Dense layers of one width with ReLUs between."""

    def __init__(self, image: tuple[int, ...], classes: int, rngs: nnx.Rngs, *, width: int = 128,
                 depth: int = 3):  # fmt: skip
        sizes = [image[0] * image[1] * image[2], *[width] * depth]
        pairs = itertools.pairwise(sizes)
        self.layers = nnx.List([nnx.Linear(i, o, rngs=rngs) for i, o in pairs])
        self.head = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, x):
        """Return logits."""
        x = x.reshape(len(x), -1)
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.head(x)


class ResidualBlock(nnx.Module):
    """Two convolutions beside a shortcut, layer norms before the nonlinearities."""

    def __init__(self, inputs: int, outputs: int, stride: int, rngs: nnx.Rngs):
        self.first = nnx.Conv(inputs, outputs, (3, 3), strides=stride, rngs=rngs)
        self.second = nnx.Conv(outputs, outputs, (3, 3), rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(outputs, rngs=rngs) for _ in range(2)])
        self.shortcut = nnx.Conv(inputs, outputs, (1, 1), strides=stride, rngs=rngs)

    def __call__(self, x):
        """Return features."""
        y = nnx.relu(self.norms[0](self.first(x)))
        return nnx.relu(self.shortcut(x) + self.norms[1](self.second(y)))


class CNN(nnx.Module):
    """A stem, residual blocks with twice the channels and half the grid each, a mean, a head."""

    def __init__(self, image: tuple[int, ...], classes: int, rngs: nnx.Rngs, *, width: int = 16,
                 depth: int = 3):  # fmt: skip
        self.stem = nnx.Conv(image[-1], width, (3, 3), rngs=rngs)
        channels = [width * 2**i for i in range(depth)]
        pairs = zip([width, *channels[:-1]], channels, strict=True)
        self.blocks = nnx.List(
            [ResidualBlock(i, o, 1 + (n > 0), rngs) for n, (i, o) in enumerate(pairs)]
        )
        self.head = nnx.Linear(channels[-1], classes, rngs=rngs)

    def __call__(self, x):
        """Return logits."""
        x = nnx.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


class Encoder(nnx.Module):
    """A block of a transformer: attention, then a pointwise network, norms in front."""

    def __init__(self, width: int, heads: int, ratio: int, rngs: nnx.Rngs):
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs)
        self.inner = nnx.Linear(width, ratio * width, rngs=rngs)
        self.outer = nnx.Linear(ratio * width, width, rngs=rngs)

    def __call__(self, x):
        """Return tokens."""
        x = x + self.attention(self.norms[0](x))
        return x + self.outer(nnx.gelu(self.inner(self.norms[1](x))))


class ViT(nnx.Module):
    """A vision transformer that averages its tokens."""

    def __init__(self, image: tuple[int, ...], classes: int, rngs: nnx.Rngs, *,
                 patch_size: int = 2, embed_dim: int = 64, depth: int = 3, num_heads: int = 4,
                 mlp_ratio: int = 4):  # fmt: skip
        patch = (patch_size, patch_size)
        self.patch = nnx.Conv(image[-1], embed_dim, patch, patch, padding="VALID", rngs=rngs)
        tokens = (image[0] // patch_size) * (image[1] // patch_size)
        start = 0.02 * nnx.initializers.normal(1.0)(rngs.params(), (tokens, embed_dim))
        self.position = nnx.Param(jnp.asarray(start))
        make = lambda: Encoder(embed_dim, num_heads, mlp_ratio, rngs)
        self.blocks = nnx.List([make() for _ in range(depth)])
        self.norm = nnx.LayerNorm(embed_dim, rngs=rngs)
        self.head = nnx.Linear(embed_dim, classes, rngs=rngs)

    def __call__(self, x):
        """Return logits."""
        x = self.patch(x)
        x = x.reshape(len(x), -1, x.shape[-1]) + self.position[...]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


NETWORKS = {"mlp": MLP, "cnn": CNN, "vit": ViT}


def make(options: dict[str, Any], image: tuple[int, ...], classes: int, seed: int) -> nnx.Module:
    """Return a network by the configuration's `model`; a ValueError names a wrong option."""
    options = dict(options)
    name = options.pop("name", None)
    if name not in NETWORKS:
        raise ValueError(f"model.name must be one of {tuple(NETWORKS)}, got {name!r}")
    try:
        return NETWORKS[name](image, classes, nnx.Rngs(seed), **options)
    except TypeError as error:
        raise ValueError(f"model: {error}") from error
