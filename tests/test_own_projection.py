"""A projection of one's own: four methods, and it goes wherever the library's own go."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tensorgrad_jax as tg
from tensorgrad_jax.projections import LeafProjection
from tensorgrad_jax.projections.pairs import as_array


@dataclasses.dataclass(frozen=True)
class Waves(tg.Projection):
    """Keep `k` of the first 2 k coefficients of the cosine transform along the first mode."""

    k: int = 2

    def init(self, leaf):
        return _cosines(leaf.shape[0])[: self.k]

    def refresh(self, key, tensor, basis):
        rows = jnp.sort(jax.random.permutation(key, 2 * self.k)[: self.k])
        return _cosines(tensor.shape[0])[rows]

    def project(self, tensor, basis):
        return jnp.tensordot(basis, tensor, 1)

    def lift(self, compact, basis):
        return jnp.tensordot(basis.T, compact, 1)


def _cosines(n):
    return jax.scipy.fft.dct(jnp.eye(n), axis=0, norm="ortho")


OTHER = tg.UnstructuredSparse(0.1, "topk")
COMPOSITIONS = {
    "alone": Waves(),
    "residual": tg.Residual(OTHER, Waves()),
    "residual, first": tg.Residual(Waves(), OTHER),
    "sum": tg.Sum(tg.Tucker(0.1), Waves(), (0.5, 1.0)),
    "nested": tg.Residual(tg.Sum(Waves(), OTHER), tg.Tucker(0.1)),
}
SPECS = {
    "real": (tg.TensorSpec(), (8, 5, 4), "float32"),
    "pair": (tg.TensorSpec(0), (2, 8, 5, 4), "float32"),
    "complex": (tg.TensorSpec(), (8, 5, 4), "complex64"),
    "bfloat16": (tg.TensorSpec(0), (2, 8, 5, 4), "bfloat16"),
    "stacked": (tg.TensorSpec(1, (0,)), (3, 2, 8, 5, 4), "float32"),
}
compositions = pytest.mark.parametrize("projection", COMPOSITIONS.values(), ids=COMPOSITIONS.keys())
leaves = pytest.mark.parametrize(("spec", "shape", "dtype"), SPECS.values(), ids=SPECS.keys())


def draw(shape, dtype, seed=0):
    r = np.random.default_rng(seed)
    x = r.normal(size=shape) + 1j * r.normal(size=shape)
    return jnp.asarray(x if dtype == "complex64" else x.real).astype(dtype)


def distance(a, b):
    a, b = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]) for t in (a, b))
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@compositions
@leaves
@pytest.mark.parametrize("complement", ["drop", "pass"])
def test_it_trains_in_every_composition(projection, spec, shape, dtype, complement):
    """Moments are carried over, in one compilation, and nothing of the gradient is lost."""
    optimizer = tg.in_subspace(
        tg.scale_by_adam(), projection, 2, complement=complement, specs={"w": spec}
    )
    params = {"w": draw(shape, dtype)}
    state = optimizer.init(params)
    kinds = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    before, traces = kinds(state), []

    @jax.jit
    def update(state, seed):
        traces.append(seed)
        gradient = params["w"] * (1 + seed).astype(params["w"].dtype)
        return optimizer.update({"w": gradient}, state)

    for step in range(4):
        updates, state = update(state, jnp.asarray(step))
        assert kinds(updates) == kinds(params)
        assert kinds(state) == before
        assert np.all(np.isfinite(np.abs(np.asarray(updates["w"], np.complex64))))
    assert len(traces) == 1
    identity = tg.in_subspace(optax.identity(), projection, complement="pass", specs={"w": spec})
    if projection == Waves():
        updates, _ = identity.update(params, identity.init(params))
        assert distance(*(np.asarray(t["w"], np.complex64) for t in (updates, params))) < 1e-2


@leaves
def test_it_filters(spec, shape, dtype):
    """What `filter_by` keeps is kept when it is filtered again."""
    keeps = tg.filter_by(Waves(), specs={"w": spec})
    gradient = {"w": draw(shape, dtype)}
    once, state = keeps.update(gradient, keeps.init(gradient))
    twice, _ = keeps.update(once, state)
    as_complex = lambda t: np.asarray(t["w"], np.complex64)
    assert distance(as_complex(twice), as_complex(once)) < 1e-2
    assert 0.2 < np.linalg.norm(as_complex(once)) / np.linalg.norm(as_complex(gradient)) < 0.8


@leaves
def test_what_is_made_of_the_four_methods(spec, shape, dtype):
    """Shapes, what is left over, and both transports, which are exact for coefficients."""
    leaf = LeafProjection(Waves(), spec, shape, jnp.dtype(dtype))
    tensor = leaf.to_tensor(draw(shape, dtype))
    old = leaf.refresh(jax.random.key(0), tensor, leaf.init())
    new = leaf.refresh(jax.random.key(1), tensor, leaf.init())
    compact = leaf.project(tensor, old)
    kinds = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert kinds(compact) == kinds(leaf.compact_struct())
    rest = leaf.lift_onto_complement(tensor, jnp.zeros_like(compact), compact, old)
    assert distance(rest + as_array(leaf.lift(compact, old)), as_array(tensor)) < 1e-6
    # A coefficient that both bases keep has the value and the variance that it had.
    kept = np.round(np.einsum("...in,...jn->...ij", new, old))
    variances = jnp.abs(compact) ** 2
    for carry, given in ((leaf.transport, compact), (leaf.transport_squares, variances)):
        expected = np.einsum("...ij,...jab->...iab", kept, np.asarray(given))
        np.testing.assert_allclose(carry(given, old, new), expected, atol=1e-4)


def test_variances_of_mixed_entries_are_right_on_average():
    """Where a new entry is made of many old ones the default is an estimate without bias."""

    class Estimated(tg.Tucker):
        transport_squares = tg.Projection.transport_squares

    projection = Estimated((4, 3, 3))
    x, y = draw((6, 5, 4), "float32", 0), draw((6, 5, 4), "float32", 1)
    old, new = (projection.refresh(jax.random.key(0), t, projection.init(t)) for t in (x, y))
    variances = jnp.abs(draw((4, 3, 3), "float32", 2))
    found = projection.transport_squares(variances, old, new)
    expected = tg.Tucker((4, 3, 3)).transport_squares(variances, old, new)
    assert found.sum() == pytest.approx(float(expected.sum()), rel=0.2)
    assert distance(found, expected) < 0.6
