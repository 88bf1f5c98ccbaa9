"""Time of an update and bytes at its peak against the size of the tensor, with lower bounds.

    python benchmarks/sizes.py

One complex weight of a 2-D FNO, 1e5 to 1e8 real numbers: AdamW and TensorGRaD. The bound on time is
the bytes that must move once (gradient read, parameter read and written, state read and written),
at the rate of a copy of the parameters measured beside them; on bytes: parameter, gradient, state.
"""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from interleaved import HERE, by_turns, machine, timed, write

import tensorgrad_jax as tg

# (modes, channels): 2 m (m/2 + 1) c^2 numbers.
SIZES = ((8, 36), (16, 60), (24, 128), (32, 181), (64, 154))


def measure(modes: int, channels: int) -> dict:
    """Return size, milliseconds, bytes and bounds."""
    shape = (2, modes, modes // 2 + 1, channels, channels)
    rng = np.random.default_rng(0)
    gradient = {"w": jnp.asarray(rng.standard_normal(shape, np.float32))}
    size = gradient["w"].nbytes
    specs = {"w": tg.TensorSpec(0)}
    fraction = max(1, round(0.2 * modes))
    planned = tg.Tucker((fraction, modes // 2 + 1, channels, channels), factors="real")
    residual = tg.Residual(tg.UnstructuredSparse(0.05), planned)
    options = {"update_proj_gap": 10**6, "specs": specs}
    optimizers = {
        "AdamW": optax.adamw(1e-3),
        "TensorGRaD, uniform ranks": tg.tensorgrad(1e-3, **options),
        "TensorGRaD, one mode, real factors": tg.projected_adamw(1e-3, residual, **options),
    }
    runs, n_bytes, bounds = {}, {}, {}
    for name, optimizer in optimizers.items():

        def step(params, state, gradient, optimizer=optimizer):
            updates, state = optimizer.update(gradient, state, params)
            return optax.apply_updates(params, updates), state

        current = [{"w": jnp.zeros(shape)}]
        current.append(optimizer.init(current[0]))
        state = tg.state_bytes(current[1])["total"]
        compiled = jax.jit(step, donate_argnums=(0, 1)).lower(*current, gradient).compile()

        def run(current=current, compiled=compiled):
            current[:] = compiled(*current, gradient)
            return current[0]

        run()
        runs[name] = timed(run)
        temporaries = compiled.memory_analysis().temp_size_in_bytes
        n_bytes[name] = 2 * size + state + temporaries
        bounds[name] = {"moved": 3 * size + 2 * state, "kept": 2 * size + state}
    copy = jax.jit(lambda x: x + 1.0, donate_argnums=0)
    buffer = [jnp.zeros(shape)]

    def copied():
        buffer[0] = copy(buffer[0])
        return buffer[0]

    rounds = 9 if size < 2**27 else 3
    times = by_turns(runs | {"copy": timed(copied)}, rounds)
    middle = {name: sorted(values)[rounds // 2] for name, values in times.items()}
    rate = 2 * size / middle["copy"]
    return {
        "numbers": gradient["w"].size,
        "ms": middle,
        "bytes": n_bytes,
        "bound ms": {name: b["moved"] / rate for name, b in bounds.items()},
        "bound bytes": {name: b["kept"] for name, b in bounds.items()},
    }


def plot(rows: list[dict]) -> None:
    """Draw results/<backend>/sizes.png."""
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
    numbers = [row["numbers"] for row in rows]
    for color, name in enumerate(rows[0]["bytes"]):
        for axis, value in zip(axes, ("ms", "bytes"), strict=True):
            style = {"color": f"C{color}"}
            axis.loglog(numbers, [row[value][name] for row in rows], "o-", label=name, **style)
            bound = [row[f"bound {value}"][name] for row in rows]
            axis.loglog(numbers, bound, ":", **style)
    axes[0].set_ylabel("ms per update (dotted: bytes that must move)")
    axes[1].set_ylabel("bytes at the peak (dotted: without temporaries)")
    for axis in axes:
        axis.set_xlabel("real numbers in the tensor")
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False, fontsize=8)
    folder = HERE / "results" / jax.default_backend()
    figure.savefig(folder / "sizes.png", dpi=130)


def main() -> None:
    """Measure all sizes, print them, write the files."""
    print(machine())
    rows = []
    for modes, channels in SIZES:
        rows.append(measure(modes, channels))
        row = rows[-1]
        print(f"{row['numbers']:.1e}", {k: round(v, 2) for k, v in row["ms"].items()}, flush=True)
    write("sizes", {"rows": rows})
    plot(rows)


if __name__ == "__main__":
    main()
