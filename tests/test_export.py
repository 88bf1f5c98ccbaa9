"""What a user of a GPU or a TPU compiles can be compiled for one: it is exported, without a device.

Exporting traces a program and lowers it for the platforms named. An operation without a rule for
one of them, or a call into a library of CPUs alone, shows here.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tensorgrad_jax.models import FNO, tensor_specs

import tensorgrad_jax as tg
from tensorgrad_jax.data import UnitGaussianNormalizer
from tensorgrad_jax.training.losses import LOSSES
from tensorgrad_jax.training.step import Encoding, TrainState, make_error_step, make_train_step

PLATFORMS = ("cuda", "tpu")
struct = jax.ShapeDtypeStruct


def exported(function, *arguments):
    """Export a jitted function; return the names of the library functions that it calls."""
    program = jax.export.export(function, platforms=PLATFORMS)(*arguments)
    assert program.platforms == PLATFORMS
    called = set(re.findall(r"custom_call @([\w.$]+)", program.mlir_module()))
    assert not [name for name in called if "lapack" in name]  # of CPUs
    return called


def test_a_program_of_cpus_alone_is_noticed():
    """The tests of this file can fail: JAX has Schur's decomposition for CPUs only."""
    matrix = struct((3, 3), jnp.float32)
    with pytest.raises(NotImplementedError, match="schur"):
        exported(jax.jit(lambda x: jax.scipy.linalg.schur(x)[0]), matrix)
    # What is exported is the other platforms' program, and not that of the CPU that exports it.
    singular_values = lambda x: jnp.linalg.svd(x, compute_uv=False)
    by_platform = lambda x: jax.lax.platform_dependent(
        x, cpu=lambda x: x[0], default=singular_values
    )
    assert any("gesvd" in name for name in exported(jax.jit(by_platform), matrix))


# A real tensor, a complex one stored as a pair, a complex one, a vector that is not compressed.
PARAMS = {
    "real": struct((11, 10, 12), jnp.float32),
    "pair": struct((2, 8, 8, 9), jnp.float32),
    "complex": struct((8, 9, 16), jnp.complex64),
    "bias": struct((7,), jnp.float32),
}
SPECS = {
    "real": tg.TensorSpec(),
    "pair": tg.TensorSpec(complex_axis=0),
    "complex": tg.TensorSpec(),
    "bias": None,
}


def exported_update(optimizer):
    state = jax.eval_shape(optimizer.init, PARAMS)
    return exported(jax.jit(optimizer.update), PARAMS, state, PARAMS)


OPTIMIZERS = {
    "tensorgrad": lambda **specs: tg.tensorgrad(1e-3, **specs),
    "tensorgrad, a sum": lambda **specs: tg.tensorgrad(
        1e-3, sparse_type="topk", mode="sum", order="low_rank_first", on_refresh="reset", **specs
    ),
    "tensorgrad, gaps that grow": lambda **specs: tg.tensorgrad(
        optax.cosine_decay_schedule(1e-3, 100),
        update_proj_gap=tg.linear_gap(10, 20, 100),
        weight_decay=1e-4,
        mu_dtype=jnp.bfloat16,
        **specs,
    ),
    "subspace_momentum": lambda **specs: tg.subspace_momentum(1e-3, **specs),
    "subspace_muon": lambda **specs: tg.subspace_muon(1e-3, **specs),
    "tensor_muon": lambda **specs: tg.tensor_muon(1e-3, **specs),
    "tensor_muon, whole momentum": lambda **specs: tg.tensor_muon(1e-3, None, **specs),
    "filter_by and Adam": lambda **specs: optax.chain(
        tg.filter_by(tg.Residual(tg.UnstructuredSparse(0.05), tg.Tucker(0.2)), **specs),
        optax.adam(1e-3),
    ),
    "reference_adamw": lambda **specs: tg.reference_adamw(1e-3, tg.Tucker(0.25), **specs),
    "reference_adamw, composite": lambda **specs: tg.reference_adamw(
        1e-3, tg.Sum(tg.StructuredSparse(0.05), tg.Tucker(0.2, 2, "svd")), **specs
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name):
    exported_update(OPTIMIZERS[name](specs=SPECS))


def test_initial_states():
    exported(jax.jit(tg.subspace_momentum(1e-3, PROJECTIONS[-1], specs=SPECS).init), PARAMS)


PROJECTIONS = [
    *(tg.Tucker(0.25, 2, method) for method in ("gram", "svd", "randomized")),
    *(tg.MatrixLowRank(0.25, side) for side in ("std", "reverse_std", "left", "right", "full")),
    *(tg.StructuredSparse(0.25, select) for select in ("topk", "randk", "probability")),
    *(tg.UnstructuredSparse(0.25, select) for select in ("topk", "randk", "probability")),
    tg.RandomProjection(0.25),
    tg.Residual(tg.StructuredSparse(0.05), tg.MatrixLowRank(0.2)),
    tg.Sum(tg.Tucker(0.2), tg.UnstructuredSparse(0.05)),
]


def name_of(projection):
    options = (getattr(projection, option, None) for option in ("method", "side", "select"))
    return " ".join((type(projection).__name__, *filter(None, options)))


@pytest.mark.parametrize("projection", PROJECTIONS, ids=name_of)
def test_projected_adamw(projection):
    exported_update(tg.projected_adamw(1e-3, projection, specs=SPECS))


def test_no_public_projection_is_missing_above():
    public = [value for name, value in vars(tg).items() if not name.startswith("_")]
    kinds = {value for value in public if isinstance(value, type) and hasattr(value, "transport")}
    assert kinds - {tg.Projection} == {type(projection) for projection in PROJECTIONS}


MODELS = {
    "full": {},
    "mixed": {"fno_block_precision": "mixed"},
    "mixed, weights half": {
        "fno_block_precision": "mixed",
        "fno_block_weights_precision": "half",
        "transform": "fft",
        "norm": "group_norm",
        "stabilizer": "tanh",
    },
    "half": {"fno_block_precision": "half", "transform": "matrix", "activation_checkpoint": True},
    "half, weights half": {
        "fno_block_precision": "half",
        "fno_block_weights_precision": "half",
        "domain_padding": 0.25,
        "separable": True,
    },
}


def split_model(*arguments, **options):
    """A model that was not computed: its graph, and shapes and dtypes of its parameters."""
    model = nnx.eval_shape(lambda: FNO(*arguments, rngs=nnx.Rngs(0), **options))
    graph, variables = nnx.split(model, nnx.Param)
    return graph, nnx.to_pure_dict(variables)


@pytest.mark.parametrize("name", MODELS)
def test_training_and_error_steps_of_every_precision(name):
    """A step: gradients, a compressed optimizer, bfloat16 weights rounded stochastically."""
    graph, params = split_model((4, 4), 2, 1, 6, 1, **MODELS[name])
    normalizer = lambda channels: UnitGaussianNormalizer(np.zeros(channels), np.ones(channels))
    encoding = Encoding(normalizer(2), normalizer(1))
    optimizer = tg.tensorgrad(1e-3, specs=tensor_specs)
    batch = {"x": struct((2, 16, 16, 2), jnp.float32), "y": struct((2, 16, 16, 1), jnp.float32)}
    state = TrainState(
        params,
        jax.eval_shape(optimizer.init, params),
        struct((), jnp.int32),
        struct((), jnp.float32),
    )
    step = make_train_step(graph, optimizer, LOSSES["h1"], encoding)
    exported(step, state, batch)
    exported(make_error_step(graph, encoding), params, batch)


@pytest.mark.parametrize("grid", [(32,), (8, 8, 8)])
def test_models_of_one_and_three_dimensions(grid):
    graph, params = split_model((4,) * len(grid), 1, 1, 6, 1)
    norm = lambda params, x: jnp.sum(nnx.merge(graph, params)(x) ** 2)
    exported(jax.jit(jax.grad(norm)), params, struct((2, *grid, 1), jnp.float32))
