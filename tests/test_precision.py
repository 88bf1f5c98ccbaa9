"""bfloat16: what is rounded and what is not, that small updates survive, and what is compiled."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tensorgrad_jax.models import FNO, SpectralConv, precision, tensor_specs

import tensorgrad_jax as tg
from tensorgrad_jax.backend import pieces
from tensorgrad_jax.training.losses import lp_loss

HALF = {"fno_block_precision": "mixed", "fno_block_weights_precision": "half"}


def random(shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def error(value, expected):
    value, expected = (np.asarray(x, np.float64) for x in (value, expected))
    return np.linalg.norm(value - expected) / np.linalg.norm(expected)


def split(**options):
    model = FNO((4, 4), 1, 1, 6, 2, rngs=nnx.Rngs(0), **options)
    graph, variables = nnx.split(model)
    return graph, variables


# Updates of bfloat16 parameters.


def test_rounding_is_right_in_the_mean_and_between_neighbours():
    values = np.array([1.001, -1.001, 3e-5, -7.77, 1e30, 1 + 2**-8, 0.0], np.float32)
    n = 40_000
    p = jnp.zeros((n, values.size), jnp.bfloat16)
    rounded = np.asarray(
        tg.apply_updates(p, jnp.tile(values, (n, 1)), jax.random.key(0)), np.float64
    )
    for value, column in zip(values.astype(np.float64), rounded.T, strict=True):
        lower, upper = column.min(), column.max()
        spacing = max(abs(value) * 2**-7, 2**-133)
        assert upper - lower <= spacing, value
        assert lower <= value <= upper, value
        assert abs(column.mean() - value) <= 5 * spacing / np.sqrt(n), value


def test_the_mean_over_keys_is_right_too():
    p, u = jnp.ones(4, jnp.bfloat16), jnp.array([1e-3, -1e-3, 2e-3, 0.0])
    keys = jax.random.split(jax.random.key(1), 4000)
    rounded = jax.vmap(lambda key: tg.apply_updates(p, u, key))(keys).astype(jnp.float32)
    assert np.abs(np.asarray(rounded.mean(0) - 1 - u)).max() < 5 * 2**-7 / np.sqrt(4000)
    assert np.all(np.asarray(rounded[:, 3]) == 1)


def test_small_updates_are_lost_to_the_nearest_and_kept_stochastically():
    p = start = jnp.ones(256, jnp.bfloat16)
    q = p
    for step in range(100):
        u = jnp.full(256, 1e-3)  # below 1/512 of the weight
        p = tg.apply_updates(p, u)
        q = tg.apply_updates(q, u, jax.random.fold_in(jax.random.key(0), step))
    np.testing.assert_array_equal(p, start)
    assert abs(float(q.astype(jnp.float32).mean()) - 1.1) < 0.01


def test_what_has_no_neighbour_stays_what_it_is():
    largest = float(jnp.finfo(jnp.bfloat16).max)
    u = jnp.array([jnp.inf, -jnp.inf, jnp.nan, largest, 2.0], jnp.float32)
    keys = jax.random.split(jax.random.key(0), 200)
    apply = lambda key: tg.apply_updates(jnp.zeros(5, jnp.bfloat16), u, key)
    rounded = np.asarray(jax.vmap(apply)(keys), np.float32)
    np.testing.assert_array_equal(rounded, np.tile(np.asarray(u), (200, 1)))


def test_other_parameters_are_updated_as_optax_does():
    params = {"a": random((3, 2)), "b": random(4, dtype=jnp.complex64), "c": None}
    updates = {"a": random((3, 2), 1), "b": random(4, 1).astype(jnp.complex64), "c": None}
    got = tg.apply_updates(params, updates, jax.random.key(0))
    expected = optax.apply_updates(params, updates)
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    for key in (None, jax.random.key(0)):
        assert tg.apply_updates(params, dict.fromkeys(params), key) == params
    half = {"h": jnp.ones(3, jnp.bfloat16)}
    change = {"h": jnp.full(3, 0.3)}
    np.testing.assert_array_equal(
        tg.apply_updates(half, change)["h"], optax.apply_updates(half, change)["h"]
    )


def test_leaves_and_steps_are_rounded_independently():
    params = {"a": jnp.zeros(1000, jnp.bfloat16), "b": jnp.zeros(1000, jnp.bfloat16)}
    updates = jax.tree.map(lambda _: jnp.full(1000, 1.002), params)
    first = tg.apply_updates(params, updates, jax.random.key(0))
    second = tg.apply_updates(params, updates, jax.random.key(1))
    up = [np.asarray(x) > 1 for x in (first["a"], first["b"], second["a"])]
    for i, j in ((0, 1), (0, 2)):
        assert abs(np.corrcoef(up[i], up[j])[0, 1]) < 0.15


def test_float16_is_refused():
    params = {"w": jnp.ones(3, jnp.float16)}
    with pytest.raises(ValueError, match=r"\['w'\] is float16, expected bfloat16 or wider"):
        tg.apply_updates(params, params, jax.random.key(0))


# First moments in bfloat16, also of complex numbers.


def test_first_moments_in_bfloat16_follow_the_float32_ones():
    params = {"w": random((2, 6, 5, 4))}
    specs = {"w": tg.TensorSpec(0)}
    projection = tg.Residual(tg.UnstructuredSparse(0.1, "topk"), tg.Tucker(0.3))
    updates = {}
    for dtype in (None, jnp.bfloat16):
        optimizer = tg.projected_adamw(
            1e-3, projection, update_proj_gap=3, specs=specs, mu_dtype=dtype
        )
        state = optimizer.init(params)
        for step in range(8):
            gradient = {"w": params["w"] + 0.3 * random((2, 6, 5, 4), step)}
            updates[dtype], state = jax.jit(optimizer.update)(gradient, state, params)
    assert {x.dtype for x in jax.tree.leaves(state[0].inner.mu)} == {jnp.dtype(jnp.bfloat16)}
    assert error(updates[jnp.bfloat16]["w"], updates[None]["w"]) < 0.01
    full = tg.state_bytes(optimizer.init(params))["moments"]
    assert (
        full
        == 2
        / 3
        * tg.state_bytes(tg.projected_adamw(1e-3, projection, specs=specs).init(params))["moments"]
    )


# The model.


@pytest.mark.parametrize("options", [
    HALF,
    HALF | {"fno_block_precision": "half"},
    HALF | {"fno_block_precision": "half", "transform": "fft"},
    {"fno_block_precision": "mixed", "stabilizer": "tanh", "norm": "group_norm"},
    HALF | {"separable": True, "use_channel_mlp": False, "domain_padding": 0.25},
], ids=lambda o: "-".join(map(str, o.values())))  # fmt: skip
def test_bfloat16_models_are_near_the_float32_model(options):
    others = {k: v for k, v in options.items() if not k.startswith("fno_block")}
    x = random((2, 8, 8, 1))

    @jax.jit
    def run(*variables):
        def loss(variables, graph):
            y = nnx.merge(graph, variables)(x)
            return jnp.mean(y * jnp.cos(y)), y

        return [
            jax.value_and_grad(loss, has_aux=True)(v, g)
            for v, g in zip(variables, graphs, strict=True)
        ]

    graphs, variables = zip(split(**others), split(**options), strict=True)
    ((_, y_full), full), ((_, y), gradients) = run(*variables)
    assert y.dtype == jnp.float32
    # Normalization divides by a deviation that is rounded too.
    assert error(y, y_full) < (0.05 if "norm" in options else 0.01)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        spectral = "spectral_weight" in jax.tree_util.keystr(path)
        half = spectral and options.get("fno_block_weights_precision") == "half"
        assert gradient.dtype == (jnp.bfloat16 if half else jnp.float32)
    flat = lambda tree: np.concatenate([np.float32(g).ravel() for g in jax.tree.leaves(tree)])
    assert error(flat(gradients), flat(full)) < (0.1 if "norm" in options else 0.03)


def test_no_loss_needs_scaling():
    """A loss times 2^-60 has exactly 2^-60 times the gradients: nothing underflows."""
    graph, variables = split(**HALF)
    x = random((2, 8, 8, 1))

    @jax.jit
    def gradients(variables, scale):
        return jax.grad(lambda v: scale * jnp.sum(nnx.merge(graph, v)(x) ** 2))(variables)

    plain, scaled = gradients(variables, 1.0), gradients(variables, 2.0**-60)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(scaled), strict=True):
        a, b = (np.asarray(x, np.float32) for x in (a, b))
        np.testing.assert_array_equal(a, b * 2.0**60)
        assert np.abs(b).max() < np.finfo(np.float16).tiny


def test_neighbouring_points_of_a_fine_grid_are_told_apart():
    model = FNO((4,), 1, 1, 64, 1, rngs=nnx.Rngs(0), fno_block_precision="mixed")
    points = jnp.arange(512, 1024) / 1024
    assert len(np.unique(np.float32(points.astype(jnp.bfloat16)))) == 129
    lifted = model.lifting(jnp.stack([jnp.zeros(512), points], -1)[None])[0]
    assert len(np.unique(np.float32(lifted), axis=0)) > 500


def test_products_by_pieces_are_the_whole_products(monkeypatch):
    x, w = random((2, 7, 3, 5), 1, jnp.bfloat16), random((2, 7, 5, 4), 2, jnp.bfloat16)
    p, k = random((11, 5), 3, jnp.bfloat16), random((5, 4), 4, jnp.bfloat16)

    def values(x, w, p, k):
        def f(x, w, p, k):
            products = precision.batched_products(x, w), precision.product(p, k, jnp.float32)
            return sum(jnp.sum(jnp.sin(y)) for y in products), products

        return jax.value_and_grad(f, (0, 1, 2, 3), has_aux=True)(x, w, p, k)

    whole = jax.jit(values)(x, w, p, k)
    for n_bytes in (4 * 2 * 5 * 4 * 3, 4 * 5 * 4):  # pieces of 3 + 3 + 1; of 4 + 4 + 3
        monkeypatch.setattr(pieces, "PIECE_BYTES", n_bytes)
        in_pieces = jax.jit(lambda *a: values(*a))(x, w, p, k)
        for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(in_pieces), strict=True):
            assert a.dtype == b.dtype
            assert error(b, a) < (1e-6 if a.dtype == jnp.float32 else 4e-3)
    expected = np.einsum("pmki,pmio->pmko", *(np.asarray(a, np.float64) for a in (x, w)))
    assert error(whole[0][1][0], expected) < 1e-6


def test_no_gradient_has_memory_before_it_is_computed(monkeypatch):
    """Of a network whose weights are larger than its activations: .56 of them, else .9."""
    monkeypatch.setattr(pieces, "PIECE_BYTES", 2**14)
    model = FNO((16, 16), 1, 1, 32, 4, rngs=nnx.Rngs(0), **HALF)
    graph, variables = nnx.split(model)
    x = random((2, 16, 16, 1))
    gradient = jax.jit(jax.grad(lambda v: jnp.sum(nnx.merge(graph, v)(x) ** 2)))
    memory = gradient.lower(variables).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.7 * sum(v.nbytes for v in jax.tree.leaves(variables))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fno_block_precision": "float16"}, "one of 'full', 'mixed', 'half', got 'float16'"),
        ({"fno_block_precision": "float16"}, "float16 would need loss scaling"),
        ({"fno_block_weights_precision": "mixed"}, "one of 'full', 'half', got 'mixed'"),
        ({"fno_block_weights_precision": "half"}, "needs fno_block_precision 'mixed' or 'half'"),
    ],
)
def test_bad_precisions_are_refused(options, message):
    for build in (
        lambda: SpectralConv(2, 2, (4, 4), rngs=nnx.Rngs(0), **options),
        lambda: FNO((4, 4), 1, 1, 4, rngs=nnx.Rngs(0), **options),
    ):
        with pytest.raises(ValueError, match=message):
            build()


# What is compiled.


@pytest.fixture(scope="module")
def compiled():
    """A training step with weights of 2 x 16 x 9 x 64 x 64 numbers, and its gradients alone."""
    model = FNO((16, 16), 1, 1, 64, 1, rngs=nnx.Rngs(0), **HALF)
    graph, variables = nnx.split(model, nnx.Param)
    params = nnx.to_pure_dict(variables)
    optimizer = tg.tensorgrad(1e-3, specs=tensor_specs, mu_dtype=jnp.bfloat16)
    batch = jax.ShapeDtypeStruct((2, 32, 32, 1), jnp.float32)

    def loss(params, x):
        return lp_loss(nnx.merge(graph, params)(x), x, p=2, relative=True)

    def step(params, state, x):
        gradients = jax.grad(loss)(params, x)
        updates, state = optimizer.update(gradients, state, params)
        return tg.apply_updates(params, updates, jax.random.key(0)), state

    state = jax.eval_shape(optimizer.init, params)
    whole = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, batch).compile()
    return jax.jit(jax.grad(loss)).lower(params, batch).compile().as_text(), whole.as_text()


def stored_arrays(text):
    """(dtype, number of elements, instruction) of all arrays in memory: not inside fusions."""
    found = []
    for block in re.split(r"\n\n", text):
        if re.match(r"%?fused|%?wrapped|%?region.*fused", block.strip()):
            continue
        for line in block.splitlines():
            match = re.match(r"\s+(?:ROOT )?%?\S+ = (\w+)\[([\d,]+)\]", line)
            if match:
                size = int(np.prod([int(n) for n in match[2].split(",")]))
                found.append((match[1], size, line))
    return found


N_WEIGHTS = 2 * 16 * 9 * 64 * 64


def test_no_float64_is_computed(compiled):
    for text in compiled:
        assert "f64[" not in text
        assert "c128[" not in text


def test_no_weight_is_copied_to_float32(compiled):
    gradients, step = compiled
    arrays = stored_arrays(gradients)
    assert any(dtype == "bf16" and size == N_WEIGHTS for dtype, size, _ in arrays)
    # Neither the weight nor, in forward and backward pass, anything else of its size.
    copies = [line for dtype, size, line in arrays if dtype == "f32" and size >= N_WEIGHTS // 2]
    assert not copies
    # In the whole step there is the lifted update in float32, but no weight made one.
    weights = set(re.findall(r"(%?\S*spectral_weight\S*) = bf16\[2,16,9,64,64\]", step))
    assert weights
    for dtype, size, line in stored_arrays(step):
        if dtype == "f32" and size == N_WEIGHTS:
            assert not any(f"{name})" in line or f"{name}," in line for name in weights), line


def test_the_step_updates_in_place(compiled):
    assert re.search(r"input_output_alias=\{.*may-alias", compiled[1])
