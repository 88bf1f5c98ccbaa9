#!/usr/bin/env bash
# From training to the overlap of a network's top Hessian eigenspace with its largest weights.
#   bash examples/hessian/sequence.sh [folder]
# Numbers are small; OUTER, INNER, STEPS, EXAMPLES and PYTHON may be set. Ends with the solution's log.
set -euo pipefail
out=${1:-output}
outer=${OUTER:-50} inner=${INNER:-100} steps=${STEPS:-300} examples=${EXAMPLES:-100}
hessian="${PYTHON:-python} -m tensorgrad_jax.hessian"

# Can the Hessian be measured at all?
$hessian check PROBLEM=mnist_mini RANDOM_SEED=12345 NUM_HESSIAN_DATAPOINTS="$examples"

# Train a small problem and record its parameters.
$hessian gather PROBLEM=mnist_mini RANDOM_SEED=12345 OUTPUT_DIR="$out" OUTDIR_SUFFIX=demo \
    RECORD_STEPS="[0,$steps]" MAX_STEPS="$steps" NUM_HESSIAN_DATAPOINTS="$examples"
run=$(ls -d "$out"/*__demo | tail -n 1)
log=$(ls "$run"/*"[gather].log")
params=$run/$(basename "$run")__params.h5

# Files for the columns of the sketch: made once, used for one Hessian after the other.
mkdir "$run/measurements"
$hessian create_hdf5_layout --hdf5dir "$run/measurements" --dtype float32 --shape 7030,7030 \
    --outer "$outer" --inner "$inner" --sym

for step in 0 "$steps"; do
    what="PARAMS_PATH=$params TRAINING_LOGPATH=$log MEASUREMENTS_DIR=$run/measurements STEP=$step"
    # Two workers; each could be a job on a machine of its own, see measure.sbatch.
    for worker in 0 1; do
        numbers=$(seq -s, "$worker" 2 $((inner - 1)))
        $hessian measure $what MEASUREMENT_IDXS="[$numbers]" NUM_INNER="$inner" NUM_OUTER="$outer" &
        pids[worker]=$!
    done
    for pid in "${pids[@]}"; do wait "$pid"; done
    # Core, eigenvalues, errors, overlap; three pictures beside the log.
    $hessian solve $what NUM_A_POSTERIORI=30
    $hessian reset_hdf5 --hdf5dir "$run/measurements"
done
ls "$run"/*"[solve]"*.log | tail -n 1
