"""Small models of every kind of layer, and per-example gradients written out."""

import jax
import jax.numpy as jnp
from flax import nnx
from tensorgrad_jax.models import FNO

N = 3


def _rngs():
    return nnx.Rngs(0)


def _normal(*shape, seed=1):
    return lambda: jax.random.normal(jax.random.key(seed), (N, *shape))


def _ids(length, size):
    return lambda: jax.random.randint(jax.random.key(1), (N, length), 0, size)


class Encoder(nnx.Module):
    """Embedding, attention, norm and a pointwise network with residuals: a small transformer."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(7, 4, dtype=jnp.float64, rngs=rngs)
        self.position = nnx.Param(jax.random.normal(rngs.params(), (5, 4)))
        self.norm = nnx.LayerNorm(4, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs)
        self.inner = nnx.Linear(4, 6, rngs=rngs)
        self.outer = nnx.Linear(6, 4, rngs=rngs)

    def __call__(self, ids):
        x = self.embed(ids) + self.position[...]
        x = x + self.attention(self.norm(x))
        return x + self.outer(nnx.gelu(self.inner(x)))


class Cell(nnx.Module):
    """A recurrent network: the same parameters at every step of a scan."""

    def __init__(self, rngs):
        self.rnn = nnx.RNN(nnx.GRUCell(3, 4, rngs=rngs))

    def __call__(self, x):
        return self.rnn(x, initial_carry=jnp.zeros((len(x), 4), x.dtype))


class Stacked(nnx.Module):
    """Three layers of one shape, stacked by vmap and run by scan, each under a checkpoint."""

    def __init__(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap
        def make(rngs):
            return nnx.Linear(4, 4, rngs=rngs)

        self.layers = make(rngs)

    def __call__(self, x):
        graph, params = nnx.split(self.layers)

        @jax.checkpoint
        def turn(x, params):
            return jnp.tanh(nnx.merge(graph, params)(x)), None

        return jax.lax.scan(turn, x, params)[0]


class Mapped(nnx.Module):
    """A layer that sees one example at a time, mapped over them."""

    def __init__(self, rngs):
        self.layer = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return nnx.vmap(lambda layer, x: layer(jnp.sin(x)), in_axes=(None, 0))(self.layer, x)


class Shared(nnx.Module):
    """One layer called twice, and an embedding that is read and multiplied with."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(7, 4, dtype=jnp.float64, rngs=rngs)
        self.layer = nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, ids):
        return self.embed.attend(jnp.tanh(self.layer(jnp.tanh(self.layer(self.embed(ids))))))


class WeightNorm(nnx.Module):
    """A matrix made of two parameters before any example is seen."""

    def __init__(self, rngs):
        self.direction = nnx.Param(jax.random.normal(rngs.params(), (4, 3)))
        self.size = nnx.Param(jnp.ones(3))

    def __call__(self, x):
        v = self.direction[...]
        return x @ (self.size[...] * v / jnp.linalg.norm(v, axis=0))


class Rest(nnx.Module):
    """Uses of other primitives: a division, a broadcast, an einsum, a slice of a parameter."""

    def __init__(self, rngs):
        normal = lambda *shape: nnx.Param(jax.random.normal(rngs.params(), shape))
        self.divisor, self.start, self.tensor = normal(4), normal(5, 2), normal(2, 4, 5)
        self.exponent, self.unused = normal(4), normal(3)

    def __call__(self, x):
        y = jnp.einsum("nti,hij->nthj", x / self.divisor[...], self.tensor[...][:, ::-1])
        y = jnp.maximum(y, self.start[...].T)
        return y * jnp.abs(x[..., :1, None]) ** self.exponent[1:2]


def _fno(**options):
    return lambda: FNO((4, 3), 2, 1, 4, 1, rngs=_rngs(), **options)


GRID = _normal(6, 5, 2)
SEQUENCE = _normal(5, 4)

# Name: how to make the model, its input, and whether one backward pass does all its parameters.
MODELS = {
    "linear": (lambda: nnx.Linear(4, 3, rngs=_rngs()), _normal(4), True),
    "linear sequence": (lambda: nnx.Linear(4, 3, rngs=_rngs()), SEQUENCE, True),
    "linear sequence of one": (lambda: nnx.Linear(4, 3, rngs=_rngs()), _normal(1, 4), True),
    "linear sequence of two": (lambda: nnx.Linear(4, 3, rngs=_rngs()), _normal(2, 4), True),
    "linear general, three positions": (
        lambda: nnx.LinearGeneral(4, (2, 3), rngs=_rngs()),
        _normal(1, 3, 4),
        True,
    ),
    "einsum, two positions per head": (
        lambda: nnx.Einsum("nthi,hij->nthj", (3, 4, 2), rngs=_rngs()),
        _normal(2, 3, 4),
        True,
    ),
    "linear general": (
        lambda: nnx.LinearGeneral((5, 4), (2, 3), axis=(-2, -1), rngs=_rngs()),
        SEQUENCE,
        True,
    ),
    "einsum": (
        lambda: nnx.Einsum("nti,ihj->nthj", (4, 2, 3), (2, 3), rngs=_rngs()),
        SEQUENCE,
        True,
    ),
    "conv": (lambda: nnx.Conv(2, 3, (3, 2), rngs=_rngs()), GRID, True),
    "conv groups": (
        lambda: nnx.Conv(
            2, 4, (3, 3), strides=2, kernel_dilation=2, feature_group_count=2, rngs=_rngs()
        ),
        GRID,
        True,
    ),
    "conv 1d, one position": (
        lambda: nnx.Conv(4, 3, (5,), padding="VALID", rngs=_rngs()),
        SEQUENCE,
        True,
    ),
    "conv 3d": (lambda: nnx.Conv(2, 2, (2, 2, 2), rngs=_rngs()), _normal(3, 2, 3, 2), True),
    "conv transpose": (
        lambda: nnx.ConvTranspose(2, 3, (3, 3), strides=(2, 2), rngs=_rngs()),
        GRID,
        True,
    ),
    "embed": (lambda: nnx.Embed(7, 4, dtype=jnp.float64, rngs=_rngs()), _ids(5, 7), True),
    "embed, small table": (
        lambda: nnx.Embed(3, 4, dtype=jnp.float64, rngs=_rngs()),
        _ids(5, 3),
        True,
    ),
    "layer norm": (lambda: nnx.LayerNorm(4, rngs=_rngs()), _normal(4), True),
    "layer norm sequence": (lambda: nnx.LayerNorm(4, rngs=_rngs()), SEQUENCE, True),
    "rms norm": (lambda: nnx.RMSNorm(4, rngs=_rngs()), SEQUENCE, True),
    "group norm": (lambda: nnx.GroupNorm(4, 2, rngs=_rngs()), SEQUENCE, True),
    "instance norm": (lambda: nnx.InstanceNorm(2, rngs=_rngs()), GRID, True),
    "batch norm, averages": (
        lambda: nnx.BatchNorm(4, use_running_average=True, rngs=_rngs()),
        SEQUENCE,
        True,
    ),
    "attention": (
        lambda: nnx.MultiHeadAttention(2, 4, decode=False, rngs=_rngs()),
        SEQUENCE,
        True,
    ),
    "lora": (
        lambda: nnx.LoRA(4, 2, 3, base_module=nnx.Linear(4, 3, rngs=_rngs()), rngs=_rngs()),
        SEQUENCE,
        True,
    ),
    "encoder": (lambda: Encoder(_rngs()), _ids(5, 7), True),
    "recurrent": (lambda: Cell(_rngs()), _normal(4, 3), True),
    "nnx.vmap over examples": (lambda: Mapped(_rngs()), SEQUENCE, True),
    "scan over layers": (lambda: Stacked(_rngs()), _normal(4), True),
    "shared and tied": (lambda: Shared(_rngs()), _ids(5, 7), False),
    "weight norm": (lambda: WeightNorm(_rngs()), SEQUENCE, True),
    "rest": (lambda: Rest(_rngs()), SEQUENCE, True),
    "fno": (_fno(), GRID, True),
    "fno, norm, padding, fft, checkpoint": (
        _fno(
            norm="group_norm",
            stabilizer="tanh",
            domain_padding=0.2,
            transform="fft",
            activation_checkpoint=True,
        ),
        GRID,
        True,
    ),
    "fno, separable": (_fno(separable=True), GRID, False),
}


def problem(name, dtype=jnp.float64):
    """Return (loss, parameters, batch) of a model: the mean of a function of all its outputs."""
    make, batch, _ = MODELS[name]
    graph, params, rest = nnx.split(make(), nnx.Param, ...)
    # Biases and scales that are 0 and 1 would hide terms.
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    leaves = [
        (p + 0.3 * jax.random.normal(k, p.shape)).astype(dtype)
        for k, p in zip(keys, leaves, strict=True)
    ]
    batch = batch()
    if jnp.issubdtype(batch.dtype, jnp.floating):
        batch = batch.astype(dtype)

    def loss(params, batch):
        y = nnx.merge(graph, params, rest)(batch)
        weights = jnp.cos(jnp.arange(y[0].size, dtype=y.dtype)).reshape(y.shape[1:])
        return jnp.mean(jnp.sin(y) * weights + 0.5 * y**2)

    return loss, jax.tree.unflatten(structure, leaves), batch


def gradients(loss, params, batch):
    """Return the gradients of all examples, one backward pass each."""
    one = jax.jit(jax.grad(loss))
    n = len(jax.tree.leaves(batch)[0])
    every = [one(params, jax.tree.map(lambda x, i=i: x[i : i + 1], batch)) for i in range(n)]
    return jax.tree.map(lambda *g: jnp.stack(g), *every)
