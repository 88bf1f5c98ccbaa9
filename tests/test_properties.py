"""Properties over every projection, dtype and number of dimensions, on drawn examples."""

import contextlib
import functools
import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax

import tensorgrad_jax as tg
from tensorgrad_jax.projections import LeafProjection
from tensorgrad_jax.projections.pairs import as_array

FEW = hypothesis.settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)


def recipes(cls, *parts, **arguments):
    """Draw `partial(cls, ...)`, which `built` calls within the test.

    Constructors are checked by beartype, which looks at a random item of a container: within a
    strategy Hypothesis could not repeat that choice.
    """
    return st.builds(functools.partial, st.just(cls), *parts, **arguments)


def built(recipe):
    if not isinstance(recipe, functools.partial):
        return recipe
    return recipe.func(*map(built, recipe.args), **recipe.keywords)


budgets = st.sampled_from([0.05, 0.25, 0.6, 1.0])
tucker = recipes(
    tg.Tucker,
    rank=st.one_of(budgets, st.integers(1, 6)),
    n_iter=st.sampled_from([1, 2, 4]),
    method=st.sampled_from(["gram", "svd"]),
    warm_restart=st.booleans(),
)
matrix = recipes(
    tg.MatrixLowRank,
    rank=st.one_of(budgets, st.integers(1, 6)),
    side=st.sampled_from(["std", "reverse_std", "left", "right", "full"]),
    row_axes=st.sampled_from([1, (-1,)]),
)
selections = st.sampled_from(["topk", "randk", "probability"])
unstructured = recipes(tg.UnstructuredSparse, ratio=budgets, select=selections)
structured = recipes(
    tg.StructuredSparse, ratio=st.one_of(budgets, st.integers(1, 6)), select=selections
)
rotated = recipes(tg.RandomProjection, ratio=budgets)
orthogonal = st.one_of(tucker, matrix, unstructured, structured, rotated)
unbiased = recipes(
    tg.RandomProjection, ratio=budgets, kind=st.sampled_from(["rademacher", "normal", "sjlt"])
)
weights = st.sampled_from([(1.0, 1.0), (0.5, 2.0)])
pairs = st.one_of(
    recipes(tg.Residual, orthogonal, orthogonal, weights),
    recipes(tg.Sum, orthogonal, orthogonal, weights),
)
projections = st.one_of(orthogonal, unbiased, pairs, recipes(tg.Residual, pairs, orthogonal))
shapes = st.lists(st.integers(1, 4), min_size=1, max_size=6).map(tuple)
# Name, dtype of the leaf, axis of real and imaginary part, double precision.
dtypes = st.sampled_from(
    [
        ("float32", None),
        ("complex64", None),
        ("bfloat16", None),
        ("float64", None),
        ("complex128", None),
        ("float32", 0),
        ("bfloat16", 0),
        ("float64", 0),
    ]
)


def is_matrix_only(projection):
    parts = [getattr(projection, name, None) for name in ("first", "second")]
    return isinstance(projection, tg.MatrixLowRank) or any(is_matrix_only(p) for p in parts if p)


def is_orthogonal(projection):
    unbiased = isinstance(projection, tg.RandomProjection) and projection.kind != "srft"
    return not unbiased and not isinstance(projection, tg.Residual | tg.Sum)


def leaf_of(projection, shape, dtype, axis):
    full = shape if axis is None else (2, *shape)
    return LeafProjection(projection, tg.TensorSpec(axis), full, jnp.dtype(dtype))


def random_leaf(leaf, seed):
    r = np.random.default_rng(seed)
    x = r.normal(size=leaf.shape)
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        x = x + 1j * r.normal(size=leaf.shape)
    return jnp.asarray(x).astype(leaf.dtype)


def precision(dtype):
    double = dtype in ("float64", "complex128")
    return jax.enable_x64(True) if double else contextlib.nullcontext(), 1e-11 if double else 2e-5


def vector(tree):
    return np.concatenate([np.ravel(np.asarray(x)) for x in jax.tree.leaves(tree)])


def close(a, b, scale, tolerance):
    return np.linalg.norm(vector(a) - vector(b)) <= tolerance * max(scale, 1e-30)


@FEW
@hypothesis.given(projections, shapes, dtypes)
def test_projections(recipe, shape, kind):
    projection = built(recipe)
    dtype, axis = kind
    if is_matrix_only(projection) and len(shape) < 2:
        shape = (*shape, 3)
    context, tolerance = precision(dtype)
    with context:
        leaf = leaf_of(projection, shape, dtype, axis)
        x, y = random_leaf(leaf, 1), random_leaf(leaf, 2)

        @jax.jit
        def run(x, y):
            tx, ty = as_array(leaf.to_tensor(x)), as_array(leaf.to_tensor(y))
            basis = leaf.refresh(jax.random.key(0), tx, leaf.init())
            cx, cy = leaf.project(tx, basis), leaf.project(ty, basis)
            lifted = as_array(leaf.lift(cx, basis))
            conjugated = projection.refresh(jax.random.key(0), tx.conj(), projection.init(tx))
            return {
                "basis": basis,
                "compact": cx,
                "sum": (
                    leaf.project(tx - 2 * ty, basis),
                    jax.tree.map(lambda a, b: a - 2 * b, cx, cy),
                ),
                "tensor": tx,
                "lifted": lifted,
                "again": leaf.project(lifted, basis),
                "conjugate": as_array(
                    leaf.lift(leaf.project(tx.conj(), conjugated), conjugated)
                ).conj(),
                "leaf": leaf.to_leaf(tx),
            }

        out = run(x, y)
        norm = np.linalg.norm(vector(out["tensor"]))
        assert close(*out["sum"], 3 * norm, tolerance), "linear"
        assert jax.tree.map(jnp.shape, out["compact"]) == jax.tree.map(
            lambda s: s.shape, leaf.compact_struct()
        )
        struct = lambda tree: jax.tree.map(lambda a: (a.shape, a.dtype), tree)
        assert struct(out["basis"]) == struct(leaf.init())
        assert all(a.size > 0 for a in jax.tree.leaves((out["basis"], out["compact"])))
        assert np.all(np.isfinite(vector(out["lifted"])))
        np.testing.assert_array_equal(out["leaf"], x.astype(out["leaf"].dtype))
        if is_orthogonal(projection):
            assert close(out["again"], out["compact"], norm, tolerance), "lift, project: identity"
            assert np.linalg.norm(vector(out["lifted"])) <= norm * (1 + tolerance)
            kept = sum(a.size for a in jax.tree.leaves(out["compact"]))
            check_budget(projection, kept, math.prod(shape), out["compact"])
        if dtype.startswith("complex") and well_separated(projection, vector(out["lifted"])):
            assert close(out["conjugate"], out["lifted"], norm, 100 * tolerance), "conjugation"


def check_budget(projection, kept, size, compact):
    asked = getattr(projection, "rank", None) or getattr(projection, "ratio", None)
    if isinstance(projection, tg.UnstructuredSparse | tg.RandomProjection):
        assert kept == max(1, int(projection.ratio * size))
    elif isinstance(asked, float):
        # Never more than asked, but for the one entry per mode that there must be.
        least = max(compact.shape) if isinstance(projection, tg.MatrixLowRank) else 1
        assert kept <= max(asked * size + 1e-9, least)


def well_separated(projection, lifted):
    """Degenerate singular values make the subspace, not its conjugation, arbitrary: skip zeros."""
    return np.linalg.norm(lifted) > 0 and isinstance(
        projection, tg.UnstructuredSparse | tg.StructuredSparse | tg.RandomProjection
    )


@hypothesis.settings(FEW, max_examples=8)
@hypothesis.given(projections, shapes, dtypes, st.sampled_from(["transport", "keep", "reset"]))
def test_optimizer_states(recipe, shape, kind, on_refresh):
    projection = built(recipe)
    dtype, axis = kind
    if is_matrix_only(projection) and len(shape) < 2:
        shape = (*shape, 3)
    context, _ = precision(dtype)
    with context:
        leaf = leaf_of(projection, shape, dtype, axis)
        optimizer = tg.in_subspace(
            tg.scale_by_adam(), projection, 2, on_refresh, specs={"w": tg.TensorSpec(axis)}
        )
        params = {"w": random_leaf(leaf, 0)}
        state = optimizer.init(params)
        struct = lambda tree: jax.tree.map(lambda a: (a.shape, a.dtype, a.weak_type), tree)
        before, traces = struct(state), []

        @jax.jit
        def step(state, gradient):
            traces.append(1)
            return optimizer.update({"w": gradient}, state)

        for i in range(4):
            updates, state = step(state, random_leaf(leaf, i))
            assert struct(state) == before
            assert updates["w"].shape == params["w"].shape
            assert np.all(
                np.isfinite(np.asarray(optax.apply_updates(params, updates)["w"], complex))
            )
        bad = jnp.full_like(params["w"], jnp.nan)
        _, after = step(state, bad)  # a refresh is due at step 4
        for a, b in zip(jax.tree.leaves(after.basis), jax.tree.leaves(state.basis), strict=True):
            np.testing.assert_array_equal(a, b)
        assert after.next_refresh["w"] == 4
        assert len(traces) == 1
        assert all(a.size > 0 for a in jax.tree.leaves(state))
