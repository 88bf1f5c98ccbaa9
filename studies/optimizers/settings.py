"""What is compared, by name: functions of the task to what makes updates of gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import baselines
import jax
import jax.numpy as jnp
import optax
import peers
from tasks import Task
from tensorgrad_jax.models import tensor_specs

import tensorgrad_jax as tg

Build = Callable[[Task], optax.GradientTransformation]
PAPER = tg.Residual(tg.UnstructuredSparse(0.05), tg.Tucker(0.20))
HALVED = tg.Tucker((..., 0.5, 0.5), factors="real")


def without_rate(chain: Callable[..., optax.GradientTransformation], **options: Any) -> Build:
    """Return a ready-made optimizer as a maker of updates: at rate 1, not decayed, sign turned."""
    return lambda task: optax.chain(
        chain(1.0, specs=tensor_specs, **{"update_proj_gap": task.gap} | options), optax.scale(-1.0)
    )


def unbounded(task: Task) -> optax.GradientTransformation:
    """Return `tg.subspace_momentum` without the bound of its root mean square."""
    numerator = tg.in_subspace(
        optax.ema(0.9), tg.Tucker(0.05), task.gap, complement="pass", specs=tensor_specs
    )
    return tg.scale_by_factored_rms(specs=tensor_specs, numerator=numerator)


def muon(**options: Any) -> Build:
    """Return `tg.tensor_muon`."""
    gap = options.pop("gap", None)
    return lambda task: optax.chain(
        tg.tensor_muon(1.0, update_proj_gap=gap or task.gap, specs=tensor_specs, **options),
        optax.scale(-1.0),
    )


def parts(tensors: Build, matrices: optax.GradientTransformation | None = None) -> Build:
    """Return one optimizer for the spectral weights, one for matrices (None: Adam), Adam else."""

    def build(task: Task) -> optax.GradientTransformation:
        def kinds(params):
            treedef = jax.tree.structure(params)
            chosen = treedef.flatten_up_to(tensor_specs(params))
            of = lambda x: "matrix" if x.ndim == 2 and min(x.shape) >= 8 else "other"
            leaves = zip(chosen, jax.tree.leaves(params), strict=True)
            return treedef.unflatten([of(x) if s is None else "tensor" for s, x in leaves])

        return optax.partition(
            {
                "tensor": tensors(task),
                "matrix": tg.scale_by_adam() if matrices is None else matrices,
                "other": tg.scale_by_adam(),
            },
            kinds,
        )

    return build


def polar(
    scale: float, specs: Any = None, b1: float = 0.95, nesterov: bool = True, dtype: Any = None
):
    """Return momentum, then its polar factors."""
    trace = optax.trace(b1, nesterov=nesterov, accumulator_dtype=dtype)
    return optax.chain(trace, tg.orthogonalize(specs, scale))


def core(
    inner: optax.GradientTransformation, projection: tg.Projection = HALVED, **options
) -> Build:
    """Return an optimizer inside a Tucker core."""
    return lambda task: tg.in_subspace(inner, projection, task.gap, specs=tensor_specs, **options)


def whole_of_compressed(scale: float, share: float = 0.05) -> Build:
    """Return the polar factor of a momentum buffer that is compressed after every step."""
    return lambda task: optax.chain(
        tg.in_subspace(
            optax.trace(0.95, nesterov=True),
            tg.Tucker(share),
            task.gap,
            complement=1.95,
            specs=tensor_specs,
        ),
        tg.orthogonalize(tensor_specs, scale),
    )


def mixed(
    share: float = 0.5,
    *,
    projection: tg.Projection | None = tg.Tucker(0.05, factors="real"),  # noqa: B008 (frozen)
    complement: str = "pass",
    b1: float = 0.9,
    b2: float = 0.999,
    mu_dtype: Any = jnp.bfloat16,
    factored: bool = True,
    channels: float | None = 0.5,
    scale: float = 0.8,
    steps: int = 5,
    gap: int | None = None,
    on_refresh: str = "transport",
    matrices: optax.GradientTransformation | None = None,
    adam: bool = False,
) -> Build:
    """Return the mean of `tg.subspace_momentum`'s update and its polar factor.

    Args:
        share: weight of the polar factor.
        projection: the subspace of the momentum; None: all of it is kept.
        complement: what becomes of the gradient outside.
        b1: decay of the momentum.
        b2: decay of the second moment.
        mu_dtype: of the momentum.
        factored: the second moment as a product of means, else that of Adam.
        channels: share of the channels that the polar factor is taken in; None: of the update.
        scale: root mean square of the polar factor.
        steps: its rounds.
        gap: steps between refreshes; None: the task's.
        on_refresh: what becomes of the momentum.
        matrices: what matrices get; None: polar factors of their momentum.
        adam: matrices get Adam.
    """
    averaged = tg.transforms.moments.momentum(b1, mu_dtype)

    def build(task: Task) -> optax.GradientTransformation:
        refreshes = gap or task.gap
        numerator = averaged
        if projection is not None:
            numerator = tg.in_subspace(
                averaged, projection, refreshes, on_refresh, complement=complement,
                specs=tensor_specs,
            )  # fmt: skip
        if factored:
            scaled = tg.scale_by_factored_rms(b2, 1e-8, tensor_specs, numerator, max_rms=1.0)
        else:
            scaled = tg.scale_by_factored_rms(
                b2, 1e-8, lambda p: jax.tree.map(lambda _: None, p), numerator
            )
        if channels is None:
            polar_factor = tg.orthogonalize(tensor_specs, scale, steps)
        else:
            polar_factor = tg.in_subspace(
                tg.orthogonalize(None, scale / channels, steps),
                tg.Tucker((..., channels, channels), factors="real"),
                refreshes,
                specs=tensor_specs,
            )

        def init(params):
            return {"scaled": scaled.init(params), "polar": polar_factor.init(params)}

        def update(updates, state, params=None):
            first, of_first = scaled.update(updates, state["scaled"], params)
            if not share:
                return first, state | {"scaled": of_first}
            second, of_second = polar_factor.update(first, state["polar"], params)
            mean = jax.tree.map(lambda x, y: (1 - share) * x + share * y, first, second)
            return mean, {"scaled": of_first, "polar": of_second}

        return optax.GradientTransformation(init, update)

    of_matrices = polar(0.4, dtype=jnp.bfloat16) if matrices is None else matrices
    return parts(build, tg.scale_by_adam() if adam else of_matrices)


def sized(
    projection: tg.Projection | None, scale: float, b2: float = 0.999, power: float = 1.0
) -> Build:
    """Return polar factors as large as Adam's update would be, frequency by frequency.

    The root mean square of a frequency's update is that of its momentum over the root of the mean
    square of its gradients, to a power: small where gradients are noise.
    """
    momentum = tg.transforms.moments.momentum(0.95, jnp.bfloat16, nesterov=True)

    def build(task: Task) -> optax.GradientTransformation:
        def inside(specs):
            polar_factor = tg.orthogonalize(specs, scale)

            def squares(x):
                parts = jax.tree.leaves(x)[0]
                if parts.ndim < 2:
                    return parts**2
                # Real and imaginary part stand along axis 0, of compact forms and of pairs.
                return jnp.mean(parts.real**2 + parts.imag**2, (0, -2, -1), keepdims=True)

            def init(params):
                leaves = jax.tree.leaves(params, is_leaf=tg.projections.pairs.is_pair)
                zeros = tuple(jnp.zeros_like(squares(x)) for x in leaves)
                return {
                    "count": jnp.zeros((), jnp.int32),
                    "mean": momentum.init(params),
                    "v": zeros,
                }

            def update(updates, state, params=None):
                del params
                count = state["count"] + 1
                flat, treedef = jax.tree.flatten(updates, is_leaf=tg.projections.pairs.is_pair)
                v = tuple(
                    b2 * old + (1 - b2) * squares(g)
                    for old, g in zip(state["v"], flat, strict=True)
                )
                averaged, mean = momentum.update(updates, state["mean"])
                factors, _ = polar_factor.update(averaged, optax.EmptyState())
                sizes = [
                    (squares(m) * (1 - b2**count) / jnp.where(s > 0, s, 1)) ** (power / 2)
                    for m, s in zip(treedef.flatten_up_to(averaged), v, strict=True)
                ]
                made = [
                    jax.tree.map(lambda x, q=q: x * q, f)
                    for f, q in zip(treedef.flatten_up_to(factors), sizes, strict=True)
                ]
                return treedef.unflatten(made), {"count": count, "mean": mean, "v": v}

            return optax.GradientTransformation(init, update)

        if projection is None:
            return inside(tensor_specs)
        return tg.in_subspace(
            inside(None), projection, task.gap, on_refresh="keep", specs=tensor_specs
        )

    return parts(build, polar(0.4, dtype=jnp.bfloat16))


def with_polar_cores(sparse: float = 0.05) -> Build:
    """Return TensorGRaD whose Tucker part takes polar factors, Adam on the single entries."""

    def kinds(compact):
        of = lambda name, part: jax.tree.map(lambda _: name, part)
        return {
            name: (of("entries", x[0]), of("core", x[1])) if isinstance(x, tuple) and len(x) == 2
            else of("entries", x)
            for name, x in compact.items()
        }  # fmt: skip

    inner = optax.partition({"entries": tg.scale_by_adam(), "core": polar(0.8)}, kinds)
    projection = tg.Residual(tg.UnstructuredSparse(sparse), HALVED)
    return parts(core(inner, projection, on_refresh="keep"), polar(0.4))


def averaged(share: float, decay: float = 0.95) -> tg.Tucker:
    """Return Tucker bases of averaged Gram matrices, of the channels alone."""
    return tg.Tucker((..., share, share), factors="real", gram_decay=decay)


def as_soap(share: float) -> Build:
    """Return Adam in averaged bases with SOAP's decays, in those of the pointwise matrices too."""

    def specs(params):
        treedef = jax.tree.structure(params)
        leaves = zip(
            jax.tree.leaves(params), treedef.flatten_up_to(tensor_specs(params)), strict=True
        )
        of = lambda x: tg.TensorSpec() if x.ndim == 2 and min(x.shape) >= 8 else None
        return treedef.unflatten([of(x) if spec is None else spec for x, spec in leaves])

    # 10 steps between refreshes: .95 a step.
    projection = averaged(share, 0.95**10)
    options = {"update_proj_gap": 10, "b1": 0.95, "b2": 0.95, "specs": specs, "match_size": False}
    return lambda task: optax.chain(
        tg.projected_adamw(1.0, projection=projection, weight_decay=0.0, **options),
        optax.scale(-1.0),
    )


COMPARED: dict[str, Build] = {
    "AdamW": lambda task: tg.scale_by_adam(),
    "tensor_muon": muon(),
    "tensor_muon, scale .4": muon(scale=0.4, matrix_scale=0.2),
    "tensor_muon, scale .2": muon(scale=0.2, matrix_scale=0.1),
    "tensor_muon, whole": muon(projection=None),
    "tensor_muon, whole, scale .4": muon(projection=None, scale=0.4, matrix_scale=0.2),
    "tensor_muon, whole, scale .2": muon(projection=None, scale=0.2, matrix_scale=0.1),
    "tensor_muon, whole, 8 bits": muon(projection=None, mu_dtype=jnp.int8),
    "tensor_muon, channels times .75, 8 bits": muon(
        projection=tg.Tucker((..., 0.75, 0.75), factors="real"), mu_dtype=jnp.int8
    ),
    "subspace_muon": mixed(),
    "Adam's size, whole": sized(None, 1.0),
    "Adam's size, core": sized(HALVED, 2.0),
    "Adam's size, core, b2 .95": sized(HALVED, 2.0, 0.95),
    "Adam's size, whole, b2 .95": sized(None, 1.0, 0.95),
    "Adam's size, whole, power .5": sized(None, 0.8, power=0.5),
    "subspace momentum, polar matrices": parts(
        without_rate(tg.subspace_momentum), polar(0.4, dtype=jnp.bfloat16)
    ),
    "whole, scale .4, matrices .4": muon(projection=None, scale=0.4, matrix_scale=0.4),
    "subspace momentum": without_rate(tg.subspace_momentum),
    "TensorGRaD": without_rate(tg.tensorgrad),
    "TensorGRaD as published": lambda task: optax.chain(
        tg.reference_adamw(1.0, PAPER, task.gap, 0.0, tensor_specs, lambda_sparse=1.0),
        optax.scale(-1.0),
    ),
    "Muon (Optax)": lambda task: peers.optax_muon(False, None),
    "Muon (Optax), rms .2": lambda task: peers.optax_muon(False, 0.2),
    "Muon (Optax), per frequency, rms .2": lambda task: peers.optax_muon(True, 0.2),
    "SOAP, shared bases": lambda task: peers.soap(),
    "Adam in averaged bases, whole": without_rate(
        tg.projected_adamw, projection=averaged(1.0), update_proj_gap=10
    ),
    "Adam in averaged bases, channels halved": without_rate(
        tg.projected_adamw, projection=averaged(0.5), update_proj_gap=10
    ),
    "Adam in averaged bases, as SOAP": as_soap(1.0),
    "Adam in averaged bases, as SOAP, channels halved": as_soap(0.5),
    "SNSM": lambda task: peers.snsm(task.gap),
    "Adafactor, momentum": lambda task: baselines.adafactor(0.9),
    "Adam-mini": lambda task: peers.adam_mini(),
    "8-bit AdamW": lambda task: peers.adam_8bit(),
    "GaLore 25%": lambda task: baselines.galore(task.gap),
}
"""Each with the best of the task's rates."""

ABLATION: dict[str, Build] = {
    "subspace momentum, unbounded": unbounded,
    "subspace momentum, size matched": without_rate(tg.subspace_momentum, match_size=True),
    "not orthogonalised": parts(core(tg.scale_by_adam(), match_size=True), polar(0.4)),
    "matrices with Adam": parts(core(polar(0.8, dtype=jnp.bfloat16))),
    "float32 momentum": muon(mu_dtype=None),
    "8-bit momentum": muon(mu_dtype=jnp.int8),
    "bases averaged over refreshes": muon(projection=averaged(0.5), gap=10),
    "channels times .25": muon(projection=tg.Tucker((..., 0.25, 0.25), factors="real")),
    "channels times .75": muon(projection=tg.Tucker((..., 0.75, 0.75), factors="real")),
    "complex factors": muon(projection=tg.Tucker((..., 0.5, 0.5))),
    "all modes, 25%": muon(projection=tg.Tucker(0.25)),
    "polar factor of momentum in 5%": parts(whole_of_compressed(0.8), polar(0.4)),
    "no Nesterov": parts(core(polar(0.8, nesterov=False)), polar(0.4, nesterov=False)),
    "b .9": muon(b1=0.9),
    "b .98": muon(b1=0.98),
    "gap 10": muon(gap=10),
    "gap 200": muon(gap=200),
    "momentum kept": muon(on_refresh="keep"),
    "momentum reset": muon(on_refresh="reset"),
    "5% single entries beside, moments kept": with_polar_cores(),
    "3 steps": muon(steps=3),
}  # fmt: skip
"""One change of `tensor_muon` each, likewise."""

MIXED: dict[str, Build] = {
    "no polar factor": mixed(0.0),
    "polar factor .3": mixed(0.3),
    "polar factor .7": mixed(0.7),
    "polar factor alone": mixed(1.0),
    "complex factors, momentum": mixed(projection=tg.Tucker(0.05)),
    "momentum of channels alone, 5%": mixed(
        projection=tg.Tucker((..., 0.22, 0.22), factors="real")
    ),
    "momentum in 1%": mixed(projection=tg.Tucker(0.01, factors="real")),
    "momentum in 25%": mixed(projection=tg.Tucker(0.25, factors="real")),
    "whole momentum": mixed(projection=None),
    "momentum of 5% single entries": mixed(projection=tg.UnstructuredSparse(0.05)),
    "outside dropped": mixed(complement="drop"),
    "polar factor in .25 of the channels": mixed(channels=0.25),
    "polar factor of all channels": mixed(channels=None),
    "momentum b .8": mixed(b1=0.8),
    "momentum b .95": mixed(b1=0.95),
    "momentum in float32": mixed(mu_dtype=None),
    "momentum in 8 bits": mixed(mu_dtype=jnp.int8),
    "Adam for matrices": mixed(adam=True),
    "full second moment": mixed(factored=False),
    "second moment b .99": mixed(b2=0.99),
    "refresh every 10": mixed(gap=10),
    "refresh every 200": mixed(gap=200),
    "reset at a refresh": mixed(on_refresh="reset"),
    "3 rounds": mixed(steps=3),
    "2 rounds": mixed(steps=2),
    "polar factor scale .4": mixed(scale=0.4),
}
"""One change of the mean of subspace momentum and its polar factor each."""
