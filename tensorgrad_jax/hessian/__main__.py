"""python -m tensorgrad_jax.hessian COMMAND: see `hessian/commands.py`.

It reads runs of train.py, which this room knows nothing of: here is only its address.
"""

import runpy

if __name__ == "__main__":
    runpy.run_module("tensorgrad_jax.training.hessian_command", run_name="__main__")
