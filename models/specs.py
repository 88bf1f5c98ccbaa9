"""What an optimizer must know of the models' parameters to treat them as tensors."""

from typing import Any

import jax
from flax import nnx

from tensorgrad_jax.projections.leaf import TensorSpec


def tensor_specs(model_or_params: Any) -> Any:
    """Specs for a model's parameters: real pairs at the spectral weights, None elsewhere.

    Layers may be stacked, by `nnx.vmap`, `nnx.scan` or `jax.vmap` of what builds them: the axes
    that these add in front become batch axes, so that every layer is a tensor of its own. How many
    axes a weight has by itself is known to its `nnx.Param`; in a tree of plain arrays the bias
    beside it tells, which by itself has one. Where there is neither, as in a dict under
    `optax.partition`, no axis is taken for an added one.

    In the place of an array a `TuckerWeight` may stand: its core is the tensor then, and its
    factors have no spec.

    Args:
        model_or_params: a module (its `nnx.Param` variables are meant), an `nnx.State`, or a
            nested dict of arrays.

    Returns:
        A tree like the parameters with a `TensorSpec` at each leaf whose last path key is
        `spectral_weight`, and None at all others: those are optimised as they are. The spec names
        the axis of real and imaginary part and the batch axes; its groups factor a second moment
        over the channels, at every frequency, and its matrices are those of the channels.
        Its structure is the parameters' own down to their leaves,
        `jax.tree.structure(params).flatten_up_to(specs)` lists the specs in the order of the
        leaves. It can be given as it is, or this function itself as a callable.

    Raises:
        ValueError: if a spectral weight has no pair of numbers where real and imaginary part are
            expected, because axes were added elsewhere than in front; or if there are neither
            `nnx.Param` nor bias and another axis could be that of the parts.

    Examples:
        >>> from flax import nnx
        >>> from tensorgrad_jax.models import FNO, tensor_specs
        >>> model = nnx.eval_shape(lambda: FNO((8, 8), 1, 1, 16, n_layers=1, rngs=nnx.Rngs(0)))
        >>> params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        >>> params["blocks"][0]["conv"]["spectral_weight"].shape
        (2, 8, 5, 16, 16)
        >>> tensor_specs(params)["blocks"][0]["conv"]["spectral_weight"].complex_axis
        0
    """
    params = model_or_params
    if params is None:
        raise ValueError(
            "tensor_specs: model_or_params must be a module, a state or a tree of arrays, got None"
        )
    if isinstance(params, nnx.Module):
        params = nnx.state(params, nnx.Param)
    is_variable = lambda x: isinstance(x, nnx.Variable)
    flatten = jax.tree_util.tree_leaves_with_path
    variables = {_without_value(p): x for p, x in flatten(params, is_leaf=is_variable)}
    arrays = {_without_value(path): x for path, x in flatten(params)}

    def spec(path, weight):
        path = _without_value(path)
        if not path or path[-1] != jax.tree_util.DictKey("spectral_weight"):
            return None
        bias = arrays.get((*path[:-1], jax.tree_util.DictKey("bias")))
        name, own_axes = jax.tree_util.keystr(path), None
        if is_variable(variables[path]):
            own_axes = variables[path].get_metadata().get("own_axes")
        if own_axes is None and bias is not None:
            own_axes = weight.ndim - (bias.ndim - 1)
        if own_axes is None and 2 in weight.shape[1:-2]:
            raise ValueError(
                f"tensor_specs: {name} of shape {weight.shape} comes without its bias, so that "
                "axes of stacked layers are not told from its own; give the specs of the whole "
                "model"
            )
        return _spec(name, weight.shape, 0 if own_axes is None else weight.ndim - own_axes)

    return jax.tree_util.tree_map_with_path(spec, params)


def _spec(name: str, shape: tuple[int, ...], n_added: int) -> TensorSpec:
    """Return the spec of a weight (*added, 2, *modes, in, out) or (*added, 2, *modes, channels)."""
    if n_added < 0 or shape[n_added] != 2:
        raise ValueError(
            f"tensor_specs: {name} has shape {shape}, expected real and imaginary part at axis "
            f"{n_added}, behind the axes that vmap or scan have added"
        )
    *others, a, b = range(n_added + 1, len(shape))
    groups = ((*others, a), (*others, b))
    batch_axes = tuple(range(n_added))
    return TensorSpec(
        complex_axis=n_added, batch_axes=batch_axes, groups=groups, matrix_axes=(a, b)
    )


def _without_value(path: tuple[Any, ...]) -> tuple[Any, ...]:
    # The array of a variable is an attribute of it, and so is the core of a `TuckerWeight`.
    is_attribute = bool(path) and isinstance(path[-1], jax.tree_util.GetAttrKey)
    return path[:-1] if is_attribute else path
