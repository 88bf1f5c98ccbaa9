"""Spectral convolution: a linear map of the channels of its own for every low frequency.

    y(x) = b + sum over kept f of  R_f  F[v](f)  exp(2 pi i f.x)

With the weights R_f learned for the lowest frequencies alone, the layer is defined on functions
and not on one grid: the same weights act at every resolution.

Source: Li et al., "Fourier Neural Operator for Parametric Partial Differential Equations", ICLR
2021, section 4, equation (5).
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Real

from tensorgrad_jax.backend.derivatives import same_derivative
from tensorgrad_jax.backend.drawing import drawn
from tensorgrad_jax.backend.ordering import stored

from .checks import as_real, check_choice, check_modes, check_positive
from .fourier import (
    PRECISION,
    choose_method,
    kept_frequencies,
    truncated_irfftn,
    truncated_rfftn,
)
from .precision import batched_products, check_precision, widen


class SpectralConv(nnx.Module):
    """Spectral convolution with bias on a grid of one or more axes, channels last.

    Its weights are the parameter `spectral_weight`, complex numbers stored as real pairs: shape
    (2, *modes, in_channels, out_channels), or (2, *modes, channels) if separable, axis 0 holding
    real and imaginary part and modes = (m_1, ..., m_{d-1}, m_d//2 + 1). Index i of an axis
    belongs to the frequency i - m//2, of the last one to the frequency i.

    A grid with fewer frequencies than modes uses those weights whose frequencies it has.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        n_modes: (m_1, ..., m_d), frequencies kept per axis, negative ones included.
        separable: one factor per channel and frequency in place of a matrix.
        reference_shift: compute what neuraloperator 2.0.0 computes on grids with an odd number
            of points. It undoes the centring of the spectrum with the same shift instead of its
            inverse: on every odd axis but the last the output appears at f - 1 instead of f (and
            if such an axis has fewer points than an even m, its weights are taken one place
            lower). Needed for its checkpoints on such grids alone; even grids do not differ.
        transform: `"fft"`, `"matrix"`, or `"auto"`, which chooses by size
            (see `fourier.choose_method`). The results agree up to round-off.
        fno_block_precision: `"full"`, `"mixed"` or `"half"`, see `models.precision`. The output
            is float32 in the latter two.
        fno_block_weights_precision: `"half"` stores `spectral_weight` in bfloat16; its gradient
            then is bfloat16 too.
        rngs: the stream `params` initialises weights and bias: normal, with a standard deviation
            of sqrt(2 / (in_channels + out_channels)), for a weight that of the complex number.

    Raises:
        ValueError: if a number is below 1, if `separable` comes with in_channels different from
            out_channels, or if another argument is not one of these.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        n_modes: Sequence[int],
        *,
        separable: bool = False,
        reference_shift: bool = False,
        transform: str = "auto",
        fno_block_precision: str = "full",
        fno_block_weights_precision: str = "full",
        rngs: nnx.Rngs,
    ):
        check_positive("SpectralConv", in_channels=in_channels, out_channels=out_channels)
        check_choice("SpectralConv", "transform", transform, ("auto", "fft", "matrix"))
        check_precision("SpectralConv", fno_block_precision, fno_block_weights_precision)
        if separable and in_channels != out_channels:
            raise ValueError(
                "SpectralConv: separable needs in_channels equal to out_channels, "
                f"got {in_channels} and {out_channels}"
            )
        self.n_modes = check_modes("SpectralConv", n_modes)
        self.separable = separable
        self.reference_shift = reference_shift
        self.transform = transform
        self.precision = fno_block_precision

        modes = (*self.n_modes[:-1], self.n_modes[-1] // 2 + 1)
        channels = (in_channels,) if separable else (in_channels, out_channels)
        std = (2 / (in_channels + out_channels)) ** 0.5
        # Half of the variance for each of the two parts.
        weight = drawn(jax.random.normal, rngs.params(), (2, *modes, *channels)) * (std * 0.5**0.5)
        dtype = jnp.bfloat16 if fno_block_weights_precision == "half" else weight.dtype
        # Layers may be stacked: `tensor_specs` tells added axes from the weight's own by this.
        self.spectral_weight = nnx.Param(weight.astype(dtype), own_axes=weight.ndim)
        self.bias = nnx.Param(jax.random.normal(rngs.params(), (out_channels,)) * std)

    def __call__(
        self,
        x: Real[Array, "batch *grid in_channels"] | Bool[Array, "batch *grid in_channels"],
    ) -> Float[Array, "batch *grid out_channels"]:
        """Convolve.

        Raises:
            ValueError: if `x` has another number of axes or channels than the layer expects, or if
                it is complex.
        """
        x = as_real("SpectralConv", x)
        dim, in_channels = len(self.n_modes), self.spectral_weight.shape[len(self.n_modes) + 1]
        if x.ndim != dim + 2 or x.shape[-1] != in_channels:
            raise ValueError(
                f"SpectralConv: expected an input of shape (batch, *grid, {in_channels}) with "
                f"{dim} grid axes, got {x.shape}"
            )
        grid = x.shape[1:-1]
        modes = self.spectral_weight.shape[1 : dim + 1]
        kept = kept_frequencies(grid, modes)
        method = choose_method(grid, kept) if self.transform == "auto" else self.transform

        narrow = self.precision == "half" and method == "matrix"
        if self.precision == "full":
            x = widen(x)
        else:
            x = x.astype(jnp.bfloat16 if narrow else jnp.float32)
        real, imag = truncated_rfftn(x, kept, method)
        weight = self.spectral_weight[...][(slice(None), *self._weight_slices(kept, modes))]
        if self.precision == "full":
            common = jnp.result_type(real, weight)
            real, imag, weight = (c.astype(common) for c in (real, imag, weight))
        if self.separable:
            product = _scale_modes
        else:
            product = _mix_modes if self.precision == "full" else _mix_modes_bfloat16
        real, imag = product(real, imag, weight)
        if narrow:
            real, imag = (c.astype(jnp.bfloat16) for c in (real, imag))
        y = truncated_irfftn(real, imag, self._output_frequencies(kept, grid), grid, method)
        return widen(y) + self.bias[...]

    def _weight_slices(self, kept, modes):
        starts = [f.start + m // 2 for f, m in zip(kept[:-1], modes[:-1], strict=True)]
        if self.reference_shift:
            starts = [(m - len(f)) // 2 for f, m in zip(kept[:-1], modes[:-1], strict=True)]
        return tuple(slice(s, s + len(f)) for s, f in zip((*starts, 0), kept, strict=True))

    def _output_frequencies(self, kept, grid):
        if not self.reference_shift:
            return kept
        leading = zip(kept[:-1], grid[:-1], strict=True)
        return (*(range(f.start - n % 2, f.stop - n % 2) for f, n in leading), kept[-1])


@same_derivative
def _mix_modes(real, imag, weight):
    """(X_r + i X_i)(W_r + i W_i) at every frequency: X a vector, W a matrix over channels."""
    by_real, by_imag = _by_part(_rows(real, imag), weight, 0)
    y = by_real[:, 0] - by_imag[:, 1], by_real[:, 1] + by_imag[:, 0]
    return tuple(_grid(part, real.shape) for part in y)


@_mix_modes.defjvp
def _mix_modes_jvp(primals, tangents):
    real, imag, weight = primals
    *dx, dweight = tangents
    y = _mix_modes(*primals)
    # The tangents are transposes of the gradients, so that gradients are what is written below.
    # JAX's own would contract the rows of both factors, for which XLA for CPUs has no fast
    # product, and would pad and add the parts of the weight's gradient.
    input_gradient = functools.partial(_input_gradient, weight=weight)
    from_x = jax.linear_transpose(input_gradient, *y)(tuple(dx))
    weight_gradient = functools.partial(_weight_gradient, real, imag)
    from_weight = jax.linear_transpose(weight_gradient, *y)(dweight)
    return y, tuple(a + b for a, b in zip(from_x, from_weight, strict=True))


def _input_gradient(real, imag, weight):
    """(G_r + i G_i)(W_r - i W_i)^T at every frequency."""
    by_real, by_imag = _by_part(_rows(real, imag), weight, 1)
    x = by_real[:, 0] + by_imag[:, 1], by_real[:, 1] - by_imag[:, 0]
    return tuple(_grid(part, real.shape) for part in x)


def _weight_gradient(real, imag, g_real, g_imag):
    """(X_r - i X_i)^T (G_r + i G_i) at every frequency, summed over the batch."""
    x = stored(_rows(real, imag).transpose(0, 2, 1))
    g = jnp.stack([_rows(g_real, g_imag), _rows(g_imag, -g_real)])
    y = _batched_dot(jnp.broadcast_to(x, (2, *x.shape)), g, 0)
    return y.reshape(2, *real.shape[1:-1], *y.shape[-2:])


def _by_part(x, weight, axis):
    """Rows times real and imaginary part of the weight: (2, frequencies, 2, batch, channels)."""
    weight = weight.reshape(2, -1, *weight.shape[-2:])
    y = _batched_dot(jnp.broadcast_to(x, (2, *x.shape)), weight, axis)
    return y.reshape(*y.shape[:2], 2, -1, y.shape[-1])


def _batched_dot(x, weight, axis):
    """Contract the last axis of x (2, frequencies, ., .) with this axis of the matrices."""
    dimensions = (((3,), (2 + axis,)), ((0, 1), (0, 1)))
    return jax.lax.dot_general(x, weight, dimensions, precision=PRECISION)


def _rows(real, imag):
    """Real and imaginary parts side by side: (frequencies, 2 batch, channels)."""
    x = jnp.stack([real, imag])
    return x.reshape(2 * len(real), -1, x.shape[-1]).transpose(1, 0, 2)


def _grid(x, shape):
    """(frequencies, batch, channels) to the batch and the frequencies of `shape`."""
    return x.transpose(1, 0, 2).reshape(*shape[:-1], x.shape[-1])


def _mix_modes_bfloat16(real, imag, weight):
    """The same with bfloat16 factors; results in float32."""
    batch, *modes, channels = real.shape
    weight = weight.reshape(2, -1, channels, weight.shape[-1]).astype(jnp.bfloat16)
    x = jnp.stack([real, imag]).astype(jnp.bfloat16).reshape(2 * batch, -1, channels)
    # The small factor is repeated for real and imaginary part of the large one: a product with
    # one part alone would have to copy that part first.
    x = jnp.broadcast_to(x.transpose(1, 0, 2), (2, x.shape[1], 2 * batch, channels))
    by_real, by_imag = batched_products(x, weight).reshape(2, -1, 2, batch, weight.shape[-1])
    y_real = by_real[:, 0] - by_imag[:, 1]
    y_imag = by_real[:, 1] + by_imag[:, 0]
    shape = (batch, *modes, weight.shape[-1])
    return tuple(y.transpose(1, 0, 2).reshape(shape) for y in (y_real, y_imag))


def _scale_modes(real, imag, weight):
    """The same with a diagonal W."""
    w_real, w_imag = weight
    return real * w_real - imag * w_imag, real * w_imag + imag * w_real
