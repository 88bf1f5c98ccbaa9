"""`optax.tree_map_params` asks what of a state is shaped like the parameters.

It initialises a transformation with one marker in the place of the parameters and maps over the
places where the marker turns up. Nothing that is kept in compact spaces is shaped like parameters.
"""

from __future__ import annotations

from typing import Any


class NotOfParameters:
    """A leaf for a field of a state that is not shaped like the parameters."""


def not_of_parameters(state: Any) -> Any:
    """Return a state of this type with such a leaf in every field."""
    return state(*[NotOfParameters() for _ in state._fields])


def is_placeholder(params: Any) -> bool:
    """Whether `params` is Optax's marker, which has no public name: a node without children."""
    return type(params).__name__ == "_ParamsPlaceholder"
