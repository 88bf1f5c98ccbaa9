"""Outputs, losses and gradients against recorded values of the PyTorch reference.

The files hold weights under neuraloperator's names with channels first; `fno_manifest.json` says
how each model was built.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tensorgrad_jax.models import from_neuralop, to_neuralop

GOLDEN = Path(__file__).parent / "golden"
MANIFEST = json.loads((GOLDEN / "fno_manifest.json").read_text())


def relative_error(value, expected):
    return np.linalg.norm(value - expected) / np.linalg.norm(expected)


def load(name):
    with np.load(GOLDEN / name, allow_pickle=False) as file:
        arrays = dict(file)
    parameters = {k.removeprefix("param/"): v for k, v in arrays.items() if k.startswith("param/")}
    config = MANIFEST[name]["hyper_parameters"]
    return arrays, from_neuralop(parameters, config, reference_shift=True)


def channels_last(x):
    return jnp.asarray(np.moveaxis(x, 1, -1))


@pytest.mark.parametrize("name", sorted(MANIFEST))
def test_matches_reference(name):
    arrays, model = load(name)

    graph, parameters = nnx.split(model)

    def evaluate(parameters, x, x_hi):
        def loss(parameters):
            y = nnx.merge(graph, parameters)(x)
            return jnp.sum(y**2), y

        (value, y), gradients = jax.value_and_grad(loss, has_aux=True)(parameters)
        return value, gradients, y, nnx.merge(graph, parameters)(x_hi)

    # Compiling takes most of the time of these tests: skip what only makes programs faster.
    fast = {"xla_backend_optimization_level": 0}
    with jax.default_matmul_precision("highest"):
        loss, gradients, y, y_hi = jax.jit(evaluate, compiler_options=fast)(
            parameters, channels_last(arrays["input"]), channels_last(arrays["input_hi"])
        )
    assert relative_error(y, channels_last(arrays["output"])) <= 2e-5
    assert relative_error(y_hi, channels_last(arrays["output_hi"])) <= 2e-5
    assert abs(loss - arrays["loss"]) <= 1e-5 * abs(arrays["loss"])

    # A pair of real gradients is dL/dRe + i dL/dIm, PyTorch's convention: nothing to conjugate.
    nnx.update(model, gradients)
    for parameter, gradient in to_neuralop(model).items():
        error = relative_error(gradient, arrays[f"grad/{parameter}"])
        assert error <= 1e-4, f"{parameter}: {error:.1e}"


@pytest.mark.parametrize("name", sorted(MANIFEST))
def test_round_trip_is_bit_identical(name):
    arrays, model = load(name)
    exported = to_neuralop(model)
    expected = {k.removeprefix("param/"): v for k, v in arrays.items() if k.startswith("param/")}
    assert set(exported) == set(expected)
    for parameter, value in exported.items():
        assert value.dtype == expected[parameter].dtype
        assert value.shape == expected[parameter].shape
        assert value.tobytes() == expected[parameter].tobytes(), parameter


def test_odd_grid_differs_without_the_reference_shift():
    name = "fno_2d_oddres.npz"
    arrays, _ = load(name)
    parameters = {k.removeprefix("param/"): v for k, v in arrays.items() if k.startswith("param/")}
    model = from_neuralop(parameters, MANIFEST[name]["hyper_parameters"])
    y = jax.jit(lambda x: model(x))(channels_last(arrays["input"]))
    assert relative_error(y, channels_last(arrays["output"])) > 1e-2
