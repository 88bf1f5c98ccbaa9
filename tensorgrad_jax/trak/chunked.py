"""A projector of parts: one for every chunk of the parameters, added up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from tensorgrad_jax.random_matrices.trees import columns_of
from tensorgrad_jax.trak.kinds import dtype_of, positive
from tensorgrad_jax.trak.projectors import AbstractProjector
from tensorgrad_jax.trak.sources import Source, on_top_of_each_other


class ChunkedCudaProjector(AbstractProjector):
    """Sum the features of chunks of the parameters, each by a projector of its own.

    The random matrix is that of the chunks' projectors on top of each other. traker needs it
    beyond 2^32 numbers per batch; the other projectors here have no such limit, so that this one
    is for those who want a matrix, a seed or a device per chunk. Gradients are multiplied where
    they are: a chunk may begin and end within a parameter, nothing is copied together.

    Attributes:
        projector_per_chunk: the projectors, all with the same `proj_dim`.
        max_chunk_size: what no chunk exceeds.
        params_per_chunk: numbers per chunk, in the order of the parameters.
        feat_bs: examples that are projected at once, any positive number.
        device: where the sum is formed.
        dtype: of the features.

    Raises:
        ValueError: at construction, if the lists do not fit each other or a number is not positive.
    """

    def __init__(
        self,
        projector_per_chunk: Sequence[AbstractProjector],
        max_chunk_size: int,
        params_per_chunk: Sequence[int],
        feat_bs: int,
        device: Any = None,
        dtype: Any = jnp.float32,
    ):
        owner = type(self).__name__
        projectors = list(projector_per_chunk)
        sizes = [positive(owner, "params_per_chunk", n) for n in params_per_chunk]
        self.max_chunk_size = positive(owner, "max_chunk_size", max_chunk_size)
        self.feat_bs = positive(owner, "feat_bs", feat_bs)
        if not projectors or [p.grad_dim for p in projectors] != sizes:
            raise ValueError(
                f"{owner}: params_per_chunk must be the projectors' grad_dim "
                f"{[p.grad_dim for p in projectors]}, got {sizes}"
            )
        if max(sizes) > max_chunk_size:
            raise ValueError(
                f"{owner}: params_per_chunk may not exceed max_chunk_size={max_chunk_size}, got "
                f"{sizes}"
            )
        if len({p.proj_dim for p in projectors}) > 1:
            raise ValueError(
                f"{owner}: projector_per_chunk must agree on proj_dim, got "
                f"{[p.proj_dim for p in projectors]}"
            )
        first = projectors[0]
        super().__init__(sum(sizes), first.proj_dim, first.seed, first.proj_type, device)
        self.projector_per_chunk = projectors
        self.params_per_chunk = sizes
        self.dtype = dtype_of(owner, dtype)

    def free_memory(self) -> None:
        """Free what the chunks' projectors hold; the sum needs no buffer."""
        for projector in self.projector_per_chunk:
            projector.free_memory()

    def source(self, model_id: int) -> Source | None:
        """Return the chunks' matrices on top of each other, if all have one."""
        sources = [projector.source(model_id) for projector in self.projector_per_chunk]
        return on_top_of_each_other(sources, jnp.dtype(self.dtype).name)

    def project(self, grads: Any, model_id: int) -> Array:
        """Return the sum of the chunks' features."""
        leaves = self._leaves(grads, self.grad_dim)
        parts = [part for leaf in leaves for part in columns_of(leaf)]
        n = len(parts[0])
        groups = [
            self._sum([part[i : i + self.feat_bs] for part in parts], model_id)
            for i in range(0, max(n, 1), self.feat_bs)
        ]
        return jnp.concatenate(groups)

    def _sum(self, parts, model_id):
        total = jnp.zeros((len(parts[0]), self.proj_dim), self.dtype)
        chunks = _chunks(parts, self.params_per_chunk)
        for projector, chunk in zip(self.projector_per_chunk, chunks, strict=True):
            features = projector.project(dict(enumerate(chunk)), model_id)
            total = total + features.astype(self.dtype)
        return total


def _chunks(parts, sizes):
    """Cut a row of matrices into rows of `sizes` columns."""
    waiting = list(reversed(parts))
    for size in sizes:
        chunk, missing = [], size
        while missing:
            part = waiting.pop()
            if part.shape[1] > missing:
                waiting.append(part[:, missing:])
                part = part[:, :missing]
            chunk.append(part)
            missing -= part.shape[1]
        yield chunk
