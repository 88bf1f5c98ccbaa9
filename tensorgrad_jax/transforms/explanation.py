"""What an optimizer will do with every parameter, told before anything is allocated."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from tensorgrad_jax.projections.base import Projection
from tensorgrad_jax.projections.leaf import LeafProjection
from tensorgrad_jax.projections.tucker import Tucker
from tensorgrad_jax.transforms.leaves import MIN_DIMENSIONS, MIN_SIZE, Specs, take_apart
from tensorgrad_jax.transforms.moments import scale_by_adam

_NOTHING = (
    "Nothing is compressed. Without specs only parameters of "
    f"{MIN_DIMENSIONS} or more dimensions and more than {MIN_SIZE:,} elements are."
)


@dataclasses.dataclass(frozen=True)
class ExplainedLeaf:
    """One parameter and what becomes of it.

    Attributes:
        name: keys joined by dots.
        shape: of the parameter.
        seen: the tensor that the projection sees, and how often where such tensors are stacked;
            empty where nothing is compressed.
        how: the projection, or AdamW and why.
        compact: the shapes of the compact form; empty where nothing is compressed.
        moments: bytes of Adam's two moments of the compact form.
        basis: bytes of what the projection remembers of its subspace.
        adamw: bytes of the two moments of `optax.adamw`.
    """

    name: str
    shape: tuple[int, ...]
    seen: str
    how: str
    compact: str
    moments: int
    basis: int
    adamw: int

    @property
    def total(self) -> int:
        """Bytes of moments and basis."""
        return self.moments + self.basis


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What becomes of every parameter. Printed, it is a table.

    Attributes:
        leaves: one entry per parameter, in the order of the tree.
    """

    leaves: tuple[ExplainedLeaf, ...]

    @property
    def total(self) -> int:
        """Bytes of all moments and bases."""
        return sum(leaf.total for leaf in self.leaves)

    @property
    def adamw(self) -> int:
        """Bytes of the two moments of `optax.adamw`."""
        return sum(leaf.adamw for leaf in self.leaves)

    def __str__(self) -> str:
        sums = (sum(leaf.moments for leaf in self.leaves), sum(leaf.basis for leaf in self.leaves))
        rows = [
            ("parameter", "shape", "seen as", "how", "compact", *_BYTES),
            *(
                (x.name, str(x.shape), x.seen, x.how, x.compact)
                + _bytes(x.moments, x.basis, x.adamw)
                for x in self.leaves
            ),
            ("all", "", "", "", "", *_bytes(*sums, self.adamw)),
        ]
        table = _aligned(rows, left=5)
        return table if any(leaf.compact for leaf in self.leaves) else f"{table}\n{_NOTHING}"


def explain(
    params: PyTree, specs: Specs = None, projection: Projection | PyTree | None = None
) -> Explanation:
    """Return what will be compressed, how, and into how many bytes; print it to read it.

    The bytes are those of Adam in the compact space, as `projected_adamw` has them, beside those of
    `optax.adamw`. Those of any other optimizer are counted by
    `state_bytes(jax.eval_shape(optimizer.init, params))`, which also counts steps and the samples
    of `match_size` (two moments of at most 1,024 entries of a parameter).

    Args:
        params: arrays or `jax.ShapeDtypeStruct`, so that nothing need be allocated:
            `jax.eval_shape(make_params)`.
        specs: which parameters are compressed, as every optimizer here takes them.
        projection: what compresses them, or a tree of projections, see `in_subspace`.
            None: `Tucker(0.05)`, that of `subspace_momentum`.

    Returns:
        An `Explanation`: its `leaves` for programs, as a string a table.

    Raises:
        ValueError: if a spec or a projection does not fit its parameter.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> import tensorgrad_jax as tg
        >>> shape = lambda *n: jax.ShapeDtypeStruct(n, jnp.float32)
        >>> params = {"conv": shape(2, 16, 9, 32, 32), "dense": shape(32, 64)}
        >>> specs = {"conv": tg.TensorSpec(complex_axis=0), "dense": None}
        >>> print(tg.explain(params, specs).leaves[0].seen)
        complex (16, 9, 32, 32)
        >>> [(leaf.how, leaf.compact) for leaf in tg.explain(params, specs).leaves]
        [('Tucker(0.05)', '(8, 4, 15, 15)'), ('AdamW: no spec', '')]
        >>> [f"{leaf.total / leaf.adamw:.1%}" for leaf in tg.explain(params, specs).leaves]
        ['4.0%', '100.0%']
    """
    projection = Tucker(0.05) if projection is None else projection
    leaves = take_apart(params, projection, specs)
    by_rule = specs is None and isinstance(projection, Projection)
    return Explanation(
        tuple(
            _explained(name, array, leaves.compressed.get(name), by_rule)
            for name, array in leaves.arrays.items()
        )
    )


def _explained(name: str, array: Any, leaf: LeafProjection | None, by_rule: bool) -> ExplainedLeaf:
    shape, struct = tuple(array.shape), jax.ShapeDtypeStruct(array.shape, array.dtype)
    adamw = _moment_bytes(optax.scale_by_adam(), struct)
    if leaf is None:
        how = f"AdamW: {_reason(shape) if by_rule else 'no spec'}"
        return ExplainedLeaf(name, shape, "", how, "", _adam_bytes(struct), 0, adamw)
    compact = leaf.compact_struct()
    numbers = jax.eval_shape(
        lambda: leaf.to_numbers(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), compact))
    )
    basis = jax.eval_shape(lambda: leaf.basis_arrays(leaf.init()))
    return ExplainedLeaf(
        name, shape, _seen(leaf), _short(leaf.projection),
        " + ".join(str(s.shape) for s in jax.tree.leaves(compact)),
        _adam_bytes(numbers), sum(_nbytes(x) for x in basis), adamw,
    )  # fmt: skip


def _seen(leaf: LeafProjection) -> str:
    tensor, stacked = leaf.tensor_struct, math.prod(leaf.shape[a] for a in leaf.spec.batch_axes)
    kind = "complex " if jnp.issubdtype(tensor.dtype, jnp.complexfloating) else ""
    return f"{f'{stacked} x ' if leaf.spec.batch_axes else ''}{kind}{tensor.shape}"


def _reason(shape: tuple[int, ...]) -> str:
    """Return why the default rule leaves a parameter of this shape alone."""
    if len(shape) < MIN_DIMENSIONS:
        return f"{len(shape)} dimension{'' if len(shape) == 1 else 's'}"
    return f"{math.prod(shape):,} elements"


def _short(projection: Projection) -> str:
    """Return a projection as one would write it: what is not the default, and what comes first."""
    written = []
    for i, field in enumerate(dataclasses.fields(projection)):  # pyright: ignore
        value = getattr(projection, field.name)
        if i == 0 or value != field.default:
            text = _short(value) if isinstance(value, Projection) else repr(value)
            text = text.replace("Ellipsis", "...")
            written.append(text if i == len(written) else f"{field.name}={text}")
    return f"{type(projection).__name__}({', '.join(written)})"


def _adam_bytes(struct: Any) -> int:
    return _moment_bytes(scale_by_adam(), struct)


def _moment_bytes(adam: optax.GradientTransformation, struct: Any) -> int:
    state: Any = jax.eval_shape(adam.init, struct)
    return sum(_nbytes(x) for x in jax.tree.leaves((state.mu, state.nu)))


def _nbytes(struct: Any) -> int:
    return math.prod(struct.shape) * struct.dtype.itemsize


_BYTES = ("moments", "basis", "total", "AdamW's", "share")


def _bytes(moments: int, basis: int, adamw: int) -> tuple[str, ...]:
    total = moments + basis
    share = f"{total / adamw:.1%}" if adamw else "-"
    return (*(f"{n:,}" for n in (moments, basis, total, adamw)), share)


def _aligned(rows: list[tuple[str, ...]], left: int) -> str:
    """Return rows of cells as lines; the first `left` columns begin, the others end together."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
