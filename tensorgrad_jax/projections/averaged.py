"""Bases of Gram matrices that are averaged over refreshes.

    L_i <- decay L_i + (1 - decay) G_(i) G_(i)^H,    U_i: leading eigenvectors of L_i

with the unfoldings G_(i) of the gradient of a refresh. Subspaces then follow many gradients, not
the last one, as the bases of Shampoo and SOAP do: at full ranks, Adam within is SOAP with one basis
per mode; lower ranks truncate it. What is kept beside the factors are the matrices L_i.

References:
    N. Vyas et al., SOAP: improving and stabilizing Shampoo using Adam, arXiv 2409.11321.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from tensorgrad_jax.projections import mode_products
from tensorgrad_jax.projections.leading import leading_of_gram
from tensorgrad_jax.projections.pairs import Tensor


class AveragedBasis(NamedTuple):
    """Factors, and the averaged Gram matrices that they come from.

    Attributes:
        factors: U_i (d_i, r_i), None for modes that are left alone.
        grams: L_i (d_i, d_i), likewise.
    """

    factors: tuple[Array | None, ...]
    grams: tuple[Array | None, ...]


def factors_of(basis: Any) -> Sequence[Array | None]:
    """Return the factors of a basis, with or without Gram matrices."""
    return basis.factors if isinstance(basis, AveragedBasis) else basis


def start(
    shape: Sequence[int], ranks: Sequence[int], modes: Sequence[bool], dtype: Any
) -> AveragedBasis:
    """Return leading unit vectors and zeros.

    Args:
        shape: of the tensor.
        ranks: of the modes.
        modes: which have a factor.
        dtype: of factors and Gram matrices.
    """
    sizes = list(zip(shape, ranks, modes, strict=True))
    return AveragedBasis(
        tuple(jnp.asarray(np.eye(d, r), dtype) if has else None for d, r, has in sizes),
        tuple(jnp.zeros((d, d), dtype) if has else None for d, _, has in sizes),
    )


def refreshed(
    tensor: Tensor, basis: AveragedBasis, ranks: Sequence[int], decay: float
) -> AveragedBasis:
    """Return the basis after the gradient `tensor`."""
    given = mode_products.grams(tensor, basis.grams)
    grams = tuple(
        None if new is None or old is None else decay * old + (1 - decay) * new.astype(old.dtype)
        for old, new in zip(basis.grams, given, strict=True)
    )
    factors = tuple(
        None if gram is None else leading_of_gram(gram, r)
        for gram, r in zip(grams, ranks, strict=True)
    )
    return AveragedBasis(factors, grams)
