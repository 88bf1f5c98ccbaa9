"""Bytes of one training step at the size of the paper's profile: compiled, never run.

    python benchmarks/memory.py

FNO with 128 x 128 modes, 256 channels and 4 layers on 1024 x 1024 points, batch 1, with and without
activation checkpointing; AdamW, subspace_muon and TensorGRaD (5% + 20%) in float32, with bfloat16
weights and activations; and the default run. Writes memory.json and memory.png beside itself.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path

import jax

from tensorgrad_jax.training.build import build_step_memory
from tensorgrad_jax.training.config import parse
from tensorgrad_jax.training.memory import StepMemory, plot, table

HERE = Path(__file__).resolve().parent
LARGE = [
    "--fno.n_modes", "[128,128]", "--fno.hidden_channels", "256", "--data.train_resolution", "1024",
    "--data.test_resolutions", "[1024]", "--data.batch_size", "1",
]  # fmt: skip
CHECKPOINT = ["--fno.activation_checkpoint", "True"]
HALF = ["--fno.fno_block_precision", "mixed", "--fno.fno_block_weights_precision", "half"]
ADAMW = ["--opt.tensorgrad", "False"]
PAPER = ["--opt.tensorgrad", "True"]
OPTIMIZERS = {
    "AdamW": ADAMW,
    "AdamW, half": [*ADAMW, *HALF],
    "subspace_muon": [],
    "subspace_muon, half": HALF,
    "TensorGRaD 25%": PAPER,
    "TensorGRaD 25%, half": [*PAPER, *HALF],
    "TensorGRaD 25%, half, bfloat16 first moments": [
        *PAPER, *HALF, "--opt.enforce_full_complex_precision", "False",
    ],
}  # fmt: skip
SIZES = {
    "large, activation checkpointing": [*LARGE, *CHECKPOINT],
    "large": LARGE,
    "default, activation checkpointing": CHECKPOINT,
    "default": [],
}


def main() -> None:
    """Compile everything, print the tables, write the files."""
    results: dict[str, dict[str, StepMemory]] = {}
    for size, size_flags in SIZES.items():
        rows = {
            name: build_step_memory(parse([*size_flags, *flags]))
            for name, flags in OPTIMIZERS.items()
        }
        results[size] = rows
        print(f"\n{size}\n\n{table(rows, 'AdamW')}", flush=True)
    plot(results["large, activation checkpointing"], HERE / "memory.png")
    machine = {"backend": jax.default_backend(), "jax": jax.__version__, "cpu": platform.machine()}
    plain = {size: {n: r._asdict() for n, r in rows.items()} for size, rows in results.items()}
    text = json.dumps({"machine": machine, "bytes": plain}, indent=1)
    (HERE / "memory.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
