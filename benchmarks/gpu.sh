#!/usr/bin/env bash
# Every benchmark on one GPU, in under 8 minutes: bash benchmarks/gpu.sh [PYTHON]
# PyTorch peers take part where PYTHON has them. Results: benchmarks/results/gpu/.
set -euo pipefail
cd "$(dirname "$0")"
python=${1:-python3}
"$python" -c 'import jax; assert jax.default_backend() == "gpu", jax.devices()' || {
    echo "error: JAX finds no GPU; install tensorgrad_jax with the extra cuda12 or cuda13" >&2
    exit 2
}
# Peaks that the allocator counts are those of the program, not of a reserved pool.
export XLA_PYTHON_CLIENT_PREALLOCATE=false
timeout 120 "$python" optimizer.py --rounds 5
timeout 60 "$python" transforms.py --rounds 5
timeout 90 "$python" sizes.py
timeout 90 "$python" training_step.py --rounds 20
# Mixed precision where it matters: large fields, and the allocator's peaks beside the analysis.
timeout 120 "$python" training_step.py --rounds 5 --resolution 256 \
    --flags '--fno.n_modes [64,64] --fno.hidden_channels 64 --data.train_resolution 256 --data.test_resolutions [256]'
