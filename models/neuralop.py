"""Exchange of weights with neuraloperator 2.0.0, bit for bit in both directions.

neuraloperator keeps channels first, pointwise maps as convolutions of width 1 with kernel
(out, in, 1), and complex spectral weights (in, out, *modes), named as in its state dicts.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from .fno import FNO, FNOBlock
from .layers import ChannelLinear, ChannelMix, ChannelMLP, SoftGating
from .spectral_conv import SpectralConv

# Arguments of neuraloperator's FNO in their order, up to the last that may reasonably be given by
# position: a saved model remembers the positional ones without names.
_POSITIONAL = (
    "n_modes", "in_channels", "out_channels", "hidden_channels", "n_layers",
    "lifting_channel_ratio", "projection_channel_ratio", "positional_embedding",
)  # fmt: skip
_SHARED = {
    *_POSITIONAL, "norm", "use_channel_mlp", "channel_mlp_expansion", "domain_padding",
    "stabilizer", "separable",
}  # fmt: skip
# Arguments that FNO does not have, with the values that mean what it computes.
_FIXED: dict[str, tuple[Any, ...]] = {
    "complex_data": (False,),
    "channel_mlp_dropout": (0, 0.0),
    "channel_mlp_skip": ("soft-gating",),
    "fno_skip": ("linear",),
    "resolution_scaling_factor": (None, 1),
    "fno_block_precision": ("full",),
    "factorization": (None, "dense", "Dense"),
    "preactivation": (False,),
}
# Arguments without meaning for dense weights, or that hold Python objects.
_IGNORED = {
    "non_linearity", "rank", "fixed_rank_modes", "implementation", "decomposition_kwargs",
    "conv_module", "max_n_modes", "args", "_name", "_version", "verbose",
}  # fmt: skip


# What the layers of a model are. neuraloperator has the optional ones in pairs.
_LAYERS: dict[type, dict[str, type]] = {
    FNO: {"lifting": ChannelMLP, "projection": ChannelMLP},
    FNOBlock: {
        "conv": SpectralConv,
        "skip": ChannelMix,
        "channel_mlp": ChannelMLP,
        "channel_mlp_skip": SoftGating,
        "conv_norm": nnx.GroupNorm,
        "output_norm": nnx.GroupNorm,
    },
    ChannelMLP: {"inner": ChannelLinear, "outer": ChannelLinear},
    ChannelMix: {"linear": ChannelLinear},
}
_PAIRS = [("channel_mlp", "channel_mlp_skip"), ("conv_norm", "output_norm")]
_OPTIONAL = dict(_PAIRS) | {b: a for a, b in _PAIRS}


class _Entry(NamedTuple):
    """One array: its name there, the variable here, and how to go from one to the other."""

    name: str
    variable: Any
    export: Callable[[np.ndarray], np.ndarray]
    restore: Callable[[np.ndarray], np.ndarray]


def from_neuralop(
    source: Mapping[str, Any] | str | os.PathLike[str],
    config: Mapping[str, Any] | None = None,
    reference_shift: bool = False,
) -> FNO:
    """Build an `FNO` with the weights of a neuraloperator model.

    Args:
        source: a state dict (name -> array), or the path of one saved with `torch.save`; reading
            a file needs PyTorch.
        config: arguments of neuraloperator's `FNO` constructor by name. What is missing is taken
            from the record neuraloperator leaves in its state dicts (`_metadata`), then from the
            shapes of the arrays. What no shape tells (`positional_embedding`, `domain_padding`,
            `stabilizer`) is otherwise neuraloperator's default: `"grid"`, None, None.
        reference_shift: as neuraloperator computes on grids with an odd number of points, see
            `SpectralConv`. Even grids do not differ.

    Returns:
        The model; its outputs agree with neuraloperator's up to round-off.

    Raises:
        ValueError: if an argument in `config` is unknown or asks for what `FNO` does not compute,
            or if names or shapes of the arrays do not fit the arguments.
        ImportError: if `source` is a path and PyTorch is missing.
    """
    state = dict(source if isinstance(source, Mapping) else _load(source))
    recorded = state.pop("_metadata", None) or {}
    recorded = {**recorded, **dict(zip(_POSITIONAL, recorded.get("args", ()), strict=False))}
    given = {**recorded, **(config or {})}
    arrays = {name: _as_numpy(value) for name, value in state.items()}
    arguments = {**_read_shapes(arrays, given), **_check_config(given)}
    arguments["n_modes"] = tuple(arguments["n_modes"])
    # Shapes only: no weights are drawn that the arrays replace anyway.
    model = nnx.eval_shape(
        lambda: FNO(**arguments, reference_shift=reference_shift, rngs=nnx.Rngs(0))
    )

    entries = list(_entries(model))
    missing = sorted({e.name for e in entries} - set(arrays))
    unknown = sorted(set(arrays) - {e.name for e in entries})
    if missing or unknown:
        raise ValueError(
            "from_neuralop: the arrays do not fit the configuration: "
            f"missing {missing}, not expected {unknown}"
        )
    for name, variable, export, restore in entries:
        expected = variable.get_value()
        shape = export(np.zeros(expected.shape, expected.dtype)).shape
        if arrays[name].shape != shape:
            raise ValueError(
                f"from_neuralop: {name} has shape {arrays[name].shape}, "
                f"but the configuration asks for {shape}"
            )
        array = restore(arrays[name])
        if np.iscomplexobj(array):
            raise ValueError(f"from_neuralop: {name} must be real, got {array.dtype}")
        variable.set_value(jnp.asarray(array, expected.dtype))
    return model


def to_neuralop(model: FNO) -> dict[str, np.ndarray]:
    """The weights under neuraloperator's names and in its shapes, complex weights as complex64.

    Args:
        model: a Fourier neural operator with the layers that `FNO` makes.

    Returns:
        A dict of NumPy arrays that `from_neuralop` turns back bit for bit. For PyTorch:
        `model.load_state_dict({k: torch.from_numpy(v) for k, v in arrays.items()})`.

    Raises:
        ValueError: if a layer has been replaced, by one with adapters, say: neuraloperator's model
            would not compute what this one does.
    """
    _check_layers("model", model, _LAYERS[FNO])
    for i, block in enumerate(model.blocks):
        _check_layers(f"model.blocks[{i}]", block, _LAYERS[FNOBlock])
    return {e.name: e.export(np.asarray(e.variable[...])) for e in _entries(model)}


def _check_layers(name: str, owner: Any, layers: Mapping[str, type]) -> None:
    """Raise a ValueError if a layer is not what `FNO` makes: it would be read, not called."""
    for attribute, kind in layers.items():
        layer, path = getattr(owner, attribute, None), f"{name}.{attribute}"
        # Together with another layer some are optional.
        partner = _OPTIONAL.get(attribute)
        if layer is None and partner is not None and getattr(owner, partner) is None:
            continue
        if type(layer) is not kind:
            raise ValueError(
                f"to_neuralop: {path} must be the {kind.__name__} that FNO makes, got "
                f"{type(layer).__name__}: neuraloperator has no such layer"
            )
        _check_layers(path, layer, _LAYERS.get(kind, {}))


def _entries(model: FNO) -> Iterator[_Entry]:
    dim = len(model.n_modes)
    ones = (1,) * dim
    yield from _mlp_entries("lifting", model.lifting)
    yield from _mlp_entries("projection", model.projection)
    for i, block in enumerate(model.blocks):
        blocks = "fno_blocks"
        conv = block.conv
        yield _Entry(
            f"{blocks}.convs.{i}.weight.tensor",
            conv.spectral_weight,
            partial(_to_complex, dim=dim),
            partial(_to_pair, dim=dim),
        )
        yield _Entry(f"{blocks}.convs.{i}.bias", conv.bias, lambda b: b.reshape(-1, *ones), _flat)
        kernel = block.skip.linear.kernel
        yield _Entry(f"{blocks}.fno_skips.{i}.conv.weight", kernel, _to_conv, _to_kernel)
        if block.channel_mlp is not None and block.channel_mlp_skip is not None:
            yield from _mlp_entries(f"{blocks}.channel_mlp.{i}", block.channel_mlp)
            yield _Entry(
                f"{blocks}.channel_mlp_skips.{i}.weight",
                block.channel_mlp_skip.gate,
                lambda g: g.reshape(1, -1, *ones),
                _flat,
            )
        for j, norm in enumerate((block.conv_norm, block.output_norm)):
            if norm is not None:
                yield _Entry(f"{blocks}.norm.{2 * i + j}.weight", norm.scale, _flat, _flat)
                yield _Entry(f"{blocks}.norm.{2 * i + j}.bias", norm.bias, _flat, _flat)


def _mlp_entries(name: str, mlp: ChannelMLP) -> Iterator[_Entry]:
    for j, linear in enumerate((mlp.inner, mlp.outer)):
        yield _Entry(f"{name}.fcs.{j}.weight", linear.kernel, _to_conv, _to_kernel)
        yield _Entry(f"{name}.fcs.{j}.bias", linear.bias, _flat, _flat)


def _to_conv(kernel: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(kernel.T)[..., None]


def _to_kernel(weight: np.ndarray) -> np.ndarray:
    return weight[..., 0].T


def _flat(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1)


def _to_complex(pair: np.ndarray, dim: int) -> np.ndarray:
    pair = np.moveaxis(pair, range(1, dim + 1), range(-dim, 0))
    # By memory, not by arithmetic: real + 1j * imag would lose the sign of a zero.
    interleaved = np.ascontiguousarray(np.moveaxis(pair, 0, -1), np.float32)
    return interleaved.view(np.complex64)[..., 0]


def _to_pair(weight: np.ndarray, dim: int) -> np.ndarray:
    pair = np.stack([np.real(weight), np.imag(weight)])
    return np.moveaxis(pair, range(-dim, 0), range(1, dim + 1))


def _check_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that `FNO` has too; a ValueError for those it cannot do justice to."""
    for name, value in config.items():
        if name in _FIXED and value not in _FIXED[name]:
            allowed = " or ".join(map(repr, _FIXED[name]))
            raise ValueError(f"from_neuralop: config[{name!r}] must be {allowed}, got {value!r}")
        if name not in _SHARED | _IGNORED | set(_FIXED):
            raise ValueError(
                f"from_neuralop: config has an unknown argument {name!r}; "
                f"known are {sorted(_SHARED | _IGNORED | set(_FIXED))}"
            )
    return {name: value for name, value in config.items() if name in _SHARED}


def _read_shapes(arrays: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor arguments that the shapes of the arrays tell."""
    try:
        dim = arrays["fno_blocks.convs.0.bias"].ndim - 1
        weight = arrays["fno_blocks.convs.0.weight.tensor"].shape
        width, inputs, _ = arrays["lifting.fcs.0.weight"].shape
        hidden = arrays["lifting.fcs.1.weight"].shape[0]
        outputs, projection, _ = arrays["projection.fcs.1.weight"].shape
    except KeyError as error:
        raise ValueError(
            "from_neuralop: source is not the state dict of a neuraloperator 2.0.0 FNO with dense "
            f"weights: it has no array {error.args[0]!r}"
        ) from None
    mlp = arrays.get("fno_blocks.channel_mlp.0.fcs.0.weight")
    *leading, last = weight[-dim:]
    coordinates = dim if config.get("positional_embedding", "grid") == "grid" else 0
    return {
        # m and m + 1 modes on the last axis have the same weights for even m.
        "n_modes": (*leading, max(1, 2 * (last - 1))),
        "in_channels": inputs - coordinates,
        "out_channels": outputs,
        "hidden_channels": hidden,
        "n_layers": sum(name.endswith(".weight.tensor") for name in arrays),
        # The constructor cuts ratio * hidden off to an integer: half a channel guards against
        # round-off.
        "lifting_channel_ratio": (width + 0.5) / hidden,
        "projection_channel_ratio": (projection + 0.5) / hidden,
        "use_channel_mlp": mlp is not None,
        "channel_mlp_expansion": 0.5 if mlp is None else mlp.shape[0] / hidden,
        "norm": "group_norm" if "fno_blocks.norm.0.weight" in arrays else None,
        "separable": len(weight) == dim + 1,
    }


def _as_numpy(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)


def _load(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "from_neuralop: reading a file written by torch.save needs PyTorch: "
            "pip install 'tensorgrad-jax[torch]'"
        ) from error

    # neuraloperator's record of the constructor arguments names two Python objects. Only they
    # are let through, and as stand-ins: nothing else in the file is executed or imported.
    stand_ins = [
        (_StandIn, "neuralop.layers.spectral_convolution.SpectralConv"),
        (_StandIn, "torch._C._nn.gelu"),
    ]
    with torch.serialization.safe_globals(stand_ins):
        return torch.load(path, map_location="cpu", weights_only=True)


class _StandIn:
    """Takes the place of a Python object named in a saved file."""
