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

from tensorgrad_jax.backend.pieces import in_pieces

from .checks import check_choice
from .linear_maps import linear_map

PRECISIONS = ("full", "mixed", "half")
WEIGHTS_PRECISIONS = ("full", "half")

_in_pieces = functools.partial(in_pieces, used_again=True)


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
    return _in_pieces(_matmul(dtype), (x, weight), (0, None), 0)


@product.defjvp
def _product_jvp(dtype, primals, tangents):
    def gradient(factors, cotangents):
        (x, weight), (g,) = factors, cotangents
        g = g.astype(x.dtype)
        dx = _in_pieces(_matmul(x.dtype), (g, weight.T), (0, None), 0)
        transposed = lambda x, g: jax.lax.dot(x.T, g, preferred_element_type=jnp.float32)
        dweight = _in_pieces(transposed, (x, g), (0, 0), None)
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
    return _in_pieces(_batched_dot((3, 2), jnp.float32), (x, weight), (1, 1), 1)


@batched_products.defjvp
def _batched_products_jvp(primals, tangents):
    def gradient(factors, cotangents):
        (x, weight), (g,) = factors, cotangents
        g = g.astype(x.dtype)
        dx = _in_pieces(_batched_dot((3, 3), jnp.bfloat16), (g, weight), (1, 1), 1)
        return dx, _in_pieces(_batched_dot((2, 2), jnp.bfloat16), (x, g), (1, 1), 1)

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
