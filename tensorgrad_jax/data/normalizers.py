"""Normalisation of fields to mean 0 and standard deviation 1."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

EPS = 1e-7


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class UnitGaussianNormalizer:
    """encode(u) = (u - mean) / (std + eps),   decode its inverse.

    Attributes:
        mean: broadcast against fields, channels last.
        std: the unbiased standard deviation, broadcast alike.
        eps: added to std, so that a constant field is encoded to zeros.
    """

    mean: Any
    std: Any
    eps: float = dataclasses.field(default=EPS, metadata={"static": True})

    def encode(self, fields: Float[Array, ...]) -> Float[Array, ...]:
        """Normalise.

        Raises:
            ValueError: if the fields are complex.
        """
        _check_real(fields)
        return (fields - self.mean) / (self.std + self.eps)

    def decode(self, fields: Float[Array, ...]) -> Float[Array, ...]:
        """Undo `encode`."""
        _check_real(fields)
        return fields * (self.std + self.eps) + self.mean

    @classmethod
    def fit(cls, source: Any, field: str, axes: tuple[int, ...] | None = None):
        """Take mean and standard deviation from a set of samples, one after the other.

        The result is that of all samples at once, whatever their number: deviations are summed
        in float64 by the update of Chan et al., not as E[u^2] - E[u]^2, which cancels.

        Args:
            source: a sized collection of {field: (*grid, channels)}.
            field: which entry of a sample.
            axes: axes of the stack of samples, (N, *grid, channels), to reduce over; N, axis 0,
                must be one of them. Default: all but the channels.

        Raises:
            ValueError: if axis 0 is missing from `axes`, a single number is all there is, or the
                fields are complex.

        References:
            T. Chan, G. Golub, R. LeVeque, Algorithms for computing the sample variance, 1983.
        """
        if axes is not None and 0 not in axes:
            raise ValueError(f"UnitGaussianNormalizer: axes must hold 0, the samples, got {axes}")
        count, mean, squares = 0, np.zeros(1), np.zeros(1)
        for batch in _in_batches(source, field):
            _check_real(batch)
            batch = batch.astype(np.float64)
            reduced = tuple(range(batch.ndim - 1)) if axes is None else axes
            n = int(np.prod([batch.shape[a] for a in reduced]))
            batch_mean = batch.mean(axis=reduced, keepdims=True)
            delta = batch_mean - mean
            squares = (
                squares
                + ((batch - batch_mean) ** 2).sum(axis=reduced, keepdims=True)
                + delta**2 * (count * n / (count + n))
            )
            mean = mean + delta * (n / (count + n))
            count += n
        if count < 2:
            raise ValueError("UnitGaussianNormalizer: one number has no standard deviation")
        std = np.sqrt(squares / (count - 1))
        return cls(mean[0].astype(np.float32), std[0].astype(np.float32))


def _in_batches(source: Any, field: str, size: int = 64) -> Iterable[np.ndarray]:
    for start in range(0, len(source), size):
        stop = min(start + size, len(source))
        yield np.stack([source[i][field] for i in range(start, stop)])


def _check_real(fields: Any) -> None:
    if np.issubdtype(fields.dtype, np.complexfloating):
        raise ValueError(
            f"UnitGaussianNormalizer: fields must be real, got {fields.dtype}; give real and "
            "imaginary part as channels of their own"
        )
