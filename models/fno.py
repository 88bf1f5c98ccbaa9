"""The Fourier neural operator.

    v_0     = lift( a(x), x )
    v_{t+1} = g( s_t(u_t) + d_t * v_t ),   u_t = g( W_t v_t + K_t v_t ),   t = 0 ... T-1
    u(x)    = project( v_T )

with the spectral convolution K_t, the linear skip W_t, a small pointwise network s_t, one factor
d_t per channel, and the exact GELU g, which the last block leaves out. Nothing in it depends on
the number of grid points.

Sources: Li et al., "Fourier Neural Operator for Parametric Partial Differential Equations", ICLR
2021; Kossaifi et al., "Multi-Grid Tensorized Fourier Neural Operator for High-Resolution PDEs",
TMLR 2024 (the block with the pointwise network).
"""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Real

from .checks import as_real, check_choice, check_modes, check_positive
from .layers import (
    ChannelMix,
    ChannelMLP,
    SoftGating,
    append_grid,
    gelu,
    pad_domain,
    padding_widths,
    unpad_domain,
)
from .precision import check_precision, layer_dtype, narrow, widen
from .recompute import apply_recomputed
from .spectral_conv import SpectralConv

Number = int | float


class FNOBlock(nnx.Module):
    """One layer of the operator: u = g(norm(K tanh(v)) + W v), then g(norm(s(u) + d * v)).

    tanh, the norms and the pointwise network s with its gated skip d are optional; `activate`
    says whether the two GELUs g are applied. Built by `FNO`, whose arguments these are.
    """

    def __init__(
        self,
        n_modes: tuple[int, ...],
        channels: int,
        *,
        use_channel_mlp: bool,
        channel_mlp_expansion: Number,
        norm: str | None,
        stabilizer: str | None,
        separable: bool,
        reference_shift: bool,
        transform: str,
        fno_block_precision: str,
        fno_block_weights_precision: str,
        activate: bool,
        rngs: nnx.Rngs,
    ):
        self.conv = SpectralConv(
            channels,
            channels,
            n_modes,
            separable=separable,
            reference_shift=reference_shift,
            transform=transform,
            fno_block_precision=fno_block_precision,
            fno_block_weights_precision=fno_block_weights_precision,
            rngs=rngs,
        )
        self.dtype = layer_dtype(fno_block_precision)
        self.skip = ChannelMix(channels, channels, dtype=self.dtype, rngs=rngs)
        width = round(channels * channel_mlp_expansion)
        # `nnx.data`: a layer may be put where there is none.
        self.channel_mlp = nnx.data(
            ChannelMLP(channels, channels, width, dtype=self.dtype, rngs=rngs)
            if use_channel_mlp
            else None
        )
        self.channel_mlp_skip = nnx.data(SoftGating(channels) if use_channel_mlp else None)
        normalize = norm == "group_norm"
        self.conv_norm = nnx.data(_sample_norm(channels, rngs) if normalize else None)
        self.output_norm = nnx.data(_sample_norm(channels, rngs) if normalize else None)
        self.stabilizer = stabilizer
        self.activate = activate

    def __call__(
        self, v: Float[Array, "batch *grid channels"]
    ) -> Float[Array, "batch *grid channels"]:
        """Apply the block."""
        # Convolution, norms and sums are float32 at least; what is kept for the backward pass and
        # what the next layer gets is `dtype`.
        u = self.conv(jnp.tanh(widen(v)) if self.stabilizer == "tanh" else v)
        if self.conv_norm is not None:
            u = self.conv_norm(u)
        u = narrow(u + self.skip(v), self.dtype)
        if self.activate:
            u = gelu(u)
        # Either may have been taken out.
        if self.channel_mlp is not None:
            u = self.channel_mlp(u)
        if self.channel_mlp_skip is not None:
            u = u + self.channel_mlp_skip(v)
        if self.output_norm is not None:
            u = self.output_norm(u)
        u = narrow(u, self.dtype)
        return gelu(u) if self.activate else u


class FNO(nnx.Module):
    """Fourier neural operator on regular grids of one or more axes, channels last.

    Maps (batch, *grid, in_channels) to (batch, *grid, out_channels) at any resolution. Arguments
    are named as in neuraloperator. Every layer within is called as an attribute of its owner, so
    that another may stand in its place: an `nnx.LoRALinear` for `lifting.inner`, say.

    Args:
        n_modes: (m_1, ..., m_d), frequencies kept per axis, negative ones included. Its length is
            the number of grid axes.
        in_channels: channels of the input function, coordinates not counted.
        out_channels: channels of the output function.
        hidden_channels: channels within the blocks.
        n_layers: number of blocks.
        lifting_channel_ratio: inner width of the lifting network over hidden_channels.
        projection_channel_ratio: inner width of the projection network over hidden_channels.
        positional_embedding: `"grid"` appends the coordinates i/n to the input; None does not.
        use_channel_mlp: whether blocks contain a pointwise network.
        channel_mlp_expansion: its inner width over hidden_channels.
        norm: `"group_norm"` normalises over grid and channels of each sample (one group), after
            the spectral convolution and at the end of the block; None does not.
        stabilizer: `"tanh"` bounds the input of the spectral convolution; None does not.
        domain_padding: fraction of the grid that is added as zeros on each side of every axis
            after lifting and cut off before projection; one number, or one per axis.
        separable: one spectral weight per channel in place of a matrix over channels.
        reference_shift: see `SpectralConv`.
        transform: see `SpectralConv`.
        fno_block_precision: `"full"`, `"mixed"` or `"half"`: bfloat16 where `models.precision`
            says. The coordinates always enter in float32 at least, and the output is float32.
        fno_block_weights_precision: `"half"` stores the spectral weights in bfloat16; needs one
            of the latter two.
        activation_checkpoint: keep only the input of every block, of lifting and of projection
            for the backward pass and compute the rest again: less memory for about a third more
            time.
        rngs: the stream `params` initialises the weights.

    Raises:
        ValueError: if an argument is out of range; the message names it.

    Examples:
        >>> import jax
        >>> from flax import nnx
        >>> from tensorgrad_jax.models import FNO
        >>> model = FNO((4, 4), in_channels=2, out_channels=1, hidden_channels=8, rngs=nnx.Rngs(0))
        >>> [jax.eval_shape(model, jax.numpy.ones((5, n, n, 2))).shape for n in (8, 16)]
        [(5, 8, 8, 1), (5, 16, 16, 1)]
    """

    def __init__(
        self,
        n_modes: Sequence[int],
        in_channels: int,
        out_channels: int,
        hidden_channels: int,
        n_layers: int = 4,
        *,
        lifting_channel_ratio: Number = 2,
        projection_channel_ratio: Number = 2,
        positional_embedding: str | None = "grid",
        use_channel_mlp: bool = True,
        channel_mlp_expansion: Number = 0.5,
        norm: str | None = None,
        stabilizer: str | None = None,
        domain_padding: Number | Sequence[Number] | None = None,
        separable: bool = False,
        reference_shift: bool = False,
        transform: str = "auto",
        fno_block_precision: str = "full",
        fno_block_weights_precision: str = "full",
        activation_checkpoint: bool = False,
        rngs: nnx.Rngs,
    ):
        check_positive(
            "FNO",
            in_channels=in_channels,
            out_channels=out_channels,
            hidden_channels=hidden_channels,
            n_layers=n_layers,
        )
        check_choice("FNO", "positional_embedding", positional_embedding, ("grid", None))
        check_choice("FNO", "norm", norm, ("group_norm", None))
        check_choice("FNO", "stabilizer", stabilizer, ("tanh", None))
        check_precision("FNO", fno_block_precision, fno_block_weights_precision)
        lifting = int(lifting_channel_ratio * hidden_channels)
        projection = int(projection_channel_ratio * hidden_channels)
        _check_width("lifting_channel_ratio", lifting_channel_ratio, lifting)
        _check_width("projection_channel_ratio", projection_channel_ratio, projection)
        if use_channel_mlp:
            expanded = round(channel_mlp_expansion * hidden_channels)
            _check_width("channel_mlp_expansion", channel_mlp_expansion, expanded)
        self.n_modes = check_modes("FNO", n_modes)
        self.in_channels = in_channels
        self.positional_embedding = positional_embedding
        self.domain_padding = _check_padding(domain_padding, len(self.n_modes))
        self.activation_checkpoint = activation_checkpoint

        coordinates = len(self.n_modes) if positional_embedding == "grid" else 0
        dtype = layer_dtype(fno_block_precision)
        # In bfloat16 the coordinates of a grid of more than 256 points would not be told apart.
        self.lifting = ChannelMLP(
            in_channels + coordinates,
            hidden_channels,
            lifting,
            dtype=dtype,
            wide_input=True,
            rngs=rngs,
        )
        self.blocks = nnx.List(
            [
                FNOBlock(
                    self.n_modes,
                    hidden_channels,
                    use_channel_mlp=use_channel_mlp,
                    channel_mlp_expansion=channel_mlp_expansion,
                    norm=norm,
                    stabilizer=stabilizer,
                    separable=separable,
                    reference_shift=reference_shift,
                    transform=transform,
                    fno_block_precision=fno_block_precision,
                    fno_block_weights_precision=fno_block_weights_precision,
                    activate=layer < n_layers - 1,
                    rngs=rngs,
                )
                for layer in range(n_layers)
            ]
        )
        self.projection = ChannelMLP(
            hidden_channels, out_channels, projection, dtype=dtype, wide_output=True, rngs=rngs
        )

    def __call__(
        self,
        a: Real[Array, "batch *grid in_channels"] | Bool[Array, "batch *grid in_channels"],
    ) -> Float[Array, "batch *grid out_channels"]:
        """Map input functions to output functions on the same grid.

        Integers and booleans (a mask of two phases, say) are taken as float32 numbers.

        Raises:
            ValueError: if `a` has another number of axes or channels than the model expects, or if
                it is complex.
        """
        dim, a = len(self.n_modes), as_real("FNO", a)
        if a.ndim != dim + 2 or a.shape[-1] != self.in_channels:
            raise ValueError(
                f"FNO: expected an input of shape (batch, *grid, {self.in_channels}) with "
                f"{dim} grid axes, got {a.shape}"
            )
        apply = apply_recomputed if self.activation_checkpoint else lambda layer, v: layer(v)
        v = apply(self.lifting, append_grid(a) if self.positional_embedding == "grid" else a)
        widths = padding_widths(a.shape[1:-1], self.domain_padding)
        v = pad_domain(v, widths)
        for block in self.blocks:
            v = apply(block, v)
        return apply(self.projection, unpad_domain(v, widths))


def _sample_norm(channels: int, rngs: nnx.Rngs) -> nnx.GroupNorm:
    # The variance as E[(x - mean)^2]: E[x^2] - mean^2 cancels when the mean is large.
    return nnx.GroupNorm(channels, num_groups=1, epsilon=1e-5, use_fast_variance=False, rngs=rngs)


def _check_width(name: str, ratio: Number, width: int) -> None:
    if width < 1:
        raise ValueError(
            f"FNO: {name} must leave at least one channel of the inner layer, "
            f"got {ratio!r}, which leaves {width}"
        )


def _check_padding(padding: Number | Sequence[Number] | None, dim: int) -> tuple[Number, ...]:
    if padding is None:
        return (0.0,) * dim
    fractions = tuple(padding) if isinstance(padding, Sequence) else (padding,) * dim
    if len(fractions) != dim or not all(0 <= p <= 1 for p in fractions):
        raise ValueError(
            f"FNO: domain_padding must be one number or {dim} numbers, each between 0 and 1, "
            f"got {padding!r}"
        )
    return fractions
