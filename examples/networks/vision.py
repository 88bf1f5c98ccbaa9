"""Image classifiers as their papers have them, any width, from Flax modules: input NHWC."""

import jax
import jax.numpy as jnp
from flax import nnx


class Block(nnx.Module):
    """Two convolutions of 3 x 3 beside a shortcut."""

    def __init__(self, n_in, n_out, stride, norm, rngs):
        self.conv1 = nnx.Conv(n_in, n_out, (3, 3), strides=stride, use_bias=False, rngs=rngs)
        self.conv2 = nnx.Conv(n_out, n_out, (3, 3), use_bias=False, rngs=rngs)
        self.norm1, self.norm2 = norm(n_out, rngs=rngs), norm(n_out, rngs=rngs)
        change = ()
        if stride > 1 or n_in != n_out:
            conv = nnx.Conv(n_in, n_out, (1, 1), strides=stride, use_bias=False, rngs=rngs)
            change = (conv, norm(n_out, rngs=rngs))
        self.shortcut = nnx.Sequential(*change)

    def __call__(self, x):
        """Transform."""
        y = nnx.relu(self.norm1(self.conv1(x)))
        return nnx.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet18(nnx.Module):
    """K. He et al., arXiv 1512.03385, table 1, its 18 layers; `width` is 64 there."""

    def __init__(self, n_classes=1000, width=64, norm=nnx.BatchNorm, *, rngs):
        self.stem = nnx.Conv(3, width, (7, 7), strides=2, use_bias=False, rngs=rngs)
        self.norm = norm(width, rngs=rngs)
        blocks, n_in = [], width
        for stage in range(4):
            for stride in (1 if stage == 0 else 2, 1):
                blocks.append(Block(n_in, width * 2**stage, stride, norm, rngs))
                n_in = width * 2**stage
        self.blocks = nnx.List(blocks)
        self.head = nnx.Linear(n_in, n_classes, rngs=rngs)

    def __call__(self, x):
        """Return logits."""
        x = nnx.relu(self.norm(self.stem(x)))
        x = nnx.max_pool(x, (3, 3), (2, 2), "SAME")
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


class AlexNet(nnx.Module):
    """A. Krizhevsky, arXiv 1404.5997, with dropout off; `width` is 64 there, images 224 x 224."""

    def __init__(self, n_classes=1000, width=64, size=224, *, rngs):
        conv = lambda a, b, k, **more: nnx.Conv(a, b, (k, k), rngs=rngs, **more)
        w, pool = width, lambda x: nnx.max_pool(x, (3, 3), (2, 2))
        self.features = nnx.Sequential(
            conv(3, w, 11, strides=4, padding=2), nnx.relu, pool,
            conv(w, 3 * w, 5, padding=2), nnx.relu, pool,
            conv(3 * w, 6 * w, 3), nnx.relu,
            conv(6 * w, 4 * w, 3), nnx.relu,
            conv(4 * w, 4 * w, 3), nnx.relu, pool,
        )  # fmt: skip
        shape = jax.eval_shape(lambda: self.features(jnp.ones((1, size, size, 3)))).shape
        self.classifier = nnx.Sequential(
            nnx.Linear(shape[1] * shape[2] * shape[3], 64 * w, rngs=rngs), nnx.relu,
            nnx.Linear(64 * w, 64 * w, rngs=rngs), nnx.relu,
            nnx.Linear(64 * w, n_classes, rngs=rngs),
        )  # fmt: skip

    def __call__(self, x):
        """Return logits."""
        return self.classifier(self.features(x).reshape(len(x), -1))
