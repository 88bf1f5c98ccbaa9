"""Which numbers a Fourier neural operator computes with.

Three settings, named as in neuraloperator:

- `"full"`: everything in the dtype of the input and the parameters, float32 as a rule.
- `"mixed"`: products with weights, in the spectral convolution and in the pointwise layers, take
  bfloat16 factors and add up in float32; what is handed from layer to layer is bfloat16. Fourier
  transforms, norms and the output are float32.
- `"half"`: as mixed, and the coefficients of a Fourier transform are bfloat16 too, as are its
  factors where it is computed by matrix products. There is no 16-bit FFT: that one stays float32.

bfloat16 has float32's exponents, so that gradients do not underflow and no loss needs scaling.
float16 would need that and is not offered.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float, Float32

from .checks import check_choice

PRECISIONS = ("full", "mixed", "half")
WEIGHTS_PRECISIONS = ("full", "half")

# On CPUs a product of bfloat16 matrices is one of float32 copies. Weights are widened piece by
# piece there, never as a whole.
_CPU_COPY_BYTES = 2**18


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


@jax.custom_vjp
def matmul_to_float32(
    x: BFloat16[Array, "points i"], weight: BFloat16[Array, "i o"]
) -> Float32[Array, "points o"]:
    """x @ weight, added up and returned in float32; the cotangent is rounded to bfloat16.

    Without that rounding the backward pass would be products of float32 with bfloat16, for which
    the large factor is copied to float32.
    """
    return jax.lax.dot(x, weight, preferred_element_type=jnp.float32)


def _matmul_forward(x, weight):
    return matmul_to_float32(x, weight), (x, weight)


def _matmul_backward(kept, cotangent):
    x, weight = kept
    cotangent = cotangent.astype(x.dtype)
    return cotangent @ weight.T, x.T @ cotangent


matmul_to_float32.defvjp(_matmul_forward, _matmul_backward)


@jax.custom_vjp
def batched_products(
    x: BFloat16[Array, "p m k i"], weight: BFloat16[Array, "p m i o"]
) -> Float32[Array, "p m k o"]:
    """One matrix product x[p, m] @ weight[p, m] for every p and m, added up in float32.

    The cotangent is rounded to bfloat16, and the gradient with respect to `weight` is bfloat16.
    """
    return _piecewise(_forward_products, x, weight)


def _products_forward(x, weight):
    return batched_products(x, weight), (x, weight)


def _products_backward(kept, cotangent):
    x, weight = kept
    cotangent = cotangent.astype(x.dtype)
    dx = _piecewise(_input_gradient, cotangent, weight)
    return dx, _piecewise(_weight_gradient, x, cotangent)


batched_products.defvjp(_products_forward, _products_backward)


def _batched_dot(a, b, axes, dtype):
    dimensions = (((axes[0],), (axes[1],)), ((0, 1), (0, 1)))
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=dtype)


def _forward_products(x, weight):
    return _batched_dot(x, weight, (3, 2), jnp.float32)


def _input_gradient(cotangent, weight):
    return _batched_dot(cotangent, weight, (3, 3), jnp.bfloat16)


def _weight_gradient(x, cotangent):
    return _batched_dot(x, cotangent, (2, 2), jnp.bfloat16)


def _piecewise(products, a, b):
    """`products(a, b)`; on CPUs for a few m at a time."""
    m = a.shape[1]
    result = jax.eval_shape(products, a, b)
    largest = max(x.size // m for x in (a, b, result)) * 4
    fits = lambda n: m % n == 0 and n * largest <= _CPU_COPY_BYTES
    piece = next((n for n in range(m, 0, -1) if fits(n)), 1)
    if piece == m:
        return products(a, b)

    def in_pieces(a, b):
        def step(i, done):
            part = products(
                *(jax.lax.dynamic_slice_in_dim(x, i * piece, piece, axis=1) for x in (a, b))
            )
            return jax.lax.dynamic_update_slice_in_dim(done, part, i * piece, axis=1)

        return jax.lax.fori_loop(0, m // piece, step, jnp.zeros(result.shape, result.dtype))

    return jax.lax.platform_dependent(a, b, cpu=in_pieces, default=products)
