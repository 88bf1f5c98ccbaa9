"""Random projections: the subspace is drawn, not computed, and a key is all there is to keep."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact, PRNGKeyArray

from tensorgrad_jax.backend.pieces import over_pieces
from tensorgrad_jax.projections.base import Leaf, Projection
from tensorgrad_jax.projections.plain import check_choice, check_scale, shown
from tensorgrad_jax.projections.selection import check_size, kept_count, stratified
from tensorgrad_jax.random_matrices import SJLT, Normal, Rademacher, RandomMatrix, key_from

RandomKind = Literal["srft", "rademacher", "normal", "sjlt"]
_KINDS = ("srft", "rademacher", "normal", "sjlt")

# Rows of a transform, a power of two; rows that are lifted and projected again at a time.
_BLOCK, _PIECE = 1024, 2**18


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RandomBasis:
    """The basis of a random projection.

    Attributes:
        key: uint32 (2,), what everything random is drawn from.
        shape: the tensor's shape; static, as no array tells it.
    """

    key: Any
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})


@dataclasses.dataclass(frozen=True)
class RandomProjection(Projection):
    """Keep k = max(1, int(ratio * size)) random linear combinations of the n entries.

    The refresh does not look at the tensor; the state is a key of 8 bytes.

    "srft" (subsampled randomised transform): the entries get random signs, blocks of 1024 of them
    the orthonormal cosine transform, and of each of k consecutive runs of coefficients a random one
    is kept. The columns of the n x k matrix Q are orthonormal: `project` is Q^T, `lift` is Q, and
    all promises of a projection hold. What few large entries hold is spread over a block, where any
    choice of coefficients gets its share. The signs are the same after a refresh, only the choice
    is drawn anew, so that moments of coefficients that stay are carried over exactly.

    The others have independent entries: with the random matrix P of that kind

        project(G) = P^T vec(G) / sqrt(k),    lift(c) = P c / sqrt(k)

    are adjoint to each other and *unbiased*, E lift(project(G)) = G over keys, but they are no
    orthogonal projection: `project` after `lift` is the identity only up to a factor of n / k and
    noise, and `lift` after `project` enlarges the norm by about sqrt(n / k). `transport_squares`
    gives the variance's expectation over keys. A product costs n k operations, 4 n for "sjlt".

    Attributes:
        ratio: share of the entries to keep, in (0, 1].
        kind: "srft", "rademacher", "normal" or "sjlt".
        scale: further factor of what is lifted. With n / k, "srft" is unbiased, too.

    Raises:
        ValueError: at construction, if an argument is not one of these.

    References:
        J. Tropp, Improved analysis of the subsampled randomized Hadamard transform, 2011.
    """

    ratio: float = 0.25
    kind: RandomKind = "srft"
    scale: float = 1.0

    def __post_init__(self):
        if not isinstance(self.ratio, int | float) or not 0 < self.ratio <= 1:
            raise ValueError(
                f"RandomProjection: ratio must be a number in (0, 1], got {shown(self.ratio)}"
            )
        check_choice("RandomProjection", "kind", self.kind, _KINDS)
        check_scale("RandomProjection", self.scale)

    def count(self, shape: tuple[int, ...]) -> int:
        """Return the length of the compact form of a tensor of this shape."""
        return kept_count(self.ratio, check_size("RandomProjection", shape))

    def matrix(self, shape: tuple[int, ...]) -> RandomMatrix:
        """Return the matrix P of the kinds that have one.

        Raises:
            ValueError: for "srft", and for more columns than the kind can count.
        """
        n, k = math.prod(shape), self.count(shape)
        if self.kind == "rademacher":
            return Rademacher(n, k)
        if self.kind == "normal":
            return Normal(n, k)
        if self.kind == "sjlt":
            return SJLT(n, k, next(s for s in (4, 3, 2, 1) if k % s == 0))
        raise ValueError("RandomProjection: 'srft' is a transform, not a random matrix")

    def init(self, leaf: Leaf) -> RandomBasis:
        """Return a valid basis."""
        self.count(leaf.shape)
        return RandomBasis(jnp.zeros(2, jnp.uint32), tuple(leaf.shape))

    def compact_struct(self, leaf: Leaf) -> jax.ShapeDtypeStruct:
        """Return the struct of a vector."""
        return jax.ShapeDtypeStruct((self.count(leaf.shape),), leaf.dtype)

    def refresh(
        self, key: PRNGKeyArray, tensor: Inexact[Array, ...], basis: RandomBasis
    ) -> RandomBasis:
        """Draw a key; the tensor is not looked at."""
        del tensor
        return RandomBasis(jax.random.bits(key, (2,), jnp.uint32), basis.shape)

    def project(self, tensor: Inexact[Array, ...], basis: RandomBasis) -> Inexact[Array, " k"]:
        """Multiply by Q^T or P^T / sqrt(k)."""
        if self.kind == "srft":
            coefficients = _by_parts(_rotated, tensor.ravel())
            return coefficients[self._kept(basis)]
        matrix = self.matrix(basis.shape)
        flat = tensor.reshape(1, tensor.size)
        return matrix.multiply_transposed(_key(basis), flat)[0] / math.sqrt(matrix.columns)

    def lift(self, compact: Inexact[Array, " k"], basis: RandomBasis) -> Inexact[Array, ...]:
        """Multiply by Q or P / sqrt(k)."""
        if self.kind == "srft":
            zeros = jnp.zeros(math.prod(basis.shape), compact.dtype)
            spread = zeros.at[self._kept(basis)].set(compact, unique_indices=True)
            lifted = _by_parts(_rotated_back, spread)
        else:
            matrix = self.matrix(basis.shape)
            lifted = matrix.multiply(_key(basis), compact[None])[0] / math.sqrt(matrix.columns)
        lifted = lifted.reshape(basis.shape)
        return lifted if self.scale == 1.0 else self.scale * lifted

    def _kept(self, basis):
        seed = jax.random.bits(_key(basis), (), jnp.uint32)
        return stratified(seed, math.prod(basis.shape), self.count(basis.shape))

    def transport(
        self, compact: Inexact[Array, " k"], old: RandomBasis, new: RandomBasis
    ) -> Inexact[Array, " k"]:
        """Coefficients that stay keep their value; of the other kinds, lift and project."""
        if self.kind == "srft":
            # A run's coefficient can only be found in that run.
            return jnp.where(self._kept(old) == self._kept(new), compact, 0)
        matrix = self.matrix(old.shape)

        def add(first, n, total):
            start = jnp.asarray(first, jnp.uint32)
            part = matrix.multiply(_key(old), compact[None], start, n)
            return total + matrix.multiply_transposed(_key(new), part, start)[0]

        total = over_pieces(add, matrix.rows, _PIECE, jnp.zeros_like(compact))
        return total / matrix.columns

    def transport_squares(
        self, compact: Inexact[Array, " k"], old: RandomBasis, new: RandomBasis
    ) -> Inexact[Array, " k"]:
        """As for first moments; of the other kinds, the expectation over keys.

        An entry of P_new^T P_old / k has mean square n / k^2, on the diagonal of one key (n / k)^2.
        """
        if self.kind == "srft":
            return self.transport(compact, old, new)
        n, k = math.prod(old.shape), compact.size
        spread = n / k**2 * jnp.sum(compact)
        again = n / k**2 * (n - 1) * compact
        return spread + jnp.where(jnp.all(old.key == new.key), again, 0)


def _key(basis):
    return jax.random.wrap_key_data(basis.key, impl="threefry2x32")


def _by_parts(function, x):
    if not jnp.iscomplexobj(x):
        return function(x)
    return jax.lax.complex(function(x.real), function(x.imag))


def _signs(n, dtype):
    return Rademacher(n, 1).materialise(key_from(0))[:, 0].astype(dtype)


def _in_blocks(transform, x):
    """Apply a transform to blocks of a vector; what is left over is a shorter block."""
    whole = x.size - x.size % _BLOCK
    parts = [x[:whole].reshape(-1, _BLOCK), x[None, whole:]]
    done = [transform(p, norm="ortho").ravel() for p in parts if p.size]
    return done[0] if len(done) == 1 else jnp.concatenate(done)


def _rotated(x):
    return _in_blocks(jax.scipy.fft.dct, x * _signs(x.size, x.dtype))


def _rotated_back(x):
    return _in_blocks(jax.scipy.fft.idct, x) * _signs(x.size, x.dtype)
