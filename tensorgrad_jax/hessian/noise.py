"""The random vectors that operators are measured with: columns that depend on key and number only.

Column i of the noise is the same whatever block it is drawn in and however many columns there are,
so that workers which know nothing of each other measure parts of one sketch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from tensorgrad_jax.projections.plain import check_choice, whole
from tensorgrad_jax.random_matrices import SRFT, Normal, Rademacher, RandomMatrix

Kind = Literal["srft", "gaussian", "rademacher", "phase"]
KINDS = get_args(Kind)


@dataclasses.dataclass(frozen=True)
class Noise:
    """Random columns with unit vectors' mean square: E v v^H = I / rows.

    | kind         | entries                                                            |
    |--------------|--------------------------------------------------------------------|
    | `srft`       | orthonormal columns: signs, cosine transform, selection            |
    | `gaussian`   | independent normal numbers                                         |
    | `rademacher` | independent signs                                                  |
    | `phase`      | independent numbers of the complex unit circle: complex operators  |

    Attributes:
        kind: one of these.
        rows: the length of a column.
        columns: how many there may be; `srft` has at most `rows`.

    Raises:
        ValueError: if the kind is unknown, or a number is none of its range.
    """

    kind: str
    rows: int
    columns: int

    def __post_init__(self):
        check_choice("noise", "kind", self.kind, KINDS)
        whole("noise", "rows", self.rows, 1, 2**31)
        most = self.rows + 1 if self.kind == "srft" else 2**20
        whole("noise", "columns", self.columns, 1, most)

    def check_dtype(self, dtype: Any) -> None:
        """Raise ValueError where complex columns would meet a real operator."""
        if self.kind == "phase" and not jnp.issubdtype(dtype, jnp.complexfloating):
            raise ValueError(
                f"noise: phase is for complex operators, got one of dtype {jnp.dtype(dtype)}; use "
                "srft, gaussian or rademacher"
            )

    def block(self, key: Any, numbers: Sequence[int] | range, dtype: Any) -> Any:
        """Return columns, (rows, len(numbers)).

        Args:
            key: a Threefry key.
            numbers: which columns.
            dtype: float32 or wider, real or complex.

        Raises:
            ValueError: if there is no such column, or the kind does not go with the dtype.
        """
        self.check_dtype(dtype)
        chosen = np.asarray(numbers, np.int32)
        if chosen.ndim != 1 or np.any(chosen < 0) or np.any(chosen >= self.columns):
            raise ValueError(f"noise: columns are 0 to {self.columns - 1}, got {list(numbers)}")
        return _block(self, key, jnp.asarray(chosen), jnp.dtype(dtype))

    def adjoint_times(self, key: Any, Y: Any) -> Any:
        """Return V^H Y, (columns, b), for all columns V and Y (rows, b)."""
        return _adjoint_times(self, key, Y)

    def _matrix(self) -> RandomMatrix:
        if self.kind == "srft":
            return SRFT(self.rows, self.columns)
        if self.kind == "rademacher":
            return Rademacher(self.rows, self.columns)
        return Normal(self.rows, self.columns * (2 if self.kind == "phase" else 1))


@jax.jit(static_argnums=(0, 3))
def _block(noise: Noise, key: Any, numbers: Any, dtype: Any) -> Any:
    # float64 operators want columns that are orthogonal to float64's precision.
    real = jnp.finfo(dtype).dtype
    matrix, scale = noise._matrix(), 1 / math.sqrt(noise.rows)
    if noise.kind == "phase":
        x = matrix.columns_at(key, 2 * numbers, real)
        y = matrix.columns_at(key, 2 * numbers + 1, real)
        return (jax.lax.complex(x, y) * (scale / jnp.hypot(x, y))).astype(dtype)
    return (matrix.columns_at(key, numbers, real) * scale).astype(dtype)


@jax.jit(static_argnums=0)
def _adjoint_times(noise: Noise, key: Any, Y: Any) -> Any:
    if noise.kind == "phase":  # columns are no linear function of the normal numbers
        of = lambda i: _block(noise, key, i[None], Y.dtype)[:, 0].conj() @ Y
        return jax.lax.map(of, jnp.arange(noise.columns, dtype=jnp.int32))
    product = noise._matrix().multiply_transposed(key, Y.T)
    return (product / math.sqrt(noise.rows)).T.astype(Y.dtype)
