"""The error of a Tucker projection between the bounds that singular values set.

    python validation/hosvd.py

With the singular values sigma_i^(k) of the unfolding of mode k and ranks r_k, let
tail_k = sum over i > r_k of (sigma_i^(k))^2. No tensor of these ranks is nearer than
sqrt(max_k tail_k); the truncated HOSVD, sequentially or not, is within sqrt(sum_k tail_k)
(De Lathauwer 2000, Vannieuwenhoven 2012), hence within sqrt(modes) of the best. The sketch has
no such guarantee. Tensors are noise that decays along every mode. Prints for every method where
its error lies between the bounds and writes hosvd.png; exit status 1 if a claim fails.
"""

import sys
from pathlib import Path

import jax
import numpy as np

import tensorgrad_jax as tg

TENSORS = {
    "real (40, 30, 20)": ((40, 30, 20), False),
    "complex (20, 18, 16, 9)": ((20, 18, 16, 9), True),
}
METHODS = {
    "gram": lambda rank: tg.Tucker(rank),
    "gram, 3 sweeps": lambda rank: tg.Tucker(rank, n_iter=3),
    "svd": lambda rank: tg.Tucker(rank, method="svd"),
    "randomized": lambda rank: tg.Tucker(rank, method="randomized"),
}
BUDGETS = (0.02, 0.05, 0.2, 0.5)


def tensor(shape: tuple[int, ...], is_complex: bool) -> np.ndarray:
    """Return noise that falls off as 1 / i along every mode, in random coordinates."""
    r = np.random.default_rng(0)
    draw = lambda *n: r.normal(size=n) + (1j * r.normal(size=n) if is_complex else 0)
    x = draw(*shape)
    for mode, d in enumerate(shape):
        turned, _ = np.linalg.qr(draw(d, d))
        x = np.moveaxis(np.tensordot(turned / np.arange(1, d + 1), x, (1, mode)), 0, mode)
    return (x / np.linalg.norm(x)).astype(np.complex64 if is_complex else np.float32)


def tails(x: np.ndarray, ranks: tuple[int, ...]) -> np.ndarray:
    """Return for every mode the energy beyond its rank."""
    unfolded = [np.moveaxis(x, k, 0).reshape(x.shape[k], -1) for k in range(x.ndim)]
    values = [np.linalg.svd(m.astype(np.complex128), compute_uv=False) for m in unfolded]
    return np.array([np.sum(v[r:] ** 2) for v, r in zip(values, ranks, strict=True)])


def error(projection: tg.Tucker, x: np.ndarray) -> float:
    """Return |x - lift(project(x))| in the subspace chosen from x."""

    @jax.jit
    def left_over(x):
        basis = projection.refresh(jax.random.key(0), x, projection.init(x))
        return x - projection.lift(projection.project(x, basis), basis)

    return float(np.linalg.norm(left_over(x)))


def main() -> int:
    """Measure, print, draw."""
    results, passed = {}, True
    for name, (shape, is_complex) in TENSORS.items():
        x = tensor(shape, is_complex)
        tail = [tails(x, tg.Tucker(b).ranks(shape)) for b in BUDGETS]
        lower, upper = (np.sqrt([f(t) for t in tail]) for f in (np.max, np.sum))
        errors = {m: np.array([error(make(b), x) for b in BUDGETS]) for m, make in METHODS.items()}
        results[name] = lower, upper, errors
        for method, e in errors.items():
            over, of = e / lower, e / upper
            print(f"{name}, {method}: {over.min():.3f} to {over.max():.3f} of the lower bound, "
                  f"{of.min():.3f} to {of.max():.3f} of the upper one")  # fmt: skip
            guaranteed = method != "randomized"
            passed &= bool(over.min() > 1 - 1e-4 and (not guaranteed or of.max() < 1 + 1e-4))
    plot(results)
    return int(not passed)


def plot(results) -> None:
    """Draw errors and bounds over the budget, one panel per tensor."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(results), figsize=(9, 3.4))
    for axis, (name, (lower, upper, errors)) in zip(axes, results.items(), strict=True):
        axis.fill_between(BUDGETS, lower, upper, color="0.88", label="between the bounds")
        for (method, e), mark in zip(errors.items(), ("o-", "x-", "s--", "^:"), strict=True):
            axis.loglog(BUDGETS, e, mark, ms=4, lw=1, label=method)
        axis.set(title=name, xlabel="budget")
        axis.set_xticks(BUDGETS, map(str, BUDGETS))
        axis.set_xticks([], minor=True)
    axes[0].set_ylabel("relative error")
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=120)


if __name__ == "__main__":
    sys.exit(main())
