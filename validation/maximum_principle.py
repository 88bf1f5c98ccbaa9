"""What every solution of Darcy's equation obeys, and whether the generated samples do.

    python validation/maximum_principle.py

-div(a grad u) = 1 in the unit square, u = 0 on its border, a = 0.02 or 0.36. As the source is
positive, u is positive and has no minimum inside: every point is above one of its four
neighbours (those outside are -u of the point, so that u vanishes between). And by G. Talenti's
comparison with a disc of the same area (1976), u <= 1 / (4 pi min a). Prints what is found on 64
samples per resolution and writes maximum_principle.png; exit status 1 if a claim fails.
"""

import sys
from pathlib import Path

import numpy as np

from tensorgrad_jax.data.darcy import darcy_samples

RESOLUTIONS, SAMPLES, LOWEST = (16, 32, 64), 64, 0.02
BOUND = 1 / (4 * np.pi * LOWEST)


def samples(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return media and pressures with the generator's tolerance, solved on the sample's grid."""
    return darcy_samples(
        range(SAMPLES), split="train", resolution=n, solver_resolution=n, tolerance=1e-4, seed=0
    )


def inner_minima(u: np.ndarray) -> int:
    """Return the number of points that are below all of their neighbours."""
    padded = np.pad(u, [(0, 0), (1, 1), (1, 1)], mode="edge")
    border = np.pad(np.zeros_like(u, bool), [(0, 0), (1, 1), (1, 1)], constant_values=True)
    padded = np.where(border, -padded, padded)
    i = slice(1, -1)
    around = [padded[:, :-2, i], padded[:, 2:, i], padded[:, i, :-2], padded[:, i, 2:]]
    return int(np.sum(u <= np.min(around, axis=0)))


def main() -> int:
    """Measure, print, draw."""
    drawn, passed = {}, True
    for n in RESOLUTIONS:
        medium, u = samples(n)
        drawn[n] = medium[0], u[0], u
        minima = inner_minima(u)
        print(
            f"{n}x{n}: least pressure {u.min():.2e}, minima inside {minima}, "
            f"largest pressure {u.max():.2f}, bound {BOUND:.2f}"
        )
        passed &= bool(u.min() > 0 and minima == 0 and u.max() <= BOUND)
    plot(drawn)
    return int(not passed)


def plot(drawn) -> None:
    """Draw a medium, its pressure, and least and largest pressures of all samples."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (first, second, third) = plt.subplots(1, 3, figsize=(11, 3.4))
    medium, pressure, _ = drawn[RESOLUTIONS[-1]]
    first.imshow(medium, cmap="gray_r")
    first.set(title="phase 1 (permeability 0.36)", xticks=[], yticks=[])
    figure.colorbar(second.imshow(pressure, cmap="viridis"), ax=second)
    second.set(title="pressure", xticks=[], yticks=[])
    for i, (n, (_, _, u)) in enumerate(drawn.items()):
        least, largest = u.min((1, 2)), u.max((1, 2))
        third.semilogy(np.sort(largest), f"C{i}", label=f"{n}x{n}")
        third.semilogy(np.sort(least), f"C{i}--")
    third.axhline(BOUND, color="k", ls=":", label="bound")
    third.set(title="largest, and (dashed) least pressures", xlabel="samples, sorted")
    third.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=120)


if __name__ == "__main__":
    sys.exit(main())
