"""OIALR: train small cores between bases that have settled.

What question does it answer? How many of a network's parameters have to be trained once its
weights know in which directions they act? A weight W = U Sigma V^T has the basis U V^T, which
settles early; what goes on changing is how basis vectors are mixed. So the model is trained as it
is for `delay` steps, every weight is factored as U S V^T, and from then on U and V stand still: S
alone, a matrix of the size of the rank, is trained, and shrinks as singular values fade.

    from tensorgrad_jax import oialr

    optimizer = nnx.Optimizer(model, optax.adamw(3e-4), wrt=nnx.Param)
    wrapped = oialr.wrap(model, oialr.Config(delay=2500, stability_frequency=500), optimizer)
    for batch in batches:
        wrapped.step()                                   # before every step
        train_step(model, optimizer, batch)              # under nnx.jit, as ever

`Controller` does the same for any tree of parameters and any function of it, `lift` in the loss.
`History` and `stability_report` only look: how stable bases are, in any training loop.

What it costs: bases are stored beside the cores, so that behind the conversion a model is larger
than before; gradients and moments are smaller at once. A layer multiplies by U, S and V^T in turn
where that takes fewer multiplications than the weight. Programs are compiled anew when a rank falls
below a multiple of 32, or never (`reinit_shapes=False`).

When not to use it: where memory is for activations, where layers have few inputs, where training is
too short for bases to settle.

Differences from the original (Helmholtz-AI-Energy/OIALR, package madonna): moments are carried over
(`moments="transport"`; there they are zeroed while Adam's step count goes on, and updates jump);
biases of low-rank layers go on training; attention, SGD and any Optax optimizer work; layers can
wait for their own bases (`freeze="stability"`); at a check the last layers are chosen as documented
(`legacy_selection` for what it does); no product of the size of the weight where it can be avoided.

    original                                here
    OIALRModel(model, options)              wrap(model, Config(options), optimizer)
    set_optimizer, a step on forward        the same, wrapped.step()
    model_stability_tracking(force=True)    wrapped.update(force=True)
    SVDLinearUSVh, SVDConv1d/2dUSVh         the layers, in place; LowRank(U, S, Vt, rank)
    get_perc_params_all_layers              param_report, Event.report
    csmean                                  stability, History, stability_report

Source: D. Coquelin et al., Harnessing Orthogonality to Train Low-Rank Neural Networks, arXiv
2401.08505.
"""

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
from tensorgrad_jax.oialr.kernels import spectral as spectral
from tensorgrad_jax.oialr.low_rank import LowRank as LowRank
from tensorgrad_jax.oialr.low_rank import factor as factor
from tensorgrad_jax.oialr.low_rank import reconstruct as reconstruct
from tensorgrad_jax.oialr.observables import polar_factor as polar_factor
from tensorgrad_jax.oialr.observables import r_similarity as r_similarity
from tensorgrad_jax.oialr.observables import stability as stability
from tensorgrad_jax.oialr.tensors import LowRankTensor as LowRankTensor
from tensorgrad_jax.oialr.tensors import factor_tensor as factor_tensor
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
