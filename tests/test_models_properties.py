"""What the models promise: resolution independence, odd grids, specs, checkpointing, errors."""

import math
import re
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads
from tensorgrad_jax.models import (
    FNO,
    SpectralConv,
    from_neuralop,
    gelu,
    tensor_specs,
    to_neuralop,
)
from tensorgrad_jax.models.fourier import choose_method, kept_frequencies
from tensorgrad_jax.models.layers import ChannelMLP

from tensorgrad_jax.projections.leaf import TensorSpec

# Compiling takes most of the time of these tests: skip what only makes programs faster.
FAST = {"xla_backend_optimization_level": 0}


def run(module, x):
    """`module(x)`, compiled as a whole."""
    graph, variables = nnx.split(module)
    apply = jax.jit(lambda v, x: nnx.merge(graph, v)(x), compiler_options=FAST)
    return apply(variables, x)


def small_fno(**options):
    options = {"n_layers": 2, "rngs": nnx.Rngs(0), **options}
    return FNO(options.pop("n_modes", (4, 4)), 1, 1, 6, **options)


def relative_error(value, expected):
    return jnp.linalg.norm(value - expected) / jnp.linalg.norm(expected)


def set_identity(conv):
    """Make a spectral convolution pass every kept frequency on unchanged."""
    channels = conv.spectral_weight.shape[-1]
    weight = jnp.zeros(conv.spectral_weight.shape).at[0].set(jnp.eye(channels))
    conv.spectral_weight[...] = weight
    conv.bias[...] = jnp.zeros(channels)


def band_limited(grid, channels=2, highest=2):
    """The same smooth periodic function on any grid: frequencies up to `highest` per axis."""
    rng = np.random.default_rng(0)
    axes = np.meshgrid(*(np.arange(n) / n for n in grid), indexing="ij")
    out = np.zeros((1, *grid, channels))
    for f in np.ndindex(*(2 * highest + 1,) * len(grid)):
        phase = 2 * np.pi * sum((k - highest) * a for k, a in zip(f, axes, strict=True))
        a, b = rng.normal(size=(2, channels))
        out[0] += np.cos(phase)[..., None] * a + np.sin(phase)[..., None] * b
    return jnp.asarray(out, jnp.float32)


GRIDS = [
    ((12,), (6,)),
    ((9,), (20,)),
    ((12, 10), (6, 5)),
    ((9, 11), (5, 6)),
    ((7, 6), (8, 8)),
    ((6, 7, 8), (4, 3, 6)),
]


@pytest.mark.parametrize(
    ("grid", "n_modes", "reference_shift"),
    [(*case, False) for case in GRIDS] + [(*case, True) for case in GRIDS[3:]],
)
def test_fft_and_matrix_agree(grid, n_modes, reference_shift):
    x = jax.random.normal(jax.random.key(1), (2, *grid, 3))
    values = {}
    for transform in ("fft", "matrix"):
        conv = SpectralConv(
            3, 2, n_modes, transform=transform, reference_shift=reference_shift, rngs=nnx.Rngs(0)
        )
        graph, parameters = nnx.split(conv)

        def value_and_gradients(p, x, graph=graph):
            y, vjp = jax.vjp(lambda p, x: nnx.merge(graph, p)(x), p, x)
            return y, *vjp(jnp.cos(y))

        y, gradient, dx = jax.jit(value_and_gradients, compiler_options=FAST)(parameters, x)
        values[transform] = (y, gradient["spectral_weight"][...], dx)
    for by_fft, by_matrix in zip(values["fft"], values["matrix"], strict=True):
        assert relative_error(by_matrix, by_fft) <= 1e-6


def test_auto_is_matrix_where_few_modes_are_kept():
    def chosen(n, m, dim):
        grid = (n,) * dim
        return choose_method(grid, kept_frequencies(grid, (*(m,) * (dim - 1), m // 2 + 1)))

    assert [chosen(64, m, 2) for m in (16, 32, 64)] == ["matrix", "matrix", "fft"]
    assert [chosen(1024, m, 1) for m in (16, 64)] == ["matrix", "fft"]
    assert [chosen(64, m, 3) for m in (16, 64)] == ["matrix", "fft"]


@pytest.mark.parametrize("transform", ["fft", "matrix"])
@pytest.mark.parametrize("grid", [(9,), (8, 9), (9, 7), (7, 8), (7, 9, 5)])
def test_identity_weights_reproduce_low_frequencies(grid, transform):
    conv = SpectralConv(2, 2, (6,) * len(grid), transform=transform, rngs=nnx.Rngs(0))
    set_identity(conv)
    x = band_limited(grid)
    assert relative_error(run(conv, x), x) <= 1e-6


def test_reference_shift_displaces_odd_axes():
    conv = SpectralConv(2, 2, (6, 6), reference_shift=True, rngs=nnx.Rngs(0))
    set_identity(conv)
    odd, even = band_limited((9, 8)), band_limited((8, 9))
    assert relative_error(run(conv, odd), odd) > 0.1
    assert relative_error(run(conv, even), even) <= 1e-6


@pytest.mark.parametrize("separable", [False, True])
def test_convolution_is_resolution_independent(separable):
    conv = SpectralConv(2, 2, (6, 6), separable=separable, rngs=nnx.Rngs(0))
    coarse, fine = run(conv, band_limited((9, 8))), run(conv, band_limited((18, 24)))
    assert relative_error(fine[:, ::2, ::3], coarse) <= 2e-6


def test_small_grids_use_the_weights_of_their_frequencies():
    # Seven points have the frequencies -3 ... 3; the function has no others.
    conv = SpectralConv(2, 2, (12, 12), rngs=nnx.Rngs(0))
    coarse, fine = run(conv, band_limited((7, 7))), run(conv, band_limited((14, 14)))
    assert relative_error(fine[:, ::2, ::2], coarse) <= 2e-6


def test_separable_is_a_diagonal_matrix():
    diagonal = SpectralConv(3, 3, (4, 4), separable=True, rngs=nnx.Rngs(0))
    full = SpectralConv(3, 3, (4, 4), rngs=nnx.Rngs(1))
    full.spectral_weight[...] = diagonal.spectral_weight[...][..., None] * jnp.eye(3)
    full.bias[...] = diagonal.bias[...]
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    assert relative_error(run(diagonal, x), run(full, x)) <= 1e-6


def test_spectral_weights_are_normal_pairs():
    conv = SpectralConv(24, 8, (16, 16), rngs=nnx.Rngs(0))
    real, imag = conv.spectral_weight[...]
    assert conv.spectral_weight.shape == (2, 16, 9, 24, 8)
    expected = 2 / (24 + 8)
    assert abs(jnp.mean(real**2 + imag**2) / expected - 1) < 0.03
    assert abs(jnp.mean(real**2) / jnp.mean(imag**2) - 1) < 0.05


def test_gelu_and_its_derivatives():
    x = jnp.linspace(-6.0, 6.0, 101)
    assert jnp.allclose(gelu(x), jax.nn.gelu(x, approximate=False), atol=1e-6)

    def exact(x):
        return jax.nn.gelu(x, approximate=False)

    expected = jax.vmap(jax.grad(exact))(x)
    assert jnp.allclose(jax.vmap(jax.grad(gelu))(x), expected, atol=1e-6)
    # Its slope is a fitted function: against the true one in double precision, and far outside.
    many = np.linspace(-9.0, 9.0, 20001)
    normal = [0.5 * (1 + math.erf(z / math.sqrt(2))) for z in many]
    slope = normal + many * np.exp(-(many**2) / 2) / math.sqrt(2 * math.pi)
    found = jax.vmap(jax.grad(gelu))(jnp.asarray(many, jnp.float32))
    assert np.max(np.abs(found - slope)) < 5e-7
    ends = jax.vmap(jax.grad(gelu))(jnp.array([-1e30, 1e30]))
    assert jnp.allclose(ends, jnp.array([0.0, 1.0]), atol=5e-7)
    tangent = jax.jvp(jax.jit(gelu), (x,), (jnp.ones_like(x),))[1]
    assert jnp.allclose(tangent, expected, atol=1e-6)


def test_model_works_under_vmap_and_in_forward_mode():
    model = small_fno(n_layers=1, use_channel_mlp=False)
    x = jax.random.normal(jax.random.key(0), (3, 2, 8, 8, 1))

    @partial(jax.jit, compiler_options=FAST)
    def compare(x):
        tangent = jax.jvp(model, (x[0],), (x[1],))[1]
        primal, pullback = jax.vjp(model, x[0])
        products = jnp.vdot(tangent, primal), jnp.vdot(pullback(primal)[0], x[1])
        return products, jax.vmap(model)(x), model(x.reshape(6, 8, 8, 1)).reshape(x.shape)

    (forward, reverse), mapped, joined = compare(x)
    assert jnp.allclose(mapped, joined, atol=1e-5)
    assert jnp.allclose(forward, reverse, rtol=1e-4)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (SpectralConv(2, 3, (4, 3), transform="matrix", rngs=nnx.Rngs(0)), (3, 6, 7, 2)),
        (SpectralConv(2, 3, (5,), rngs=nnx.Rngs(0)), (3, 8, 2)),
        (ChannelMLP(2, 2, 5, rngs=nnx.Rngs(0)), (3, 6, 2)),
        (ChannelMLP(5, 4, 2, rngs=nnx.Rngs(0)), (3, 6, 5)),
    ],
    ids=["convolution", "convolution 1-D", "widening", "narrowing"],
)
def test_derivatives_are_those_of_the_function(layer, shape):
    """Gradients are written by hand: first and second ones, in both modes, against differences."""
    graph, variables = nnx.split(layer)
    with jax.enable_x64(True):
        double = jax.tree.map(lambda v: v.astype(jnp.float64), nnx.to_pure_dict(variables))
        x = jnp.asarray(np.random.default_rng(0).normal(size=shape))

        @jax.jit
        def apply(variables, x):
            return nnx.merge(graph, variables)(x)

        check_grads(apply, (double, x), order=2, modes=("fwd", "rev"), rtol=1e-5)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="about XLA's matrix products on CPUs")
def test_gradients_of_the_convolution_take_no_slow_product():
    """On CPUs XLA has no fast kernel for a product that contracts the rows of its first factor."""
    conv = SpectralConv(4, 4, (4, 4), transform="matrix", rngs=nnx.Rngs(0))
    graph, variables = nnx.split(conv)

    def loss(variables, x):
        return jnp.sum(nnx.merge(graph, variables)(x) ** 2)

    gradient = jax.jit(
        jax.grad(loss, argnums=(0, 1)), compiler_options={"xla_backend_optimization_level": 3}
    )
    text = gradient.lower(variables, jnp.ones((2, 16, 16, 4))).compile().as_text()
    contracted = re.findall(r" dot\(.*lhs_contracting_dims=\{(\d)\}", text)
    batches = re.findall(r" dot\(.*lhs_batch_dims=\{([\d,]*)\}", text)
    assert len(contracted) == len(batches) == 11  # 8 of the two transforms, 3 of the modes
    # Behind the batch axes come rows, then columns.
    assert all(int(axis) == b.count(",") + 2 for axis, b in zip(contracted, batches, strict=True))


def test_gradients_under_shard_map():
    """With JAX's check of what varies over devices on, as it is by default."""
    graph, params = nnx.split(small_fno(transform="matrix"))
    x = jax.random.normal(jax.random.key(0), (4, 8, 8, 1))
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def gradient(params, x):
        return jax.grad(lambda p: jnp.mean(nnx.merge(graph, p)(x) ** 2))(params)

    def on_each(params, x):
        params = jax.tree.map(lambda p: jax.lax.pcast(p, "data", to="varying"), params)
        return jax.lax.pmean(gradient(params, x), "data")

    specs = {"in_specs": (P(), P("data")), "out_specs": P()}
    found = jax.jit(jax.shard_map(on_each, mesh=mesh, **specs), compiler_options=FAST)(params, x)
    expected = jax.jit(gradient, compiler_options=FAST)(params, x)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert relative_error(a, b) < 1e-5


@pytest.mark.parametrize("view", ["model", "state", "dict"])
def test_tensor_specs_follow_the_parameters(view):
    model = small_fno(norm="group_norm")
    state = nnx.state(model, nnx.Param)
    params = {"model": state, "state": state, "dict": nnx.to_pure_dict(state)}[view]
    specs = tensor_specs(model if view == "model" else params)
    flat = jax.tree.structure(params).flatten_up_to(specs)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    assert len(flat) == len(leaves)
    # (2, modes, modes, in, out): the second moment is factored over the channels.
    expected = TensorSpec(complex_axis=0, groups=((1, 2, 3), (1, 2, 4)), matrix_axes=(3, 4))
    for (path, leaf), spec in zip(leaves, flat, strict=True):
        spectral = "spectral_weight" in jax.tree_util.keystr(path)
        assert spec == (expected if spectral else None)
        assert not spectral or leaf.shape[0] == 2
    assert sum(spec is not None for spec in flat) == 2


def test_nnx_optimizer_takes_a_step():
    model = small_fno()
    optimizer = nnx.Optimizer(model, optax.adamw(1e-2), wrt=nnx.Param)
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))

    @nnx.jit
    def step(model, optimizer):
        loss, gradients = nnx.value_and_grad(lambda m: jnp.mean((m(x) - jnp.sin(x)) ** 2))(model)
        optimizer.update(model, gradients)
        return loss

    before = step(model, optimizer)
    after = step(model, optimizer)
    assert after < before


def test_activation_checkpoint_saves_memory_and_keeps_gradients():
    x = jax.random.normal(jax.random.key(0), (4, 32, 32, 1))
    temporary, gradients = {}, {}
    for checkpoint in (False, True):
        model = FNO((4, 4), 1, 1, 16, 3, activation_checkpoint=checkpoint, rngs=nnx.Rngs(0))
        graph, parameters = nnx.split(model)

        def loss(p, graph=graph):
            return jnp.sum(nnx.merge(graph, p)(x) ** 2)

        compiled = jax.jit(jax.grad(loss), compiler_options=FAST).lower(parameters).compile()
        temporary[checkpoint] = compiled.memory_analysis().temp_size_in_bytes
        gradients[checkpoint] = jax.tree.leaves(compiled(parameters))
    assert temporary[True] < 0.6 * temporary[False]
    for kept, recomputed in zip(gradients[False], gradients[True], strict=True):
        assert relative_error(recomputed, kept) <= 1e-5


@pytest.mark.parametrize(
    "options",
    [
        {"positional_embedding": None},
        {"use_channel_mlp": False},
        {"channel_mlp_expansion": 1.0},
        {"lifting_channel_ratio": 3},
        {"projection_channel_ratio": 3},
        {"norm": "group_norm"},
        {"stabilizer": "tanh"},
        {"domain_padding": 0.25},
        {"separable": True},
    ],
)
def test_options_reach_the_weights_or_the_output(options):
    x = jax.random.normal(jax.random.key(0), (1, 8, 8, 1))
    plain, other = small_fno(), small_fno(**options)
    y = run(other, x)
    assert y.shape == x.shape
    assert relative_error(y, run(plain, x)) > 1e-3


def test_state_dict_alone_tells_the_sizes():
    model = small_fno(
        n_modes=(6, 5), norm="group_norm", lifting_channel_ratio=1.5, channel_mlp_expansion=0.34
    )
    again = from_neuralop(to_neuralop(model))
    x = jax.random.normal(jax.random.key(0), (1, 8, 8, 1))
    assert jnp.array_equal(run(again, x), run(model, x))


def test_recorded_arguments_are_used():
    model = small_fno(stabilizer="tanh", domain_padding=0.125)
    record = {"args": ((4, 4), 1, 1, 6), "stabilizer": "tanh", "domain_padding": 0.125}
    again = from_neuralop({**to_neuralop(model), "_metadata": {**record, "rank": 1.0}})
    x = jax.random.normal(jax.random.key(0), (1, 8, 8, 1))
    assert jnp.array_equal(run(again, x), run(model, x))


def test_reading_a_saved_model(tmp_path):
    torch = pytest.importorskip("torch")
    arrays = to_neuralop(small_fno())
    torch.save({k: torch.from_numpy(v) for k, v in arrays.items()}, tmp_path / "model.pt")
    again = to_neuralop(from_neuralop(tmp_path / "model.pt"))
    assert all(np.array_equal(again[k], v) for k, v in arrays.items())


def test_reading_a_file_without_torch_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"tensorgrad-jax\[torch\]"):
        from_neuralop("model.pt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_modes": ()}, "n_modes"),
        ({"n_modes": (4, 0)}, "n_modes.*got 0"),
        ({"n_layers": 0}, "n_layers.*got 0"),
        ({"positional_embedding": "sine"}, "positional_embedding.*'grid'.*'sine'"),
        ({"norm": "batch_norm"}, "norm.*'group_norm'.*'batch_norm'"),
        ({"stabilizer": "clip"}, "stabilizer.*'tanh'.*'clip'"),
        ({"transform": "dct"}, "transform.*'matrix'.*'dct'"),
        ({"domain_padding": -0.1}, "domain_padding.*-0.1"),
        ({"domain_padding": (0.1, 0.1, 0.1)}, "domain_padding.*2 numbers"),
        ({"lifting_channel_ratio": 0}, "lifting_channel_ratio"),
        ({"projection_channel_ratio": 0.1}, "projection_channel_ratio.*0.1"),
        ({"channel_mlp_expansion": 0.01}, "channel_mlp_expansion.*0.01"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        small_fno(**options)


def test_separable_needs_equal_channels():
    with pytest.raises(ValueError, match=r"separable.*2 and 3"):
        SpectralConv(2, 3, (4,), separable=True, rngs=nnx.Rngs(0))


def test_wrong_input_shapes_are_named():
    with pytest.raises(ValueError, match=r"FNO.*\(1, 8, 8, 2\)"):
        small_fno()(jnp.zeros((1, 8, 8, 2)))
    with pytest.raises(ValueError, match=r"SpectralConv.*\(1, 8, 2\)"):
        SpectralConv(2, 2, (4, 4), rngs=nnx.Rngs(0))(jnp.zeros((1, 8, 2)))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"fno_skip": "identity"}, "fno_skip.*'linear'.*'identity'"),
        ({"modes": (4, 4)}, "unknown argument 'modes'"),
        ({"hidden_channels": 8}, "has shape"),
        ({"n_layers": 3}, "missing.*convs.2"),
        ({"use_channel_mlp": False}, "not expected.*channel_mlp"),
    ],
)
def test_configurations_that_do_not_fit_are_named(config, message):
    with pytest.raises(ValueError, match=message):
        from_neuralop(to_neuralop(small_fno()), config)


def test_a_foreign_state_dict_is_refused():
    with pytest.raises(ValueError, match="not the state dict"):
        from_neuralop({"weight": np.zeros(3)})
