"""Can the Hessian of a problem be measured? Without side effects."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tensorgrad_jax.hessian.curvature import hvp_operator
from tensorgrad_jax.hessian.errors import normal_columns
from tensorgrad_jax.hessian.gathering import ProblemOf
from tensorgrad_jax.hessian.operators import LinearOperator
from tensorgrad_jax.hessian.settings import Check


def check_operator(operator: LinearOperator, n: int = 4) -> dict[str, float | bool]:
    """Return what products with n random vectors say of an operator that should be symmetric.

    Returns:
        "finite": all products are; "deterministic": a second time they are the same bits;
        "asymmetry": |X^H A X - (X^H A X)^H| / |X^H A X|, of rounding only if it is symmetric;
        "ok": all three are as they should be.
    """
    X = normal_columns(jax.random.key(0), operator.shape[1], n, operator.dtype)
    first, second = operator.mm(X), operator.mm(X)
    inner = jnp.matmul(X.conj().T, first, precision=jax.lax.Precision.HIGHEST)
    size = jnp.linalg.norm(inner)
    asymmetry = float(jnp.linalg.norm(inner - inner.conj().T) / jnp.where(size == 0, 1, size))
    finite = bool(jnp.all(jnp.isfinite(first)))
    same = bool(jnp.all(first == second)) if finite else False
    allowed = float(jnp.finfo(operator.dtype).eps) ** 0.5
    ok = finite and same and asymmetry < allowed
    return {"finite": finite, "deterministic": same, "asymmetry": asymmetry, "ok": ok}


def check(settings: Check, problem_of: ProblemOf) -> bool:
    """Print what both Hessians of a problem are like; return whether they can be measured.

    Raises:
        LayoutError: if the problem has no such subsets.
    """
    seed = settings.RANDOM_SEED or 0
    problem = problem_of(settings.PROBLEM, seed, settings.OBS_DATASETS)
    fine = True
    for part in ("train", "test"):
        subset = problem.examples(settings.NUM_HESSIAN_DATAPOINTS, test=part == "test")
        operator = hvp_operator(problem.loss, problem.params, subset)
        found = check_operator(operator)
        print(
            f"{part} set, {operator.shape[0]} parameters: "
            + ", ".join(f"{k} {v}" for k, v in found.items())
        )
        fine &= bool(found["ok"])
    return fine
