"""The projectors under the names and with the arguments of traker: one engine, five faces."""

from __future__ import annotations

import abc
import functools
import logging
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from tensorgrad_jax.per_example import Leaf
from tensorgrad_jax.random_matrices import Explicit, key_from
from tensorgrad_jax.random_matrices.base import PRECISION
from tensorgrad_jax.random_matrices.trees import columns_of
from tensorgrad_jax.trak.devices import is_gpu, place_of
from tensorgrad_jax.trak.engine import Projector, checked_leaves
from tensorgrad_jax.trak.kinds import ProjectionType, bounded, dtype_of, matrix_of, positive
from tensorgrad_jax.trak.sources import OfLayers, OfMatrix, Source

logger = logging.getLogger(__name__)


class AbstractProjector(abc.ABC):
    """What the scores need of a projector: `project`, and `free_memory` after the last batch.

    Attributes:
        grad_dim: number of parameters, p.
        proj_dim: number of features, k.
        seed: of the random matrix.
        proj_type: its kind.
        device: where products are computed: a `jax.Device`, a sharding whose first axis is that of
            the examples, or None.
    """

    def __init__(
        self,
        grad_dim: int,
        proj_dim: int,
        seed: int,
        proj_type: str | ProjectionType,
        device: Any,
    ):
        self.grad_dim = grad_dim
        self.proj_dim = proj_dim
        self.seed = seed
        self.proj_type = proj_type
        self.device = place_of(type(self).__name__, device)

    @abc.abstractmethod
    def project(self, grads: Any, model_id: int) -> Array:
        """Return the features of a batch of gradients, (batch, proj_dim).

        Args:
            grads: (batch, grad_dim); or a dictionary of arrays (batch, ...), which are flattened
                in the order of the dictionary, as traker does (a dictionary that has passed through
                a transformation of JAX has sorted keys).
            model_id: a number for the checkpoint, with a random matrix of its own.

        Raises:
            ValueError: if an argument is none of these.
        """

    def source(self, model_id: int) -> Source | None:
        """Return how features come about in a backward pass, without the gradients.

        None, as here, if there is no way but `project`, which needs gradients.
        """
        del model_id
        return None

    def free_memory(self) -> None:  # noqa: B027
        """Give back what is held between calls: nothing, as a rule."""

    def _leaves(self, grads, grad_dim):
        ordered = list(grads.values()) if isinstance(grads, Mapping) else grads
        leaves = checked_leaves(type(self).__name__, ordered, grad_dim)
        return leaves if self.device is None else jax.device_put(leaves, self.device)


class NoOpProjector(AbstractProjector):
    """Gradients as they are: a matrix unchanged, a dictionary as one matrix.

    `proj_dim` is 0: the features have as many columns as the gradients. All arguments may be left
    out; more are accepted and have no meaning.
    """

    def __init__(
        self,
        grad_dim: int = 0,
        proj_dim: int = 0,
        seed: int = 0,
        proj_type: str | ProjectionType = "na",
        device: Any = None,
        *args: Any,
        **kwargs: Any,
    ):
        del args, kwargs
        super().__init__(grad_dim, proj_dim, seed, proj_type, device)

    def project(self, grads: Any, model_id: int = 0) -> Array:
        """Return the gradients as a matrix; `model_id` changes nothing."""
        bounded(type(self).__name__, "model_id", model_id, 32)
        if not isinstance(grads, Mapping):
            return grads
        return _concatenated(self._leaves(grads, None))


class _Engine(AbstractProjector):
    """A projector with a random matrix."""

    def __init__(self, grad_dim, proj_dim, seed, proj_type, device):
        owner = type(self).__name__
        grad_dim = positive(owner, "grad_dim", grad_dim)
        proj_dim = positive(owner, "proj_dim", proj_dim)
        seed = bounded(owner, "seed", seed, 64)
        matrix = matrix_of(proj_type, grad_dim, proj_dim)
        super().__init__(grad_dim, proj_dim, seed, ProjectionType(proj_type), device)
        self.engine = Projector(matrix, key_from(seed))

    def source(self, model_id: int) -> Source | None:
        """Return the matrix and its key."""
        dtype = jnp.dtype(getattr(self, "dtype", jnp.float32)).name
        return Source(OfMatrix(self.engine.matrix, dtype), self.engine.key_of(model_id))

    def _trial(self):
        """Project a zero, so that what cannot work fails here."""
        zero = jnp.zeros((1, 1))
        zero = zero if not isinstance(self.device, jax.Device) else zero.to_device(self.device)
        key = self.engine.key_of(0)
        jax.block_until_ready(self.engine.matrix.multiply_transposed(key, zero))


class BasicSingleBlockProjector(_Engine):
    """The reference: the whole matrix is held and multiplied. For tests.

    It holds grad_dim x proj_dim numbers; its features are those of `BasicProjector`.

    Attributes:
        proj_matrix: the matrix of the last `model_id`, or None after `free_memory`.
        dtype: of matrix and features.
        model_id: of the matrix.
    """

    def __init__(
        self,
        grad_dim: int,
        proj_dim: int,
        seed: int,
        proj_type: str | ProjectionType,
        device: Any = None,
        dtype: Any = jnp.float32,
        model_id: int = 0,
        *args: Any,
        **kwargs: Any,
    ):
        del args, kwargs
        super().__init__(grad_dim, proj_dim, seed, proj_type, device)
        self.dtype = dtype_of(type(self).__name__, dtype)
        self.model_id = bounded(type(self).__name__, "model_id", model_id, 32)
        self.proj_matrix = None
        self.generate_sketch_matrix()

    def generate_sketch_matrix(self) -> None:
        """Draw the matrix of `model_id`."""
        self.proj_matrix = self.engine.materialise(self.model_id).astype(self.dtype)
        if self.device is not None:
            self.proj_matrix = jax.device_put(self.proj_matrix, _everywhere(self.device))

    def free_memory(self) -> None:
        """Drop the matrix; the next call draws it again."""
        self.proj_matrix = None

    def project(self, grads: Any, model_id: int) -> Array:
        """Return grads @ matrix, in the projector's dtype."""
        x = _concatenated(self._leaves(grads, self.grad_dim)).astype(self.dtype)
        return jnp.matmul(x, self._matrix(model_id), precision=PRECISION)

    def source(self, model_id: int) -> Source | None:
        """Return the matrix that is held."""
        matrix = self._matrix(model_id)
        return Source(OfMatrix(Explicit(*matrix.shape), jnp.dtype(self.dtype).name), matrix)

    def _matrix(self, model_id: int) -> Array:
        number = bounded(type(self).__name__, "model_id", model_id, 32)
        if number != self.model_id or self.proj_matrix is None:
            self.model_id = number
            self.generate_sketch_matrix()
        matrix: Any = self.proj_matrix
        return matrix


class BasicProjector(_Engine):
    """Features without holding the matrix, on any device.

    Attributes:
        block_size: traker's columns per block. Accepted; nothing here depends on it, neither the
            features nor the memory, which the engine bounds by itself.
        dtype: of the features; gradients are cast to it first, products summed in float32.
        model_id: accepted; a projector has no current checkpoint.
    """

    def __init__(
        self,
        grad_dim: int,
        proj_dim: int,
        seed: int,
        proj_type: str | ProjectionType,
        device: Any = None,
        block_size: int = 100,
        dtype: Any = jnp.float32,
        model_id: int = 0,
        *args: Any,
        **kwargs: Any,
    ):
        del args, kwargs
        super().__init__(grad_dim, proj_dim, seed, proj_type, device)
        self.block_size = positive(type(self).__name__, "block_size", block_size)
        self.dtype = dtype_of(type(self).__name__, dtype)
        self.model_id = bounded(type(self).__name__, "model_id", model_id, 32)
        self._trial()

    def project(self, grads: Any, model_id: int) -> Array:
        """Return the features, in the projector's dtype."""
        leaves = self._leaves(grads, self.grad_dim)
        # Complex leaves are cast part by part.
        cast = [part.astype(self.dtype) for leaf in leaves for part in columns_of(leaf)]
        return self.engine.project(cast, model_id).astype(self.dtype)


class CudaProjector(_Engine):
    """Features in float32 on a GPU, for as many examples at once as `max_batch_size` says.

    The same features as `BasicProjector`, whatever the GPU. Where the GPU's memory does not
    suffice, half as many examples are tried.

    Attributes:
        max_batch_size: examples per product, any positive number. The random numbers are drawn once
            per product: more are faster.

    Raises:
        ValueError: at construction, for a device that is no GPU; use `BasicProjector` there.
    """

    def __init__(
        self,
        grad_dim: int,
        proj_dim: int,
        seed: int,
        proj_type: str | ProjectionType,
        device: Any,
        max_batch_size: int,
        *args: Any,
        **kwargs: Any,
    ):
        del args, kwargs
        super().__init__(grad_dim, proj_dim, seed, proj_type, device)
        if not is_gpu(self.device):
            raise ValueError(
                f"CudaProjector: device must be a GPU, got {device!r}: use BasicProjector elsewhere"
            )
        self.max_batch_size = positive("CudaProjector", "max_batch_size", max_batch_size)
        self._trial()

    def project(self, grads: Any, model_id: int) -> Array:
        """Return the features in float32.

        Raises:
            RuntimeError: if the memory does not even suffice for one example at a time.
        """
        leaves, size = self._leaves(grads, self.grad_dim), self.max_batch_size
        while True:
            try:
                return jax.block_until_ready(self._in_groups(leaves, model_id, size))
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                if size == 1:
                    raise RuntimeError(
                        "CudaProjector: the batch is too large for the GPU: reduce "
                        f"max_batch_size (proj_max_batch_size), now {self.max_batch_size}, or the "
                        f"batch of the gradients\n{error}"
                    ) from error
                size = max(1, min(size, len(leaves[0])) // 2)
                logger.warning("CudaProjector: out of memory, going on with %d examples", size)

    def _in_groups(self, leaves, model_id, size):
        n = len(leaves[0])
        groups = [[leaf[i : i + size] for leaf in leaves] for i in range(0, max(n, 1), size)]
        return jnp.concatenate([self.engine.project(group, model_id) for group in groups])


class ExplicitProjector(AbstractProjector):
    """Features by given matrices, one per checkpoint: to replay another library's random numbers.

    Args:
        matrices: a dictionary from model_id to a matrix of shape (grad_dim, proj_dim).
        device: as for the others.

    Raises:
        ValueError: at construction, if they are not matrices of one shape.
    """

    def __init__(self, matrices: Mapping[int, Inexact[Any, ...]], device: Any = None):
        arrays = {number: jnp.asarray(matrix) for number, matrix in matrices.items()}
        shapes = {matrix.shape for matrix in arrays.values()}
        if len(shapes) != 1 or len(shape := shapes.pop()) != 2:
            raise ValueError(
                "ExplicitProjector: matrices must be matrices of one shape, got "
                f"{[matrix.shape for matrix in arrays.values()]}"
            )
        super().__init__(*shape, 0, "explicit", device)
        self.engine = Projector(Explicit(*shape), arrays)

    def project(self, grads: Any, model_id: int) -> Array:
        """Return the features in float32."""
        return self.engine.project(self._leaves(grads, self.grad_dim), model_id)

    def source(self, model_id: int) -> Source | None:
        """Return the matrix of a checkpoint."""
        return Source(OfMatrix(self.engine.matrix), self.engine.key_of(model_id))


class KroneckerProjector(AbstractProjector):
    """Features by a Kronecker product of two random matrices per parameter.

    The cheapest features of dense layers, and of another matrix than the other projectors', see
    `tensorgrad_jax.per_example.ProjectLayers`. What a parameter's matrix is depends on its shape:
    gradients come as one array per parameter.

    Args:
        grad_dim: number of parameters.
        proj_dim: number of features.
        seed: of the random matrices.
        device: as for the others.

    Raises:
        ValueError: at construction, if a number is not positive.
    """

    def __init__(self, grad_dim: int, proj_dim: int, seed: int, device: Any = None):
        owner = type(self).__name__
        grad_dim = positive(owner, "grad_dim", grad_dim)
        proj_dim = positive(owner, "proj_dim", proj_dim)
        super().__init__(grad_dim, proj_dim, bounded(owner, "seed", seed, 64), "kron", device)

    def project(self, grads: Any, model_id: int) -> Array:
        """Return the features of a batch of gradients in float32.

        Args:
            grads: a pytree of arrays (batch, *shape of the parameter).
            model_id: a number for the checkpoint.

        Raises:
            ValueError: if an argument is none of these.
        """
        source = self.source(model_id)
        if not jax.tree.structure(grads).num_nodes > 1:
            raise ValueError(
                "KroneckerProjector: grads must be a tree with an array per parameter, got shape "
                f"{jnp.shape(grads)}"
            )
        pairs = [
            jnp.stack([x.real, x.imag], 1) if jnp.iscomplexobj(x) else x
            for x in self._leaves(grads, self.grad_dim)
        ]
        reduction = source.make(source.key)
        leaves = [Leaf(f"grads[{i}]", x.shape[1:], x.dtype, 0) for i, x in enumerate(pairs)]
        keys = reduction.operands(leaves, None)
        parts = [reduction.reduce(*given) for given in zip(leaves, keys, pairs, strict=True)]
        return functools.reduce(jnp.add, parts)

    def source(self, model_id: int) -> Source:
        """Return the key of a checkpoint's matrices."""
        number = bounded(type(self).__name__, "model_id", model_id, 32)
        key = jax.random.fold_in(key_from(self.seed), number)
        return Source(OfLayers(self.proj_dim), key)


def _concatenated(leaves):
    return jnp.concatenate([part for leaf in leaves for part in columns_of(leaf)], axis=1)


def _everywhere(place):
    """Return where a matrix goes that examples, placed there, are multiplied with."""
    if isinstance(place, jax.sharding.NamedSharding):
        return jax.sharding.NamedSharding(place.mesh, jax.sharding.PartitionSpec())
    return place
