r"""A complex weight that is given by a core and factors, for layers that multiply by it in parts.

    W = C x_1 U_1 ... x_n U_n,      C (2, p_1, ..., p_n) in two parts,  U_i (d_i, p_i) real

A linear layer need not make W: its input times U_i, then C, then U_j^T takes fewer multiplications
where the core is small, and the gradient is that of the core.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
from jaxtyping import Array, Float

from tensorgrad_jax.projections import mode_products


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("core", "factors"), meta_fields=()
)
@dataclasses.dataclass(frozen=True)
class TuckerWeight:
    """A weight of real and imaginary part in Tucker form.

    It may stand in the place of a `spectral_weight` in a tree of parameters: `SpectralConv`
    multiplies by its parts.

    Attributes:
        core: (2, p_1, ..., p_n).
        factors: for every axis behind the first a real matrix (d_i, p_i); None: the axis is whole.

    Examples:
        >>> import jax.numpy as jnp
        >>> w = TuckerWeight(jnp.ones((2, 5, 3, 3)), (None, jnp.ones((8, 3)), jnp.ones((8, 3))))
        >>> w.shape, w.array().shape
        ((2, 5, 8, 8), (2, 5, 8, 8))
    """

    core: Any
    factors: tuple[Any, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape (2, d_1, ..., d_n)."""
        pairs = zip(self.factors, self.core.shape[1:], strict=True)
        return (2, *(p if u is None else u.shape[0] for u, p in pairs))

    @property
    def ndim(self) -> int:
        """Number of the weight's axes."""
        return self.core.ndim

    @property
    def dtype(self) -> Any:
        """Type of the weight's numbers."""
        return self.core.dtype

    def array(self) -> Float[Array, "2 ..."]:
        """Return the weight itself. Differentiable."""
        core = jax.lax.complex(self.core[0], self.core[1])
        return mode_products.lift_to_parts(core, self.factors).astype(self.core.dtype)
