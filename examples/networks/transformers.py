"""Transformers from Flax modules, with random weights: BERT, and a vision transformer."""

import jax.numpy as jnp
from flax import nnx


class Layer(nnx.Module):
    """Attention and a pointwise network, each with a residual; norms behind them or in front."""

    def __init__(self, width, heads, norm_first, rngs):
        self.attention = nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs)
        self.inner = nnx.Linear(width, 4 * width, rngs=rngs)
        self.outer = nnx.Linear(4 * width, width, rngs=rngs)
        self.norm1, self.norm2 = nnx.LayerNorm(width, rngs=rngs), nnx.LayerNorm(width, rngs=rngs)
        self.norm_first = norm_first

    def __call__(self, x):
        """Transform."""
        mlp = lambda x: self.outer(nnx.gelu(self.inner(x)))
        if self.norm_first:
            x = x + self.attention(self.norm1(x))
            return x + mlp(self.norm2(x))
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + mlp(x))


class Bert(nnx.Module):
    """J. Devlin et al., arXiv 1810.04805: token and position embeddings, layers, a pooled output.

    The defaults are those of google/bert_uncased_L-2_H-128_A-2.
    """

    def __init__(self, width=128, layers=2, heads=2, vocabulary=30522, length=512, *, rngs):
        self.tokens = nnx.Embed(vocabulary, width, rngs=rngs)
        self.positions = nnx.Embed(length, width, rngs=rngs)
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.layers = nnx.List([Layer(width, heads, False, rngs) for _ in range(layers)])
        self.pooler = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, ids):
        """Return the hidden states and the pooled first."""
        x = self.norm(self.tokens(ids) + self.positions(jnp.arange(ids.shape[1])))
        for layer in self.layers:
            x = layer(x)
        return x, jnp.tanh(self.pooler(x[:, 0]))


class ViT(nnx.Module):
    """A. Dosovitskiy et al., arXiv 2010.11929, with a mean over patches; width 384 is ViT-S."""

    def __init__(self, n_classes=1000, width=384, layers=12, heads=6, patch=16, size=224, *, rngs):
        self.patches = nnx.Conv(3, width, (patch, patch), strides=patch, rngs=rngs)
        n = (size // patch) ** 2
        self.positions = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (n, width)))
        self.layers = nnx.List([Layer(width, heads, True, rngs) for _ in range(layers)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, n_classes, rngs=rngs)

    def __call__(self, x):
        """Return logits."""
        x = self.patches(x)
        x = x.reshape(len(x), -1, x.shape[-1]) + self.positions[...]
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(1))
