"""Step 3: eigenpairs from a measured sketch, how good they are, and which weights lie in them."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import h5py
import jax
import jax.numpy as jnp
import numpy as np

from tensorgrad_jax.hessian import layout
from tensorgrad_jax.hessian.cores import eigh_of_core
from tensorgrad_jax.hessian.eigenpairs import Eigh
from tensorgrad_jax.hessian.errors import PosteriorError, a_posteriori_error, post_bounds, scree
from tensorgrad_jax.hessian.gathering import ProblemOf
from tensorgrad_jax.hessian.layout import LayoutError
from tensorgrad_jax.hessian.measuring import Recorded, recorded
from tensorgrad_jax.hessian.noise import Noise
from tensorgrad_jax.hessian.operators import LinearOperator
from tensorgrad_jax.hessian.orthogonal import orthonormal
from tensorgrad_jax.hessian.records import Log
from tensorgrad_jax.hessian.settings import Solve
from tensorgrad_jax.subspaces import overlaps_with_ranking


def solve(settings: Solve, problem_of: ProblemOf) -> Path:
    """Merge the columns of a sketch, solve its core, and log what the paper's figures are made of.

    Writes a log and three pictures to the folder of the run: spectrum, scree, overlap.

    Returns:
        The log.

    Raises:
        LayoutError: if a column is not measured, of another Hessian, missing or damaged.
    """
    what = recorded(settings, problem_of)
    name = f"[solve]__step={settings.STEP}__test={settings.TEST_HESSIAN}"
    sketch = _merged(settings, what)
    log = Log(what.folder, name)
    log.write("CONFIG", json.loads(json.dumps(dataclasses.asdict(settings), default=str)))
    outer, inner = sketch
    dtype = what.operator.dtype
    key_right, key_left = what.keys()
    right, left = (Noise(settings.NOISE, what.size, inner.shape[0]) for _ in range(2))
    Q = orthonormal(jnp.asarray(outer, dtype))
    M = jnp.asarray(inner, dtype)
    found = eigh_of_core(Q, M, left.adjoint_times(key_left, Q), right.adjoint_times(key_right, Q))
    n = settings.NUM_A_POSTERIORI if settings.WITH_A_POSTERIORI else 0
    facts = log_decomposition(log, found, what.operator, what.params, n, what.seed)
    if settings.SAVE_VECTORS:
        path = log.path.with_name(f"{log.path.stem}__eigenpairs.h5")
        with h5py.File(path, "w") as file:
            file["values"], file["vectors"] = np.asarray(found.values), np.asarray(found.vectors())
        log.write("HDF5", {"matrix": "eigenpairs", "path": str(path), "status": "saved"})
    from tensorgrad_jax.hessian.figures import plot_solution

    title = f"{what.problem}, step {settings.STEP}, {what.split} set"
    pictures = plot_solution(facts, log.path.with_suffix(""), title)
    log.write("INFO", ["Pictures", [path.name for path in pictures]])
    return log.path


def _merged(settings: Solve, what: Recorded) -> tuple[np.ndarray, np.ndarray]:
    """Return the outer and the inner sketch, from the columns' files by way of merged ones."""
    of_kind = lambda kind, number: layout.path_of(settings.MEASUREMENTS_DIR, kind, number)
    paths = [
        (
            settings.OUTER_VIRTUAL or of_kind(layout.LEFT, layout.ALL),
            settings.OUTER_MONOLITHIC or of_kind(layout.LEFT, layout.MERGED),
        ),
        (
            settings.INNER_VIRTUAL or of_kind(layout.INNER, layout.ALL),
            settings.INNER_MONOLITHIC or of_kind(layout.INNER, layout.MERGED),
        ),
    ]
    shapes = []
    for virtual, _ in paths:
        with layout.opened(virtual) as file:
            layout.check_columns(virtual, file[layout.DATA])
            shapes.append(file[layout.DATA].shape)
    (rows, outer), (inner, columns) = shapes
    if rows != what.size or inner != columns or outer > inner:
        raise LayoutError(
            f"MEASUREMENTS_DIR: {paths[0][0]} and {paths[1][0]} are of shapes {shapes[0]} and "
            f"{shapes[1]}: no sketch of {what.size} parameters"
        )
    of = what.name(settings.STEP, settings.NOISE, inner)
    for virtual, merged in paths:
        layout.merge(virtual, merged, settings.SUCCESS_FLAG, of=of)
    matrices = [layout.read_merged(merged, settings.SUCCESS_FLAG) for _, merged in paths]
    if settings.DELETE_MERGED_SUBFILES:  # both are complete
        for virtual, _ in paths:
            for path in layout.columns_of(virtual):
                path.unlink()
    return matrices[0], matrices[1]


def log_decomposition(
    log: Log,
    found: Eigh,
    operator: LinearOperator,
    params: np.ndarray,
    n: int,
    seed: int,
    about: dict[str, Any] | None = None,
    header: str = "RESULT",
) -> dict[str, Any]:
    """Log eigenvalues, errors with their bounds, scree, and the overlap with the largest weights.

    Args:
        log: to write to.
        found: the decomposition.
        operator: of this.
        params: vector of parameters.
        n: products for the estimate of errors; 0 for none.
        seed: of their noise.
        about: what every line says beside.
        header: of the lines.

    Returns:
        What was logged, under the names of the log.
    """
    about, k = about or {}, found.values.shape[0]
    facts: dict[str, Any] = {"core_S": np.asarray(found.values, np.float64).tolist()}
    log.write(header, about | {"core_S": facts["core_S"]})
    if n:
        ranks = sorted({k, math.ceil(0.5 * k), math.ceil(0.05 * k)}, reverse=True)
        error = a_posteriori_error(
            operator, found, jax.random.fold_in(jax.random.key(seed), 3), n, ranks
        )
        facts |= _errors(error)
        info = "Frob^2 of Hessian, corresponding k-rank reconstruction H_k and residual (H - H_k)"
        log.write(header, about | {"info": info} | _errors(error))
        bounds = {}
        for relative in (0.25, 0.5, 1.0):
            low, high = post_bounds(n, relative)
            bounds |= {f"P(err<={1 - relative:g}x)": low, f"P(err>={1 + relative:g}x)": high}
        log.write(header, about | bounds)
        norm, rest = math.sqrt(error.operator), math.sqrt(error.difference[0])
        lower, upper = scree(found.values, norm, rest)
        facts |= {"scree_lower": lower.tolist(), "scree_upper": upper.tolist()}
        facts |= {"norm": norm, "error": rest}
        info = "Scree lower and upper bounds by increasing k"
        log.write(
            header,
            about | {"info": info, "scree_lower": lower.tolist(), "scree_upper": upper.tolist()},
        )
    ranking = np.argsort(-np.abs(params), kind="stable")[:k]
    inside = overlaps_with_ranking(found.Q, found.Z, jnp.asarray(ranking))
    facts |= {"frob_Qtop^2": np.asarray(inside, np.float64).tolist(), "num_params": len(params)}
    info = "Frob(Q[largest_absparams,:k])^2 ordered by increasing k"
    log.write(header, about | {"frob_Qtop^2": facts["frob_Qtop^2"], "info": info})
    info = "Indices of k largest parameters, by descending magnitude"
    log.write(header, about | {"largest_absparams": ranking.tolist(), "info": info})
    return facts


def _errors(error: PosteriorError) -> dict[str, float]:
    found = {"Frob(H)^2": float(error.operator)}
    for rank, size in zip(error.ranks, error.approximation, strict=True):
        found[f"Frob(H_{rank})^2"] = float(size)
    for rank, size in zip(error.ranks, error.difference, strict=True):
        found[f"Frob(H-H_{rank})^2"] = float(size)
    return found
