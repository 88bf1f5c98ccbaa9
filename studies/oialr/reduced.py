"""Other ways to train fewer numbers of an operator's spectral weights: Tucker form, LoRA.

Both are methods of `copies.Copies`: cores stand where weights stood, with what is frozen beside.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tensorgrad_jax import oialr
from tensorgrad_jax.oialr.kernels import named, renamed
from tensorgrad_jax.projections import TuckerWeight


def weights_of(params: Any) -> dict[str, Any]:
    """Return the spectral weights by name."""
    return {n: w for n, w in named(params).items() if n.endswith("spectral_weight")}


class Tucker:
    """A Tucker-factorised operator: core and factors of the channels are trained from the start.

    They begin as the truncated HOSVD of the dense weight, made as large as that is.

    Args:
        share: of the channels that is kept, on both sides.
    """

    def __init__(self, share: float = 0.5):
        self.share = share

    def start(self, params: Any) -> tuple[Any, Any]:
        """Return the parameters with weights in Tucker form."""
        cores, bases = oialr.low_rank(params, oialr.spectral(self.share), keep_last_layer=False)
        parts = oialr.lift(cores, bases, in_parts=True)
        dense, leaves = weights_of(params), {}
        is_weight = lambda x: isinstance(x, TuckerWeight)
        paths = jax.tree_util.tree_leaves_with_path(parts, is_leaf=is_weight)
        treedef = jax.tree.structure(parts, is_leaf=is_weight)
        for path, x in paths:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            if is_weight(x):
                # The core has the norm of the tensor that is made of it.
                grown = x.core * (jnp.linalg.norm(dense[name]) / jnp.linalg.norm(x.core))
                x = dataclasses.replace(x, core=grown)
            leaves[name] = x
        return jax.tree.unflatten(treedef, leaves.values()), {}

    def step(self, params: Any, bases: Any, opt_state: Any) -> oialr.Trees:
        """Change nothing."""
        return oialr.Trees(params, bases, opt_state)


@functools.partial(jax.tree_util.register_dataclass, data_fields=("frozen", "core"), meta_fields=())
@dataclasses.dataclass(frozen=True)
class Adapted:
    """A frozen weight (2, *modes, n, m) and what is added: A B^T at every frequency.

    Attributes:
        frozen: the weight.
        core: (2, *modes, 2, n, r), A and B of n = m channels.
    """

    frozen: Any
    core: Any = None

    def with_core(self, core: Any) -> Adapted:
        """Return this with another core."""
        return dataclasses.replace(self, core=core)

    def weight(self) -> Any:
        """Return the weight."""
        (a, b), (c, d) = (jnp.moveaxis(part, -3, 0) for part in self.core)
        times = lambda x, y: jnp.einsum("...ir,...jr->...ij", x, y)
        added = jnp.stack([times(a, b) - times(c, d), times(a, d) + times(c, b)])
        return self.frozen + added


class Lora:
    """LoRA (Hu et al., arXiv 2106.09685) per frequency, on weights as they are after some steps.

    Args:
        optimizer: its state starts anew where weights get adapters.
        delay: the step, counted from 1, before which they get them.
        share: rank over channels; at 1/8 an adapter has a quarter of the weight's numbers.
    """

    def __init__(self, optimizer: optax.GradientTransformation, delay: int, share: float = 0.125):
        self.optimizer, self.delay, self.share = optimizer, delay, share
        self.steps = 0

    def start(self, params: Any) -> tuple[Any, Any]:
        """Return the dense parameters."""
        return params, {}

    def step(self, params: Any, bases: Any, opt_state: Any) -> oialr.Trees:
        """Count a step, and add adapters if it is the one."""
        self.steps += 1
        if self.steps != self.delay:
            return oialr.Trees(params, bases, opt_state)
        cores, bases = {}, {}
        for number, (name, weight) in enumerate(weights_of(params).items()):
            n = weight.shape[-1]
            rank = max(1, int(self.share * n))
            shape = (*weight.shape[:-2], 1, n, rank)
            # A at random as weights are at first, B zero.
            a = jax.random.normal(jax.random.key(number), shape) * (1 / rank) ** 0.5
            cores[name] = jnp.concatenate([a, jnp.zeros_like(a)], -3)
            bases[name] = Adapted(weight)
        params = renamed(params, cores)
        return oialr.Trees(params, bases, _keeping_rate(self.optimizer.init(params), opt_state))


def _keeping_rate(fresh: Any, old: Any) -> Any:
    """Return a fresh state with the learning rate of the old one, which is its last entry."""
    return (*fresh[:-1], old[-1])
