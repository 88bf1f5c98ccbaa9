"""Where the bytes of a training step are, from the compiler's own account.

Nothing is run and nothing is allocated: the step is compiled for arrays that do not exist, and the
compiled program knows what it will allocate. So a model that fits no machine can be looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import tensorgrad_jax as tg
from tensorgrad_jax.training.losses import LOSSES
from tensorgrad_jax.training.report import write_summary
from tensorgrad_jax.training.step import Encoding, GradientsOf, TrainState, make_train_step, predict
from tensorgrad_jax.transforms.subspace import InSubspaceState


class StepMemory(NamedTuple):
    """Bytes of one training step.

    The peak is parameters + moments + basis + other + everything that the step allocates while it
    runs; of that, gradients have a known size and the rest is activations and temporaries.

    Attributes:
        parameters: the model's parameters.
        gradients: one gradient per parameter, if all were there at once.
        moments: the optimizer's moments.
        basis: what projections remember of their subspaces.
        other: the rest of the optimizer's state: counters.
        activations: temporaries of forward and backward pass compiled alone, gradients apart.
        optimizer: temporaries of the optimizer's update compiled alone, refreshes included.
        refresh: temporaries of the refresh of one parameter compiled alone, the largest of them.
        peak: all bytes at the peak of the whole step.
    """

    parameters: int
    gradients: int
    moments: int
    basis: int
    other: int
    activations: int
    optimizer: int
    refresh: int
    peak: int


def step_memory(
    model: nnx.Module,
    optimizer: optax.GradientTransformation,
    batch: Mapping[str, jax.ShapeDtypeStruct],
    loss: str = "l2",
    rounding_seed: int | None = 0,
    gradients_of: GradientsOf | None = None,
) -> StepMemory:
    """Compile a training step, without running it, and count its bytes.

    Args:
        model: the model; `nnx.eval_shape` of its construction is enough.
        optimizer: its optimizer.
        batch: shapes and dtypes of "x" and "y", (batch, *grid, channels).
        loss: the training loss.
        rounding_seed: of the rounding of bfloat16 parameters, None rounds to the nearest.
        gradients_of: where gradients come from, see `make_train_step`.
    """
    graphdef, variables = nnx.split(model, nnx.Param)
    params = nnx.to_pure_dict(variables)
    opt_state = jax.eval_shape(optimizer.init, params)
    encoding = Encoding(None, None)

    scalar: Any = lambda dtype: jax.ShapeDtypeStruct((), dtype)
    state = TrainState(params, opt_state, scalar(jnp.int32), scalar(jnp.float32))
    # In one part, as accelerators run it: the account is of use for them also where it is made on
    # a CPU.
    step = make_train_step(
        graphdef, optimizer, LOSSES[loss], encoding, rounding_seed, 1, gradients_of
    )
    peak = peak_bytes(step.lower(state, batch).compile())

    def gradients(params, batch):
        predicted = lambda p: predict(graphdef, p, batch["x"], encoding)
        objective = lambda p: LOSSES[loss](predicted(p), batch["y"])
        return jax.grad(objective)(params)

    def update(params, opt_state, gradients):
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        key = None if rounding_seed is None else jax.random.key(rounding_seed)
        return tg.apply_updates(params, updates, key), opt_state

    counts = tg.state_bytes(opt_state)
    return StepMemory(
        parameters=_nbytes(params),
        gradients=_nbytes(jax.eval_shape(gradients, params, batch)),
        moments=counts["moments"],
        basis=counts["basis"],
        other=counts["other"],
        activations=_temporaries(gradients, params, batch),
        optimizer=_temporaries(update, params, opt_state, params, donate=(0, 1)),
        refresh=_largest_refresh(optimizer, opt_state, params),
        peak=peak,
    )


def write_profile(rows: Mapping[str, StepMemory], folder: Path) -> None:
    """Write memory.json and memory.png; print the table, with AdamW's row as the baseline."""
    write_summary(folder / "memory.json", {name: row._asdict() for name, row in rows.items()})
    plot(rows, folder / "memory.png")
    print(f"\nBytes of a training step\n{table(rows, 'AdamW')}\n")


def peak_bytes(compiled: Any) -> int:
    """Return all bytes that a compiled program needs: arguments, results and temporaries."""
    analysis = compiled.memory_analysis()
    return (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        + analysis.temp_size_in_bytes
        - analysis.alias_size_in_bytes
    )


def _temporaries(function: Callable, *arguments: Any, donate: tuple[int, ...] = ()) -> int:
    compiled: Any = jax.jit(function, donate_argnums=donate).lower(*arguments).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def _largest_refresh(optimizer: optax.GradientTransformation, opt_state: Any, params: Any) -> int:
    """Return the temporaries that an update needs for refreshing one parameter."""
    is_compressed = lambda node: isinstance(node, InSubspaceState)
    nodes = [x for x in jax.tree.leaves(opt_state, is_leaf=is_compressed) if is_compressed(x)]
    if not nodes:
        return 0
    # The update of the largest compressed parameter alone, with and without its refresh.
    by_size = {jax.tree_util.keystr(p): x for p, x in jax.tree_util.tree_leaves_with_path(params)}
    largest = max(by_size.values(), key=lambda x: math.prod(x.shape))
    own = {"spectral_weight": largest}

    def update(refreshed: bool) -> Callable:
        def run(gradients, state):
            if not refreshed:
                state = jax.tree.map(_never_due, state, is_leaf=is_compressed)
            return optimizer.update(gradients, state, gradients)[0]

        return run

    state = jax.eval_shape(optimizer.init, own)
    with_refresh, without = (_temporaries(update(r), own, state) for r in (True, False))
    return max(with_refresh - without, 0)


def _never_due(node: Any) -> Any:
    if not isinstance(node, InSubspaceState):
        return node
    later = {name: jnp.int32(2**31 - 1) for name in node.next_refresh}
    return node._replace(count=jnp.int32(0), next_refresh=later)


def _nbytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


_COLUMNS = (
    "parameters", "gradients", "moments", "basis", "activations", "optimizer", "refresh", "peak",
)  # fmt: skip


def table(rows: Mapping[str, StepMemory], baseline: str) -> str:
    """Return a Markdown table of MiB, with every peak over that of the row `baseline`."""
    lines = ["| MiB | " + " | ".join(_COLUMNS) + f" | of {baseline} |"]
    lines.append("|---" * (len(_COLUMNS) + 2) + "|")
    for name, row in rows.items():
        cells = [f"{getattr(row, column) / 2**20:,.1f}" for column in _COLUMNS]
        share = f"{row.peak / rows[baseline].peak:.1%}"
        lines.append("| " + " | ".join([name, *cells, share]) + " |")
    return "\n".join(lines)


def plot(rows: Mapping[str, StepMemory], path: Any) -> None:
    """Draw what lives through a step and what comes and goes within it, one bar per row."""
    figure = Figure(figsize=(7.5, 0.9 + 0.55 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for place, row in enumerate(rows.values()):
        kept = {"parameters": row.parameters, "moments": row.moments, "basis": row.basis}
        passing = row.peak - sum(kept.values()) - row.other
        parts = kept | {"gradients, activations, temporaries": passing}
        left = 0.0
        for color, (name, n_bytes) in enumerate(parts.items()):
            label = name if place == 0 else None
            axes.barh(place, n_bytes / 2**20, left=left, color=f"C{color}", label=label)
            left += n_bytes / 2**20
        axes.text(left, place, f" {left:,.0f}", va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.margins(x=0.16)
    axes.set_xlabel("MiB at the peak of a training step")
    figure.legend(frameon=False, loc="outside upper center", ncols=2, fontsize=8)
    figure.savefig(path, dpi=150)
