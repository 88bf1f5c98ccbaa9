"""Flax NNX modules: Fourier neural operators whose complex weights are stored as real pairs."""

from .fno import FNO, FNOBlock
from .layers import ChannelMLP, SoftGating, gelu
from .neuralop import from_neuralop, to_neuralop
from .specs import tensor_specs
from .spectral_conv import SpectralConv

__all__ = [
    "FNO",
    "ChannelMLP",
    "FNOBlock",
    "SoftGating",
    "SpectralConv",
    "from_neuralop",
    "gelu",
    "tensor_specs",
    "to_neuralop",
]
