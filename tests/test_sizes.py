"""The size of an update: what takes AdamW's learning rate makes AdamW's steps."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tensorgrad_jax as tg

_FILE = Path(__file__).parents[1] / "validation" / "update_sizes.py"
_SPEC = importlib.util.spec_from_file_location("update_sizes", _FILE)
assert _SPEC is not None
assert _SPEC.loader is not None
update_sizes = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(update_sizes)

CASES = [
    *(("real", rule, name) for rule in ("transport", "reset") for name in update_sizes.PROJECTIONS),
    *((kind, "transport", "composite") for kind in ("pair", "complex")),
    ("pair", "reset", "composite"),
    *((kind, "transport", "subspace momentum, matched") for kind in ("real", "pair")),
]


@pytest.fixture(scope="module")
def adamw():
    make = lambda gap: optax.adamw(1.0, weight_decay=0.0)
    return {kind: update_sizes.size(make, kind)[0] for kind in update_sizes.KINDS}


@pytest.mark.parametrize(("kind", "rule", "name"), CASES)
def test_updates_are_as_large_as_adamws_whatever_the_gap(kind, rule, name, adamw):
    make = update_sizes.optimizers(kind, rule)[name]
    ratios = update_sizes.size(make, kind, update_sizes.GAPS) / adamw[kind]
    assert np.all((ratios > 0.85) & (ratios < 1.15)), ratios


def gradient(seed=0, shape=(2, 9, 8, 7)):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("spec", [tg.TensorSpec(), tg.TensorSpec(complex_axis=0)])
@pytest.mark.parametrize(
    "projection", [tg.Tucker(0.1), tg.UnstructuredSparse(0.05, scale_by_mask_ratio=True)]
)
def test_match_size_makes_the_inner_optimizers_size(spec, projection):
    """Adam's first update of a real number is one, times `scale`, not times a mask's ratio."""
    g = jnp.sign(gradient())
    sizes = []
    for scale in (1.0, 3.0):
        projected = type(projection)(**{**vars(projection), "scale": scale})
        optimizer = tg.in_subspace(tg.scale_by_adam(), projected, specs=spec, match_size=True)
        update, _ = optimizer.update(g, optimizer.init(g))
        sizes.append(float(jnp.sqrt(jnp.mean(update**2))))
    assert sizes == pytest.approx([1, 3], rel=1e-3)


def test_without_match_size_it_is_that_of_the_compact_form():
    g = gradient()
    optimizer = tg.in_subspace(tg.scale_by_adam(), tg.Tucker(0.1), specs=tg.TensorSpec())
    update, state = optimizer.update(g, optimizer.init(g))
    kept = state.inner.nu["params"].size
    assert jnp.sum(update**2) == pytest.approx(kept, rel=1e-3)


def test_the_reference_keeps_its_own_size_of_complex_numbers():
    """Its spectral weights are complex: |g|^2 of both parts, so 1/sqrt(2) of a real number's."""
    g = jnp.sign(gradient())
    sizes = []
    for spec in (tg.TensorSpec(), tg.TensorSpec(0)):
        optimizer = tg.reference_adamw(1.0, tg.UnstructuredSparse(1.0), specs=spec)
        update, _ = optimizer.update(g, optimizer.init(g), g)
        sizes.append(float(jnp.sqrt(jnp.mean(update**2))))
    assert sizes[1] == pytest.approx(sizes[0] / 2**0.5, rel=1e-3)


@pytest.mark.parametrize("inner", [optax.scale_by_adam(), optax.scale_by_lion(), optax.trace(0.9)])
def test_a_pair_at_full_budget_gets_what_optax_makes_of_its_numbers(inner):
    optimizer = tg.in_subspace(inner, tg.UnstructuredSparse(1.0), 2, specs=tg.TensorSpec(0))
    gradients = [gradient(seed) for seed in range(5)]
    states = [optimizer.init(gradients[0]), inner.init(gradients[0])]
    for g in gradients:
        got, states[0] = optimizer.update(g, states[0])
        expected, states[1] = inner.update(g, states[1])
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_subspace_momentum_is_bounded_in_its_first_steps():
    """A factored second moment can be far below an entry's square: 30 times the rate, unbounded."""
    r = np.random.default_rng(0)
    scale = np.exp(3 * r.normal(size=(16, 9, 8, 7)))
    optimizer = tg.subspace_momentum(1.0, specs=tg.TensorSpec())
    state = optimizer.init(jnp.zeros(scale.shape))
    update = jax.jit(optimizer.update)
    for _ in range(5):
        g = jnp.asarray(scale * r.normal(size=scale.shape), jnp.float32)
        updates, state = update(g, state, g)
        assert jnp.sqrt(jnp.mean(updates**2)) <= 1 + 1e-5


@pytest.mark.parametrize(
    "projection", [tg.Tucker(0.2, scale=3.0), tg.UnstructuredSparse(0.2, scale_by_mask_ratio=True)]
)
def test_what_is_passed_on_is_what_the_projection_leaves_out_whatever_it_lifts_with(projection):
    """lift(u) + G - P G with P the orthogonal projection: the factor of `lift` is the update's."""
    g = gradient()
    optimizer = tg.in_subspace(
        optax.scale(0.0), projection, complement="pass", specs=tg.TensorSpec()
    )
    outside, state = optimizer.update(g, optimizer.init(g))
    leaf_basis = state.basis["params"]
    plain = type(projection)(0.2)
    basis = leaf_basis if isinstance(projection, tg.Tucker) else None
    if basis is None:
        assert jnp.sum(outside == 0) == plain.count(g.shape)
        np.testing.assert_allclose(outside[outside != 0], g[outside != 0], rtol=1e-6)
    else:
        np.testing.assert_allclose(
            outside, g - plain.lift(plain.project(g, basis), basis), atol=1e-5
        )
    residual = tg.Residual(projection, tg.Tucker(0.1))
    energy = jnp.sum(residual.complement(g, *_compact_and_basis(residual, g)) ** 2)
    assert energy < jnp.sum(g**2)


def _compact_and_basis(projection, g):
    basis = projection.refresh(jax.random.key(0), g, projection.init(g))
    return projection.project(g, basis), basis


def test_adam_is_optax_adams_in_double_precision():
    with jax.enable_x64(True):
        g = jnp.asarray(np.random.default_rng(0).normal(size=7))
        assert g.dtype == jnp.float64
        results = []
        for transform in (tg.scale_by_adam(), optax.scale_by_adam()):
            state = transform.init(g)
            for i in range(20):
                update, state = transform.update(g * (i % 3), state)
            results.append(update)
        assert results[0].dtype == jnp.float64
        np.testing.assert_allclose(*results, rtol=1e-12)
