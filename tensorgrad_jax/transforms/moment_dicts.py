"""Finding the moments in the state of any Optax transformation, and carrying them over.

The inner transformation is given one flat dictionary {parameter name: compact form}. Whatever in
its state is a dictionary with these very names is therefore a moment, whichever transformation
made it; the field it stands in tells whether it is linear in the gradient or a square of it.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import optax

from tensorgrad_jax.projections.base import Basis, LeafProjection
from tensorgrad_jax.transforms.complex_pairs import packed_like, unpacked

# Fields of Optax's states by how they transform.
_LINEAR = frozenset({"mu", "trace", "ema", "m", "momentum"})
_SQUARED = frozenset({"nu", "nu_max", "v", "sum_of_squares"})

OnRefresh = Literal["transport", "keep", "reset"]


class MomentDicts:
    """The dictionaries with one entry per parameter in an Optax state.

    Attributes:
        fields: for every such dictionary, the innermost named field of the state it stands in.
    """

    def __init__(self, state: optax.OptState, names):
        is_moment = lambda x: bool(names) and isinstance(x, dict) and x.keys() == names
        paths, self._treedef = jax.tree_util.tree_flatten_with_path(state, is_leaf=is_moment)
        self._nodes = [dict(x) if is_moment(x) else x for _, x in paths]
        self._places = [i for i, x in enumerate(self._nodes) if is_moment(x)]
        self.fields = [_field(paths[i][0]) for i in self._places]

    def of(self, name: str) -> list[Any]:
        """Return all moments of one parameter."""
        return [self._nodes[i][name] for i in self._places]

    def replace(self, name: str, moments: list[Any]) -> None:
        """Put all moments of one parameter in place."""
        for i, moment in zip(self._places, moments, strict=True):
            self._nodes[i][name] = moment

    def state(self) -> optax.OptState:
        """Return the state with what was replaced."""
        return self._treedef.unflatten(self._nodes)

    def transported(self, name: str, leaf: LeafProjection, old: Basis, new: Basis) -> list[Any]:
        """Return all moments of one parameter, carried from its old basis to its new one."""
        rules = (leaf.transport if f in _LINEAR else leaf.transport_squares for f in self.fields)
        struct = leaf.compact_struct()

        def carried(rule, stored):
            moment = jax.tree.map(unpacked, stored, struct)
            return jax.tree.map(packed_like, rule(moment, old, new), stored)

        return [carried(rule, x) for rule, x in zip(rules, self.of(name), strict=True)]

    def check_transportable(self, structs: dict[str, Any], compressed) -> None:
        """Raise ValueError if some moment of a compressed parameter cannot be carried over."""

        def fits(stored, struct):
            return jax.tree.structure(stored) == jax.tree.structure(struct) and all(
                unpacked(x, s).shape == s.shape
                for x, s in zip(jax.tree.leaves(stored), jax.tree.leaves(struct), strict=True)
            )

        for i, field in enumerate(self.fields):
            for name in compressed:
                same = fits(self.of(name)[i], structs[name])
                if field not in _LINEAR | _SQUARED or not same:
                    raise ValueError(
                        f"in_subspace: on_refresh='transport' cannot carry {field!r} of the inner "
                        f"state (parameter {name!r}) to a new basis; use 'keep' or 'reset'"
                    )


def _field(path) -> str:
    named = [key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey)]
    return named[-1] if named else ""


def cast_like(tree: Any, reference: Any) -> Any:
    """Give every array of `tree` the dtype it has in `reference`."""
    return jax.tree.map(lambda x, r: x.astype(r.dtype), tree, reference)
