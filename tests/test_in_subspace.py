"""Running an optimizer in a subspace: what the user sees of it."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tensorgrad_jax as tg
from tensorgrad_jax.backend import ordering, pieces

SPECS = {"pair": tg.TensorSpec(0), "complex": tg.TensorSpec(), "dense": None}
COMPOSITE = tg.Residual(tg.UnstructuredSparse(0.05), tg.Tucker(0.2))


def random_params(seed=0):
    r = np.random.default_rng(seed)
    normal = lambda *shape: r.normal(size=shape).astype(np.float32)
    return {
        "pair": jnp.asarray(normal(2, 6, 5, 4)),
        "complex": jnp.asarray(normal(5, 4, 3) + 1j * normal(5, 4, 3)),
        "dense": jnp.asarray(normal(7)),
    }


def runner(optimizer):
    """Return (step, number of compilations so far)."""
    traces = []

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, gradients):
        traces.append(1)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return step, lambda: len(traces)


def train(optimizer, n_steps, gradients=random_params):
    params = random_params(99)
    state = optimizer.init(params)
    step, _ = runner(optimizer)
    for i in range(n_steps):
        params, state = step(params, state, gradients(i))
    return params, state


def struct(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


def test_one_compilation_and_constant_structs_across_refreshes():
    optimizer = tg.tensorgrad(1e-2, update_proj_gap=2, specs=SPECS)
    params = random_params(99)
    state = optimizer.init(params)
    before = struct((params, state))
    step, compilations = runner(optimizer)
    bases = []
    for i in range(5):
        bases.append(jax.tree.map(np.asarray, state[0].basis))
        params, state = step(params, state, random_params(i))
        assert struct((params, state)) == before
    assert compilations() == 1
    changed = lambda a, b: any(
        np.any(x != y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )
    # Refreshes at steps 0, 2, 4 and at no other.
    assert [changed(a, b) for a, b in itertools.pairwise(bases)] == [
        True, False, True, False,
    ]  # fmt: skip
    assert all(x.size > 0 for x in jax.tree.leaves(state))


def test_full_budget_is_plain_adamw():
    """With everything kept and no weight on what nobody drops, TensorGRaD is AdamW.

    A sparse ratio of 1 keeps all entries; nothing is left over for the low-rank part. A pair is
    taken once as real numbers and once as the complex ones whose parts are equally large: their
    common second moment is then that of both.
    """
    specs = {"pair": tg.TensorSpec(), "complex": tg.TensorSpec(0), "dense": None}

    def real(seed):
        params = random_params(seed)
        z = params["complex"]
        return params | {"complex": jnp.stack([z.real, -z.real])}

    results = []
    for optimizer in (
        tg.projected_adamw(1e-2, tg.UnstructuredSparse(1.0), weight_decay=0.1, specs=specs),
        optax.adamw(1e-2, weight_decay=0.1),
    ):
        params = real(99)
        state = optimizer.init(params)
        step, _ = runner(optimizer)
        for i in range(4):
            params, state = step(params, state, real(i))
        results.append(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), *results)


def test_gradients_inside_a_fixed_subspace_train_as_without_compression():
    """SGD with momentum is linear: compressing gradients of exact low rank changes nothing."""
    r = np.random.default_rng(0)
    factors = [np.linalg.qr(r.normal(size=(d, 2)))[0] for d in (6, 5, 4)]

    def gradient(i):
        core = np.random.default_rng(i).normal(size=(2, 2, 2))
        return {"w": jnp.asarray(np.einsum("abc,ia,jb,kc->ijk", core, *factors), jnp.float32)}

    specs = {"w": tg.TensorSpec()}
    plain = optax.sgd(0.1, 0.9)
    compressed = tg.in_subspace(plain, tg.Tucker(2), update_proj_gap=2, specs=specs)
    params = {"w": jnp.zeros((6, 5, 4))}
    finals = []
    for optimizer in (plain, compressed):
        p, state = params, optimizer.init(params)
        update = jax.jit(optimizer.update)
        for i in range(5):
            updates, state = update(gradient(i), state, p)
            p = optax.apply_updates(p, updates)
        finals.append(p["w"])
    np.testing.assert_allclose(*finals, atol=2e-5)


def test_refresh_fates_of_the_moments():
    """After a refresh in a new gradient's subspace: keep, reset, transport do what they say."""
    first, second = random_params(0), random_params(1)

    def moments_after(on_refresh):
        optimizer = tg.in_subspace(
            tg.scale_by_adam(b1=0.5), tg.Tucker(0.3), 1, on_refresh, specs=SPECS
        )
        update = jax.jit(optimizer.update)
        _, s1 = update(first, optimizer.init(first))
        _, s2 = update(second, s1)
        return optimizer, s1, s2

    _, s1, kept = moments_after("keep")
    compact = tg.Tucker(0.3).project(second["complex"], kept.basis["complex"])
    m1, m2 = s1.inner.mu["complex"], kept.inner.mu["complex"]
    np.testing.assert_allclose(m2, 0.5 * m1 + 0.5 * compact, atol=1e-5)

    # Anew, as large as they were: the second moments stay, the first start at the gradient.
    _, s1, reset = moments_after("reset")
    ratio = np.sqrt(0.001 * np.mean(np.abs(m1) ** 2 / s1.inner.nu["complex"]))
    np.testing.assert_allclose(
        reset.inner.mu["complex"], (0.5 + 0.5 * ratio) * compact, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        reset.inner.nu["complex"],
        0.999 * s1.inner.nu["complex"] + 0.001 * np.abs(compact) ** 2,
        rtol=1e-4,
    )
    # What is not compressed knows of no refresh.
    np.testing.assert_allclose(reset.inner.mu["dense"], kept.inner.mu["dense"])

    _, s1, moved = moments_after("transport")
    tucker, old, new = tg.Tucker(0.3), s1.basis["complex"], moved.basis["complex"]
    compact = tucker.project(second["complex"], new)
    carried = tucker.project(tucker.lift(s1.inner.mu["complex"], old), new)
    unknown = 1 - tucker.transport_squares(jnp.ones(compact.shape), old, new)
    expected = 0.5 * (carried + ratio * unknown * compact) + 0.5 * compact
    np.testing.assert_allclose(moved.inner.mu["complex"], expected, rtol=1e-4, atol=1e-5)


def test_complement_passes_on_what_the_subspace_leaves_out():
    gradients = random_params(0)
    for projection in (tg.Tucker(0.2), COMPOSITE):
        run = {}
        for complement in ("drop", "pass"):
            optimizer = tg.in_subspace(
                optax.scale(2.0), projection, complement=complement, specs=SPECS
            )
            run[complement], _ = jax.jit(optimizer.update)(gradients, optimizer.init(gradients))
        # inner doubles what is inside: dropped = 2 P g, passed = 2 P g + (g - P g).
        inside = run["drop"]["complex"] / 2
        expected = run["drop"]["complex"] + gradients["complex"] - inside
        np.testing.assert_allclose(run["pass"]["complex"], expected, atol=2e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_a_gradient_that_is_not_finite_leaves_the_basis_and_puts_the_refresh_off(bad, dtype):
    optimizer = tg.in_subspace(optax.scale(1.0), COMPOSITE, update_proj_gap=3, specs=SPECS)
    good = random_params(0)
    good["pair"] = good["pair"].astype(dtype)
    state = optimizer.init(good)
    broken = good | {"pair": good["pair"].at[0, 0, 0, 0].set(bad)}
    _, after = jax.jit(optimizer.update)(broken, state)
    jax.tree.map(np.testing.assert_array_equal, after.basis["pair"], state.basis["pair"])
    assert (after.next_refresh["pair"], after.next_refresh["complex"]) == (0, 3)
    _, later = jax.jit(optimizer.update)(good, after)
    assert later.next_refresh["pair"] == 4
    assert np.any(later.basis["pair"][1] != state.basis["pair"][1])


def test_stagger_spreads_the_refreshes_over_the_gap():
    params = {name: jnp.ones((2, 3, 4)) * i for i, name in enumerate("abcd", 1)}
    specs = dict.fromkeys(params, tg.TensorSpec())
    optimizer = tg.in_subspace(
        optax.scale(1.0), tg.UnstructuredSparse(0.5), 8, specs=specs, stagger=True
    )
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    refreshed = []
    for _ in range(17):
        before = state.basis
        _, state = update(params, state)
        refreshed.append([n for n in params if before[n][0] != state.basis[n][0]])
    assert {i: names for i, names in enumerate(refreshed) if names} == {
        0: ["a", "b", "c", "d"], 2: ["a"], 4: ["b"], 6: ["c"], 8: ["d"],
        10: ["a"], 12: ["b"], 14: ["c"], 16: ["d"],
    }  # fmt: skip


def test_gap_schedule_is_asked_at_each_refresh():
    optimizer = tg.in_subspace(
        optax.scale(1.0), tg.UnstructuredSparse(0.5), lambda step: 1.9 + step / 2,
        specs={"w": tg.TensorSpec()},
    )  # fmt: skip
    params = {"w": jnp.ones((2, 3, 4))}
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    due = []
    for _ in range(8):
        _, state = update(params, state)
        due.append(int(state.next_refresh["w"]))
    assert due == [1, 3, 3, 6, 6, 6, 10, 10]  # gaps 1.9, 2.4, 3.4, 4.9 rounded down


def test_every_leaf_and_refresh_draws_its_own_entries():
    params = {"a": jnp.ones((10, 10, 11)), "b": jnp.ones((10, 10, 11))}
    optimizer = tg.in_subspace(optax.scale(1.0), tg.UnstructuredSparse(0.1), 1)
    _, s1 = optimizer.update(params, optimizer.init(params))
    _, s2 = optimizer.update(params, s1)
    seeds = [int(s.basis[n][0]) for s in (s1, s2) for n in "ab"]
    assert len(set(seeds)) == 4
    other = tg.in_subspace(optax.scale(1.0), tg.UnstructuredSparse(0.1), 1, seed=1)
    _, s3 = other.update(params, other.init(params))
    assert int(s3.basis["a"][0]) not in seeds


def test_default_rule_and_specs():
    params = {
        "conv": jnp.ones((11, 10, 10)),
        "small": jnp.ones((10, 10, 10)),
        "matrix": jnp.ones((64, 64)),
    }
    transform = lambda specs: tg.in_subspace(optax.scale(1.0), tg.Tucker(0.1), specs=specs)
    assert list(transform(None).init(params).basis) == ["conv"]
    chosen = {"conv": None, "small": None, "matrix": tg.TensorSpec()}
    assert list(transform(chosen).init(params).basis) == ["matrix"]
    assert list(transform(lambda p: chosen).init(params).basis) == ["matrix"]
    with pytest.raises(ValueError, match="specs do not fit the parameters"):
        transform({"conv": None}).init(params)
    with pytest.raises(ValueError, match="must hold TensorSpec or None for every leaf, got 3"):
        transform(chosen | {"conv": 3}).init(params)


def test_state_of_other_parameters_is_refused():
    optimizer = tg.in_subspace(optax.scale(1.0), tg.Tucker(0.1))
    state = optimizer.init({"a": jnp.ones((11, 10, 10))})
    with pytest.raises(ValueError, match=r"compresses \['a'\], these updates have \['b'\]"):
        optimizer.update({"b": jnp.ones((11, 10, 10))}, state)


def test_moments_that_cannot_be_carried_are_refused_in_init():
    params = {"w": jnp.ones((16, 16, 8))}
    make = lambda inner, fate: tg.in_subspace(inner, tg.Tucker(0.5), on_refresh=fate)
    for inner, message in (
        (optax.contrib.scale_by_adopt(), "cannot carry 'mu' of scale_by_adopt"),
        (optax.scale_by_adamax(), "cannot carry 'nu' of scale_by_adamax .*'w'"),
        (optax.scale_by_sm3(), "cannot carry 'mu' of scale_by_sm3"),
        (optax.flatten(optax.scale_by_adam()), "does not find the moments .* 'mu'"),
    ):
        with pytest.raises(ValueError, match=message):
            make(inner, "transport").init(params)
    make(optax.scale_by_adamax(), "reset").init(params)
    make(optax.flatten(optax.scale_by_adam()), "keep").init(params)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inner": 3}, "inner must be an Optax transformation, got 3"),
        ({"projection": 0.25}, "projection must be a Projection or a tree of them, got 0.25"),
        ({"update_proj_gap": 0}, "update_proj_gap must be a positive integer .*, got 0"),
        ({"update_proj_gap": 2.5}, "update_proj_gap must be .*, got 2.5"),
        ({"on_refresh": "carry"}, "on_refresh must be one of .*, got 'carry'"),
        ({"complement": "add"}, "complement must be one of .*, got 'add'"),
        ({"stagger": 1}, "stagger must be True or False, got 1"),
        ({"match_size": 1}, "match_size must be True or False, got 1"),
        ({"match_size": True, "complement": "pass"}, 'match_size needs complement="drop"'),
        ({"seed": 0.5}, "seed must be an integer in .*, got 0.5"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_arguments_are_refused_at_construction(arguments, message):
    with pytest.raises(ValueError, match=message):
        tg.in_subspace(**({"inner": optax.sgd(1.0), "projection": tg.Tucker()} | arguments))


@pytest.mark.parametrize("argument", [{"mode": "product"}, {"order": "first"}])
@pytest.mark.usefixtures("unchecked")
def test_tensorgrad_refuses_unknown_choices(argument):
    with pytest.raises(ValueError, match=r"tensorgrad: .* must be .*, got"):
        tg.tensorgrad(1e-3, **argument)


def test_tensorgrad_options_change_the_update():
    specs = {"pair": tg.TensorSpec(0), "complex": None, "dense": None}
    results = {}
    for name, options in {
        "default": {},
        "sum": {"mode": "sum"},
        "order": {"order": "low_rank_first", "sparse_type": "topk"},
        "topk": {"sparse_type": "topk"},
        "lambda": {"lambda_sparse": 2.0},
        "decay": {"weight_decay": 0.5},
        "seed": {"seed": 1},
        "size": {"match_size": False},
        "rank": {"rank": 0.1},
        "ratio": {"sparse_ratio": 0.2},
    }.items():
        params, _ = train(tg.tensorgrad(1e-2, specs=specs, **options), 2)
        results[name] = np.asarray(params["pair"])
    names = list(results)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            assert np.abs(results[a] - results[b]).max() > 1e-4, (a, b)


def test_bfloat16_parameters_have_float32_moments():
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), {"w": random_params()["pair"]})
    optimizer = tg.tensorgrad(1e-2, specs={"w": tg.TensorSpec(0)})
    state = optimizer.init(params)
    updates, after = jax.jit(optimizer.update)(params, state, params)
    assert struct(after) == struct(state)
    moments = jax.tree.leaves((after[0].inner.mu, after[0].inner.nu))
    assert {str(x.dtype) for x in moments} == {"float32"}
    assert updates["w"].dtype == jnp.bfloat16  # as Optax's: that of the gradients
    assert optax.apply_updates(params, updates)["w"].dtype == jnp.bfloat16


def test_planned_ranks_go_where_the_energy_is():
    """Most of the energy of a mode with fast decay lies in few of its singular vectors."""
    r = np.random.default_rng(0)
    x = r.normal(size=(12, 10, 8)) * 0.3 ** np.arange(12)[:, None, None]
    gradients = {"w": jnp.asarray(x, jnp.float32), "b": jnp.ones(3)}
    ranks = tg.plan_ranks(gradients, 0.2)
    assert ranks["b"] is None
    assert np.prod(ranks["w"]) <= 0.2 * 960
    assert ranks["w"][0] < 6 < ranks["w"][1]

    def error(projection):
        t = gradients["w"]
        basis = projection.refresh(jax.random.key(0), t, projection.init(t))
        return float(jnp.linalg.norm(t - projection.lift(projection.project(t, basis), basis)))

    assert error(tg.Tucker(ranks["w"])) < 0.7 * error(tg.Tucker(0.2))
    projections = jax.tree.map(tg.Tucker, ranks, is_leaf=lambda r: isinstance(r, tuple))
    optimizer = tg.in_subspace(tg.scale_by_adam(), projections)
    state = optimizer.init(gradients)
    assert state.inner.mu["w"].shape == ranks["w"]
    assert state.inner.mu["b"].shape == (3,)
    with pytest.raises(ValueError, match=r"budget must be a number in \(0, 1\], got 1.5"):
        tg.plan_ranks(gradients, 1.5)


def test_planned_ranks_of_pairs_and_stacks():
    r = np.random.default_rng(0)
    gradients = {"w": jnp.asarray(r.normal(size=(2, 3, 8, 6)), jnp.float32)}
    ranks = tg.plan_ranks(gradients, 0.5, {"w": tg.TensorSpec(0, (1,))})
    assert len(ranks["w"]) == 2
    assert np.prod(ranks["w"]) <= 24


@pytest.mark.parametrize("per_layer", [True, False])
def test_the_order_of_work_does_not_change_the_result(per_layer, monkeypatch):
    monkeypatch.setattr(ordering, "LARGE_BYTES", 0)
    rng = np.random.default_rng(0)
    params = {n: jnp.asarray(rng.normal(size=(2, 4, 5, 6)), jnp.float32) for n in "abc"}
    bad = params | {"b": params["b"].at[0, 0, 0, 0].set(jnp.nan)}
    specs = dict.fromkeys("abc", tg.TensorSpec(0))
    optimizer = tg.projected_adamw(1e-2, COMPOSITE, specs=specs, per_layer=per_layer)
    update = jax.jit(lambda g, s: optimizer.update(g, s, params))
    updates, _ = update(bad, optimizer.init(params))
    # What is not finite in one parameter stays there.
    assert np.isnan(np.asarray(updates["b"])).any()
    expected, _ = update(params, optimizer.init(params))
    for name in "ac":
        np.testing.assert_allclose(updates[name], expected[name], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_an_update_needs_little_more_than_one_tensor(dtype, monkeypatch):
    """Updates of three parameters with all temporaries, refreshes included: 4.5 in float32."""
    monkeypatch.setattr(ordering, "LARGE_BYTES", 0)
    monkeypatch.setattr(pieces, "PIECE_BYTES", 2**14)
    params = {f"w{i}": jax.ShapeDtypeStruct((2, 32, 32, 32), dtype) for i in range(3)}
    optimizer = tg.projected_adamw(1e-2, COMPOSITE, specs=dict.fromkeys(params, tg.TensorSpec(0)))
    state = jax.eval_shape(optimizer.init, params)
    compiled = jax.jit(optimizer.update).lower(params, state, params).compile()
    n_bytes = 4 * 2 * 32**3
    updates = len(params) * n_bytes * jnp.dtype(dtype).itemsize / 4
    assert compiled.memory_analysis().temp_size_in_bytes + updates < 4.5 * n_bytes


def test_one_parameter_after_the_other_needs_less_memory(monkeypatch):
    """Temporaries of one tensor at a time, not of all four, in the compiled update."""
    monkeypatch.setattr(ordering, "LARGE_BYTES", 0)
    params = {f"w{i}": jax.ShapeDtypeStruct((2, 32, 32, 32), jnp.float32) for i in range(4)}
    specs = dict.fromkeys(params, tg.TensorSpec(0))
    temporaries = {}
    for per_layer in (True, False):
        optimizer = tg.projected_adamw(1e-2, COMPOSITE, specs=specs, per_layer=per_layer)

        def step(params, state, gradients, optimizer=optimizer):
            updates, state = optimizer.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        state = jax.eval_shape(optimizer.init, params)
        compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile()
        temporaries[per_layer] = compiled.memory_analysis().temp_size_in_bytes
    assert temporaries[True] < 0.95 * temporaries[False]
