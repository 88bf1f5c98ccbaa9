"""`subspace_muon`: the mean of subspace momentum and its polar factor, Muon for matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tensorgrad_jax as tg

SPEC = tg.TensorSpec(complex_axis=0)
SHAPE = (2, 5, 4, 8, 8)
MOMENTUM = tg.Tucker(0.2, factors="real")
OPTIONS = {"projection": MOMENTUM, "update_proj_gap": 2, "mu_dtype": None}


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def updates_of(optimizer, gradients):
    """Return the updates of a tree of parameters, turned as gradients are."""
    params = gradients[0]
    state, updates = optimizer.init(params), []
    for g in gradients:
        update, state = optimizer.update(g, state, params)
        updates.append({name: -x for name, x in update.items()})
    return updates


def of_tensor(n=4, shape=SHAPE):
    return [{"w": draw(*shape, seed=i)} for i in range(n)]


def subspace_momentum(**options):
    return tg.subspace_momentum(1.0, **OPTIONS | {"specs": {"w": SPEC}} | options)


def subspace_muon(**options):
    return tg.subspace_muon(1.0, **OPTIONS | {"specs": {"w": SPEC}} | options)


def assert_same(some, others, atol=1e-6):
    for one, other in zip(some, others, strict=True):
        for name in one:
            np.testing.assert_allclose(one[name], other[name], atol=atol)


def test_without_polar_factors_it_is_subspace_momentum():
    g = of_tensor()
    assert_same(updates_of(subspace_muon(polar_share=0), g), updates_of(subspace_momentum(), g))


def test_with_them_alone_it_is_the_polar_factor_of_that():
    g = of_tensor()
    polar = optax.chain(subspace_momentum(), optax.scale(-1), tg.orthogonalize({"w": SPEC}, 0.8))
    expected = [{"w": -x["w"]} for x in updates_of(polar, g)]
    whole = subspace_muon(polar_share=1, polar_projection=None)
    assert_same(updates_of(whole, g), expected, 1e-5)
    full_rank = tg.Tucker((..., 1.0, 1.0), factors="real")
    turned = subspace_muon(polar_share=1, polar_projection=full_rank)
    assert_same(updates_of(turned, g), expected, 2e-5)


def test_the_update_is_their_mean():
    g = of_tensor()
    first, second, mean = (updates_of(subspace_muon(polar_share=s), g) for s in (0.0, 1.0, 0.3))
    expected = [{"w": 0.7 * x["w"] + 0.3 * y["w"]} for x, y in zip(first, second, strict=True)]
    assert_same(mean, expected)


@pytest.mark.parametrize("channels", [0.25, 0.5, 1.0])
def test_polar_factors_have_the_size_that_is_asked_for(channels):
    """However much of a tensor they are taken in: a step is as large."""
    inside = tg.Tucker((..., channels, channels), factors="real")
    options = {"polar_share": 1, "polar_projection": inside, "polar_scale": 0.5}
    update = updates_of(subspace_muon(**options), of_tensor(1, (2, 6, 5, 16, 16)))[0]["w"]
    assert 0.8 < float(jnp.sqrt(jnp.mean(update**2))) / 0.5 < 1.15


def test_matrices_get_muon_and_the_rest_adam():
    params = {"matrix": draw(8, 12), "rows": draw(3, 12), "bias": draw(5)}
    gradients = [{n: draw(*p.shape, seed=i) for n, p in params.items()} for i in range(3)]
    ours = tg.subspace_muon(1.0, specs=dict.fromkeys(params), mu_dtype=None)
    updates = updates_of(ours, gradients)
    muon = tg.tensor_muon(1.0, specs=dict.fromkeys(params), mu_dtype=None)
    assert_same(updates, updates_of(muon, gradients))
    adam = updates_of(optax.adam(1.0), [{n: g[n] for n in ("rows", "bias")} for g in gradients])
    for update, expected in zip(updates, adam, strict=True):
        for name in expected:
            np.testing.assert_allclose(update[name], expected[name], atol=1e-5)


def test_the_whole_momentum_is_kept_without_a_projection():
    g = of_tensor()
    ours = subspace_muon(projection=None, polar_share=0)
    everything = tg.scale_by_factored_rms(specs={"w": SPEC}, numerator=optax.ema(0.9), max_rms=1.0)
    negative = optax.chain(everything, optax.scale(-1))
    assert_same(updates_of(ours, g), updates_of(negative, g))


def test_the_state_is_a_thirtieth_of_adamws():
    params = {"w": jnp.zeros((2, 16, 9, 32, 32))}
    state = tg.subspace_muon(1e-3, specs={"w": SPEC}).init(params)
    ours = tg.state_bytes(state)["total"]
    assert ours < tg.state_bytes(optax.adamw(1e-3).init(params))["total"] / 30


def test_nothing_is_kept_of_polar_factors_without_weight():
    params = {"w": jnp.zeros(SHAPE)}
    sizes = [tg.state_bytes(subspace_muon(polar_share=s).init(params))["basis"] for s in (0.0, 0.5)]
    expected = tg.state_bytes(subspace_momentum().init(params))["basis"]
    assert sizes[0] == expected < sizes[1]


def test_channels_need_not_be_the_last_axes():
    """A convolution with its channels first; the groups of the second moment move along."""
    last = [{"w": draw(3, 3, 8, 6, seed=i)} for i in range(3)]
    first = [{"w": jnp.moveaxis(g["w"], (2, 3), (0, 1))} for g in last]
    options = {"projection": tg.Tucker((..., 0.5, 0.5)), "update_proj_gap": 2, "mu_dtype": None}
    of_last = tg.TensorSpec(groups=((0, 1), (2, 3)))
    of_first = tg.TensorSpec(groups=((2, 3), (0, 1)), matrix_axes=(0, 1))
    one, other = (
        updates_of(tg.subspace_muon(1.0, specs={"w": spec}, **options), g)
        for spec, g in ((of_last, last), (of_first, first))
    )
    assert_same([{"w": jnp.moveaxis(x["w"], (0, 1), (2, 3))} for x in other], one)
    plain = updates_of(tg.subspace_muon(1.0, specs={"w": tg.TensorSpec()}, **options), last)
    assert not np.allclose(plain[-1]["w"], one[-1]["w"], atol=1e-3)


def test_a_learning_rate_and_a_share_may_be_injected():
    params = {"w": draw(*SHAPE)}
    make = optax.inject_hyperparams(
        tg.subspace_muon, static_args=("specs", "projection", "polar_projection", "mu_dtype",
                                       "update_proj_gap", "steps", "seed", "on_refresh"),
    )  # fmt: skip
    injected = make(1.0, **OPTIONS, specs={"w": SPEC}, polar_share=0.3)
    update, _ = injected.update(params, injected.init(params), params)
    expected = updates_of(subspace_muon(polar_share=0.3), [params])[0]["w"]
    np.testing.assert_allclose(-update["w"], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"b1": 1.0}, r"b1 must be a number in \[0, 1\), got 1.0"),
        ({"b2": -0.1}, r"b2 must be a number in \[0, 1\), got -0.1"),
        ({"matrix_b1": 1.0}, r"matrix_b1 must be a number in \[0, 1\), got 1.0"),
        ({"polar_share": 1.5}, r"polar_share must be a number in \[0, 1\], got 1.5"),
        ({"polar_scale": 0.0}, "polar_scale must be a positive number, got 0.0"),
        ({"matrix_scale": -1.0}, "matrix_scale must be a positive number, got -1.0"),
        ({"steps": 0}, "steps must be an integer"),
        ({"mu_dtype": jnp.int32}, "mu_dtype must be"),
        ({"update_proj_gap": 0}, "update_proj_gap must be"),
    ],
)
def test_bad_arguments(wrong, message):
    with pytest.raises(ValueError, match=message):
        tg.subspace_muon(1e-3, **wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"on_refresh": "x"}, "on_refresh must be"),
        ({"projection": 0.05}, "subspace_muon: projection must be a Projection or None, got 0.05"),
        ({"polar_projection": 2}, "polar_projection must be a Projection or None, got 2"),
    ],
)
def test_arguments_of_the_wrong_type(wrong, message, unchecked):
    with pytest.raises(ValueError, match=message):
        tg.subspace_muon(1e-3, **wrong)


def test_large_tensors_are_handled_one_by_one(monkeypatch):
    """The same updates; a chain is finished with one before it begins with the next."""
    params = {n: draw(*SHAPE, seed=i) for i, n in enumerate("abc")}
    options = {**OPTIONS, "specs": dict.fromkeys(params, SPEC)}
    together = updates_of(tg.subspace_muon(1.0, **options), [params] * 3)
    monkeypatch.setattr("tensorgrad_jax.transforms.in_turn.LARGE_BYTES", 1)
    alone = tg.subspace_muon(1.0, **options)
    assert len(alone.init(params)[0].inner["tensor"].groups) == 3
    assert_same(updates_of(alone, [params] * 3), together, 1e-5)
    # Refreshes that are spread over the steps are counted among all.
    spread = tg.subspace_muon(1.0, **options, stagger=True).init(params)[0].inner["tensor"]
    assert not hasattr(spread, "groups")


def test_temporaries_are_those_of_a_few_large_tensors():
    """Not a copy of all of them between two links of the chain."""
    params = {f"w{i}": jax.ShapeDtypeStruct((2, 16, 64, 128, 128), jnp.float32) for i in range(6)}
    optimizer = tg.subspace_muon(1e-3, specs=dict.fromkeys(params, SPEC))

    def step(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(optimizer.init, params)
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile()
    one = 4 * 2 * 16 * 64 * 128 * 128
    assert compiled.memory_analysis().temp_size_in_bytes < 5 * one
