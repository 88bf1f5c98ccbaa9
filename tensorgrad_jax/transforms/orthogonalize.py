r"""Polar factors of matrix-valued updates, real or complex, by Newton-Schulz iterations.

The polar factor U V^H of a matrix X = U S V^H has X's singular vectors and all singular values 1:
of all matrices of spectral norm 1 it has the largest inner product with X. An update that is one
moves equally far along every singular direction of the momentum. Muon does that to the weight
matrices of a network; a spectral weight is one complex matrix (in, out) for every frequency.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array

from tensorgrad_jax.projections.leaf import TensorSpec
from tensorgrad_jax.projections.pairs import Pair, is_pair
from tensorgrad_jax.projections.plain import check_dtype, positive, whole
from tensorgrad_jax.transforms.explicit_axes import compiler_chooses
from tensorgrad_jax.transforms.leaves import Specs, named_leaves

# x -> a x + b x^3 + c x^5 takes singular values in (0, 1] to about [.7, 1.2] within five rounds;
# K. Jordan et al., Muon, 2024.
_QUINTIC = (3.4445, -4.7750, 2.0315)
# x -> (15 x - 10 x^3 + 3 x^5) / 8 has its fixed point at 1, of third order.
_CONVERGENT = (15 / 8, -10 / 8, 3 / 8)
# Singular values above 1e-6 of the norm reach 1: the first rounds grow them 3.4-fold each.
TO_CONVERGENCE = ((_QUINTIC, 12), (_CONVERGENT, 5))
_LARGEST_TOGETHER = 2**24  # bytes


def orthogonalize(
    specs: Specs = None, scale: ArrayLike = 0.2, steps: int = 5, dtype: Any = None
) -> optax.GradientTransformation:
    r"""Replace the matrices of an update by their polar factors.

    $$
    X \leftarrow X / |X|_F, \quad \text{steps times:} \;
    A = X X^H, \; X \leftarrow a X + (b A + c A^2) X, \quad
    \text{update} = \text{scale} \cdot \sqrt{\max(m, n)}\, X
    $$

    (complex: $\sqrt{2 \max(m, n)}$) for every matrix X of shape (m, n): then all singular values
    are within about 30% of one another, and the root mean square of the update's real numbers is
    about `scale`, whatever the shape. Adam's is between .2, where gradients are noise, and 1, so
    that one learning rate fits both. Everything is computed in products of real matrices, on the
    smaller side of X.

    A chain with momentum in front is Muon, as of matrices so of tensors and complex numbers:
    `optax.chain(optax.trace(.95, nesterov=True), tg.orthogonalize(specs))`. Inside `in_subspace` it
    acts on the last two axes of the compact form: of a Tucker core whose ranks halve both channel
    axes that is an eighth of the work.

    Args:
        specs: which leaves hold matrices, a tree like the updates of `TensorSpec` or None, or a
            function of the updates. `TensorSpec.matrix_axes` are the matrix's rows and columns, the
            two largest axes if None; `complex_axis` holds real and imaginary part; all other axes
            count matrices. Leaves without a spec are left as they are. Default: the last two axes
            of every leaf that has as many, of complex ones and of compact forms of complex tensors
            as such.
        scale: root mean square of the update's real numbers.
        steps: rounds of the iteration; 5 are usual.
        dtype: of the products; None: the leaf's, at least float32. bfloat16 is accurate enough.

    Returns:
        A stateless transformation. Its updates have the dtype of the gradients. A matrix of zeros
        stays one.

    Raises:
        ValueError: if an argument is not one of these; at the first update, if a spec does not fit
            its leaf.

    Examples:
        >>> import jax.numpy as jnp
        >>> transform = orthogonalize(scale=0.5)
        >>> g = jnp.diag(jnp.array([4.0, 2.0, 1.0, 0.5]))
        >>> update, _ = transform.update(g, transform.init(g))
        >>> [round(float(x), 2) for x in jnp.diag(update)]
        [0.87, 1.13, 0.69, 0.75]

    References:
        K. Jordan et al., Muon: an optimizer for hidden layers in neural networks, 2024.
        J. Bernstein and L. Newhouse, Old optimizer, new norm, arXiv 2409.20325.
    """
    scale = positive("orthogonalize", "scale", scale)
    steps = whole("orthogonalize", "steps", steps, 1, 1000)
    check_dtype("orthogonalize", "dtype", dtype)

    def taken(name, leaf, spec):
        """Return a leaf's matrices and what puts them back; None where it has none."""
        if spec is None:
            return None
        return _as_matrices(leaf, *matrix_axes(name, leaf, spec))

    def taken_by_default(leaf):
        if is_pair(leaf):
            matrices, back = _as_matrices(leaf.parts, 0, leaf.parts.ndim - 2, leaf.parts.ndim - 1)
            return matrices, lambda x: Pair(back(x))
        return _as_matrices(leaf, None, leaf.ndim - 2, leaf.ndim - 1) if leaf.ndim >= 2 else None

    def init_fn(params):
        del params
        return optax.EmptyState()

    def update_fn(updates, state, params=None):
        del params
        if specs is None:
            leaves, treedef = jax.tree.flatten(updates, is_leaf=is_pair)
            found = [taken_by_default(leaf) for leaf in leaves]
        else:
            arrays, chosen, treedef = named_leaves(updates, specs)
            leaves = list(arrays.values())
            found = [taken(name, leaf, chosen[name]) for name, leaf in arrays.items()]
        factors = iter(_of_all([x[0] for x in found if x is not None], scale, steps, dtype))
        made = [g if x is None else x[1](next(factors)) for g, x in zip(leaves, found, strict=True)]
        return treedef.unflatten(made), state

    return optax.GradientTransformation(init_fn, compiler_chooses(update_fn))


def _as_matrices(
    leaf: Array, complex_axis: int | None, rows: int, columns: int
) -> tuple[Array, Callable[[Array], Array]]:
    """Return (parts, ..., rows, columns), real and imaginary part or one, and what undoes it."""
    parts = leaf[None] if complex_axis is None else jnp.moveaxis(leaf, complex_axis, 0)
    is_complex = jnp.iscomplexobj(parts)
    if is_complex:
        parts = jnp.concatenate([parts.real, parts.imag])
    below = lambda axis: axis - (complex_axis is not None and axis > complex_axis) + 1
    places = (below(rows), below(columns))

    def back(matrices):
        parts = jnp.moveaxis(matrices, (-2, -1), places)
        if is_complex:
            return jax.lax.complex(parts[0], parts[1])
        return parts[0] if complex_axis is None else jnp.moveaxis(parts, 0, complex_axis)

    return jnp.moveaxis(parts, places, (-2, -1)), back


def _of_all(leaves: list[Array], scale: ArrayLike, steps: int, dtype: Any) -> list[Array]:
    """Return the polar factors of every leaf's matrices, of leaves of one shape together.

    Layers have weights of the same shape. A few large products then take the place of many small
    ones, as long as copies of the leaves are small.
    """
    groups: dict[Any, list[int]] = {}
    for index, leaf in enumerate(leaves):
        alone = index if leaf.nbytes > _LARGEST_TOGETHER else None
        groups.setdefault((leaf.shape, leaf.dtype, alone), []).append(index)
    result = dict[int, Array]()
    for (shape, kind, _), members in groups.items():
        wide = jnp.promote_types(kind, jnp.float32)
        together = jnp.stack([leaves[i].astype(wide) for i in members], 1)
        factors = polar_factors(together, ((_QUINTIC, steps),), dtype or wide)
        size = scale * (max(shape[-2:]) * shape[0]) ** 0.5
        result |= {i: (size * factors[:, n]).astype(kind) for n, i in enumerate(members)}
    return [result[i] for i in range(len(leaves))]


def matrix_axes(name: str, leaf: Any, spec: TensorSpec) -> tuple[int | None, int, int]:
    """Return the axis of real and imaginary part, of rows and of columns.

    Raises:
        ValueError: if the leaf has no two such axes.
    """
    ndim = len(leaf.shape)
    pair = None if spec.complex_axis is None else spec.complex_axis % ndim
    taken = {pair, *(a % ndim for a in spec.batch_axes)}
    free = [a for a in range(ndim) if a not in taken]
    two_largest = sorted(sorted(free, key=lambda a: (leaf.shape[a], a))[-2:])
    wanted = two_largest if spec.matrix_axes is None else spec.matrix_axes
    within = all(-ndim <= a < ndim for a in wanted)
    axes = [a % ndim for a in wanted] if within else []
    if len(set(axes)) != 2 or pair in axes:
        raise ValueError(
            f"parameter {name!r} of shape {tuple(leaf.shape)}: {spec} names no two axes of a matrix"
        )
    return pair, axes[0], axes[1]


Rounds = Sequence[tuple[tuple[float, float, float], int]]


def polar_factors(x: Array, rounds: Rounds, dtype: Any) -> Array:
    """Return about the polar factors of (parts, ..., m, n), one part or real and imaginary one.

    `rounds` are coefficients (a, b, c) of the iteration, each with a number of steps. Behind those
    of `TO_CONVERGENCE` singular values are 1 up to round-off, or as good as 0.
    """
    wide = x.shape[-2] > x.shape[-1]
    if wide:
        x = jnp.swapaxes(x, -2, -1)  # X^T has the polar factor's transpose
    # The largest magnitude first: squares leave float32's range long before gradients do.
    largest = jnp.max(jnp.abs(x), axis=(0, -2, -1), keepdims=True)
    x = x / jnp.where(largest > 0, largest, 1)
    norm = jnp.sqrt(jnp.sum(jnp.square(x), axis=(0, -2, -1), keepdims=True))
    x = (x / jnp.where(norm > 0, norm, 1)).astype(dtype)

    def in_parts(x):
        return _rounds(x, rounds, _times_adjoint, _times)

    def in_complex(x):
        z = jax.lax.complex(x[0], x[1])
        z = _rounds(z, rounds, lambda z: z @ jnp.swapaxes(z.conj(), -2, -1), jnp.matmul)
        return jnp.stack([z.real, z.imag])

    # One complex product takes half the time of four real ones on a GPU, twice theirs on a CPU. Of
    # half precision there are no complex numbers.
    if len(x) == 2 and x.dtype in (jnp.float32, jnp.float64):
        x = jax.lax.platform_dependent(x, cpu=in_parts, default=in_complex)
    else:
        x = in_parts(x)
    return jnp.swapaxes(x, -2, -1) if wide else x


def _rounds(
    x: Array,
    rounds: Rounds,
    times_adjoint: Callable[[Array], Array],
    times: Callable[[Array, Array], Array],
) -> Array:
    """Return x after the rounds of the iteration, given X X^H and P X in the form of x."""

    def closer(_, x, a, b, c):
        gram = times_adjoint(x)
        return a * x + times(b * gram + c * times_adjoint(gram), x)

    for (a, b, c), steps in rounds:
        x = jax.lax.fori_loop(0, steps, functools.partial(closer, a=a, b=b, c=c), x)
    return x


def _times_adjoint(x: Array) -> Array:
    """Return X X^H as parts: R R^T + I I^T, and I R^T less its transpose."""
    transposed = jnp.swapaxes(x, -2, -1)
    if len(x) == 1:
        return x @ transposed
    real = x[0] @ transposed[0] + x[1] @ transposed[1]
    imaginary = x[1] @ transposed[0]
    return jnp.stack([real, imaginary - jnp.swapaxes(imaginary, -2, -1)])


def _times(p: Array, x: Array) -> Array:
    """Return P X as parts."""
    if len(x) == 1:
        return p @ x
    return jnp.stack([p[0] @ x[0] - p[1] @ x[1], p[0] @ x[1] + p[1] @ x[0]])
