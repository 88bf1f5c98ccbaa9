"""Finding the moments of every parameter in the state of any Optax transformation.

The inner transformation is given one flat dictionary {parameter name: compact form}. Whatever in
its state is a dictionary with these very names is therefore a moment, whichever transformation
made it. Moments that stand in one node of the state belong together: Adam's `mu` and `nu`.
"""

from __future__ import annotations

from typing import Any

import jax
import optax


class MomentDicts:
    """The dictionaries with one entry per parameter in an Optax state.

    Attributes:
        labels: one per dictionary: the field it stands in, with the path in front of it where
            several have the same ("mu", or "0.mu" and "1.mu").
        nodes: for every dictionary, the path of the state that it is a field of.
        owners: the names of the types of these states.
    """

    def __init__(self, state: optax.OptState, names):
        keys = set(names)
        is_moment = lambda x: bool(keys) and isinstance(x, dict) and x.keys() == keys
        paths, self._treedef = jax.tree_util.tree_flatten_with_path(state, is_leaf=is_moment)
        self._nodes = [dict(x) if is_moment(x) else x for _, x in paths]
        self._paths = [jax.tree_util.keystr(p, simple=True, separator=".") for p, _ in paths]
        self._places = [i for i, x in enumerate(self._nodes) if is_moment(x)]
        self.nodes = [paths[i][0][:-1] for i in self._places]
        self.owners = [type(at(state, path)).__name__ for path in self.nodes]
        self.labels = _labels([paths[i][0] for i in self._places])

    def of(self, name: str) -> dict[str, Any]:
        """Return all moments of one parameter by their labels."""
        moments = (self._nodes[i][name] for i in self._places)
        return dict(zip(self.labels, moments, strict=True))

    def replace(self, name: str, moments: dict[str, Any]) -> None:
        """Put all moments of one parameter in place."""
        for i, label in zip(self._places, self.labels, strict=True):
            self._nodes[i][name] = moments[label]

    def others(self) -> list[tuple[str, Any]]:
        """Return path and value of everything in the state that is not a moment."""
        entries = zip(self._paths, self._nodes, strict=True)
        return [(p, x) for i, (p, x) in enumerate(entries) if i not in self._places]

    def state(self) -> optax.OptState:
        """Return the state with what was replaced."""
        return self._treedef.unflatten(self._nodes)


def at(state: Any, path: Any) -> Any:
    """Return what stands at a path of a state."""
    for key in path:
        if isinstance(key, jax.tree_util.GetAttrKey):
            state = getattr(state, key.name)
        else:
            state = state[key.idx if isinstance(key, jax.tree_util.SequenceKey) else key.key]
    return state


def _labels(paths) -> list[str]:
    shorts = [jax.tree_util.keystr(path[-1:], simple=True) for path in paths]
    longs = [jax.tree_util.keystr(path, simple=True, separator=".") for path in paths]
    return [
        short if shorts.count(short) == 1 else long
        for short, long in zip(shorts, longs, strict=True)
    ]


def cast_like(tree: Any, reference: Any) -> Any:
    """Give every array of `tree` the dtype it has in `reference`."""
    return jax.tree.map(lambda x, r: x.astype(r.dtype), tree, reference)
