"""A training run: options, steps, checkpoints, reports."""
