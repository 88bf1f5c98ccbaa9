"""What the arrays in an optimizer's state are: found out by trying it on a tiny model.

The tiny model has a single number where the model has an array, in the same tree, so that the
optimizer's state has the same leaves in the same order, and masks and labels that go by names find
what they look for.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from tensorgrad_jax.transforms.roles import Role, role_of

_SIZE = 1e-3  # of the gradients: clipping at usual norms leaves them alone
_CASES = {
    "zero": (0.0, 0.0), "g": (1.0, 0.3), "-g": (-1.0, -0.3), "2g": (2.0, 0.6),
    "h": (0.2, -0.4), "g+h": (1.2, -0.1), "one": (1.0,), "one, one": (1.0, 1.0),
    "none": (0.0,),
}  # fmt: skip


class Tried(NamedTuple):
    """What an array of a state is.

    Attributes:
        role: "linear" in gradients, "square" for a mean or sum of their squares, or None.
        first: its value after one step of a gradient 1.
        second: its value after two.
    """

    role: Role | None
    first: float
    second: float

    def weight(self, steps: float) -> float:
        """Return its value after so many steps of a gradient 1, decays being constant."""
        if self.first == 0:
            return 0.0
        decay = self.second / self.first - 1
        if abs(1 - decay) < 1e-6:  # a sum, not a mean
            return self.first * steps
        return self.first * (1 - decay**steps) / (1 - decay)


def tried(optimizer: optax.GradientTransformation, params: PyTree) -> list[Tried] | None:
    """Return for every array of the optimizer's state, in order, what it is.

    None if the optimizer cannot be tried: if its update needs more than gradients and parameters.
    """
    tiny = jax.tree.map(lambda p: jnp.zeros((1,) * jnp.ndim(p), p.dtype), params)

    def after(scales):
        state = optimizer.init(tiny)
        for scale in scales:
            gradients = jax.tree.map(lambda p, s=scale: jnp.full_like(p, s * _SIZE), tiny)
            _, state = optimizer.update(gradients, state, tiny)
        return [_numbers(x) for x in jax.tree.leaves(jax.device_get(state))]

    try:
        found = {case: after(scales) for case, scales in _CASES.items()}
    except (TypeError, ValueError, KeyError, AttributeError):
        return None
    result = []
    for i in range(len(found["zero"])):
        role = role_of(lambda case, i=i: found[case][i] - found["zero"][i])
        unit = _SIZE**2 if role == "square" else _SIZE
        value = lambda case, zero, i=i, u=unit: (
            float((found[case][i] - found[zero][i]).ravel()[0]) / u if found[case][i].size else 0.0
        )
        result.append(Tried(role, value("one", "none"), value("one, one", "zero")))
    return result


def _numbers(x) -> np.ndarray:
    x = np.asarray(x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return x.real.astype(np.float64)
    return x.astype(np.float64) if jnp.issubdtype(x.dtype, jnp.number) else np.zeros(x.shape)
