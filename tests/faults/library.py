"""Arguments of the library's functions that are of another type, or out of every range."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tensorgrad_jax.models import FNO, SpectralConv, tensor_specs

import tensorgrad_jax as tg
from tensorgrad_jax import hessian, subspaces

from .runs import Case

PARAMS = {"w": jnp.ones((4, 3, 5)), "b": jnp.ones(4)}
_RNG = np.random.default_rng(0)
GRADIENTS = {k: jnp.asarray(_RNG.normal(size=x.shape), jnp.float32) for k, x in PARAMS.items()}

WRONG: dict[str, Any] = {
    "a text": "x", "a list": [], "None": None, "an object": object(), "a truth value": True,
    "-1": -1, "2**40": 2**40, "NaN": float("nan"), "infinity": float("inf"), "1.5": 1.5,
    "a complex number": 1j, "an empty text": "", "an array": np.ones((2, 2)),
}  # fmt: skip


def _step(optimizer: Any) -> Any:
    """Use an optimizer once."""
    state = optimizer.init(PARAMS)
    updates, _ = optimizer.update(GRADIENTS, state, PARAMS)
    return tg.apply_updates(PARAMS, updates)


def _project(projection: tg.Projection) -> Any:
    return _step(tg.projected_adamw(1e-3, projection))


def _forward(**options: Any) -> Any:
    given = {"n_modes": (2, 2), "in_channels": 1, "out_channels": 1, "hidden_channels": 4}
    given |= {"n_layers": 1, "rngs": nnx.Rngs(0)} | options
    return FNO(**given)(jnp.ones((1, 6, 6, 1)))


_OPERATOR, _KEY = hessian.Dense(jnp.diag(jnp.arange(1.0, 9)), symmetric=True), jax.random.key(0)


def _square(params: Any, batch: Any) -> Any:
    return sum((jnp.mean(x) * params**2).sum() for x in jax.tree.leaves(batch)) + params.sum()


# What is called, its arguments that are right, and what is done with the result.
CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any], Callable[[Any], Any]]] = {
    "tensorgrad": (tg.tensorgrad, {"learning_rate": 1e-3}, _step),
    "projected_adamw": (
        tg.projected_adamw, {"learning_rate": 1e-3, "projection": tg.Tucker(0.25)}, _step
    ),
    "subspace_momentum": (
        tg.subspace_momentum, {"learning_rate": 1e-3, "projection": tg.Tucker(0.25)}, _step
    ),
    "subspace_muon": (tg.subspace_muon, {"learning_rate": 1e-3}, _step),
    "tensor_muon": (tg.tensor_muon, {"learning_rate": 1e-3}, _step),
    "reference_adamw": (
        tg.reference_adamw, {"learning_rate": 1e-3, "projection": tg.Tucker(0.25)}, _step
    ),
    "scale_by_adam": (tg.scale_by_adam, {}, _step),
    "scale_by_factored_rms": (tg.scale_by_factored_rms, {}, _step),
    "orthogonalize": (tg.orthogonalize, {}, _step),
    "in_subspace": (
        tg.in_subspace, {"inner": tg.scale_by_adam(), "projection": tg.Tucker(0.25)}, _step
    ),
    "Tucker": (tg.Tucker, {"rank": 0.25}, _project),
    "MatrixLowRank": (tg.MatrixLowRank, {"rank": 0.25}, _project),
    "StructuredSparse": (tg.StructuredSparse, {"ratio": 0.25}, _project),
    "UnstructuredSparse": (tg.UnstructuredSparse, {"ratio": 0.25}, _project),
    "RandomProjection": (tg.RandomProjection, {"ratio": 0.25}, _project),
    "Residual": (
        tg.Residual, {"first": tg.Tucker(0.2), "second": tg.UnstructuredSparse(0.1)}, _project
    ),
    "linear_gap": (tg.linear_gap, {"start": 1, "end": 2, "total_steps": 9}, lambda gap: gap(0)),
    "exponential_gap": (
        tg.exponential_gap, {"start": 1, "end": 2, "total_steps": 9}, lambda gap: gap(0)
    ),
    "plan_ranks": (tg.plan_ranks, {"gradients": PARAMS, "budget": 0.3}, lambda x: x),
    "apply_updates": (tg.apply_updates, {"params": PARAMS, "updates": GRADIENTS}, lambda x: x),
    "state_bytes": (tg.state_bytes, {"opt_state": PARAMS}, lambda x: x),
    "tensor_specs": (tensor_specs, {"model_or_params": PARAMS}, lambda x: x),
    "FNO": (_forward, {}, lambda x: x),
    "SpectralConv": (
        SpectralConv,
        {"in_channels": 1, "out_channels": 1, "n_modes": (2, 2), "rngs": nnx.Rngs(0)},
        lambda layer: layer(jnp.ones((1, 6, 6, 1))),
    ),
    "hvp_operator": (
        hessian.hvp_operator, {"loss": _square, "params": jnp.ones(4), "data": jnp.ones((3, 4))},
        lambda operator: operator.mm(jnp.eye(4)),
    ),
    "seigh": (hessian.seigh, {"operator": _OPERATOR, "key": _KEY, "outer": 3}, lambda x: x),
    "block_lanczos": (
        hessian.block_lanczos, {"operator": _OPERATOR, "key": _KEY, "k": 3}, lambda x: x
    ),
    "ssvd": (hessian.ssvd, {"operator": _OPERATOR, "key": _KEY, "outer": 3}, lambda x: x),
    "a_posteriori_error": (
        hessian.a_posteriori_error,
        {"operator": _OPERATOR, "decomposition": hessian.seigh(_OPERATOR, _KEY, 3), "key": _KEY},
        lambda x: x,
    ),
    "post_bounds": (hessian.post_bounds, {"n": 30, "error": 0.5}, lambda x: x),
    "scree": (hessian.scree, {"values": [3.0, 1.0], "norm": 4.0, "error": 0.1}, lambda x: x),
    "prio_hpars": (hessian.prio_hpars, {"shape": (9, 9), "budget": 100}, lambda x: x),
    "Noise": (hessian.Noise, {"kind": "srft", "rows": 9, "columns": 4}, lambda x: x),
    "overlap": (subspaces.overlap, {"A": jnp.eye(4)[:, :2], "B": jnp.eye(4)[:, 2:]}, lambda x: x),
    "principal_angles": (
        subspaces.principal_angles, {"A": jnp.eye(4)[:, :2], "B": jnp.eye(4)[:, 2:]}, lambda x: x
    ),
}  # fmt: skip


def _names(call: Callable[..., Any]) -> list[str]:
    named = inspect.signature(FNO if call is _forward else call).parameters.values()
    return [p.name for p in named if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def arguments(every: int = 1) -> Iterator[Case]:
    """Every argument of every call, with every wrong value: a ValueError that names it.

    Or it is accepted, and what comes out is finite.

    Args:
        every: only every so many of them is tried.
    """
    tried = itertools.count()
    for call, (function, right, use) in CALLS.items():
        for name in _names(function):
            for what, value in WRONG.items():
                if next(tried) % every:
                    continue
                seen = _attempt(name, lambda f=function, r=right | {name: value}, u=use: u(f(**r)))
                yield Case("arguments", f"{call}({name}={what})", not seen, seen)


# What an argument is called where it is used; of trees a leaf is named.
_PASSED_ON = {"sparse_ratio": "ratio", "sparse_type": "select", "params": "a"}


def _attempt(name: str, call: Callable[[], Any]) -> str:
    """Return what is wrong with how a call ends, an empty text if nothing."""
    try:
        result = call()
    except (ValueError, TypeError) as error:
        text = str(error)
        one_line = "\n" not in text and _PASSED_ON.get(name, name) in text
        return "" if one_line else f"{type(error).__name__}: {text}"[:200]
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200]
    leaves = [x for x in jax.tree.leaves(result) if hasattr(x, "dtype")]
    finite = all(bool(jnp.isfinite(x).all()) for x in leaves if x.dtype.kind in "fc")
    return "" if finite else "accepted, and the result is not finite"


def trees() -> Iterator[Case]:
    """Trees of gradients, updates and parameters that do not fit each other."""
    optimizer = tg.tensorgrad(1e-3)
    state = optimizer.init(PARAMS)
    missing = {"w": GRADIENTS["w"]}
    other = GRADIENTS | {"w": jnp.ones((4, 3, 6))}
    for what, call, name in (
        ("a gradient is missing", lambda: optimizer.update(missing, state, PARAMS), "b"),
        ("a gradient of another shape", lambda: optimizer.update(other, state, PARAMS), "w"),
        ("no parameters", lambda: optimizer.update(GRADIENTS, state), "params"),
        ("updates of another shape", lambda: tg.apply_updates(PARAMS, other), "w"),
        ("an update is missing", lambda: tg.apply_updates(PARAMS, missing), "b"),
        ("a missing gradient, orthogonalize", lambda: _orthogonal(missing), "b"),
        ("NaN", lambda: tg.plan_ranks(jnp.full((4, 3), jnp.nan), 0.3), "gradients"),
        ("no arrays", lambda: tensor_specs(None), "model_or_params"),
    ):
        seen = _attempt(name, call)
        seen = seen or ("accepted" if _passes(call) else "")
        yield Case("trees", what, not seen, seen)


def _orthogonal(gradients: Any) -> Any:
    optimizer = optax.chain(tg.orthogonalize(), tg.scale_by_adam())
    return optimizer.update(gradients, optimizer.init(PARAMS), PARAMS)


def _passes(call: Callable[[], Any]) -> bool:
    try:
        call()
    except Exception:
        return False
    return True
