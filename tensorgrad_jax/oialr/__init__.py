"""OIALR."""

import importlib
from typing import TYPE_CHECKING, Any

from tensorgrad_jax.oialr.config import Config as Config
from tensorgrad_jax.oialr.controller import Controller as Controller
from tensorgrad_jax.oialr.controller import Event as Event
from tensorgrad_jax.oialr.controller import Trees as Trees
from tensorgrad_jax.oialr.history import History as History
from tensorgrad_jax.oialr.history import stability_report as stability_report
from tensorgrad_jax.oialr.kernels import Kernel as Kernel
from tensorgrad_jax.oialr.kernels import by_shape as by_shape
from tensorgrad_jax.oialr.low_rank import LowRank as LowRank
from tensorgrad_jax.oialr.low_rank import factor as factor
from tensorgrad_jax.oialr.low_rank import reconstruct as reconstruct
from tensorgrad_jax.oialr.observables import polar_factor as polar_factor
from tensorgrad_jax.oialr.observables import r_similarity as r_similarity
from tensorgrad_jax.oialr.observables import stability as stability
from tensorgrad_jax.oialr.trees import lift as lift
from tensorgrad_jax.oialr.trees import low_rank as low_rank
from tensorgrad_jax.oialr.trees import param_report as param_report

if TYPE_CHECKING:
    from tensorgrad_jax.oialr.wrapping import Wrapped as Wrapped
    from tensorgrad_jax.oialr.wrapping import wrap as wrap


def __getattr__(name: str) -> Any:
    # Flax is needed by these alone.
    if name in ("wrap", "Wrapped"):
        try:
            return getattr(importlib.import_module("tensorgrad_jax.oialr.wrapping"), name)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"oialr.{name} needs flax: pip install 'tensorgrad-jax[train]'"
            ) from error
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
