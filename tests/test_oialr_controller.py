"""Warm-up, conversion and checks over a run of trees of parameters."""

import dataclasses
import pathlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tensorgrad_jax import oialr
from tensorgrad_jax.oialr.low_rank import cut_rank
from tensorgrad_jax.oialr.trees import lift

PEER = np.load(pathlib.Path(__file__).parent / "golden" / "oialr.npz")
BATCH = 32
N = len(PEER["run/images"])


def start():
    """Return the original's parameters at its start; PyTorch's layout, (outputs, inputs)."""
    return {
        name: {k: jnp.asarray(PEER[f"run/{name}.{k}"]) for k in ("weight", "bias")}
        for name in "02468"
    }


def loss(params, batch):
    x, y = batch
    for name in "0246":
        x = jax.nn.relu(x @ params[name]["weight"].T + params[name]["bias"])
    logits = x @ params["8"]["weight"].T + params["8"]["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def batch(step):
    taken = np.arange(BATCH * step, BATCH * step + BATCH) % N
    return (
        jnp.asarray(PEER["run/images"][taken] / 16, jnp.float32),
        jnp.asarray(PEER["run/labels"][taken].astype(int)),
    )


def train(controller, params, optimizer, steps, trees=None, biases=True):
    """Return losses, ranks, largest and root mean square update of every step, the trees."""
    compiled = []

    @jax.jit
    def step(params, bases, opt_state, batch):
        compiled.append(jax.tree.map(jnp.shape, params))
        value, g = jax.value_and_grad(lambda p: loss(lift(p, bases), batch))(params)
        updates, opt_state = optimizer.update(g, opt_state, params)
        if not biases:
            for name in bases:
                updates[name[0]]["bias"] *= 0
        cores = jnp.concatenate([updates[name]["weight"].ravel() for name in "0246"])
        size = jnp.stack([jnp.abs(cores).max(), jnp.sqrt(jnp.mean(cores**2))])
        return optax.apply_updates(params, updates), opt_state, value, size

    if trees is None:
        params, bases = controller.start(params)
        trees = oialr.Trees(params, bases, optimizer.init(params))
    values, ranks, sizes = [], [], []
    for number in range(controller.steps, controller.steps + steps):
        trees = controller.step(*trees)
        params, opt_state, value, size = step(*trees, batch(number))
        trees = trees._replace(params=params, opt_state=opt_state)
        values.append(float(value))
        ranks.append([int(x.rank) for x in trees.bases.values()])
        sizes.append(np.asarray(size))
    return np.array(values), ranks, np.array(sizes), trees, compiled


def config(**options):
    base = {
        "delay": 10, "stability_frequency": 10, "sigma_cutoff_fraction": 0.25,
        "network_layer_perc_step": 1.0, "bucket": 1,
    }  # fmt: skip
    return oialr.Config(**(base | options))


def test_forty_steps_are_those_of_the_original():
    """Same start, batches, ranks and losses, in the original's way with moments and layers.

    It hands the optimizer the cores, but not the biases that its layers make new parameters of:
    they stay what they are at the conversion.
    """
    legacy = config(moments="zero", legacy_selection=True, network_layer_perc_step=0.4)
    optimizer = optax.adamw(3e-3, weight_decay=0.01)
    controller = oialr.Controller(optimizer, legacy)
    curve, ranks, _, _, _ = train(controller, start(), optimizer, 40, biases=False)
    assert [r or [0] * 4 for r in ranks] == PEER["run/ranks"].tolist()
    np.testing.assert_allclose(curve, PEER["run/curve"], rtol=1e-4)


def test_a_check_without_a_cut_changes_nothing_of_the_function():
    optimizer = optax.adamw(3e-3)
    controller = oialr.Controller(optimizer, config(delay=3, sigma_cutoff_fraction=0.0))
    trees = train(controller, start(), optimizer, 8)[3]
    before = loss(lift(trees.params, trees.bases), batch(0))
    after = controller.update(*trees, force=True)
    assert any((a.S is None) and (a.U != b.U).any() for a, b in zip(
        after.bases.values(), trees.bases.values(), strict=True))  # fmt: skip
    np.testing.assert_allclose(loss(lift(after.params, after.bases), batch(0)), before, rtol=1e-6)
    core = after.params["2"]["weight"]
    np.testing.assert_allclose(core, jnp.diag(jnp.diagonal(core)), atol=1e-7)


@pytest.mark.parametrize("delay", [100, 300])
def test_no_spike_behind_the_conversion(delay):
    """Adam's steps stay what they were; with moments of zero and a count that goes on they grow."""
    optimizer = optax.adam(1e-3)
    largest, typical = {}, {}
    for moments in ("transport", "zero", "zero+reset_count"):
        options = {"delay": delay, "moments": moments, "stability_frequency": 20}
        controller = oialr.Controller(optimizer, config(**options))
        sizes = train(controller, start(), optimizer, delay + 40)[2]
        of = lambda x: x[delay - 1 :].max() / x[delay // 2 : delay - 1].max()
        largest[moments], typical[moments] = of(sizes[:, 0]), of(sizes[:, 1])
    assert largest["transport"] <= 1.5
    assert typical["transport"] <= 1.5
    assert typical["zero"] > (5 if delay == 300 else 1)


def test_a_mean_gradient_is_carried_with_its_squares():
    """Of a constant gradient Adam's update is +-1 in every entry of the core, as before."""
    optimizer = optax.adam(1.0)
    w = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), jnp.float32)
    g = {"kernel": jnp.asarray(np.random.default_rng(1).normal(size=(6, 4)), jnp.float32)}
    state, params = optimizer.init({"kernel": w}), {"kernel": w}
    for _ in range(30):
        updates, state = optimizer.update(g, state, params)
    np.testing.assert_allclose(jnp.abs(updates["kernel"]), 1, rtol=1e-4)
    options = config(delay=1, keep_last_layer=False)
    trees = oialr.Controller(optimizer, options).step(params, {}, state)
    x = trees.bases["kernel"]
    of_core = {"kernel": x.U.T @ g["kernel"] @ x.Vt.T}
    updates, _ = optimizer.update(of_core, trees.opt_state, trees.params)
    np.testing.assert_allclose(jnp.abs(updates["kernel"]), 1, rtol=1e-2)


def test_moments_are_exactly_those_of_a_core_trained_before():
    """Linear ones: an average of gradients U^H G V is U^H (average) V."""
    optimizer = optax.sgd(1e-2, momentum=0.9)
    controller = oialr.Controller(optimizer, config(delay=4, fixed_inner_dim=True))
    trees = train(controller, start(), optimizer, 3)[3]
    dense = trees.opt_state[0].trace["2"]["weight"]
    after = controller.step(*trees)
    x = after.bases["2.weight"]
    core = after.opt_state[0].trace["2"]["weight"]
    np.testing.assert_allclose(core, x.U.T @ dense @ x.Vt.T, atol=1e-6)
    assert after.opt_state[0].trace["8"]["weight"] is trees.opt_state[0].trace["8"]["weight"]


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(3e-3)),
        optax.inject_hyperparams(optax.adamw)(3e-3),
        optax.MultiSteps(optax.adam(3e-3), 2).gradient_transformation(),
        optax.adamax(3e-3),
        optax.adafactor(3e-3),
        optax.partition(
            {"w": optax.adam(3e-3), "b": optax.sgd(1e-2, momentum=0.9)},
            lambda p: {n: {"weight": "w", "bias": "b"} for n in p},
        ),
        optax.chain(
            optax.masked(
                optax.adam(3e-3), lambda p: {n: {"weight": True, "bias": False} for n in p}
            ),
            optax.masked(
                optax.set_to_zero(), lambda p: {n: {"weight": False, "bias": True} for n in p}
            ),
        ),
        optax.lion(1e-3),
        optax.amsgrad(3e-3),
        optax.sgd(1e-1),
    ],
    ids=[
        "clip",
        "inject",
        "multi",
        "adamax",
        "adafactor",
        "partition",
        "masked",
        "lion",
        "ams",
        "sgd",
    ],
)
def test_any_optax_state_is_carried(optimizer):
    controller = oialr.Controller(optimizer, config(delay=6, stability_frequency=6))
    curve, ranks, _, trees, _ = train(controller, start(), optimizer, 26)
    assert sum(ranks[-1]) < 4 * 48
    assert np.isfinite(curve).all()
    assert curve[-1] < curve[0]
    fresh = optimizer.init(trees.params)
    shapes = lambda s: jax.tree.map(lambda x: (jnp.shape(x), jnp.asarray(x).dtype), s)
    assert shapes(trees.opt_state) == shapes(fresh)


def test_a_mask_that_depends_on_shapes_is_refused():
    small = lambda p: jax.tree.map(lambda x: x.ndim == 2 and x.shape[1] > 50, p)
    optimizer = optax.masked(optax.adam(1e-3), small)
    controller = oialr.Controller(optimizer, config(delay=2))
    with pytest.raises(ValueError, match="its masks must not depend on shapes"):
        train(controller, start(), optimizer, 3)


def test_shapes_that_stay_compile_one_program():
    """`reinit_shapes=False`, or a bucket as large as the layers: one program for all ranks."""
    optimizer = optax.adamw(3e-3)
    runs = {}
    for options in ({"reinit_shapes": False}, {"bucket": 16}, {"bucket": 1}):
        controller = oialr.Controller(optimizer, config(full_rank_warmup=False, **options))
        curve, ranks, _, trees, compiled = train(controller, start(), optimizer, 70)
        assert sum(ranks[-1]) < 4 * 48
        runs[next(iter(options.items()))] = curve, ranks, len(compiled), trees
    static, bucketed, exact = runs.values()
    assert static[2] == 1
    assert bucketed[2] <= 1 + 4 * 2
    assert 1 < bucketed[2] < exact[2] <= 8
    assert static[1] == bucketed[1] == exact[1]
    np.testing.assert_allclose(static[0], exact[0], rtol=1e-3)
    np.testing.assert_allclose(bucketed[0], exact[0], rtol=1e-3)
    for name, x in static[3].bases.items():
        assert x.size == 48
        rank, core = int(x.rank), static[3].params[name[0]]["weight"]
        assert not core[rank:].any()
        assert not core[:, rank:].any()
    assert [x.size for x in exact[3].bases.values()] == exact[1][-1]


def test_checks_can_be_compiled_with_the_steps():
    """With shapes that stay a whole run is one program: a scan whose checks are a `lax.cond`."""
    optimizer, images = optax.sgd(0.1), [batch(i) for i in range(8)]
    batches = jax.tree.map(lambda *x: jnp.stack(x), *images)

    def check(params, bases):
        cut = {n: cut_rank(x.with_core(params[n[0]]["weight"]), 0.25)[0] for n, x in bases.items()}
        cores = {n[0]: params[n[0]] | {"weight": x.S} for n, x in cut.items()}
        return params | cores, {n: x.without_core() for n, x in cut.items()}

    def step(carry, xs):
        (params, bases), (number, batch) = carry, xs
        g = jax.grad(lambda p: loss(lift(p, bases), batch))(params)
        params = optax.apply_updates(params, optimizer.update(g, optimizer.init(params))[0])
        due = (number + 1) % 4 == 0
        return jax.lax.cond(due, check, lambda *x: x, params, bases), None

    begin = oialr.low_rank(start())
    run = jax.jit(lambda *c: jax.lax.scan(step, c, (jnp.arange(8), batches)))
    (_, bases), _ = run(*begin)

    controller = oialr.Controller(
        optimizer, config(delay=0, stability_frequency=4, reinit_shapes=False)
    )
    trees = oialr.Trees(*begin, optimizer.init(begin[0]))
    controller.steps = -1  # before its first step, a check behind step 4 is one before step 5
    trees = train(controller, None, optimizer, 9, trees=trees)[3]
    assert [int(x.rank) for x in trees.bases.values()] == [int(x.rank) for x in bases.values()]
    assert sum(int(x.rank) for x in bases.values()) < 4 * 48


def test_layers_become_low_rank_when_their_bases_have_settled():
    optimizer = optax.adam(1e-3)
    options = {
        "freeze": "stability", "stability_frequency": 5, "delay": 5, "fixed_inner_dim": True,
    }  # fmt: skip
    controller = oialr.Controller(optimizer, config(uvhthreshold=0.9985, **options))
    train(controller, start(), optimizer, 120)
    factored = {n: e.step for e in controller.events if e.what == "factored" for n in e.ranks}
    assert len(set(factored.values())) > 1  # each at its own time
    assert min(factored.values()) > 5  # the first look has nothing to compare with
    assert all(step % 5 == 0 for step in factored.values())
    never = oialr.Controller(optimizer, config(uvhthreshold=1.0, **options))
    train(never, start(), optimizer, 20)
    assert not never.events


def test_what_the_schedule_options_change():
    optimizer = optax.sgd(1e-3)

    def events(**options):
        controller = oialr.Controller(optimizer, config(**options))
        params, bases = controller.start(start())
        trees = oialr.Trees(params, bases, optimizer.init(params))
        for _ in range(31):
            trees = controller.step(*trees)
        return [(e.step, e.what, len(e.ranks)) for e in controller.events]

    assert events() == [(10, "factored", 4)] + [(t, "checked", 4) for t in (10, 20, 30)]
    assert events(delay=15) == [(15, "factored", 4), (15, "checked", 4), (25, "checked", 4)]
    assert events(fixed_inner_dim=True) == [(10, "factored", 4)]
    assert events(step_on_forward=False) == []
    begin = [(0, "factored", 4)]
    assert events(full_rank_warmup=False) == begin + [(t, "checked", 4) for t in (10, 20, 30)]
    assert events(delay=0, stability_frequency=15) == begin + [
        (15, "checked", 4),
        (30, "checked", 4),
    ]
    counts = lambda **o: [e[2] for e in events(stability_frequency=5, **o) if e[1] == "checked"]
    assert counts(stable_update_delay=1) == [4, 4, 4]
    assert counts() == [4, 4, 4, 4, 4]
    # The first check of the original leaves out the first layer: floor(1.0 * 3) are looked at.
    assert counts(stable_update_delay=1, legacy_selection=True) == [3, 4, 4, 4, 4]
    assert counts(stable_update_delay=2, legacy_selection=True) == [3, 1, 3, 1, 3]
    assert counts(network_layer_perc_step=0.3) == [2, 3, 4, 4, 4]
    assert counts(network_layer_perc_step=0.3, legacy_selection=True) == [4] * 5
    assert counts(network_layer_perc_step=0.4, legacy_selection=True) == [1, 2, 3, 4, 4]
    assert events(keep_first_layer=True)[0] == (10, "factored", 3)
    assert events(keep_last_layer=False)[0] == (10, "factored", 5)


def test_manual_updates():
    optimizer = optax.adam(1e-3)
    controller = oialr.Controller(optimizer, config(step_on_forward=False))
    trees = train(controller, start(), optimizer, 12)[3]
    trees = controller.update(*trees)
    assert [e.what for e in controller.events] == ["factored", "checked"]
    assert controller.update(*trees).params is trees.params  # nothing is due
    controller.update(*trees, force=True)
    assert [e.what for e in controller.events][2:] == ["checked"]


def test_the_share_of_singular_values_at_first():
    optimizer = optax.adam(1e-3)
    options = {"full_rank_warmup": False, "inner_dim_init_ratio": 0.5}
    controller = oialr.Controller(optimizer, config(**options))
    params, bases = controller.start(start())
    assert [int(x.rank) for x in bases.values()] == [24] * 4
    dense = start()["2"]["weight"]
    u, s, vt = np.linalg.svd(np.asarray(dense))
    expected = (u[:, :24] * s[:24]) @ vt[:24]
    np.testing.assert_allclose(lift(params, bases)["2"]["weight"], expected, atol=1e-6)


def test_a_layer_that_is_not_finite_stays_dense():
    optimizer = optax.sgd(0.0)
    params = start()
    params["2"]["weight"] = params["2"]["weight"].at[0, 0].set(jnp.nan)
    controller = oialr.Controller(optimizer, config(delay=1))
    trees = oialr.Trees(params, {}, optimizer.init(params))
    with pytest.warns(RuntimeWarning, match=r"'2.weight' is not finite and stays dense"):
        trees = controller.step(*trees)
    assert sorted(trees.bases) == ["0.weight", "4.weight", "6.weight"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trees = controller.step(*trees)


def test_decompositions_are_divided_among_devices():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    used = []
    real = oialr.checking._cut_rank

    def watched(x, fraction):
        used.append(sorted(d.id for d in x.S.sharding.device_set))
        return real(x, fraction)

    results = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(oialr.checking, "_cut_rank", watched)
        for options in ({}, {"use_ddp": False}, {"distributed_updates": False}):
            used.clear()
            optimizer = optax.adam(1e-3)
            controller = oialr.Controller(optimizer, config(delay=1, **options))
            params = jax.device_put(start(), whole)
            state = jax.device_put(optimizer.init(params), whole)
            trees = controller.step(params, {}, state)
            assert all(x.sharding.device_set == whole.device_set
                       for x in jax.tree.leaves(trees[:2]))  # fmt: skip
            assert used == ([[0], [1], [2], [3]] if not options else [[0, 1, 2, 3]] * 4)
            results[tuple(options)] = lift(trees.params, trees.bases)["2"]["weight"]
    for other in results.values():
        np.testing.assert_allclose(other, results[()], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delay": -1}, r"oialr: delay must be an integer in \[0, 2\*\*31\), got -1"),
        ({"stability_frequency": 0}, r"stability_frequency must be an integer in \[1"),
        ({"stable_update_delay": 1.5}, "stable_update_delay must be an integer"),
        ({"bucket": 0}, "bucket must be an integer"),
        (
            {"sigma_cutoff_fraction": 1.0},
            r"sigma_cutoff_fraction must be a number in \[0, 1\), got",
        ),
        ({"sigma_cutoff_fraction": float("nan")}, "sigma_cutoff_fraction must be"),
        ({"inner_dim_init_ratio": 0}, r"inner_dim_init_ratio must be a number in \(0, 1\], got 0"),
        ({"network_layer_perc_step": 2}, r"network_layer_perc_step must be a number in \(0, 1\]"),
        ({"uvhthreshold": 2}, r"uvhthreshold must be a number in \[-1, 1\], got 2"),
        ({"freeze": "never"}, "freeze must be 'delay' or 'stability', got 'never'"),
        ({"moments": "slice"}, "moments must be one of .*, got 'slice'"),
        ({"reinit_shapes": 1}, "reinit_shapes must be True or False, got 1"),
        ({"freeze": "stability", "delay": 0}, "freeze='stability' needs delay >= 1"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_options_that_are_none(options, message):
    with pytest.raises(ValueError, match=message):
        oialr.Config(**options)


def test_a_threshold_without_effect_is_said():
    with pytest.warns(DeprecationWarning, match="uvhthreshold=0.99 has no effect"):
        oialr.Config(uvhthreshold=0.99)
    assert dataclasses.replace(oialr.Config(), freeze="stability", uvhthreshold=0.99)


def test_what_a_controller_refuses():
    with pytest.raises(ValueError, match="no layer can become low-rank"):
        oialr.Controller(None, config()).start({"bias": jnp.ones(4)})
    with pytest.raises(ValueError, match="'nothing' is no kernel of these parameters"):
        oialr.Controller(None, config(), order=["nothing"]).start(start())
    controller = oialr.Controller(None, config(delay=1))
    with pytest.raises(ValueError, match="knows no optimizer"):
        controller.step(start(), {}, optax.adam(1e-3).init(start()))
