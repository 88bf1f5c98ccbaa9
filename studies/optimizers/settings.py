"""What is compared, by name: functions of the task to what makes updates of gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import baselines
import jax
import jax.numpy as jnp
import optax
import peers
from sized import sized
from tasks import Task
from tensorgrad_jax.models import tensor_specs

import tensorgrad_jax as tg
from tensorgrad_jax.transforms.blending import blended
from tensorgrad_jax.transforms.moments import momentum

Build = Callable[[Task], optax.GradientTransformation]
PAPER = tg.Residual(tg.UnstructuredSparse(0.05), tg.Tucker(0.20))


def channels(share: float) -> tg.Tucker:
    """Return a projection that leaves the frequencies whole."""
    return tg.Tucker((..., share, share), factors="real")


HALVED = channels(0.5)


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


OF_MATRICES = polar(0.4, dtype=jnp.bfloat16)
"""What the library's muons do with matrices."""


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


def half(**options: Any) -> Build:
    """Return `tg.subspace_muon`."""
    gap = options.pop("gap", None)
    return lambda task: optax.chain(
        tg.subspace_muon(1.0, update_proj_gap=gap or task.gap, specs=tensor_specs, **options),
        optax.scale(-1.0),
    )


def taken_apart(
    complement: str | float = "pass", factored: bool = True, nesterov: bool = False
) -> Build:
    """Return `tg.subspace_muon` of its pieces, with what it has no option for."""

    def build(task: Task) -> optax.GradientTransformation:
        numerator = tg.in_subspace(
            momentum(0.9, jnp.bfloat16, nesterov), tg.Tucker(0.05, factors="real"), task.gap,
            complement=complement, specs=tensor_specs,
        )  # fmt: skip
        none = lambda params: jax.tree.map(lambda _: None, params)
        specs, bound = (tensor_specs, 1.0) if factored else (none, None)
        scaled = tg.scale_by_factored_rms(0.999, 1e-8, specs, numerator, max_rms=bound)
        return blended(scaled, core(tg.orthogonalize(None, 1.6))(task), 0.5)

    return parts(build, OF_MATRICES)


def of_size(projection: tg.Projection | None, scale: float, *of_squares, **options) -> Build:
    """Return polar factors as large as Adam's update would be, for matrices as they are."""
    tensors = lambda task: sized(projection, task.gap, scale, *of_squares, **options)
    return parts(tensors, OF_MATRICES)


def tensorgrad(low_rank: tg.Tucker) -> Build:
    """Return `tg.tensorgrad` with another Tucker part."""
    projection = tg.Residual(tg.UnstructuredSparse(0.05), low_rank)
    return without_rate(tg.projected_adamw, projection=projection)


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
    "subspace_muon": half(),
    "tensor_muon": muon(),
    "tensor_muon, scale .4": muon(scale=0.4, matrix_scale=0.2),
    "tensor_muon, scale .2": muon(scale=0.2, matrix_scale=0.1),
    "tensor_muon, whole": muon(projection=None),
    "tensor_muon, whole, scale .4": muon(projection=None, scale=0.4, matrix_scale=0.2),
    "tensor_muon, whole, scale .2": muon(projection=None, scale=0.2, matrix_scale=0.1),
    "tensor_muon, whole, 8 bits": muon(projection=None, mu_dtype=jnp.int8),
    "tensor_muon, channels times .75, 8 bits": muon(projection=channels(0.75), mu_dtype=jnp.int8),
    "subspace momentum, polar matrices": parts(without_rate(tg.subspace_momentum), OF_MATRICES),
    "subspace momentum": without_rate(tg.subspace_momentum),
    "TensorGRaD": without_rate(tg.tensorgrad),
    "TensorGRaD, real factors": tensorgrad(tg.Tucker(0.2, factors="real")),
    "TensorGRaD, one mode of 20%, real factors": tensorgrad(tg.Tucker((0.2, ...), factors="real")),
    "TensorGRaD, channels alone, real factors": tensorgrad(channels(0.45)),
    "TensorGRaD as published": lambda task: optax.chain(
        tg.reference_adamw(1.0, PAPER, task.gap, 0.0, tensor_specs, lambda_sparse=1.0),
        optax.scale(-1.0),
    ),
    "Muon (Optax)": lambda task: peers.optax_muon(False, None),
    "Muon (Optax), rms .2": lambda task: peers.optax_muon(False, 0.2),
    "Muon (Optax), per frequency, rms .2": lambda task: peers.optax_muon(True, 0.2),
    "SOAP, shared bases": lambda task: peers.soap(),
    "SOAP, shared bases, polar matrices": parts(lambda task: peers.soap(), OF_MATRICES),
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

OF_TENSOR_MUON: dict[str, Build] = {
    "whole, scale .4, matrices .4": muon(projection=None, scale=0.4, matrix_scale=0.4),
    "subspace momentum, unbounded": unbounded,
    "subspace momentum, size matched": without_rate(tg.subspace_momentum, match_size=True),
    "not orthogonalised": parts(core(tg.scale_by_adam(), match_size=True), polar(0.4)),
    "matrices with Adam": parts(core(polar(0.8, dtype=jnp.bfloat16))),
    "float32 momentum": muon(mu_dtype=None),
    "8-bit momentum": muon(mu_dtype=jnp.int8),
    "bases averaged over refreshes": muon(projection=averaged(0.5), gap=10),
    "channels times .25": muon(projection=channels(0.25)),
    "channels times .75": muon(projection=channels(0.75)),
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
    "Adam's size, whole": of_size(None, 1.0),
    "Adam's size, core": of_size(HALVED, 2.0),
    "Adam's size, core, b2 .95": of_size(HALVED, 2.0, 0.95),
    "Adam's size, whole, b2 .95": of_size(None, 1.0, 0.95),
    "Adam's size, whole, power .5": of_size(None, 0.8, power=0.5),
}  # fmt: skip
"""One change of `tensor_muon` each, likewise."""

ABLATION: dict[str, Build] = {
    "no polar factor": half(polar_share=0.0),
    "polar factor .3": half(polar_share=0.3),
    "polar factor .7": half(polar_share=0.7),
    "polar factor alone": half(polar_share=1.0),
    "polar factor in .25 of the channels": half(polar_projection=channels(0.25)),
    "polar factor in .75 of the channels": half(polar_projection=channels(0.75)),
    "polar factor of all channels": half(polar_projection=None),
    "polar factor of all channels, b .95": half(polar_projection=None, b1=0.95),
    "polar factor scale .4": half(polar_scale=0.4),
    "polar factor scale 1.6": half(polar_scale=1.6),
    "3 rounds": half(steps=3),
    "2 rounds": half(steps=2),
    "complex factors, momentum": half(projection=tg.Tucker(0.05)),
    "momentum of channels alone, 5%": half(projection=channels(0.22)),
    "momentum in 1%": half(projection=tg.Tucker(0.01, factors="real")),
    "momentum in 25%": half(projection=tg.Tucker(0.25, factors="real")),
    "whole momentum": half(projection=None),
    "momentum of 5% single entries": half(projection=tg.UnstructuredSparse(0.05)),
    "outside dropped": taken_apart(complement="drop"),
    "outside times .1": taken_apart(complement=0.1),
    "outside times .5": taken_apart(complement=0.5),
    "Nesterov momentum": taken_apart(nesterov=True),
    "no momentum": half(b1=0.0),
    "momentum b .8": half(b1=0.8),
    "momentum b .95": half(b1=0.95),
    "momentum b .98": half(b1=0.98),
    "both b .95": half(b1=0.95, b2=0.95),
    "momentum in float32": half(mu_dtype=None),
    "momentum in 8 bits": half(mu_dtype=jnp.int8),
    "full second moment": taken_apart(factored=False),
    "second moment b .95": half(b2=0.95),
    "second moment b .99": half(b2=0.99),
    "Adam for matrices": parts(half()),
    "SOAP for matrices": parts(half(), peers.soap()),
    "refresh every 10": half(gap=10),
    "refresh every 200": half(gap=200),
    "reset at a refresh": half(on_refresh="reset"),
}
"""One change of `subspace_muon` each, likewise."""

SETTINGS = COMPARED | ABLATION | OF_TENSOR_MUON
