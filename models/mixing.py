"""Products over channels at every frequency, real and imaginary parts in two arrays.

With X of shape (batch, *modes, in) and W of shape (2, *modes, in, out), parts first:

    Y(f) = X(f) W(f).
"""

import functools

import jax
import jax.numpy as jnp

from tensorgrad_jax.backend.derivatives import same_derivative
from tensorgrad_jax.backend.ordering import stored

from .fourier import PRECISION
from .precision import batched_products


@same_derivative
def mix_modes(real, imag, weight):
    """(X_r + i X_i)(W_r + i W_i) at every frequency: X a vector, W a matrix over channels."""
    by_real, by_imag = _by_part(_rows(real, imag), weight, 0)
    y = by_real[:, 0] - by_imag[:, 1], by_real[:, 1] + by_imag[:, 0]
    return tuple(_grid(part, real.shape) for part in y)


@mix_modes.defjvp
def _mix_modes_jvp(primals, tangents):
    real, imag, weight = primals
    *dx, dweight = tangents
    y = mix_modes(*primals)
    # The tangents are transposes of the gradients, so that gradients are what is written below.
    # JAX's own would contract the rows of both factors, for which XLA for CPUs has no fast
    # product, and would pad and add the parts of the weight's gradient.
    input_gradient = functools.partial(_input_gradient, weight=weight)
    from_x = jax.linear_transpose(input_gradient, *y)(tuple(dx))
    weight_gradient = functools.partial(_weight_gradient, real, imag)
    from_weight = jax.linear_transpose(weight_gradient, *y)(dweight)
    return y, tuple(a + b for a, b in zip(from_x, from_weight, strict=True))


def _input_gradient(real, imag, weight):
    """(G_r + i G_i)(W_r - i W_i)^T at every frequency."""
    by_real, by_imag = _by_part(_rows(real, imag), weight, 1)
    x = by_real[:, 0] + by_imag[:, 1], by_real[:, 1] - by_imag[:, 0]
    return tuple(_grid(part, real.shape) for part in x)


def _weight_gradient(real, imag, g_real, g_imag):
    """(X_r - i X_i)^T (G_r + i G_i) at every frequency, summed over the batch."""
    x = stored(_rows(real, imag).transpose(0, 2, 1))
    g = jnp.stack([_rows(g_real, g_imag), _rows(g_imag, -g_real)])
    y = _batched_dot(jnp.broadcast_to(x, (2, *x.shape)), g, 0)
    return y.reshape(2, *real.shape[1:-1], *y.shape[-2:])


def _by_part(x, weight, axis):
    """Rows times real and imaginary part of the weight: (2, frequencies, 2, batch, channels)."""
    weight = weight.reshape(2, -1, *weight.shape[-2:])
    y = _batched_dot(jnp.broadcast_to(x, (2, *x.shape)), weight, axis)
    return y.reshape(*y.shape[:2], 2, -1, y.shape[-1])


def _batched_dot(x, weight, axis):
    """Contract the last axis of x (2, frequencies, ., .) with this axis of the matrices."""
    dimensions = (((3,), (2 + axis,)), ((0, 1), (0, 1)))
    return jax.lax.dot_general(x, weight, dimensions, precision=PRECISION)


def _rows(real, imag):
    """Real and imaginary parts side by side: (frequencies, 2 batch, channels)."""
    x = jnp.stack([real, imag])
    return x.reshape(2 * len(real), -1, x.shape[-1]).transpose(1, 0, 2)


def _grid(x, shape):
    """(frequencies, batch, channels) to the batch and the frequencies of `shape`."""
    return x.transpose(1, 0, 2).reshape(*shape[:-1], x.shape[-1])


def mix_modes_bfloat16(real, imag, weight):
    """The same with bfloat16 factors; results in float32."""
    batch, *modes, channels = real.shape
    weight = weight.reshape(2, -1, channels, weight.shape[-1]).astype(jnp.bfloat16)
    x = jnp.stack([real, imag]).astype(jnp.bfloat16).reshape(2 * batch, -1, channels)
    # The small factor is repeated for real and imaginary part of the large one: a product with
    # one part alone would have to copy that part first.
    x = jnp.broadcast_to(x.transpose(1, 0, 2), (2, x.shape[1], 2 * batch, channels))
    by_real, by_imag = batched_products(x, weight).reshape(2, -1, 2, batch, weight.shape[-1])
    y_real = by_real[:, 0] - by_imag[:, 1]
    y_imag = by_real[:, 1] + by_imag[:, 0]
    shape = (batch, *modes, weight.shape[-1])
    return tuple(y.transpose(1, 0, 2).reshape(shape) for y in (y_real, y_imag))


def scale_modes(real, imag, weight):
    """The same with a diagonal W."""
    w_real, w_imag = weight
    return real * w_real - imag * w_imag, real * w_imag + imag * w_real
