"""Making updates as large as those of the uncompressed optimizer.

How large Adam's update of a tensor is depends on how its entries' signal and noise are distributed,
which a compact form does not show: the core of a Tucker decomposition concentrates the signal in a
few entries, and Adam then makes a smaller update of it. So the size is measured, not derived: the
inner transformation also runs on a small sample of the tensor's own entries, always the same ones,
and the root mean square of that update is what the lifted update is scaled to.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from tensorgrad_jax.projections.base import Compact
from tensorgrad_jax.projections.leaf import LeafProjection
from tensorgrad_jax.projections.pairs import Tensor
from tensorgrad_jax.projections.unstructured import UnstructuredSparse
from tensorgrad_jax.transforms.explicit_axes import compiler_chooses
from tensorgrad_jax.transforms.leaves import Specs, take_apart
from tensorgrad_jax.transforms.placeholders import is_placeholder, not_of_parameters

# The root mean square of 1,024 entries is within about 3% of that of all.
_ENTRIES = 1024
_LARGEST_SHARE = 1 / 32


def sample_name(name: str) -> str:
    """Return the name under which the inner transformation sees a parameter's sample."""
    return f"{name} (sample)"


class MatchedSizeState(NamedTuple):
    """State of `as_large_as`.

    Attributes:
        transform: the state of the transformation whose updates are scaled.
        reference: that of the one that tells their size, on {parameter name: sample}.
    """

    transform: optax.OptState
    reference: optax.OptState


def as_large_as(
    reference: optax.GradientTransformation,
    transform: optax.GradientTransformation,
    specs: Specs = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Scale the updates of leaves that have a spec to the size of those of `reference`.

    The root mean square of every such leaf's update becomes what `reference` would make of the
    gradients; it runs on a sample of single entries (1,024 or a thirty-second). Updates of other
    leaves are those of `transform`.
    """
    transform = optax.with_extra_args_support(transform)

    def samples(leaves):
        return {name: Sample(x, seed + i) for i, (name, x) in enumerate(leaves.compressed.items())}

    def init_fn(params):
        if is_placeholder(params):
            return not_of_parameters(MatchedSizeState)
        leaves = take_apart(params, UnstructuredSparse(), specs)
        zeros = {name: sample.zeros() for name, sample in samples(leaves).items()}
        return MatchedSizeState(transform.init(params), reference.init(zeros))

    def update_fn(updates, state, params=None, **extra_args):
        leaves = take_apart(updates, UnstructuredSparse(), specs)
        given = {
            name: sample.of(leaves.compressed[name].to_tensor(leaves.arrays[name]))
            for name, sample in samples(leaves).items()
        }
        wanted, after = cast(tuple[dict, Any], reference.update(given, state.reference, None))
        scaled, inner = transform.update(updates, state.transform, params, **extra_args)
        arrays: dict[str, Any] = dict(
            zip(leaves.arrays, leaves.treedef.flatten_up_to(scaled), strict=True)
        )
        for name, sample in samples(leaves).items():
            leaf = leaves.compressed[name]
            tensor = sample.matched(leaf.to_tensor(arrays[name]), wanted[name])
            arrays[name] = leaf.to_leaf(tensor).astype(leaf.dtype)
        scaled = leaves.treedef.unflatten(list(arrays.values()))
        return scaled, MatchedSizeState(inner, after)

    return optax.GradientTransformationExtraArgs(init_fn, compiler_chooses(update_fn))


class Sample:
    """A fixed sample of single entries of one compressed parameter.

    Attributes:
        projection: picks the entries.
    """

    def __init__(self, leaf: LeafProjection, seed: int):
        ratio = min(_LARGEST_SHARE, _ENTRIES / math.prod(leaf.tensor_struct.shape))
        self._leaf, self._seed = leaf, seed
        self.projection = LeafProjection(
            UnstructuredSparse(ratio), leaf.spec, leaf.shape, leaf.dtype, leaf.name
        )

    def of(self, tensor: Tensor) -> Compact:
        """Return the sampled entries of what `LeafProjection.to_tensor` gives, as numbers."""
        arrays = (jnp.full_like(x, self._seed % 2**32) for x in self._basis_arrays())
        basis = self.projection.basis_of(tuple(arrays))
        return self.projection.to_numbers(self.projection.project(tensor, basis))

    def zeros(self) -> Compact:
        """Return zeros in the shapes of the sampled entries."""
        struct = self.projection.compact_struct()
        return self.projection.to_numbers(
            jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), struct)
        )

    def _basis_arrays(self):
        return self.projection.basis_arrays(self.projection.init())

    def matched(self, lifted: Tensor, sample: Compact) -> Tensor:
        """Return `lifted` scaled to the root mean square of the sample's update.

        Stacked tensors have each their own. The projection's own `scale` comes on top. A sample of
        zeros tells nothing: then the size is that of an optimizer whose update has the same size
        per entry in either space.
        """
        wanted, size = self._sizes(self._stacks_in_front(sample)), self._sizes(lifted)
        known = (wanted > 0) & (size > 0)
        ratio = jnp.where(known, wanted / jnp.where(size > 0, size, 1), self._leaf.budget**-0.5)
        factor = getattr(self._leaf.projection, "scale", 1.0) * ratio

        def scaled(x):
            per_tensor = factor.reshape(factor.shape + (1,) * (x.ndim - factor.ndim))
            return per_tensor.astype(x.real.dtype) * x

        return jax.tree.map(scaled, lifted)

    def _stacks_in_front(self, sample):
        """Return the arrays of a sample with the axis of stacked tensors in front."""
        arrays = jax.tree.leaves(sample)
        parts_in_front = self._stacked and self._leaf.spec.complex_axis is not None
        return [jnp.moveaxis(x, 0, 1) if parts_in_front else x for x in arrays]

    @property
    def _stacked(self) -> bool:
        return bool(self._leaf.spec.batch_axes)

    def _sizes(self, tree) -> Array:
        """Return the root mean square of every stacked tensor, or of the one that there is."""
        arrays = jax.tree.leaves(tree)
        axes = lambda x: tuple(range(int(self._stacked), x.ndim))
        total = sum(jnp.sum(jnp.square(x.real) + jnp.square(x.imag), axes(x)) for x in arrays)
        numbers = sum(math.prod(x.shape[a] for a in axes(x)) for x in arrays)
        return jnp.sqrt(jnp.asarray(total / numbers, jnp.float32))
