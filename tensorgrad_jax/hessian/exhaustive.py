"""The sketch beside the exact eigendecomposition, for problems whose Hessian can be held."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from tqdm import tqdm

from tensorgrad_jax.hessian.curvature import hvp_operator
from tensorgrad_jax.hessian.decompositions import seigh
from tensorgrad_jax.hessian.eigenpairs import Eigh
from tensorgrad_jax.hessian.gathering import ProblemOf, begin, trained
from tensorgrad_jax.hessian.operators import LinearOperator
from tensorgrad_jax.hessian.problems import Problem
from tensorgrad_jax.hessian.settings import Exhaustive, SettingError
from tensorgrad_jax.hessian.solving import log_decomposition

LARGEST = 20_000
_COLUMNS = 512  # at once


def exhaustive(settings: Exhaustive, problem_of: ProblemOf) -> Path:
    """Train a problem; at the steps asked for compute both decompositions of its Hessian.

    Logs what `solve` logs, and "H_eigvals", all exact eigenvalues by ascending value, and
    "eigvec_resnorm", |v - (v^H u) u| of every sketched eigenvector v and the exact one u of the
    same place by descending magnitude.

    Returns:
        The log.

    Raises:
        SettingError: if the problem is too large, or a setting does not fit it.
    """

    def check(problem: Problem) -> None:
        size = sum(x.size for x in jax.tree.leaves(problem.params))
        if size > LARGEST:
            raise SettingError(
                f"PROBLEM: may have {LARGEST} parameters at most to be decomposed exactly, "
                f"{settings.PROBLEM} has {size}"
            )
        if not settings.NUM_OUTER <= settings.NUM_INNER <= size:
            raise SettingError(
                f"NUM_INNER: must be from NUM_OUTER {settings.NUM_OUTER} to {size}, got "
                f"{settings.NUM_INNER}"
            )

    run = begin(settings, "exhaustive", problem_of, check)
    problem, log = run.problem, run.log
    parts = [
        part
        for part, wanted in (
            ("test", settings.WITH_TEST_HESSIAN),
            ("train", settings.WITH_TRAIN_HESSIAN),
        )
        if wanted
    ]
    n = settings.NUM_A_POSTERIORI if settings.WITH_A_POSTERIORI else 0
    subsets = {
        part: problem.examples(settings.NUM_HESSIAN_DATAPOINTS, test=part == "test")
        for part in parts
    }
    operators = {part: hvp_operator(problem.loss, problem.params, subsets[part]) for part in parts}
    for step, _, params, _ in trained(problem, run.seed, run.last):
        if step not in run.record_steps:
            continue
        vector = ravel_pytree(params)[0]
        for part in parts:
            header, about = f"H_{part.upper()} RESULT", {"step": step}
            H = operators[part].at(vector)
            values, vectors = exact(H)
            log.write(header, about | {"H_eigvals": np.sort(values).tolist()})
            key = jax.random.key(run.seed)
            found = seigh(H, key, settings.NUM_OUTER, settings.NUM_INNER)
            residuals = beside(found, vectors)
            log.write(header, about | {"eigvec_resnorm": residuals.tolist()})
            log_decomposition(log, found, H, np.asarray(vector), n, run.seed, about, header)
    return log.path


def exact(operator: LinearOperator) -> tuple[np.ndarray, np.ndarray]:
    """Return all eigenvalues by descending magnitude, and eigenvectors in float64.

    Args:
        operator: symmetric and small enough to be held.
    """
    n = operator.shape[0]
    matrix = np.empty((n, n))
    for start in tqdm(range(0, n, _COLUMNS), "columns", disable=not sys.stderr.isatty()):
        width = min(_COLUMNS, n - start)
        columns = jnp.arange(width)
        eye = jnp.zeros((n, width), operator.dtype).at[start + columns, columns].set(1)
        matrix[:, start : start + width] = np.asarray(operator.mm(eye))
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    order = np.argsort(-np.abs(values))
    return values[order], vectors[:, order]


def beside(found: Eigh, vectors: Any) -> np.ndarray:
    """Return how far every eigenvector is from the exact one of its place, whatever their signs."""
    V = np.asarray(found.vectors(), np.float64)
    U = vectors[:, : V.shape[1]]
    return np.linalg.norm(V - U * np.sum(U * V, 0), axis=0)
