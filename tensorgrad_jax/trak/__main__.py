"""python -m tensorgrad_jax.trak --run runs/NAME: the command of `training/attribution_command.py`.

It reads runs of train.py, which this room knows nothing of: here is only its address.
"""

import runpy

if __name__ == "__main__":
    runpy.run_module("tensorgrad_jax.training.attribution_command", run_name="__main__")
