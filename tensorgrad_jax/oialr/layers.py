"""Low-rank layers of Flax NNX: Linear, LinearGeneral (and so attention), Conv.

A layer becomes low-rank in place: it gets a class of its own, its parameter `kernel` the core as
its value, and bases as variables of another collection, `FrozenBasis`. Whoever holds the layer
holds the low-rank one; paths of parameters, optimizer states and masks stay. Such a layer is to be
called, not read: its `kernel` is not the weight any more.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tensorgrad_jax.oialr.cost import chain_is_cheaper
from tensorgrad_jax.oialr.kernels import Kernel
from tensorgrad_jax.oialr.low_rank import LowRank, reconstruct


class FrozenBasis(nnx.Variable):
    """A basis, or the rank, of a low-rank layer: no `nnx.Param`, so that nothing trains it."""


def is_low_rank(layer: Any) -> bool:
    """Whether a layer is a low-rank one."""
    return hasattr(type(layer), "dense_type")


@functools.cache
def low_rank_type(dense_type: Any) -> Any:
    """Return the class of low-rank layers of a class: it derives from it, and calls it.

    A call is one of the dense class with the weight in place of the core, or with a chain of
    products in place of the layer's own product where that takes fewer multiplications
    (`oialr.cost`).
    """

    def call(self, inputs: Any, *args: Any, **options: Any) -> Any:
        """Apply the layer."""
        return _dense_twin(self, inputs)(inputs, *args, **options)

    body = {
        "dense_type": dense_type,
        "__call__": call,
        "__doc__": f"A low-rank `{dense_type.__name__}`.",
        "__module__": dense_type.__module__,
    }
    # One base alone: otherwise Python would not let a layer change its class to this one.
    return type(f"LowRank{dense_type.__name__}", (dense_type,), body)


def _dense_twin(layer, inputs):
    """Return a layer of the dense class that does for these inputs what the low-rank one is to."""
    x = low_rank_of(layer)
    twin = object.__new__(layer.dense_type)
    own = vars(twin)
    own.update({k: v for k, v in vars(layer).items() if not k.startswith("basis_")})
    m, n, positions = x.U.shape[0], x.Vt.shape[1], _positions(layer, inputs, x)
    if not (_has_plain_product(layer) and chain_is_cheaper(m, n, x.size, positions)):
        own["kernel"] = reconstruct(x)
        return twin
    own["kernel"] = x.S
    if layer.dense_type is nnx.Conv:
        own["conv_general_dilated"] = _chained_conv(layer, x)
    else:
        own["dot_general"] = _chained_dot(layer, x)
    return twin


def kernel_of(layer: Any) -> Kernel | None:
    """Return how the kernel of a layer is seen as a matrix; None if the layer has none such.

    Of `nnx.LinearGeneral` those with batch axes have none, nor layers stacked by `nnx.vmap`.
    """
    if isinstance(layer, nnx.Conv):
        kernel = Kernel(len(layer.kernel_size) + 1, convolution=True)
        ndim = kernel.rows + 1
    elif isinstance(layer, nnx.LinearGeneral):
        kernel = Kernel(len(layer.in_features))
        ndim = len(layer.in_features) + len(layer.out_features)
        if layer.batch_axis:
            return None
    elif isinstance(layer, nnx.Linear):
        kernel, ndim = Kernel(1), 2
    else:
        return None
    stored = layer.dense_shape if is_low_rank(layer) else layer.kernel.shape
    return kernel if len(stored) == ndim else None


def low_rank_of(layer: Any) -> LowRank:
    """Return the kernel of a low-rank layer."""
    basis = (layer.basis_u[...], layer.basis_vt[...], layer.basis_rank[...])
    # Nothing trains a basis, also where everything is differentiated.
    u, vt, rank = jax.lax.stop_gradient(basis)
    return LowRank(u, layer.kernel[...], vt, rank, layer.dense_shape)


def make_low_rank(layer: Any, x: LowRank) -> None:
    """Give a layer, dense or low-rank already, this kernel."""
    if not is_low_rank(layer):
        object.__setattr__(layer, "__class__", low_rank_type(type(layer)))
        layer.dense_shape = tuple(x.shape)
        layer.basis_u, layer.basis_vt = FrozenBasis(x.U), FrozenBasis(x.Vt)
        layer.basis_rank = FrozenBasis(x.rank)
    layer.kernel.set_value(x.S)
    layer.basis_u.set_value(x.U)
    layer.basis_vt.set_value(x.Vt)
    layer.basis_rank.set_value(x.rank)


def _has_plain_product(layer) -> bool:
    """Whether the layer's product is Flax's, and with the kernel as it is."""
    if layer.dense_type is nnx.Conv:
        return layer.mask is None and layer.feature_group_count == 1
    if layer.dense_type is nnx.LinearGeneral:
        return layer.dot_general_cls is None
    return layer.dense_type is nnx.Linear


def _positions(layer, inputs, x: LowRank) -> int:
    """Return how many vectors the layer multiplies."""
    if not isinstance(layer, nnx.Conv):
        return inputs.size // x.U.shape[0]
    strides = layer.strides if layer.strides is not None else 1
    dims = len(layer.kernel_size)
    steps = strides**dims if isinstance(strides, int) else math.prod(strides)
    return max(1, inputs.size // inputs.shape[-1] // steps)


def _chained_dot(layer, x: LowRank):
    """Return a `dot_general` that multiplies by the bases before and behind the core."""
    product = layer.dot_general or jax.lax.dot_general
    rows = kernel_of(layer).rows

    def dot_general(inputs, core, dimensions, *, out_sharding=None, **options):
        ((axes, _), _) = dimensions
        U = x.U.reshape(*x.shape[:rows], x.size).astype(core.dtype)
        Vt = x.Vt.reshape(x.size, *x.shape[rows:]).astype(core.dtype)
        y = product(inputs, U, ((tuple(axes), tuple(range(rows))), ((), ())), **options)
        last = lambda y: (((y.ndim - 1,), (0,)), ((), ()))
        y = product(y.astype(core.dtype), core, last(y), **options)
        if out_sharding is not None:
            options["out_sharding"] = out_sharding
        return product(y.astype(core.dtype), Vt, last(y), **options)

    return dot_general


def _chained_conv(layer, x: LowRank):
    """Return a convolution with U, p channels wide, and a product with the core and V^H."""
    convolve = layer.conv_general_dilated

    def conv_general_dilated(inputs, core, *args, precision=None, **options):
        U = x.U.reshape(*x.shape[:-1], x.size).astype(core.dtype)
        y = convolve(inputs, U, *args, precision=precision, **options)
        wide = options.get("preferred_element_type")
        product = functools.partial(jnp.matmul, precision=precision, preferred_element_type=wide)
        y = product(y.astype(core.dtype), core)
        return product(y.astype(core.dtype), x.Vt.astype(core.dtype))

    return conv_general_dilated
