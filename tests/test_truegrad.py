"""The second moment of examples, and the Adam that runs on it."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tensorgrad_jax import truegrad
from tensorgrad_jax.truegrad import nn

PEERS = np.load(pathlib.Path(__file__).parent / "golden" / "truegrad_peers.npz")


@pytest.fixture
def _double():
    with jax.enable_x64(True):
        yield


# Each peer's layer as a function of its parameters, axes in PyTorch's order.
def _dense(p, x):
    return x @ p["weight"].T + p["bias"]


def _conv(p, x):
    numbers = ("NCHW", "OIHW", "NCHW")
    y = jax.lax.conv_general_dilated(
        x, p["weight"], (2, 2), [(1, 1), (1, 1)], dimension_numbers=numbers
    )
    return y + p["bias"][:, None, None]


LAYERS = {
    "backpack linear": _dense,
    "backpack sequence": _dense,
    "backpack conv": _conv,
    "backpack embedding": lambda p, x: p["weight"][x],
    "truegrad linear": _dense,
    "truegrad sequence": _dense,
    "truegrad conv": _conv,
}


@pytest.mark.parametrize("case", LAYERS)
@pytest.mark.usefixtures("_double")
def test_squares_are_those_of_the_peers(case):
    peer, layer = case.split()[0], LAYERS[case]
    names = [n for n in ("weight", "bias") if f"{case}/{n}" in PEERS]
    params = {name: jnp.asarray(PEERS[f"{case}/{name}"]) for name in names}
    x = jnp.asarray(PEERS[f"{case}/x"])
    options = {"normalisation": "backpack"} if peer == "backpack" else {"granularity": "token"}
    loss = lambda p, x: jnp.mean(layer(p, x) ** 2)
    squares = jax.jit(truegrad.value_and_grads(loss, **options))(params, x)[2]
    for name in names:
        np.testing.assert_allclose(squares[name], PEERS[f"{case}/{name}/squares"], rtol=1e-10)


def _steps(optimizer):
    """Ten steps on one parameter with the peers' gradients and squares."""
    p = jnp.asarray(PEERS["steps/start"])
    state, path = optimizer.init(p), []
    step = jax.jit(lambda p, state, g, s: optimizer.update(g, state, p, sum_grad_squared=s))
    for g, s in zip(PEERS["steps/gradients"], PEERS["steps/squares"], strict=True):
        updates, state = step(p, state, jnp.asarray(g), jnp.asarray(s))
        p = optax.apply_updates(p, updates)
        path.append(p)
    return np.stack(path)


STEPS = {
    "plain": {},
    "no graft": {"graft": False},
    "two betas": {"betas": (0.8, 0.9), "graft": False},
    "three betas": {"betas": (0.8, 0.9, 0.95)},
    "to init": {"decay_to_init": True, "weight_decay": 0.5},
    "large eps": {"eps": 0.3, "graft": False},
    "clamp": {"eps": 0.9, "graft": False, "eps_mode": "clamp"},
    "clamp, graft": {"eps_mode": "clamp"},
}


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.usefixtures("_double")
def test_steps_are_those_of_the_original(name):
    path = _steps(truegrad.tg_adamw(0.02, **STEPS[name]))
    np.testing.assert_allclose(path, PEERS[f"steps/{name}"], rtol=1e-6, atol=1e-8)


def _loss(params, batch):
    x, y = batch
    h = jnp.tanh(x @ params["w"] + params["b"])
    return jnp.mean((h @ params["v"] - y) ** 2)


def _problem(n):
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "w": jax.random.normal(keys[0], (4, 8)) / 2,
        "b": jnp.zeros(8),
        "v": jax.random.normal(keys[1], (8,)) / 3,
    }
    x = jax.random.normal(keys[2], (n, 4))
    return params, (x, jnp.sin(x.sum(1)) + 0.1 * jax.random.normal(keys[3], (n,)))


def _trained(optimizer, params, batch, steps, with_squares=True):
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        value, g, s = truegrad.value_and_grads(_loss)(params, batch)
        extra = {"sum_grad_squared": s} if with_squares else {}
        updates, state = optimizer.update(g, state, params, **extra)
        return optax.apply_updates(params, updates), state, value

    losses = []
    for _ in range(steps):
        params, state, value = step(params, state)
        losses.append(float(value))
    return params, losses


@pytest.mark.parametrize("graft", [True, False])
def test_with_one_example_it_is_adamw(graft):
    params, batch = _problem(1)
    ours, losses = _trained(truegrad.tg_adamw(1e-2, graft=graft), params, batch, 8)
    adamw = optax.with_extra_args_support(optax.adamw(1e-2, eps=1e-12, weight_decay=1e-2))
    theirs, _ = _trained(adamw, params, batch, 8, with_squares=False)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, theirs)
    assert losses[-1] < losses[0]


def test_with_many_examples_it_is_not_adamw_and_trains():
    params, batch = _problem(64)
    ours, losses = _trained(truegrad.tg_adamw(1e-2), params, batch, 100)
    adam = truegrad.tg_adamw(1e-2, default_to_adam=True)
    theirs, _ = _trained(adam, params, batch, 100, with_squares=False)
    assert losses[-1] < 0.5 * losses[0]
    assert float(jnp.max(jnp.abs(ours["w"] - theirs["w"]))) > 1e-2


def test_grafted_steps_are_as_large_as_adams():
    params, batch = _problem(16)
    _, g, s = truegrad.value_and_grads(_loss)(params, batch)
    grafted, plain = (truegrad.scale_by_true_adam(graft=graft) for graft in (True, False))
    adam = optax.scale_by_adam(eps=1e-12)
    size = lambda u: jax.tree.map(lambda x: float(jnp.linalg.norm(x)), u)
    of = lambda t: t.update(g, t.init(params), sum_grad_squared=s)[0]
    expected = size(adam.update(g, adam.init(params))[0])
    for name, value in size(of(grafted)).items():
        assert value == pytest.approx(expected[name], rel=1e-5)
    assert size(of(plain))["w"] < 0.9 * expected["w"]


def test_zero_gradients_give_zero_updates():
    zeros = {"w": jnp.zeros((3, 2))}
    for options in ({}, {"graft": False}, {"floor": False}):
        transform = truegrad.scale_by_true_adam(**options)
        update, _ = transform.update(zeros, transform.init(zeros), sum_grad_squared=zeros)
        np.testing.assert_array_equal(update["w"], 0)


def test_the_floor_holds_where_squares_of_terms_vanish():
    g, s = jnp.array([1.0, 1.0]), jnp.array([0.0, 1.0])
    step = lambda floor: truegrad.scale_by_true_adam(graft=False, floor=floor)
    with_floor, without = (
        t.update(g, t.init(g), sum_grad_squared=s)[0] for t in (step(True), step(False))
    )
    np.testing.assert_allclose(with_floor, 1, rtol=1e-5)
    assert without[0] > 1e9


def test_parameters_without_squares_get_adam_where_that_is_allowed():
    params, batch = _problem(16)
    _, g, s = truegrad.value_and_grads(_loss)(params, batch)
    s = {**s, "v": None}
    transform = truegrad.scale_by_true_adam(default_to_adam=True)
    update, _ = transform.update(g, transform.init(params), sum_grad_squared=s)
    adam = optax.scale_by_adam(eps=1e-12)
    expected, _ = adam.update(g, adam.init(params))
    np.testing.assert_allclose(update["v"], expected["v"], rtol=1e-5)
    assert not np.allclose(update["w"], expected["w"], rtol=1e-2)
    strict = truegrad.scale_by_true_adam()
    with pytest.raises(ValueError, match=r"shape \(8,\) has no sum_grad_squared: \['v'\]"):
        strict.update(g, strict.init(params), sum_grad_squared=s)
    with pytest.raises(ValueError, match="has no sum_grad_squared"):
        strict.update(g, strict.init(params))


def test_squares_that_do_not_fit_are_named():
    g = {"w": jnp.ones((3, 2))}
    transform = truegrad.scale_by_true_adam()
    state = transform.init(g)
    with pytest.raises(ValueError, match=r"\['w'\] must be real and of shape \(3, 2\)"):
        transform.update(g, state, sum_grad_squared={"w": jnp.ones((2, 3))})
    with pytest.raises(ValueError, match="must be a tree like the gradients"):
        transform.update(g, state, sum_grad_squared={"v": jnp.ones((3, 2))})
    decay = truegrad.add_decay_to_init(0.1)
    with pytest.raises(ValueError, match="needs the parameters"):
        decay.update(g, decay.init(g))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"betas": (0.9,)}, "betas must be 2 or 3 numbers"),
        ({"betas": (0.9, 0.9, 0.9, 0.9)}, "betas must be 2 or 3 numbers"),
        ({"betas": (0.9, 1.0)}, "betas must be 2 or 3 numbers"),
        ({"eps": -1.0}, "eps must not be negative"),
        ({"eps_mode": "max"}, "eps_mode must be 'add' or 'clamp'"),
        ({"weight_decay": -0.1}, "weight_decay must not be negative"),
        ({"learning_rate": -0.1}, "learning_rate must not be negative"),
    ],
)
def test_wrong_arguments_are_named(options, message, unchecked):
    del unchecked
    with pytest.raises(ValueError, match=message):
        truegrad.tg_adamw(**options)


def test_schedules_complex_and_half_precision():
    schedule = optax.linear_schedule(1e-2, 0.0, 2)
    optimizer = truegrad.tg_adamw(schedule, weight_decay=0.0)
    params = {"z": jnp.ones(3, jnp.complex64), "h": jnp.ones(3, jnp.bfloat16)}
    g = {"z": jnp.full(3, 3 + 4j, jnp.complex64), "h": jnp.ones(3, jnp.bfloat16)}
    s = {"z": jnp.full(3, 100.0), "h": jnp.full(3, 4.0)}
    state = optimizer.init(params)
    sizes = []
    for _ in range(3):
        updates, state = optimizer.update(g, state, params, sum_grad_squared=s)
        sizes.append(float(jnp.abs(updates["z"][0])))
    # Grafting: the direction of g at Adam's size, g / |g|.
    np.testing.assert_allclose(sizes, [1e-2, 5e-3, 0], rtol=1e-4)
    kinds = jax.tree.map(lambda x: str(x.dtype), state[0].nu)
    assert kinds == {"z": "float32", "h": "float32"}


def test_coverage_prints_what_is_done(capsys):
    params, batch = _problem(16)
    loss = lambda p, batch: _loss(p, batch) + jnp.mean(batch[0] @ p["w"])
    rows = {row.path: row for row in truegrad.coverage(loss, params, batch)}
    assert rows["['w']"].method == "exact"
    assert rows["['w']"].uses == ("dot_general", "dot_general")
    assert rows["['v']"].method == rows["['b']"].method == "fast"
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 4
    assert printed[0].split() == ["parameter", "shape", "method", "used", "by", "how", "cost"]
    assert "used 2 times" in next(line for line in printed if "['w']" in line)


@pytest.mark.parametrize("shape", [10, (1, 10)])
def test_the_first_example_of_the_original(shape):
    """Its layer norm over (1, 10) is one over 10; ordinary layers stand beside these."""
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(
        nn.Linear(1, 10, rngs=rngs),
        nn.LayerNorm(shape, rngs=rngs),
        nnx.relu,
        nnx.Linear(10, 1, rngs=rngs),
    )
    graph, params = nnx.split(model, nnx.Param)
    optimizer = truegrad.tg_adamw(1e-2)
    state = optimizer.init(params)
    x = jax.random.normal(jax.random.key(0), (16, 1))

    @jax.jit
    def step(params, state):
        loss = lambda params, x: nnx.merge(graph, params)(x).mean()
        value, g, s = truegrad.value_and_grads(loss, method="fast")(params, x)
        updates, state = optimizer.update(g, state, params, sum_grad_squared=s)
        return optax.apply_updates(params, updates), state, value

    values = []
    for _ in range(5):
        params, state, value = step(params, state)
        values.append(float(value))
    assert np.all(np.diff(values) < 0)


def test_layer_norm_over_several_axes():
    x = jax.random.normal(jax.random.key(0), (5, 2, 3))
    layer, flat = nn.LayerNorm((2, 3)), nnx.LayerNorm(6, epsilon=1e-5, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(layer(x).reshape(5, 6), flat(x.reshape(5, 6)), atol=1e-5)
    with pytest.raises(ValueError, match=r"last axes \(2, 3\), got \(5, 3, 2\)"):
        layer(jnp.ones((5, 3, 2)))
    with pytest.raises(ValueError, match="sizes of at least 1, got"):
        nn.LayerNorm(())


def test_a_model_itself_can_be_the_parameters():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    loss = lambda model, x: jnp.mean(model(x) ** 2)
    _, gradient, squares = truegrad.value_and_grads(loss)(model, jnp.ones((4, 3)))
    np.testing.assert_allclose(squares.kernel[...], gradient.kernel[...] ** 2, rtol=1e-5)


def test_what_else_a_function_returns_comes_from_the_whole_batch():
    params, batch = _problem(8)

    def loss(params, batch):
        out = jnp.tanh(batch[0] @ params["w"])
        return _loss(params, batch), {"out": out, "mean": out.mean(0), "name": 3}

    with_aux = truegrad.value_and_grads(loss, has_aux=True)
    (value, aux), gradient, squares = jax.jit(with_aux)(params, batch)
    expected = jax.jit(truegrad.value_and_grads(_loss))(params, batch)
    jax.tree.map(np.testing.assert_array_equal, (value, gradient, squares), expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), aux, loss(params, batch)[1]
    )
    rows = truegrad.coverage(loss, params, batch, has_aux=True)
    assert [row.method for row in rows] == ["fast"] * 3
    with pytest.raises(ValueError, match=r"^value_and_grads: .* must return \(loss, aux\)"):
        truegrad.value_and_grads(_loss, has_aux=True)(params, batch)


def test_no_sum_of_squares_has_memory_before_it_is_begun():
    """Sums over chunks of examples that began as constants lay there from the forward pass on."""

    def loss(kernels, x):
        for kernel in kernels:
            x = jnp.tanh(jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", **_LAST))
        return jnp.mean(x**2)

    kernels = [jax.random.normal(jax.random.key(i), (3, 3, 96, 96)) / 30 for i in range(12)]
    x = jax.random.normal(jax.random.key(9), (8, 6, 6, 96))
    memory = lambda f: jax.jit(f).lower(kernels, x).compile().memory_analysis()
    ours, plain = memory(truegrad.value_and_grads(loss)), memory(jax.value_and_grad(loss))
    squares = sum(k.nbytes for k in kernels)
    assert ours.output_size_in_bytes - plain.output_size_in_bytes >= squares
    # The rest is gradients of a few examples; with the sums there early it was 2.0 of the squares.
    assert ours.temp_size_in_bytes - plain.temp_size_in_bytes < 1.5 * squares


_LAST = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
