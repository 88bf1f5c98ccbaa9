"""A whole training step of the default operator: forward, backward, update.

    python benchmarks/training_step.py [--torch PYTHON] [--rounds N]

subspace_muon, TensorGRaD and AdamW, float32 and bfloat16; neuraloperator's FNO, PyTorch's AdamW.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from interleaved import Peers, by_turns, machine, summary, table, timed, write

from tensorgrad_jax.training.build import build_model, build_optimizer
from tensorgrad_jax.training.config import parse
from tensorgrad_jax.training.losses import LOSSES
from tensorgrad_jax.training.step import Encoding, TrainState, make_train_step

ADAMW = ["--opt.tensorgrad", "False"]
PAPER = ["--opt.tensorgrad", "True"]
MIXED = ["--fno.fno_block_precision", "mixed"]
HALF = [*MIXED, "--fno.fno_block_weights_precision", "half"]
PEER = "neuraloperator fno step"
VARIANTS = {
    "AdamW": ADAMW,
    "subspace_muon": [],
    "tensor_muon": ["--opt.optimizer_type", "tensor_muon"],
    "TensorGRaD 5% + 20%": PAPER,
    "AdamW, mixed": [*ADAMW, *MIXED],
    "AdamW, mixed, half weights": [*ADAMW, *HALF],
    "subspace_muon, mixed, half weights": HALF,
    "TensorGRaD 5% + 20%, mixed, half weights": [*PAPER, *HALF],
}


def stepper(flags: list[str], resolution: int):
    """Return a function that does one training step, and the bytes that the device has used."""
    config = parse([*flags, "--opt.update_proj_gap", "200"] if flags[:2] != ADAMW else flags)
    graphdef, variables = nnx.split(build_model(config, 1, 1), nnx.Param)
    params = nnx.to_pure_dict(variables)
    optimizer = build_optimizer(config, steps_per_epoch=1000)
    step = make_train_step(graphdef, optimizer, LOSSES["l2"], Encoding(None, None))
    rng = np.random.default_rng(0)
    shape = (config.data.batch_size, resolution, resolution, 1)
    batch = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name in "xy"}
    zeros = jnp.zeros((), jnp.int32), jnp.zeros(())
    current = [TrainState(params, optimizer.init(params), *zeros)]

    def run():
        current[0] = step(current[0], batch)
        return current[0].loss_sum

    jax.block_until_ready(run())
    stats = jax.local_devices()[0].memory_stats() or {}
    return timed(run), stats.get("peak_bytes_in_use")


def main() -> None:
    """Measure, print the table, write results/<backend>/training_step.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    own = sys.executable if importlib.util.find_spec("torch") else None
    parser.add_argument("--torch", default=own, help="interpreter that has PyTorch")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--flags", default="", help="further flags of train.py for all variants")
    arguments = parser.parse_args()
    print(machine())
    runs, peaks = {}, {}
    for name, flags in VARIANTS.items():
        runs[name], peaks[name] = stepper([*flags, *arguments.flags.split()], arguments.resolution)
    peers = Peers(arguments.torch, None, [PEER])
    times = by_turns(runs | peers.runs(), arguments.rounds)
    rows = summary(times, "AdamW")
    print(f"\nTraining step\n\n{table(rows, 'AdamW')}")
    if PEER in times:
        ours = summary(times, PEER)["AdamW"]
        print(
            f"\nAdamW takes {ours['ratio']:.3f} of the time of {PEER} "
            f"({ours['low']:.2f} to {ours['high']:.2f})"
        )
    if any(peaks.values()):
        print("allocator's peak after each variant's first step:", peaks)
    write("training_step", {"times": rows, "peak bytes": peaks})


if __name__ == "__main__":
    main()
