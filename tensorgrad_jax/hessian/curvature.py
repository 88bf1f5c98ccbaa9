"""The Hessian and the Gauss-Newton matrix of a loss over a data set, by their products."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from tensorgrad_jax.hessian.checks import check_float
from tensorgrad_jax.hessian.operators import LinearOperator
from tensorgrad_jax.projections.plain import shown, whole


def hvp_operator(
    loss: Callable[[Any, Any], Any],
    params: Any,
    data: Any,
    *,
    chunk_size: int | None = None,
    block_size: int | None = None,
    dtype: Any = None,
) -> Curvature:
    """Return the Hessian of a loss with respect to all parameters, as one symmetric operator.

        H = d^2/dw^2 (1/N) sum_n loss_n(w),    H v = d/dt gradient(w + t v) at t = 0

    The gradient is linearised once per chunk of the data; all columns of a block then share the
    forward pass and its derivatives, and are products of matrices. A product costs about two
    gradients, or four where the activations of a block leave the caches: then columns one by one
    (`block_size=1`, still of one linearisation) are faster. Where the loss does not ask for a
    precision of its matrix products itself, they are taken in full precision.

    Args:
        loss: of parameters and a batch: the *mean* over the batch's examples of a loss of each.
        params: a pytree of real arrays. Its order when it is flattened is the operator's order of
            coordinates (`Curvature.unravel` leads back). Complex parameters are to be stored as
            real pairs, see `tensorgrad_jax.models`.
        data: a pytree of arrays whose axis 0 are the N examples; None for a loss that has none
            and takes None.
        chunk_size: examples at once, which bounds memory; None for all. The last chunk may be
            smaller and has its own weight.
        block_size: columns at once, likewise; None for all that are asked for.
        dtype: float32 or float64 of parameters, data and products; None for that of the
            parameters.

    Returns:
        The operator, of shape (D, D) for D parameters.

    Raises:
        ValueError: if the loss is no function; if parameters are not real, are none at all, or
            their dtypes differ and `dtype` is None; if arrays of the data have no or different
            numbers of examples; if a size is no positive integer; if dtype is float64 and JAX's
            64-bit mode is off.
    """

    _check_callable("hvp_operator", "loss", loss)

    def product(flat, unravel, batch, X, map_columns):
        gradient = jax.grad(lambda w: loss(unravel(w), batch))
        return map_columns(jax.linearize(gradient, flat)[1], X)

    return _curvature("hvp_operator", product, params, data, chunk_size, block_size, dtype)


def gauss_newton_operator(
    model: Callable[[Any, Any], Any],
    loss: Callable[[Any, Any], Any],
    params: Any,
    data: Any,
    *,
    chunk_size: int | None = None,
    block_size: int | None = None,
    dtype: Any = None,
) -> Curvature:
    """Return the generalised Gauss-Newton matrix, the Hessian without the model's curvature.

        G = J^T H_out J,    J = d model / d w,    H_out = the loss's Hessian in the outputs

    For losses that are convex in the outputs it is positive semidefinite.

    Args:
        model: maps parameters and a batch to outputs, any pytree of real arrays.
        loss: of outputs and the batch, the mean over examples.
        params: see `hvp_operator`.
        data: see `hvp_operator`.
        chunk_size: see `hvp_operator`.
        block_size: see `hvp_operator`.
        dtype: see `hvp_operator`.

    Raises:
        ValueError: see `hvp_operator`.
    """

    _check_callable("gauss_newton_operator", "model", model)
    _check_callable("gauss_newton_operator", "loss", loss)

    def product(flat, unravel, batch, X, map_columns):
        outputs, forward = jax.linearize(lambda w: model(unravel(w), batch), flat)
        backward = jax.linear_transpose(forward, flat)
        hessian = jax.linearize(jax.grad(lambda y: loss(y, batch)), outputs)[1]
        return map_columns(lambda v: backward(hessian(forward(v)))[0], X)

    return _curvature("gauss_newton_operator", product, params, data, chunk_size, block_size, dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class Curvature(LinearOperator):
    """A matrix of second derivatives; made by `hvp_operator` and `gauss_newton_operator`.

    Attributes:
        params: all parameters in one vector, (D,).
        unravel: leads from such a vector to a pytree like the parameters.
        n_examples: number of examples of the data.
    """

    params: Any
    unravel: Callable[[Any], Any]
    n_examples: int
    product: Callable[[Any, Any], Any] = dataclasses.field(repr=False)

    symmetric = True

    def __post_init__(self):
        object.__setattr__(self, "shape", (self.params.size,) * 2)
        object.__setattr__(self, "dtype", self.params.dtype)

    def _mm(self, X):
        return self.product(self.params, X.astype(self.dtype))

    def at(self, params: Any) -> Curvature:
        """Return the operator at other parameters: nothing is compiled anew.

        Args:
            params: one vector of them, (D,).
        """
        return dataclasses.replace(self, params=jnp.asarray(params, self.dtype))


def _curvature(
    owner: str,
    product: Callable[..., Any],
    params: Any,
    data: Any,
    chunk_size: int | None,
    block_size: int | None,
    dtype: Any,
) -> Curvature:
    check_float(owner, dtype)
    leaves = jax.tree.leaves(params)
    for name, tree in (("params", params), ("data", data)):
        if not all(isinstance(x, jax.Array | np.ndarray) for x in jax.tree.leaves(tree)):
            raise ValueError(f"{owner}: {name} must be a tree of arrays, got {shown(tree)}")
    if not leaves or any(jnp.size(leaf) == 0 for leaf in leaves):
        raise ValueError(f"{owner}: params must hold arrays with numbers, got {shown(params)}")
    dtypes = sorted({str(jnp.result_type(leaf)) for leaf in leaves})
    if not all(jnp.issubdtype(d, jnp.floating) for d in dtypes):
        raise ValueError(f"{owner}: params must be real arrays, got dtypes {', '.join(dtypes)}")
    if dtype is None and len(dtypes) > 1:
        raise ValueError(f"{owner}: dtype must be given where those of params differ: {dtypes}")
    dtype = jnp.dtype(dtype or dtypes[0])
    if dtype == jnp.float64 and not jax.config.read("jax_enable_x64"):
        raise ValueError(f"{owner}: dtype float64 needs jax.config.update('jax_enable_x64', True)")
    for name, size in (("chunk_size", chunk_size), ("block_size", block_size)):
        if size is not None:
            whole(owner, name, size, 1, 2**31)
    cast = lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x
    flat, unravel = ravel_pytree(jax.tree.map(lambda x: cast(jnp.asarray(x)), params))
    data = jax.tree.map(lambda x: cast(jnp.asarray(x)), data)
    n = _number_of_examples(owner, data)
    chunk = min(n, chunk_size or n)

    def map_columns(function, X):
        columns = jax.vmap(function, in_axes=1, out_axes=1)
        if block_size is None or X.shape[1] <= block_size:
            return columns(X)
        return jax.lax.map(function, X.T, batch_size=block_size).T

    @jax.jit
    # GPUs would multiply in TF32: three digits of a product, of a small eigenvalue none.
    @jax.default_matmul_precision("highest")
    def run(flat, data, X):
        of = lambda batch: product(flat, unravel, batch, X, map_columns)
        whole_chunks, rest = divmod(n, chunk)
        first = jax.tree.map(
            lambda x: x[: whole_chunks * chunk].reshape(whole_chunks, chunk, *x.shape[1:]), data
        )
        if whole_chunks == 1:
            total = of(jax.tree.map(lambda x: x[0], first)) * (chunk / n)
        else:
            add = lambda total, batch: (total + of(batch) * (chunk / n), None)
            total = jax.lax.scan(add, jnp.zeros_like(X), first)[0]
        if rest:
            total = total + of(jax.tree.map(lambda x: x[n - rest :], data)) * (rest / n)
        return total

    return Curvature(flat, unravel, n, lambda flat, X: run(flat, data, X))


def _check_callable(owner: str, name: str, function: Any) -> None:
    if not callable(function):
        raise ValueError(f"{owner}: {name} must be a function, got {shown(function)}")


def _number_of_examples(owner: str, data: Any) -> int:
    numbers = {x.shape[0] if x.ndim else None for x in jax.tree.leaves(data)}
    if not numbers:
        return 1  # a loss without data
    if len(numbers) > 1 or None in numbers or 0 in numbers:
        raise ValueError(
            f"{owner}: arrays of data must have as many examples along axis 0, at least one, got "
            f"{sorted(map(str, numbers))}"
        )
    return int(numbers.pop())  # type: ignore[arg-type]
