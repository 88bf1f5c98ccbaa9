"""Every file in config/ is a run that could start: its model takes its data, its optimizer both."""

import inspect
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import tensorgrad_jax as tg
from tensorgrad_jax.data import generate_burgers, generate_darcy, generate_navier_stokes
from tensorgrad_jax.training.build import build_model, build_optimizer
from tensorgrad_jax.training.config import parse
from tensorgrad_jax.training.options import GENERATOR_OPTIONS

CONFIG = Path(__file__).resolve().parent.parent / "config"


@pytest.mark.parametrize("name", [path.stem for path in sorted(CONFIG.glob("*.yaml"))])
def test_shapes(name):
    config = parse(["--config_file", name])

    def start(inputs):
        model = build_model(config, in_channels=1, out_channels=1)
        params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        return params, build_optimizer(config, 10).init(params), [model(x) for x in inputs]

    inputs = [
        jax.ShapeDtypeStruct((2, *(resolution,) * len(config.fno.n_modes), 1), jnp.float32)
        for resolution in {config.data.train_resolution, *config.data.test_resolutions}
    ]
    params, state, outputs = jax.eval_shape(start, inputs)
    assert [y.shape for y in outputs] == [x.shape for x in inputs]
    adamw = 8 * sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    assert tg.state_bytes(state)["total"] < 0.35 * adamw


def test_the_defaults_are_those_of_the_generators():
    makers = {
        "nsforcing": generate_navier_stokes, "darcy": generate_darcy, "burgers": generate_burgers,
    }  # fmt: skip
    for problem, make in makers.items():
        parameters = inspect.signature(make).parameters
        for name, default in GENERATOR_OPTIONS[problem].items():
            assert parameters[name].default == default, (problem, name)
