"""The optimizers of the study: AdamW, its relatives, and one change at a time of ours.

Each is a function (configuration, steps per epoch) -> optimizer, as `training.run.run` wants it.
Weight decay and learning rate stand at the end of every chain, so that rows differ in what they
are named after.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from baselines import adafactor, galore
from tensorgrad_jax.models import tensor_specs

import tensorgrad_jax as tg
from tensorgrad_jax.training.build import build_schedule
from tensorgrad_jax.training.options import Config

GAP = 50
MATCHED = "TensorGRaD, size matched"
PAPER = tg.Residual(tg.UnstructuredSparse(0.05), tg.Tucker(0.20))
Build = Callable[[Config, int], optax.GradientTransformation]


def scaled(make: Callable[[], optax.GradientTransformation]) -> Build:
    """Add the decay of the weights and the learning rate."""

    def build(config: Config, steps_per_epoch: int) -> optax.GradientTransformation:
        return optax.chain(
            make(),
            optax.add_decayed_weights(config.opt.weight_decay),
            optax.scale_by_learning_rate(build_schedule(config.opt, steps_per_epoch)),
        )

    return build


def compressed(
    projection: tg.Projection, on_refresh="transport", match_size=False, adam=tg.scale_by_adam
) -> Build:
    """Return AdamW in the subspace of a projection."""
    return scaled(
        lambda: tg.in_subspace(
            adam(),
            projection,
            GAP,
            on_refresh,
            specs=tensor_specs,
            match_size=match_size,
        )
    )


def paper(config: Config, steps_per_epoch: int) -> optax.GradientTransformation:
    """Return the paper's composite with every convention of its implementation."""
    schedule = build_schedule(config.opt, steps_per_epoch)
    return tg.reference_adamw(
        schedule, PAPER, GAP, config.opt.weight_decay, tensor_specs, lambda_sparse=1.0
    )


def momentum(
    projection=tg.Tucker(0.05),  # noqa: B008
    gap=GAP,
    on_refresh="transport",
    complement="pass",
    b1=0.9,
    specs=tensor_specs,
):
    """Return the momentum of ours."""
    return tg.in_subspace(optax.ema(b1), projection, gap, on_refresh, complement, specs=specs)


def ours(numerator=None, specs=tensor_specs, b2=0.999) -> Build:
    """Return `subspace_momentum`, or one with another momentum or second moment."""
    top = momentum() if numerator is None else numerator
    return scaled(lambda: tg.scale_by_factored_rms(b2, specs=specs, numerator=top))


def with_ranks(modes: float, channels: float, factors: Literal["complex", "real"]) -> Build:
    """Return ours with these shares of all frequencies together and of each channel axis."""

    def build(config: Config, steps_per_epoch: int) -> optax.GradientTransformation:
        n_modes = len(config.fno.n_modes)
        shares = (*[modes ** (1 / n_modes)] * n_modes, channels, channels)
        return ours(momentum(tg.Tucker(shares, factors=factors)))(config, steps_per_epoch)

    return build


def carried_over(projection: tg.Projection) -> optax.GradientTransformation:
    """Return momentum inside; what lies outside is added to the next gradient, in bfloat16."""
    inside = momentum(projection, complement="drop")
    kept = tg.filter_by(projection, GAP, specs=tensor_specs)

    def init(params):
        outside = jax.tree.map(lambda x: jnp.zeros_like(x, jnp.bfloat16), params)
        return inside.init(params), kept.init(params), outside

    def update(updates, state, params=None):
        total = jax.tree.map(lambda g, e: g + e.astype(g.dtype), updates, state[2])
        averaged, first = inside.update(total, state[0], params)
        projected, second = kept.update(total, state[1], params)
        outside = jax.tree.map(lambda t, p: (t - p).astype(jnp.bfloat16), total, projected)
        return averaged, (first, second, outside)

    return optax.GradientTransformation(init, update)


def outside_scaled(projection: tg.Projection) -> optax.GradientTransformation:
    """Return momentum inside; outside the gradient, as much smaller as momentum made the inside."""
    inside = momentum(projection, complement="drop")
    kept = tg.filter_by(projection, GAP, specs=tensor_specs)

    def init(params):
        return inside.init(params), kept.init(params)

    def update(updates, state, params=None):
        averaged, first = inside.update(updates, state[0], params)
        projected, second = kept.update(updates, state[1], params)

        def add(a, p, g):
            ratio = jnp.linalg.norm(a) / jnp.maximum(jnp.linalg.norm(p), 1e-30)
            return a + ratio * (g - p)

        return jax.tree.map(add, averaged, projected, updates), (first, second)

    return optax.GradientTransformation(init, update)


def others(transform: optax.GradientTransformation) -> optax.GradientTransformation:
    """Apply a transformation to all other weights."""
    return optax.masked(transform, lambda p: _map_specs(lambda spec, _: spec is None, p))


def every_weight(params):
    """Return specs for all weights: those of spectral ones, and of every large matrix."""

    def of(spec, leaf):
        large = leaf.ndim >= 2 and leaf.size > 500
        return spec or (tg.TensorSpec() if large else None)

    return _map_specs(of, params)


def by_pairs(params):
    """Return specs that factor a second moment into frequencies by pairs of channels."""

    def of(spec, leaf):
        channels = (leaf.ndim - 2, leaf.ndim - 1)
        groups = (tuple(range(1, leaf.ndim - 2)), channels)
        return spec and tg.TensorSpec(complex_axis=0, groups=groups)

    return _map_specs(of, params)


def _map_specs(function, params):
    treedef = jax.tree.structure(params)
    specs = treedef.flatten_up_to(tensor_specs(params))
    pairs = zip(specs, jax.tree.leaves(params), strict=True)
    return treedef.unflatten([function(spec, leaf) for spec, leaf in pairs])


COMPARED: dict[str, Build] = {
    "AdamW": scaled(tg.scale_by_adam),
    "subspace momentum 5%": ours(),
    "TensorGRaD 5% + 20%": compressed(PAPER),
    "subspace momentum 25%": ours(momentum(tg.Tucker(0.25))),
    "no momentum": ours(others(optax.ema(0.9))),
    "low rank 25%": compressed(tg.Tucker(0.25)),
    "TensorGRaD as published": paper,
    "Adafactor": scaled(adafactor),
    "AdamW, b1 0.5": scaled(lambda: tg.scale_by_adam(b1=0.5)),
    "Adafactor, momentum": scaled(lambda: adafactor(0.9)),
    "GaLore 25%": scaled(lambda: galore(GAP)),
    "sparse 25%": compressed(tg.UnstructuredSparse(0.25)),
}
"""What is compared at its own best learning rate, in the order in which it is run."""

ABLATION: dict[str, Build] = {
    "full momentum": ours(optax.ema(0.9)),
    "outside dropped": ours(momentum(complement="drop")),
    "frequencies by pairs": ours(specs=by_pairs),
    "subspace 1%": ours(momentum(tg.Tucker(0.01))),
    "channels whole, real factors": with_ranks(0.05, 1.0, "real"),
    "5% single entries": ours(momentum(tg.UnstructuredSparse(0.05))),
    MATCHED: compressed(PAPER, match_size=True),
    f"{MATCHED}, moments kept": compressed(PAPER, "keep", match_size=True),
    "low rank 25%, size matched": compressed(tg.Tucker(0.25), match_size=True),
    "full second moment": ours(specs=lambda params: _map_specs(lambda *_: None, params)),
    "gap 10": ours(momentum(gap=10)),
    "gap 200": ours(momentum(gap=200)),
    "normalised first": scaled(
        lambda: optax.chain(tg.scale_by_factored_rms(specs=tensor_specs), momentum())
    ),
    "outside scaled": ours(outside_scaled(tg.Tucker(0.05))),
    "momentum kept": ours(momentum(on_refresh="keep")),
    "momentum reset": ours(momentum(on_refresh="reset")),
    "full momentum, bfloat16": ours(optax.ema(0.9, accumulator_dtype=jnp.bfloat16)),
    "TensorGRaD, sum": compressed(tg.Sum(tg.UnstructuredSparse(0.05), tg.Tucker(0.20))),
    "every weight": ours(momentum(specs=every_weight), every_weight),
    "frequencies whole": with_ranks(1.0, 0.05**0.5, "complex"),
    "real factors": ours(momentum(tg.Tucker(0.05, factors="real"))),
    "and 5% single entries": ours(
        momentum(tg.Residual(tg.UnstructuredSparse(0.05), tg.Tucker(0.05)))
    ),
    "outside carried over": ours(carried_over(tg.Tucker(0.05))),
    "b1 0.8": ours(momentum(b1=0.8)),
    "b1 0.95": ours(momentum(b1=0.95)),
    "b2 0.99": ours(b2=0.99),
    f"{MATCHED}, largest entries": compressed(
        tg.Residual(tg.UnstructuredSparse(0.05, "topk"), tg.Tucker(0.20)), match_size=True
    ),
    f"{MATCHED}, low rank first": compressed(
        tg.Residual(tg.Tucker(0.20), tg.UnstructuredSparse(0.05)), match_size=True
    ),
    f"{MATCHED}, lambda 0.5": compressed(
        tg.Residual(tg.UnstructuredSparse(0.05), tg.Tucker(0.20), (0.5, 1.0)), match_size=True
    ),
    f"{MATCHED}, b2 0.99": compressed(
        PAPER, match_size=True, adam=lambda: tg.scale_by_adam(b2=0.99)
    ),
}
"""One change each, at AdamW's best learning rate."""
