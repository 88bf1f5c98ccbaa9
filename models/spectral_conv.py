"""Spectral convolution: a linear map of the channels of its own for every low frequency.

    y(x) = b + sum over kept f of  R_f  F[v](f)  exp(2 pi i f.x)

With the weights R_f learned for the lowest frequencies alone, the layer is defined on functions
and not on one grid: the same weights act at every resolution.

Source: Li et al., "Fourier Neural Operator for Parametric Partial Differential Equations", ICLR
2021, section 4, equation (5).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Real

from tensorgrad_jax.backend.drawing import drawn
from tensorgrad_jax.projections.tucker_weight import TuckerWeight

from . import factored
from .checks import as_real, check_choice, check_modes, check_positive
from .fourier import choose_method, kept_frequencies, truncated_irfftn, truncated_rfftn
from .mixing import mix_modes, mix_modes_bfloat16, scale_modes
from .precision import check_precision, widen


class SpectralConv(nnx.Module):
    """Spectral convolution with bias on a grid of one or more axes, channels last.

    Its weights are the parameter `spectral_weight`, complex numbers stored as real pairs: shape
    (2, *modes, in_channels, out_channels), or (2, *modes, channels) if separable, axis 0 holding
    real and imaginary part and modes = (m_1, ..., m_{d-1}, m_d//2 + 1). Index i of an axis
    belongs to the frequency i - m//2, of the last one to the frequency i.

    A grid with fewer frequencies than modes uses those weights whose frequencies it has.

    In the place of the array a `TuckerWeight` of that shape may stand, as in `oialr`: the input is
    then multiplied by its factors and core in the order that takes the fewest multiplications.

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
        kept = kept_frequencies(grid, self.spectral_weight.shape[1 : dim + 1])
        method = choose_method(grid, kept) if self.transform == "auto" else self.transform
        x = widen(x) if self.precision == "full" else x
        y = self._mapped(x, self.spectral_weight.get_value(), kept, method)
        return widen(y) + self.bias[...]

    def _mapped(self, x, weight, kept, method):
        if isinstance(weight, TuckerWeight) and self.separable:
            weight = weight.array()
        if not isinstance(weight, TuckerWeight):
            return self._convolved(x, weight, kept, method)
        weight = factored.of_channels(weight)
        *_, left, right = weight.factors
        order = factored.cheapest(weight, len(x), x.shape[1:-1], kept, method)
        if order == factored.ARRAY:
            return self._convolved(x, weight.array(), kept, method)
        if order == factored.MODES:
            return self._convolved(x, weight.core, kept, method, left, right)
        x = self._times(x, left)
        return self._times(self._convolved(x, weight.core, kept, method), right, transposed=True)

    def _times(self, x, matrix, transposed=False):
        matrix = matrix.T if transposed and matrix is not None else matrix
        return factored.times(x, matrix, self.precision != "full")

    def _convolved(self, x, weight, kept, method, left=None, right=None):
        grid, modes = x.shape[1:-1], weight.shape[1 : 1 + len(kept)]
        narrow = self.precision == "half" and method == "matrix"
        if self.precision != "full":
            x = x.astype(jnp.bfloat16 if narrow else jnp.float32)
        real, imag = (self._times(c, left) for c in truncated_rfftn(x, kept, method))
        weight = weight[(slice(None), *self._weight_slices(kept, modes))]
        if self.precision == "full":
            common = jnp.result_type(real, weight)
            real, imag, weight = (c.astype(common) for c in (real, imag, weight))
        if self.separable:
            product = scale_modes
        else:
            product = mix_modes if self.precision == "full" else mix_modes_bfloat16
        real, imag = (self._times(c, right, True) for c in product(real, imag, weight))
        if narrow:
            real, imag = (c.astype(jnp.bfloat16) for c in (real, imag))
        return truncated_irfftn(real, imag, self._output_frequencies(kept, grid), grid, method)

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
