"""Which numbers a Fourier neural operator computes with.

Three settings, named as in neuraloperator:

- `"full"`: everything in the dtype of the input and the parameters, float32 as a rule.
- `"mixed"`: products with weights, in the spectral convolution and in the pointwise layers, take
  bfloat16 factors and add up in float32; what is handed from layer to layer is bfloat16. Fourier
  transforms, norms and the output are float32.
- `"half"`: as mixed, and a Fourier transform that is computed by matrix products takes and returns
  bfloat16 too. There is no 16-bit FFT: where that is used, half is mixed.

bfloat16 has float32's exponents, so that gradients do not underflow and no loss needs scaling.
float16 would need that and is not offered.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float, Float32

from tensorgrad_jax.bfloat16 import from_bits, to_bits
from tensorgrad_jax.pieces import filled, reduced

from .checks import check_choice
from .linear_maps import linear_map

PRECISIONS = ("full", "mixed", "half")
WEIGHTS_PRECISIONS = ("full", "half")

# On CPUs a product of bfloat16 matrices is one of float32 copies. They are made piece by piece
# there, of about this many bytes, never of a whole factor.
_CPU_COPY_BYTES = 2**21


def check_precision(owner: str, precision: str, weights_precision: str) -> None:
    """Raise a ValueError that names the argument and what is allowed."""
    hint = " (half is bfloat16; float16 would need loss scaling and is not offered)"
    check_choice(owner, "fno_block_precision", precision, PRECISIONS, hint)
    check_choice(owner, "fno_block_weights_precision", weights_precision, WEIGHTS_PRECISIONS, hint)
    if weights_precision == "half" and precision == "full":
        raise ValueError(
            f"{owner}: fno_block_weights_precision 'half' needs fno_block_precision 'mixed' or "
            "'half': with 'full' the weights would have to be widened as a whole"
        )


def layer_dtype(precision: str) -> jnp.dtype | None:
    """The dtype of pointwise layers and of what goes from layer to layer; None: as it comes."""
    return None if precision == "full" else jnp.dtype(jnp.bfloat16)


def narrow(x: Float[Array, "*shape"], dtype: jnp.dtype | None) -> Float[Array, "*shape"]:
    """`x` in `dtype`, or as it is where that is None."""
    return x if dtype is None else x.astype(dtype)


def widen(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`x` in float32 at least."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def product(
    x: BFloat16[Array, "points i"], weight: BFloat16[Array, "i o"], dtype: Any
) -> Float[Array, "points o"]:
    """x @ weight, added up in float32 and returned in `dtype`; the cotangent is made bfloat16.

    Without that the backward pass of a float32 result would be products of float32 with bfloat16,
    for which the large factor is copied to float32.
    """
    return _piecewise(_matmul(dtype), (x, weight), (0, None), 0)


@product.defjvp
def _product_jvp(dtype, primals, tangents):
    def gradient(factors, cotangents):
        (x, weight), (g,) = factors, cotangents
        g = g.astype(x.dtype)
        dx = _piecewise(_matmul(x.dtype), (g, weight.T), (0, None), 0)
        transposed = lambda x, g: jax.lax.dot(x.T, g, preferred_element_type=jnp.float32)
        dweight = _piecewise(transposed, (x, g), (0, 0), None)
        return dx, dweight.astype(weight.dtype)

    tangent = _tangent_of_product(_matmul(dtype))
    return product(*primals, dtype), linear_map(tangent, gradient, primals, tangents)[0]


def _matmul(dtype):
    return lambda x, weight: jax.lax.dot(x, weight, preferred_element_type=dtype)


@jax.custom_jvp
def batched_products(
    x: BFloat16[Array, "p m k i"], weight: BFloat16[Array, "p m i o"]
) -> Float32[Array, "p m k o"]:
    """One matrix product x[p, m] @ weight[p, m] for every p and m, added up in float32.

    The cotangent is rounded to bfloat16, and the gradient with respect to `weight` is bfloat16.
    """
    return _piecewise(_batched_dot((3, 2), jnp.float32), (x, weight), (1, 1), 1)


@batched_products.defjvp
def _batched_products_jvp(primals, tangents):
    def gradient(factors, cotangents):
        (x, weight), (g,) = factors, cotangents
        g = g.astype(x.dtype)
        dx = _piecewise(_batched_dot((3, 3), jnp.bfloat16), (g, weight), (1, 1), 1)
        return dx, _piecewise(_batched_dot((2, 2), jnp.bfloat16), (x, g), (1, 1), 1)

    tangent = _tangent_of_product(_batched_dot((3, 2), jnp.float32))
    return batched_products(*primals), linear_map(tangent, gradient, primals, tangents)[0]


def _batched_dot(axes, dtype):
    dimensions = (((axes[0],), (axes[1],)), ((0, 1), (0, 1)))
    return lambda a, b: jax.lax.dot_general(a, b, dimensions, preferred_element_type=dtype)


def _tangent_of_product(product):
    def tangent(factors, tangents):
        (x, weight), (dx, dweight) = factors, tangents
        return (product(dx, weight) + product(x, dweight),)

    return tangent


def _piecewise(function, arrays, axes, out_axis):
    """`function(*arrays)`, on CPUs for a piece of the arrays at a time.

    Args:
        function: of the arrays; what it returns is a concatenation or a sum over pieces.
        arrays: its arguments.
        axes: the axis that is cut, per argument; None for one that is not.
        out_axis: the axis along which the results are joined; None if they are added.
    """
    cut = [(x, axis) for x, axis in zip(arrays, axes, strict=True) if axis is not None]
    n = cut[0][0].shape[cut[0][1]]
    widths = [x.size // n for x, _ in cut]
    if out_axis is not None:
        widths.append(jax.eval_shape(function, *arrays).size // n)
    piece = max(1, _CPU_COPY_BYTES // (4 * max(1, *widths)))
    if piece >= n:
        return function(*arrays)

    def in_pieces(*arrays):
        struct = jax.eval_shape(function, *arrays)
        # Each use of an array waits for the other factor: otherwise the integers of a weight would
        # be made once and kept from the forward to the backward pass.
        bits = [to_bits(x) + _zero(y) for x, y in zip(arrays, reversed(arrays), strict=True)]

        def part(start, length):
            pieces = (
                x if axis is None else jax.lax.dynamic_slice_in_dim(x, start, length, axis)
                for x, axis in zip(bits, axes, strict=True)
            )
            return function(*(from_bits(x, jnp.bfloat16) for x in pieces))

        if out_axis is None:
            add = lambda start, length, total: total + part(start, length)
            return reduced(add, n, piece, jnp.zeros(struct.shape, struct.dtype))

        joined: int = out_axis

        def put(start, length, out):
            new = to_bits(part(start, length))
            return jax.lax.dynamic_update_slice_in_dim(out, new, start, joined)

        # All of it is overwritten. Zeros would be shared by all loops, and copied early.
        dtype = jnp.uint16 if struct.dtype == jnp.bfloat16 else struct.dtype
        blank = jnp.broadcast_to(bits[0].ravel()[0].astype(dtype), struct.shape)
        return from_bits(filled(put, n, piece, blank), struct.dtype)

    return jax.lax.platform_dependent(*arrays, cpu=in_pieces, default=function)


def _zero(x):
    """A zero that depends on `x`, and of which the compiler does not know that it is one."""
    return (to_bits(x.ravel()[0]) & jnp.uint16(0x7FFF)) >> 15
