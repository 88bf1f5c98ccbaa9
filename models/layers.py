"""The pointwise layers of a Fourier neural operator, channels last, and what frames its grid.

All of them act on every grid point alone (or, the grid embedding and the padding, on the grid as
such), so they do not know the resolution. Products with weights run at JAX's default matmul
precision; `jax.default_matmul_precision("highest")` raises it where float32 results matter.
"""

import math
from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from jaxtyping import Array, Bool, Float, Real

from tensorgrad_jax.backend.derivatives import same_derivative
from tensorgrad_jax.backend.drawing import drawn
from tensorgrad_jax.backend.gelu import normal_slope
from tensorgrad_jax.backend.products import sum_of_products

from .checks import as_real, check_positive
from .precision import narrow, product, widen

_INVERSE_SQRT_2 = 1 / math.sqrt(2)
_INVERSE_SQRT_2PI = 1 / math.sqrt(2 * math.pi)


def gelu(
    x: Real[Array, "*shape"] | Bool[Array, "*shape"],
) -> Float[Array, "*shape"]:
    """Gaussian error linear unit in its exact form, x Phi(x) with Phi(x) = (1 + erf(x/sqrt 2))/2.

    Raises:
        ValueError: if `x` is complex.

    Source: Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016, equation (2).
    """
    return _gelu(as_real("gelu", x))


@jax.custom_jvp
def _gelu(x):
    wide = widen(x)
    return (wide * _normal_cdf(wide)).astype(x.dtype)


@_gelu.defjvp
def _gelu_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    return _gelu(x), _gelu_tangent(x, dx)


# Checkpointed: x alone is kept, and the slope is evaluated in the backward pass.
@jax.checkpoint
def _gelu_tangent(x, dx):
    exact = lambda x: _normal_cdf(x) + x * (_INVERSE_SQRT_2PI * jnp.exp(-0.5 * x * x))
    return (normal_slope(exact, widen(x)) * dx).astype(dx.dtype)


def _normal_cdf(x):
    return 0.5 * (1 + jax.lax.erf(x * _INVERSE_SQRT_2))


class ChannelLinear(nnx.Linear):
    """A linear map of the channels at every grid point: x -> x W + b.

    An `nnx.Linear`, with kernel W of shape (in_channels, out_channels), that multiplies in its own
    way; the models call it, so that another layer may stand in its place. Kernel and bias start
    uniform in +-1/sqrt(in_channels), the distribution that PyTorch's and hence neuraloperator's
    pointwise convolutions start from.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        use_bias: whether there is a bias b.
        dtype: of the factors of products and of the output; None: as they come.
        wide_output: the output is float32 and not `dtype`.
        rngs: the stream `params` initialises the weights.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        use_bias: bool = True,
        dtype: jnp.dtype | None = None,
        wide_output: bool = False,
        rngs: nnx.Rngs,
    ):
        def uniform(key, shape, dtype=jnp.float32, out_sharding=None):
            del out_sharding
            bound = in_channels**-0.5
            return (2 * bound * drawn(jax.random.uniform, key, shape) - bound).astype(dtype)

        super().__init__(
            in_channels,
            out_channels,
            use_bias=use_bias,
            dtype=dtype,
            preferred_element_type=jnp.float32 if dtype is not None and wide_output else None,
            kernel_init=uniform,
            bias_init=uniform,
            rngs=rngs,
        )

    def __call__(
        self, inputs: Float[Array, "*batch in_channels"], **options: Any
    ) -> Float[Array, "*batch out_channels"]:
        """Apply the map at every grid point."""
        if options or not self._has_own_product():
            return super().__call__(inputs, **options)
        # One matrix product over all points: gradients of products with several leading axes
        # are far slower on CPUs.
        x, kernel = inputs.reshape(-1, inputs.shape[-1]), self.kernel[...]
        out = None
        if self.dtype is None:
            common = jnp.result_type(x, kernel)
            y = _matmul(x.astype(common), kernel.astype(common))
        else:
            out = jnp.dtype(self.preferred_element_type or self.dtype)
            y = cast(Array, product(x.astype(self.dtype), kernel.astype(self.dtype), out))
        if self.bias is not None:
            y = narrow(y + self.bias[...], out)
        return y.reshape(*inputs.shape[:-1], y.shape[-1])

    def _has_own_product(self) -> bool:
        # What `nnx.Linear` lets its user choose may have been chosen since.
        chosen = (self.precision, self.dot_general, self.promote_dtype)
        plain = (None, jax.lax.dot_general, promote_dtype)
        return chosen == plain and self.dtype in (None, jnp.bfloat16)


@same_derivative
def _matmul(x, kernel):
    return x @ kernel


@_matmul.defjvp
def _matmul_jvp(primals, tangents):
    (x, kernel), (dx, dkernel) = primals, tangents
    y = _matmul(x, kernel)
    # The tangent as the transpose of the gradient, so that the gradient is `sum_of_products`.
    (from_kernel,) = jax.linear_transpose(lambda g: sum_of_products(x, g), y)(dkernel)
    return y, dx @ kernel + from_kernel


class ChannelMLP(nnx.Module):
    """Two linear maps of the channels with an exact GELU between: x -> W2 gelu(W1 x + b1) + b2.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        hidden_channels: channels between the two maps.
        dtype: of the factors of products and of what lies between the maps; None: as they come.
        wide_input: the input goes through the first map in its own dtype.
        wide_output: the output is float32 and not `dtype`.
        rngs: the stream `params` initialises the weights.

    Raises:
        ValueError: if a number of channels is below 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden_channels: int,
        *,
        dtype: jnp.dtype | None = None,
        wide_input: bool = False,
        wide_output: bool = False,
        rngs: nnx.Rngs,
    ):
        check_positive(
            "ChannelMLP",
            in_channels=in_channels,
            out_channels=out_channels,
            hidden_channels=hidden_channels,
        )
        inner_dtype = None if wide_input else dtype
        self.inner = ChannelLinear(in_channels, hidden_channels, dtype=inner_dtype, rngs=rngs)
        self.outer = ChannelLinear(
            hidden_channels, out_channels, dtype=dtype, wide_output=wide_output, rngs=rngs
        )
        self.dtype = dtype
        self.wide_output = wide_output

    def __call__(
        self, x: Float[Array, "batch *grid in_channels"]
    ) -> Float[Array, "batch *grid out_channels"]:
        """Apply the two maps at every grid point."""
        # Layers of our own get a list of points, which XLA makes a smaller program of; others the
        # grid, about which they may want to know.
        ours = type(self.inner) is type(self.outer) is ChannelLinear
        v = self.inner(x.reshape(-1, x.shape[-1]) if ours else x)
        y = self.outer(gelu(narrow(v, self.dtype)))
        wide = self.wide_output and self.dtype is not None
        y = y.astype(jnp.float32) if wide else narrow(y, self.dtype)
        return y.reshape(*x.shape[:-1], y.shape[-1]) if ours else y


class ChannelMix(nnx.Module):
    """The linear skip connection of a block: x -> W x at every grid point, no bias.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        dtype: of the factors of products and of the output; None: as they come.
        rngs: the stream `params` initialises the weights.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        dtype: jnp.dtype | None = None,
        rngs: nnx.Rngs,
    ):
        self.linear = ChannelLinear(
            in_channels, out_channels, use_bias=False, dtype=dtype, rngs=rngs
        )
        self.dtype = dtype

    def __call__(
        self, x: Float[Array, "batch *grid in_channels"]
    ) -> Float[Array, "batch *grid out_channels"]:
        """Apply the map at every grid point."""
        return narrow(self.linear(x), self.dtype)


class SoftGating(nnx.Module):
    """A skip connection with one learned factor per channel: x -> gate * x, gate starting at 1.

    Args:
        channels: channels of input and output.
    """

    def __init__(self, channels: int):
        self.gate = nnx.Param(jnp.ones(channels))

    def __call__(self, x: Float[Array, "*batch channels"]) -> Float[Array, "*batch channels"]:
        """Multiply every channel by its factor."""
        return x * self.gate[...]


def append_grid(
    x: Float[Array, "batch *grid channels"],
) -> Float[Array, "batch *grid channels_and_coordinates"]:
    """Append one channel per axis with the coordinate i / n of each grid point, i = 0 ... n-1.

    The end point 1 is excluded: on a periodic domain it is the point 0. Whatever the dtype of `x`,
    coordinates and result are float32 at least: in bfloat16 neighbouring points of an axis of more
    than 256 would not be told apart.
    """
    batch, *grid, _ = x.shape
    x = widen(x)
    coordinates = np.stack(np.meshgrid(*(np.arange(n) / n for n in grid), indexing="ij"), -1)
    coordinates = jnp.asarray(coordinates, x.dtype)
    return jnp.concatenate([x, jnp.broadcast_to(coordinates, (batch, *coordinates.shape))], -1)


def padding_widths(grid: Sequence[int], fractions: Sequence[int | float]) -> tuple[int, ...]:
    """Cells of zeros put on each side of every axis: round(fraction * n)."""
    return tuple(round(p * n) for p, n in zip(fractions, grid, strict=True))


def pad_domain(
    x: Float[Array, "batch *grid channels"], widths: Sequence[int]
) -> Float[Array, "batch *padded channels"]:
    """Surround the grid with zeros, so that a domain that is not periodic can be treated as one."""
    return jnp.pad(x, [(0, 0), *((w, w) for w in widths), (0, 0)])


def unpad_domain(
    x: Float[Array, "batch *padded channels"], widths: Sequence[int]
) -> Float[Array, "batch *grid channels"]:
    """Cut off what `pad_domain` has added."""
    grid = x.shape[1:-1]
    inside = tuple(slice(w, n - w) for w, n in zip(widths, grid, strict=True))
    return x[(slice(None), *inside)]
