"""Tensors whose axes get their factors each at its own time."""

import copy
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tensorgrad_jax as tg
from tensorgrad_jax import oialr
from tensorgrad_jax.oialr.axes import axis_overlap, leading_basis, without_factor
from tensorgrad_jax.oialr.kernels import Kernel
from tensorgrad_jax.oialr.tensors import factor_tensor, whole, with_factors
from tensorgrad_jax.oialr.trees import lift

NAME = "spectral_weight"
SHAPE = (2, 4, 8, 6)
SHARES = (1.0, 0.5, 0.5)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def fading(*shape, seed=0):
    """Return a tensor whose leading subspaces are well apart from what they leave."""
    sizes = [jnp.where(jnp.arange(d) < d // 2, 1, 0.1) for d in shape[-2:]]
    return normal(*shape, seed=seed) * sizes[0][:, None] * sizes[1]


def turned(w, axis, angle):
    """Turn two directions of an axis: one of the leading half, one of the others."""
    u = np.eye(w.shape[axis], dtype=np.float32)
    c, s = np.cos(angle), np.sin(angle)
    u[0, 0], u[-1, -1], u[0, -1], u[-1, 0] = c, c, -s, s
    return jnp.moveaxis(jnp.tensordot(jnp.asarray(u), w, (1, axis)), 0, axis)


def config(**options):
    base = {
        "freeze": "stability", "delay": 2, "stability_frequency": 2, "keep_last_layer": False,
        "network_layer_perc_step": 1.0, "bucket": 1, "fixed_inner_dim": True,
    }  # fmt: skip
    return oialr.Config(**(base | options))


def controller(optimizer=None, **options):
    return oialr.Controller(optimizer or optax.sgd(0.0), config(**options), oialr.spectral(0.5))


def begin(run, w):
    """Go to the first look."""
    trees = oialr.Trees({NAME: w}, {}, run.optimizer.init({NAME: w}))
    return run.step(*run.step(*trees))


def moved(run, trees, axis, angle, steps=2):
    """Turn an axis of the dense weight, and go to the next look."""
    w = trees.params[NAME]
    if angle:
        w = turned(w, axis, angle)
    trees = trees._replace(params={NAME: w})
    for _ in range(steps):
        trees = run.step(*trees)
    return trees


def factors(trees):
    x = trees.bases.get(NAME)
    return None if x is None else [u is not None for u in x.factors]


def test_overlap_of_leading_subspaces():
    w = fading(*SHAPE)
    a, b = leading_basis(w, 1, 4), leading_basis(turned(w, 2, np.pi / 2), 1, 4)
    assert a.shape == (8, 4)
    np.testing.assert_allclose(a.T @ a, np.eye(4), atol=1e-5)
    u, _, _ = np.linalg.svd(np.moveaxis(np.asarray(w), 2, 0).reshape(8, -1))
    np.testing.assert_allclose(a @ a.T, u[:, :4] @ u[:, :4].T, atol=1e-4)
    np.testing.assert_allclose(axis_overlap(a, a), 1, atol=1e-6)
    # One of four directions has gone elsewhere.
    np.testing.assert_allclose(axis_overlap(a, b), 3 / 4, atol=0.02)
    # Whichever basis a subspace is given by.
    np.testing.assert_allclose(axis_overlap(a, a @ jnp.linalg.qr(normal(4, 4))[0]), 1, atol=1e-6)


def test_directions_of_nothing_but_rounding_do_not_count():
    w = factor_tensor(fading(*SHAPE), (1.0, 2 / 8, 1.0)).weight()
    a = leading_basis(w, 1, 4)
    assert jnp.linalg.norm(a, axis=0).round(5).tolist() == [1, 1, 0, 0]
    # A subspace within the other: nothing has turned.
    np.testing.assert_allclose(axis_overlap(a[:, :1], a), 1, atol=1e-6)
    assert not leading_basis(jnp.zeros(SHAPE), 1, 4).any()
    assert axis_overlap(jnp.zeros((8, 4)), a) == 0
    assert jnp.isnan(axis_overlap(leading_basis(w.at[0, 0, 0, 0].set(jnp.nan), 1, 4), a))


def test_axes_factored_one_after_the_other_are_those_factored_together():
    w = fading(*SHAPE)
    together = factor_tensor(w, SHARES)
    first, change = with_factors(whole(w), (None, 4, None))
    assert [u is None for u in first.factors] == [True, False, True]
    assert first.size == [4, 4, 6] == first.rank.tolist()
    assert first.ranks() == (4,)
    np.testing.assert_allclose(change.linear(w), first.S, atol=1e-6)
    second, change = with_factors(first, without_factor(SHAPE, SHARES, first.factors))
    assert change.matrices[1] is None
    np.testing.assert_allclose(change.linear(first.S), second.S, atol=1e-6)
    np.testing.assert_allclose(second.weight(), together.weight(), atol=1e-5)
    assert without_factor(SHAPE, SHARES, second.factors) == (None, None, None)


def test_an_axis_freezes_alone_and_the_other_at_its_own_time():
    run, w = controller(), fading(*SHAPE)
    trees = begin(run, w)  # the first look
    assert factors(trees) is None
    assert list(run.previous) == [NAME]
    trees = moved(run, trees, 3, 0.6)  # the last axis turns, the one before it stays
    assert factors(trees) == [False, True, False]
    assert trees.params[NAME].shape == (2, 4, 4, 6)
    assert run.previous[NAME][1] is None
    trees = moved(run, trees, 3, 0.6)
    assert factors(trees) == [False, True, False]
    frozen = trees.bases[NAME].factors[1]
    trees = moved(run, trees, 3, 0)
    assert factors(trees) == [False, True, True]
    assert trees.params[NAME].shape == (2, 4, 4, 3)
    np.testing.assert_array_equal(trees.bases[NAME].factors[1], frozen)
    assert not run.previous
    assert [(e.step, e.what, e.ranks[NAME]) for e in run.events] == [
        (4, "factored", (4,)), (8, "factored", (4, 3))
    ]  # fmt: skip


def test_freezing_an_axis_drops_what_its_factor_leaves_and_nothing_else():
    run, w = controller(), fading(*SHAPE)
    trees = begin(run, w)
    before = turned(trees.params[NAME], 3, 0.6)
    trees = moved(run, trees, 3, 0.6)
    after = lift(trees.params, trees.bases)[NAME]
    values = np.linalg.svd(np.moveaxis(np.asarray(before), 2, 0).reshape(8, -1), compute_uv=False)
    lost = np.sqrt(np.sum(values[4:] ** 2))
    np.testing.assert_allclose(jnp.linalg.norm(after - before), lost, rtol=1e-4)
    # A weight of that rank goes on unchanged.
    flat = factor_tensor(w, SHARES).weight()
    run = controller(uvhthreshold=0.5)
    trees = begin(run, flat)
    for _ in range(2):
        trees = run.step(*trees)
    assert factors(trees) == [False, True, True]
    np.testing.assert_allclose(lift(trees.params, trees.bases)[NAME], flat, atol=1e-5)


def test_an_axis_that_never_settles_stays_whole():
    run, w = controller(), fading(*SHAPE)
    trees = begin(run, w)
    for _ in range(4):
        trees = moved(run, trees, 3, 0.6)
    assert factors(trees) == [False, True, False]
    report = oialr.param_report(trees.params, trees.bases)
    assert report.ranks == {NAME: (4,)}
    assert report.trainable == 2 * 4 * 4 * 6
    lost = controller()
    trees = begin(lost, w)
    trees = trees._replace(params={NAME: w.at[0, 0, 0, 0].set(jnp.nan)})
    for _ in range(6):
        trees = lost.step(*trees)
    assert not trees.bases


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_moments_are_those_of_a_core_trained_before(name):
    """Exactly, where they are linear: an average of core gradients is the core of the average."""
    optimizer = {"momentum": optax.sgd(0.0, momentum=0.9), "adam": optax.adam(0.0)}[name]
    run, w = controller(optimizer), fading(*SHAPE)
    of = lambda s: s[0].trace[NAME] if name == "momentum" else s[0].mu[NAME]
    trees, gradients = oialr.Trees({NAME: w}, {}, optimizer.init({NAME: w})), []

    def trained(trees, angle):
        for number in range(2):
            trees = run.step(*trees)
            gradients.append(normal(*SHAPE, seed=len(gradients)))
            x = trees.bases.get(NAME)
            g = gradients[-1]
            for axis, u in enumerate(x.factors if x else ()):
                if u is not None:
                    g = jnp.moveaxis(jnp.tensordot(g, u, (axis + 1, 0)), -1, axis + 1)
            _, state = optimizer.update({NAME: g}, trees.opt_state, trees.params)
            moved = turned(trees.params[NAME], 3, angle) if number else trees.params[NAME]
            trees = trees._replace(params={NAME: moved}, opt_state=state)
        return trees

    for angle in (0.6, 0.6, 0.0, 0.0):
        trees = trained(trees, angle)
    assert factors(trees) == [False, True, True]
    assert len(run.events) == 2
    x = trees.bases[NAME]
    decay = 0.9
    expected = sum(decay ** (len(gradients) - 1 - i) * g for i, g in enumerate(gradients))
    expected = expected * (1 if name == "momentum" else 1 - decay)
    for axis, u in ((2, x.factors[1]), (3, x.factors[2])):
        expected = jnp.moveaxis(jnp.tensordot(expected, u, (axis, 0)), -1, axis)
    np.testing.assert_allclose(of(trees.opt_state), expected, atol=1e-5)
    if name == "adam":
        assert trees.opt_state[0].nu[NAME].shape == trees.params[NAME].shape
        assert (trees.opt_state[0].nu[NAME] > 0).all()


def test_checks_cut_the_axes_that_have_factors():
    run = controller(fixed_inner_dim=False, sigma_cutoff_fraction=0.9)
    trees = begin(run, fading(*SHAPE))
    for _ in range(3):
        trees = moved(run, trees, 3, 0.6)
    x = trees.bases[NAME]
    assert factors(trees) == [False, True, False]
    assert x.ranks()[0] < 4
    assert trees.params[NAME].shape == (2, 4, x.size[1], 6)


def trainer(optimizer):
    """Return what trains for some steps; until step 30 the last axis is turned."""
    target = fading(*SHAPE, seed=5)

    @jax.jit
    def step(params, bases, state):
        loss = lambda p: jnp.sum((lift(p, bases)[NAME] - target) ** 2)
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    def train(run, trees, steps):
        for _ in range(steps):
            trees = run.step(*trees)
            params, state = step(*trees)
            if run.steps < 30:
                params = {NAME: turned(params[NAME], 3, 0.3)}
            trees = trees._replace(params=params, opt_state=state)
        return trees

    return train


def test_a_run_resumed_between_two_axes_is_the_run():
    optimizer = optax.adam(0.002)
    params = {NAME: fading(*SHAPE)}
    train = trainer(optimizer)
    make = lambda: controller(optimizer, fixed_inner_dim=False)
    run = make()
    trees = oialr.Trees(params, {}, optimizer.init(params))
    counts, stops = [], []
    for _ in range(50):
        trees = train(run, trees, 1)
        counts.append(sum(factors(trees) or [0]))
        stops.append((json.dumps(run.record(trees.bases)), trees, copy.copy(run.previous)))
    assert {0, 1, 2} == set(counts)
    for number in (counts.index(1) - 1, counts.index(1), counts.index(2) - 1, counts.index(2)):
        record, saved, previous = stops[number]
        again = make()
        structs = again.restore(json.loads(record), params)
        shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
        assert shapes(structs) == shapes((saved.params, saved.bases))
        assert shapes(again.previous) == shapes(previous)
        again.previous = previous
        result = train(again, saved, 50 - 1 - number)
        for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(trees), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_last_look_that_was_not_read_is_missed():
    optimizer = optax.sgd(0.0)
    run = controller(optimizer)
    trees = begin(run, fading(*SHAPE))
    again = controller(optimizer)
    again.restore(run.record(trees.bases), trees.params)
    with pytest.raises(ValueError, match=r"`previous`.* has not been read from the checkpoint"):
        again.step(*again.step(*trees))
    record = run.record(trees.bases) | {"sizes": {NAME: [4, 5, 6]}}
    with pytest.raises(ValueError, match="has no core of size"):
        controller(optimizer).restore(record, trees.params)
    record = run.record(trees.bases) | {"sizes": {NAME: [4, 4, 3]}}
    with pytest.raises(ValueError, match=f"nothing of '{NAME}' is left to settle"):
        controller(optimizer).restore(record, trees.params)


def test_matrices_and_axes_have_thresholds_of_their_own():
    assert [oialr.Config().threshold(of_axes) for of_axes in (False, True)] == [0.999, 0.99]
    assert [config(uvhthreshold=0.9).threshold(x) for x in (False, True)] == [0.9, 0.9]


def test_tensors_are_divided_among_devices():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    used, real, results = [], oialr.checking._cut_rank, []

    def watched(x, fraction):
        used.append(sorted(d.id for d in x.S.sharding.device_set))
        return real(x, fraction)

    params = {n: {NAME: fading(*SHAPE, seed=i)} for i, n in enumerate("ab")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(oialr.checking, "_cut_rank", watched)
        for divided in (True, False):
            used.clear()
            options = config(
                freeze="delay", delay=1, fixed_inner_dim=False, distributed_updates=divided
            )
            optimizer = optax.adam(0.1)
            run = oialr.Controller(optimizer, options, oialr.spectral(0.5))
            placed = jax.device_put((params, optimizer.init(params)), everywhere)
            trees = run.step(placed[0], {}, placed[1])
            assert used == ([[0], [1]] if divided else [[0, 1]] * 2)
            of = jax.tree.leaves((trees.params, trees.bases))
            assert all(x.sharding.device_set == everywhere.device_set for x in of)
            results.append(lift(trees.params, trees.bases)["b"][NAME])
    np.testing.assert_allclose(*results, atol=1e-6)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (tg.tensorgrad(1e-3), r"in_subspace \(.*\) keeps moments of 'a.spectral_weight' in a sub"),
        (tg.projected_adamw(1e-3, tg.Tucker(0.5)), "in_subspace .* leave the kernels out of its"),
        (tg.subspace_momentum(1e-3, tg.Tucker(0.5)), "in_subspace"),
        (tg.filter_by(tg.Tucker(0.5)), "in_subspace"),
        (optax.chain(optax.clip(1.0), tg.tensorgrad(1e-3)), "in_subspace"),
        (
            tg.scale_by_adam(mu_dtype=jnp.int8),
            "of 'a.spectral_weight' in 8 bits .*bfloat16",
        ),
    ],
    ids=["tensorgrad", "projected", "momentum", "filter", "chain", "8 bits"],
)
def test_optimizers_whose_moments_cores_cannot_take_over_are_refused_at_once(optimizer, message):
    params = {"a": {NAME: normal(2, 8, 8, 16)}, "bias": jnp.ones(3)}
    run = oialr.Controller(optimizer, config(delay=1000), oialr.spectral(0.5))
    with pytest.raises(ValueError, match=message):
        run.step(params, {}, optimizer.init(params))


def test_a_subspace_of_other_parameters_is_no_matter():
    params = {"a": {NAME: normal(2, 8, 8, 16)}, "b": normal(6, 6, 6)}
    specs = lambda p: {"a": {NAME: None}, "b": tg.TensorSpec()}
    optimizer = tg.in_subspace(optax.trace(0.9), tg.StructuredSparse(0.5), specs=specs)
    options = config(freeze="delay", delay=2)
    run = oialr.Controller(optimizer, options, oialr.spectral(0.5))
    trees = oialr.Trees(params, {}, optimizer.init(params))
    for _ in range(2):
        trees = run.step(*trees)
        _, state = optimizer.update(jax.tree.map(jnp.ones_like, trees.params), trees.opt_state)
        trees = trees._replace(opt_state=state)
    assert trees.params["a"][NAME].shape == (2, 8, 4, 8)
    assert jnp.linalg.norm(trees.opt_state.inner.trace[f"a.{NAME}"]) > 0
    assert trees.opt_state.basis.keys() == {"b"}


def test_kernels_of_ones_own_freeze_any_axis():
    kernels = lambda name, leaf: Kernel(leaf.ndim - 1, shares=(0.5, 0.5, 1.0))
    run = oialr.Controller(optax.sgd(0.0), config(uvhthreshold=0.9), kernels)
    trees = oialr.Trees({"w": normal(*SHAPE)}, {}, run.optimizer.init({"w": normal(*SHAPE)}))
    for _ in range(4):
        trees = run.step(*trees)
    assert trees.params["w"].shape == (2, 2, 4, 6)


def test_a_history_tells_of_every_axis_by_itself(tmp_path):
    """Also of cores, and not of what ranks are cut by; files and pictures name the axes."""
    w, history = fading(*SHAPE), oialr.History(oialr.spectral(0.5))
    history.record(0, {NAME: w})
    history.record(1, {NAME: turned(w, 3, 0.6)})
    first, second = history.rows[-1].stability, turned(w, 3, 0.6)
    assert list(first) == [f"{NAME} axis 2", f"{NAME} axis 3"] == list(history.rows[-1].axes)
    expected = [axis_overlap(leading_basis(a, i, k), leading_basis(b, i, k))
                for a, b, i, k in ((w, second, 1, 4), (w, second, 2, 3))]  # fmt: skip
    np.testing.assert_allclose(list(first.values()), expected, atol=1e-6)
    np.testing.assert_allclose(first[f"{NAME} axis 2"], 1, atol=1e-5)
    assert 0.8 < first[f"{NAME} axis 3"] < 0.95
    assert history.rows[-1].r_similarity[f"{NAME} axis 2"] == pytest.approx(1, abs=1e-4)
    assert history.rows[-1].r_similarity[f"{NAME} axis 3"] < 0.95
    x = factor_tensor(second, SHARES)
    history.record(2, {NAME: x.S}, {NAME: x.without_core()})
    np.testing.assert_allclose(list(history.rows[-1].stability.values()), 1, atol=0.02)
    cut, _ = x.cut_rank(0.9)
    assert min(cut.ranks()) < 3
    history.record(3, {NAME: cut.S}, {NAME: cut.without_core()})
    np.testing.assert_allclose(list(history.rows[-1].stability.values()), 1, atol=0.02)
    files = oialr.stability_report(history, tmp_path)
    assert all(f.exists() for f in files)
    head = (tmp_path / "stability.csv").read_text().splitlines()[0]
    assert head == f"step,{NAME} axis 2,{NAME} axis 3,mean"


def test_matrices_and_tensors_in_one_history(tmp_path, monkeypatch):
    kernels = lambda name, leaf: oialr.spectral(0.5)(name, leaf) or oialr.by_shape(name, leaf)
    history = oialr.History(kernels, order=["b.kernel", f"a.{NAME}"])
    for step in range(2):
        tree = {"a": {NAME: fading(*SHAPE, seed=step)}, "b": {"kernel": normal(6, 6, seed=step)}}
        history.record(step, tree)
    row = history.rows[0]
    assert list(row.stability) == ["b.kernel", f"a.{NAME} axis 2", f"a.{NAME} axis 3"]
    assert -1 <= row.stability["b.kernel"] <= 1
    labels = []
    draw = lambda steps, rows, label, title, path: labels.append(label)
    monkeypatch.setattr("tensorgrad_jax.oialr.heat_map.draw", draw)
    oialr.stability_report(history, tmp_path)
    only = [row._replace(stability={n: row.stability[n] for n in row.axes})]
    oialr.stability_report(only, tmp_path)
    assert labels[::2] == [
        "stability of U V^T; overlap of leading subspaces", "overlap of leading subspaces"
    ]  # fmt: skip
