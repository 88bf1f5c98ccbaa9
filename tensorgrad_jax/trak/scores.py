"""Scores from features."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from tensorgrad_jax.trak.store import FeatureStore

_PRECISION = jax.lax.Precision.HIGHEST


def kernel(blocks: Iterable[np.ndarray], lambda_reg: float = 0.0) -> np.ndarray:
    """Return K = (F^T F + lambda I)^-1, divided by the mean of its magnitudes.

    The division, traker's, makes features fit for half precision; scores have no unit.

    Args:
        blocks: the rows of F, some at a time, (n, k) each.
        lambda_reg: lambda.

    Raises:
        ValueError: if F^T F + lambda I is singular to the precision of float32.
    """
    total = None
    for block in blocks:
        x = jnp.asarray(block)
        part = np.asarray(jnp.matmul(x.T, x, precision=_PRECISION), np.float64)
        total = part if total is None else total + part
    if total is None:
        raise ValueError("kernel: blocks must hold at least one block of features")
    total = total + lambda_reg * np.eye(len(total))
    try:
        inverse = np.linalg.inv(total)
        condition = np.linalg.norm(total, 1) * np.linalg.norm(inverse, 1)
    except np.linalg.LinAlgError:
        inverse, condition = total, math.inf
    # The products are float32's: what is smaller than their rounding is not known.
    if not condition < 1 / np.finfo(np.float32).eps:
        raise ValueError(
            f"kernel: F^T F + lambda_reg I is singular with lambda_reg={lambda_reg} (condition "
            f"number {condition:.2g}): lambda_reg must be larger; it is needed wherever there are "
            "fewer training examples than features"
        )
    return inverse / np.abs(inverse).mean()


def attribution_scores(
    store: FeatureStore,
    train: str,
    targets: str,
    model_ids: Sequence[int],
    lambda_reg: float = 0.0,
    chunk: int = 4096,
) -> np.ndarray:
    """Return TRAK scores, (training examples, targets): positive where an example helps.

        scores = [mean_c F_c K_c F_c,target^T] * [mean_c Q_c]

    with K_c of `kernel` and the training examples' weights Q_c. Features are read, and scores
    formed, `chunk` training examples at a time; targets' features and the result are held.

    Args:
        store: where the features are.
        train: name of the training examples' features.
        targets: name of the targets' features.
        model_ids: the checkpoints c that are averaged over.
        lambda_reg: as for `kernel`.
        chunk: training examples at a time.

    Raises:
        ValueError: if features are missing, or a kernel is singular.

    References:
        S. M. Park et al., TRAK, arXiv 2303.14186, section 3.
    """
    if not model_ids:
        raise ValueError(f"scores: there are no features of {targets!r} at any checkpoint")
    n, m = store.size(train, model_ids[0])[0], store.size(targets, model_ids[0])[0]
    rows = [slice(i, min(n, i + chunk)) for i in range(0, n, chunk)]
    total, weight = np.zeros((n, m), np.float32), np.zeros((n, 1), np.float32)
    for model_id in model_ids:
        for name, size in ((train, n), (targets, m)):
            if (found := store.size(name, model_id)[0]) != size:
                raise ValueError(
                    f"scores: {name!r} has {found} examples at model_id {model_id}, {size} at "
                    f"{model_ids[0]}"
                )
        inverse = kernel((store.read(train, model_id, r)[0] for r in rows), lambda_reg)
        target = store.read(targets, model_id, slice(0, m))[0]
        right = jnp.asarray((inverse @ target.T.astype(np.float64)).astype(np.float32))
        for r in rows:
            features, q = store.read(train, model_id, r)
            total[r] += np.asarray(jnp.matmul(features, right, precision=_PRECISION))
            weight[r, 0] += q
    return total / len(model_ids) * (weight / len(model_ids))
