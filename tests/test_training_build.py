"""The options become the projections and the gaps that they name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tensorgrad_jax as tg
from tensorgrad_jax.training.build import (
    ForgottenEntries,
    build_gap,
    build_model,
    build_optimizer,
    build_projection,
)
from tensorgrad_jax.training.config import parse
from tensorgrad_jax.training.losses import LOSSES
from tensorgrad_jax.training.step import (
    Encoding,
    TrainState,
    independent_parts,
    make_train_step,
)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("", None),
        ("--opt.tensorgrad True", tg.Residual(tg.UnstructuredSparse(0.05), tg.Tucker(0.2))),
        ("--opt.tensorgrad False", None),
        ("--opt.tensorgrad True --opt.proj_type low_rank --opt.rank 0.25", tg.Tucker(0.25)),
        (
            "--opt.proj_type low_rank --opt.svd_type randomized --opt.n_iter_max_tucker 3",
            tg.Tucker(0.25, n_iter=3, method="randomized"),
        ),
        (
            "--opt.proj_type structured_sparse --opt.sparse_ratio 0.1 "
            "--opt.sparse_type probability",
            tg.StructuredSparse(0.1, "probability"),
        ),
        (
            "--opt.optimizer_type tensorgrad_sum --opt.proj_type low_rank "
            "--opt.second_proj_type structured_sparse --opt.second_sparse_type topk "
            "--opt.tensorgrad_sum_lambda_sparse 0.5",
            tg.Sum(tg.Tucker(0.25), tg.StructuredSparse(0.05, "topk"), (1.0, 0.5)),
        ),
        ("--opt.proj_type low_rank --opt.scale 0.5", tg.Tucker(0.25, scale=0.5)),
        (
            "--opt.tensorgrad True --opt.scale 3 --opt.tensorgrad_sum_lambda_sparse 0.5 "
            "--opt.scale_by_mask_ratio True",
            tg.Residual(
                tg.UnstructuredSparse(0.05, scale_by_mask_ratio=True), tg.Tucker(0.2), (1.5, 1.0)
            ),
        ),
        (
            "--opt.proj_type structured_sparse --opt.scale_by_mask_ratio True",
            tg.StructuredSparse(0.05, "randk", scale_by_mask_ratio=True),
        ),
        (
            "--opt.tensorgrad True --opt.svd_type svd --opt.tucker_warm_restart False",
            tg.Residual(
                tg.UnstructuredSparse(0.05), tg.Tucker(0.2, method="svd", warm_restart=False)
            ),
        ),
        (
            "--opt.tensorgrad True --opt.naive_galore True --opt.galore_2d_proj_type left "
            "--opt.first_dim_rollup 3",
            tg.Residual(
                tg.UnstructuredSparse(0.05), tg.MatrixLowRank(0.2, "left", row_axes=(-2, -1, 0))
            ),
        ),
        (
            "--opt.tensorgrad True --opt.reset_sparse_optimizer_states True",
            tg.Residual(ForgottenEntries(0.05), tg.Tucker(0.2)),
        ),
    ],
)
def test_projections(flags, expected):
    assert build_projection(parse(flags.split()).opt) == expected


@pytest.mark.parametrize(("separable", "rollup"), [(False, 1), (False, 2), (False, 3), (True, 2)])
@pytest.mark.parametrize("side", ["std", "reverse_std", "left", "right", "full"])
def test_galore_projects_as_in_the_layout_of_the_reference(separable, rollup, side):
    """Weights are (*modes, in, out) here and (in, out, *modes) there: the same is kept of both."""
    flags = "--opt.proj_type low_rank --opt.rank 2 --opt.naive_galore True"
    flags += f" --opt.first_dim_rollup {rollup} --opt.galore_2d_proj_type {side}"
    ours = build_projection(parse(flags.split()).opt, separable)
    assert isinstance(ours, tg.MatrixLowRank)
    theirs = tg.MatrixLowRank(2, side, row_axes=rollup)
    shape = (4, 3, 5) if separable else (4, 3, 5, 2)
    r = np.random.default_rng(0)
    g = jnp.asarray(r.normal(size=shape) + 1j * r.normal(size=shape), jnp.complex64)
    order = (2, 0, 1) if separable else (2, 3, 0, 1)

    def kept(projection, tensor):
        basis = projection.refresh(jax.random.key(0), tensor, projection.init(tensor))
        return projection.lift(projection.project(tensor, basis), basis)

    expected = kept(theirs, g.transpose(order))
    assert 0.1 < jnp.linalg.norm(expected) / jnp.linalg.norm(g) < 0.999
    np.testing.assert_allclose(kept(ours, g).transpose(order), expected, atol=1e-5)


@pytest.mark.parametrize("reset", [False, True])
def test_only_single_entries_are_forgotten(reset):
    """With all entries kept nothing would be lost at a refresh; the option forgets them."""
    flags = "--opt.proj_type low_rank --opt.rank 1.0 --opt.second_proj_type unstructured_sparse "
    flags += f"--opt.second_sparse_ratio 1.0 --opt.reset_sparse_optimizer_states {reset}"
    flags += " --opt.optimizer_type tensorgrad_sum"
    projection = build_projection(parse(flags.split()).opt)
    b1 = 0.5
    optimizer = tg.in_subspace(tg.scale_by_adam(b1=b1), projection, update_proj_gap=1)
    g = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(10, 11, 12)), jnp.float32)}
    state, update = optimizer.init(g), jax.jit(optimizer.update)
    _, state = update(g, state)
    _, state = update({"w": -g["w"]}, state)
    low_rank, entries = state.inner.mu["w"]
    size = jnp.linalg.norm(g["w"])
    carried = (1 - b1) - b1 * (1 - b1)
    np.testing.assert_allclose(jnp.linalg.norm(low_rank) / size, carried, rtol=1e-4)
    # What starts anew starts at the gradient, as large as the momentum was.
    expected = (1 - b1) + b1 * (1 - b1) if reset else carried
    np.testing.assert_allclose(entries, -expected * g["w"].ravel(), rtol=1e-4)


def test_subspace_momentum_keeps_momentum_alone():
    """A weight of (2, 4, 3, 6, 6): momentum in its subspace, two means over one channel each."""
    flags = "--opt.optimizer_type subspace_momentum --opt.rank 3 --opt.learning_rate 1e-3"
    size = " --fno.n_modes [4,4] --fno.hidden_channels 6 --fno.n_layers 1"
    config = parse((flags + size).split())
    params = nnx.to_pure_dict(nnx.state(build_model(config, 1, 1), nnx.Param))
    (scaled, *_) = jax.eval_shape(build_optimizer(config, 10).init, params)
    (divided,) = scaled.inner["tensor"].groups
    subspace = divided.numerator
    (name,) = subspace.basis
    assert subspace.inner.mu[name].parts.shape == (2, 3, 3, 3, 3)
    assert [x.shape for x in divided.nu[name]] == [(1, 4, 3, 6, 1), (1, 4, 3, 1, 6)]


def test_the_default_optimizer_keeps_a_small_momentum_and_two_means():
    """Of a weight (2, 4, 3, 6, 6): 5% of the entries in bfloat16; polar factors of 3 x 3."""
    size = "--fno.n_modes [4,4] --fno.hidden_channels 6 --fno.n_layers 1"
    config = parse(size.split())
    params = nnx.to_pure_dict(nnx.state(build_model(config, 1, 1), nnx.Param))
    (scaled, *_) = jax.eval_shape(build_optimizer(config, 10).init, params)
    ((divided, polar),) = scaled.inner["tensor"].groups
    ((name, mu),) = divided.numerator.inner.mu.items()
    assert mu.parts.size <= 0.05 * (2 * 4 * 3 * 6 * 6)
    assert mu.parts.dtype == jnp.bfloat16
    assert [x.shape for x in divided.nu[name]] == [(1, 4, 3, 6, 1), (1, 4, 3, 1, 6)]
    assert [u.shape for u in polar[0].basis[name]] == [(6, 3), (6, 3)]


def test_tensor_muon_keeps_one_small_momentum():
    """Of a weight (2, 4, 3, 6, 6) that of a core of half of the channels, in bfloat16."""
    flags = "--opt.optimizer_type tensor_muon --fno.n_modes [4,4] --fno.hidden_channels 6"
    size = flags + " --fno.n_layers 1"
    config = parse(size.split())
    params = nnx.to_pure_dict(nnx.state(build_model(config, 1, 1), nnx.Param))
    (scaled, *_) = jax.eval_shape(build_optimizer(config, 10).init, params)
    momentum, _ = scaled.inner["tensor"].inner
    ((name, mu),) = momentum.mu.items()
    assert mu.parts.shape == (2, 4, 3, 3, 3)
    assert mu.parts.dtype == jnp.bfloat16
    assert [u.shape for u in scaled.inner["tensor"].basis[name]] == [(6, 3), (6, 3)]


def test_updates_are_made_as_large_as_adamws():
    """Adam's first update has entries of one: so has, in the root mean square, the lifted one."""
    flags = "--fno.n_modes [4,4] --fno.hidden_channels 6 --fno.n_layers 1 --opt.weight_decay 0"
    rate = 1e-2
    for match in ("True", "False"):
        config = parse(f"{flags} --opt.tensorgrad True --opt.match_update_size {match}".split())
        params = nnx.to_pure_dict(nnx.state(build_model(config, 1, 1), nnx.Param))
        optimizer = build_optimizer(config, 10)
        updates, _ = jax.jit(optimizer.update)(params, optimizer.init(params), params)
        (update,) = (x for x in jax.tree.leaves(updates) if x.ndim == 5)
        squares = jnp.mean((update / rate) ** 2)
        assert squares == pytest.approx(1, rel=0.1) if match == "True" else squares < 0.3


def test_gaps():
    assert build_gap(parse([]).opt, 100) == 50
    assert build_gap(parse(["--opt.tensorgrad", "True"]).opt, 100) == 200
    flags = "--opt.update_proj_gap 10 --opt.update_proj_gap_end 40 --opt.update_proj_gap_mode "
    gap = lambda mode, step: int(build_gap(parse((flags + mode).split()).opt, 100)(step))
    assert [gap("linear", s) for s in (0, 50, 100)] == [10, 25, 40]
    assert [gap("exponential", s) for s in (0, 50, 100)] == [10, 20, 40]
    assert [gap("exponential2", s) for s in (0, 50, 100)] == [10, 14, 40]


def test_a_batch_in_halves_makes_the_same_step():
    flags = {"fno.hidden_channels": "4", "fno.n_layers": "1", "opt.tensorgrad": "False"}
    config = parse([part for name, value in flags.items() for part in ("--" + name, value)])
    graphdef, variables = nnx.split(build_model(config, 1, 1), nnx.Param)
    params = nnx.to_pure_dict(variables)
    optimizer = build_optimizer(config, steps_per_epoch=1)
    rng = np.random.default_rng(0)
    batch = {n: jnp.asarray(rng.normal(size=(2, 16, 16, 1)), jnp.float32) for n in "xy"}

    def one_step(batch_parts):
        own = jax.tree.map(jnp.copy, params)
        state = TrainState(own, optimizer.init(own), jnp.zeros((), jnp.int32), jnp.zeros(()))
        step = make_train_step(
            graphdef, optimizer, LOSSES["l2"], Encoding(None, None), batch_parts=batch_parts
        )
        return step(state, batch)

    halves, whole = one_step(2), one_step(1)
    assert jnp.allclose(halves.loss_sum, whole.loss_sum, rtol=1e-5)
    # First moments: a tenth of the gradients.
    moments = (jax.tree.leaves(state.opt_state[0].mu) for state in (halves, whole))
    for a, b in zip(*moments, strict=True):
        assert jnp.linalg.norm(a - b) <= 1e-4 * jnp.linalg.norm(b)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="accelerators take a batch as a whole")
@pytest.mark.parametrize(
    ("shape", "weights", "parts"),
    [
        ((8, 64, 64, 1), 10**6, 2),
        ((7, 128, 128, 1), 10**6, 1),  # odd
        ((8, 16, 16, 1), 10**5, 1),  # compiling twice would cost more than it saves
        ((8, 64, 64, 1), 10**7, 1),  # two gradients of the weights would need more memory
    ],
)
def test_batches_are_halved_where_that_pays(shape, weights, parts):
    params = {"w": jax.ShapeDtypeStruct((weights,), jnp.float32)}
    assert independent_parts(params, shape) == parts
