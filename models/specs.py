"""What an optimizer must know of the models' parameters to treat them as tensors."""

from typing import Any

import jax
from flax import nnx

from tensorgrad_jax.projections.base import TensorSpec


def tensor_specs(model_or_params: Any) -> Any:
    """Specs for a model's parameters: real pairs at the spectral weights, None elsewhere.

    Args:
        model_or_params: a module (its `nnx.Param` variables are meant), an `nnx.State`, or a
            nested dict of arrays.

    Returns:
        A tree like the parameters with `TensorSpec(complex_axis=0, groups=...)` at each leaf whose
        last path key is `spectral_weight`, and None at all others: those are optimised as they
        are. The groups factor a second moment over the channels, at every frequency.
        Its structure is the parameters' own down to their leaves,
        `jax.tree.structure(params).flatten_up_to(specs)` lists the specs in the order of the
        leaves. It can be given as it is, or this function itself as a callable.
    """
    params = model_or_params
    if isinstance(params, nnx.Module):
        params = nnx.state(params, nnx.Param)
    return jax.tree_util.tree_map_with_path(
        lambda path, x: _spec(x.ndim) if _last_name(path) == "spectral_weight" else None, params
    )


def _spec(n_axes: int) -> TensorSpec:
    """Return the spec of a weight (2, *modes, in, out), or (2, *modes, channels)."""
    *others, a, b = range(1, n_axes)
    return TensorSpec(complex_axis=0, groups=((*others, a), (*others, b)))


def _last_name(path: tuple[Any, ...]) -> Any:
    # A variable adds one key of its own, an attribute, below the key of the module's attribute.
    names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
    return names[-1] if names else None
