"""The projections against the PyTorch reference: ranks, subspaces, counts, refresh times."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tensorgrad_jax as tg
from tensorgrad_jax.projections.selection import kept_count
from tensorgrad_jax.transforms import reference_ranks, reference_slice_counts

GOLDEN = Path(__file__).parent / "golden"


def load(name):
    return np.load(GOLDEN / f"{name}.npz")


def distance(a, b):
    return np.linalg.norm(np.asarray(a) - b) / np.linalg.norm(b)


def reference_rule(kind, spec, shape):
    """Ranks as the reference reads a specification."""
    if kind == 0:
        return reference_ranks(float(spec[0]), shape)
    if kind == 1:
        return tg.Tucker(int(spec[0])).ranks(shape)
    if kind == 2:
        return tg.Tucker(tuple(int(r) for r in spec[: len(shape)])).ranks(shape)
    # int truncates the binary product: 0.57 * 100 = 56.99999999999999.
    return tuple(max(1, int(f * d)) for f, d in zip(spec, shape, strict=False))


def test_ranks_of_every_form():
    golden = load("tucker_ranks")
    for i, ndim in enumerate(golden["ndim"]):
        shape = tuple(int(d) for d in golden["shape"][i, :ndim])
        spec = golden["spec"][i][: max(1, golden["spec_len"][i])]
        expected = tuple(golden["ranks"][i, :ndim])
        assert reference_rule(golden["kind"][i], spec, shape) == expected, (shape, spec)
        if golden["kind"][i] == 3 and len(spec) == ndim:
            # Ours reads the decimal that was written: never less, at most one more.
            ours = tg.Tucker(tuple(float(f) for f in spec)).ranks(shape)
            assert all(0 <= a - b <= 1 for a, b in zip(ours, expected, strict=True))


TUCKER = {
    "complex4d": {
        "budget": 0.25, "int": 4, "listint": [5, 4, 3, 5], "listfloat": [0.5, 0.4, 0.7, 0.8],
    },
    "real3d": {"budget": 0.25, "int": 5, "listint": [6, 4, 12], "listfloat": [0.5, 0.35, 0.61]},
    "real2d": {"budget": 0.25, "int": 5, "listint": [4, 4], "listfloat": [0.5, 0.5]},
    "real2drect": {"budget": 0.25, "int": 4, "listint": [3, 3]},
    "real5d": {
        "budget": 0.25, "int": 2, "listint": [3, 2, 4, 2, 3],
        "listfloat": [0.6, 0.5, 0.5, 0.7, 0.8],
    },
}  # fmt: skip


@pytest.mark.parametrize("tensor", TUCKER)
@pytest.mark.parametrize("n_iter", [1, 10])
def test_tucker_subspaces(tensor, n_iter):
    golden = load(f"tucker_{tensor}")
    x1, x2 = jnp.asarray(golden["x1"]), jnp.asarray(golden["x2"])
    compared = 0
    for kind, spec in TUCKER[tensor].items():
        name = f"{kind}_it{n_iter}"
        if f"{name}_ranks" not in golden:
            continue
        number = {"budget": 0, "int": 1, "listint": 2, "listfloat": 3}[kind]
        values = spec if isinstance(spec, list) else [spec]
        ranks = reference_rule(number, values, x1.shape)
        np.testing.assert_array_equal(ranks, golden[f"{name}_ranks"])
        if golden[f"{name}_over_rank"]:
            continue
        projection = tg.Tucker(tuple(ranks), n_iter=n_iter, method="svd")

        @jax.jit
        def run(x, basis, projection=projection):
            basis = projection.refresh(jax.random.key(0), x, basis)
            core = projection.project(x, basis)
            return basis, core, projection.lift(core, basis)

        basis = projection.init(x1)
        for label, x in ((name, x1), (f"{name}_warm", x2)):
            basis, core, back = run(x, basis)
            assert distance(back, golden[f"{label}_back"]) < 2e-5
            np.testing.assert_allclose(
                distance(back, np.asarray(x)), golden[f"{label}_relerr"], rtol=1e-4
            )
            for mode, u in enumerate(basis):
                assert distance(u @ u.conj().T, golden[f"{label}_P{mode}"]) < 2e-5
            if f"{label}_core" in golden:
                expected = np.abs(golden[f"{label}_core"])
                assert np.abs(np.abs(core) - expected).max() < 5e-5 * np.linalg.norm(expected)
            compared += 1
    assert compared >= 2


VARIANTS = {"plain": (False, 1.0), "mr": (True, 1.0), "mrs": (True, 0.5), "s": (False, 2.5)}


@pytest.mark.parametrize("tensor", ["complex4d", "real3d", "real2d"])
@pytest.mark.parametrize("kind", ["structured", "unstructured"])
def test_sparse_selections(kind, tensor):
    golden = load(f"sparse_{kind}_{tensor}")
    x1, x2 = jnp.asarray(golden["x1"]), jnp.asarray(golden["x2"])
    ratios = {"r025": 0.25, "r010": 0.1, "r005": 0.05}
    lists = {"complex4d": (0.3, 0.2, 0.45, 0.6), "real3d": (0.3, 0.2, 0.45), "real2d": (0.2, 0.5)}
    ratios |= {"list": lists[tensor], "short": (0.3, 0.55)}
    compared = 0
    for name, ratio in ratios.items():
        if f"{name}_plain_scale_factor" not in golden:
            continue
        for variant, (by_ratio, scale) in VARIANTS.items():
            if kind == "structured":
                counts = reference_slice_counts(ratio, x1.shape)
                projection = tg.StructuredSparse(counts, "topk", by_ratio, scale)
            else:
                projection = tg.UnstructuredSparse(ratio, "topk", by_ratio, scale)
            basis = projection.refresh(jax.random.key(0), x1, projection.init(x1))
            compact, later = projection.project(x1, basis), projection.project(x2, basis)
            if kind == "structured":
                for mode, kept in enumerate(basis.slices):
                    np.testing.assert_array_equal(kept, golden[f"{name}_idx{mode}"])
                np.testing.assert_array_equal(compact, golden[f"{name}_compact"])
                np.testing.assert_array_equal(later, golden[f"{name}_compact2"])
            else:
                assert projection.count(x1.shape) == golden[f"{name}_k"]
                np.testing.assert_array_equal(basis.choice, golden[f"{name}_idx"])
                np.testing.assert_array_equal(compact, golden[f"{name}_values"])
                np.testing.assert_array_equal(later, golden[f"{name}_values2"])
            back = projection.lift(compact, basis)
            plain = type(projection)(counts if kind == "structured" else ratio, "topk")
            factor = golden[f"{name}_{variant}_scale_factor"]
            assert distance(back, factor * plain.lift(compact, basis)) < 1e-6
            if f"{name}_{variant}_back" in golden:
                assert distance(back, golden[f"{name}_{variant}_back"]) < 1e-6
            if variant == "plain" and f"{name}_accum" in golden:
                # The back-projection accumulated into x2 with factor -1.
                got = projection.add_lifted(x2, compact, basis, -1.0)
                assert distance(got, golden[f"{name}_accum"]) < 1e-6
                compared += 1
    assert compared


def test_sparse_counts():
    golden = load("sparse_counts")
    for i, ndim in enumerate(golden["ndim"]):
        shape = tuple(int(d) for d in golden["shape"][i, :ndim])
        length = golden["ratio_len"][i]
        ratio = tuple(float(r) for r in golden["ratio"][i][: max(1, length)])
        for select in ("topk", "randk", "probability"):
            if length == 0 and golden[f"unstructured_{select}"][i] >= 0:
                expected = golden[f"unstructured_{select}"][i]
                assert kept_count(ratio[0], int(np.prod(shape))) == expected
            expected = golden[f"structured_{select}"][i][:ndim]
            if np.all(expected >= 0):
                counts = reference_slice_counts(ratio if length else ratio[0], shape)
                np.testing.assert_array_equal(
                    np.minimum(counts, shape), expected, err_msg=f"{shape} {ratio} {select}"
                )


@pytest.mark.parametrize("shape", ["tall", "wide", "square"])
@pytest.mark.parametrize("field", ["real", "complex"])
def test_matrix_projections(field, shape):
    """Complex: the reference forgets the conjugate; `herm_*` is the orthogonal projection."""
    golden = load(f"matrix_galore_{field}_{shape}")
    x1, x2 = jnp.asarray(golden["x1"]), jnp.asarray(golden["x2"])
    herm = "herm_" if field == "complex" else ""
    compared = 0
    for side in ("std", "reverse_std", "right", "left", "full"):
        for label, rank in (("f030", 0.3), ("i4", 4)):
            name = f"{side}_{label}"
            if f"{name}_{herm}back" not in golden:
                continue
            projection = tg.MatrixLowRank(rank, side)
            basis = projection.refresh(jax.random.key(0), x1, projection.init(x1))
            compact = projection.project(x1, basis)
            assert distance(projection.lift(compact, basis), golden[f"{name}_{herm}back"]) < 1e-5
            expected = np.abs(golden[f"{name}_{herm}proj"])
            assert compact.shape == expected.shape
            assert np.abs(np.abs(compact) - expected).max() < 1e-5 * np.linalg.norm(expected)
            if field == "real":
                later = projection.lift(projection.project(x2, basis), basis)
                assert distance(later, golden[f"{name}_back2"]) < 1e-5
            compared += 1
    assert compared >= 8
    scaled = tg.MatrixLowRank(0.3, "std", scale=0.25)
    basis = scaled.refresh(jax.random.key(0), x1, scaled.init(x1))
    plain = tg.MatrixLowRank(0.3, "std")
    expected = 0.25 * plain.lift(plain.project(x1, basis), basis)
    assert distance(scaled.lift(scaled.project(x1, basis), basis), expected) < 1e-6
    if field == "real":
        assert distance(expected, golden["std_scaled_back"]) < 1e-5


def schedule(mode, start, end, total):
    if mode == 0:
        return start
    make = {1: tg.linear_gap, 2: tg.exponential_gap, 3: tg.exponential2_gap}[mode]
    return make(start, end, total)


def refreshes(transform, n):
    params = {"w": jnp.ones((2, 2, 2))}

    def step(state, _):
        _, after = transform.update(params, state, params)
        before = getattr(state, "subspace", state)
        return after, before.count >= before.next_refresh["w"]

    _, fired = jax.jit(lambda s: jax.lax.scan(step, s, length=n))(transform.init(params))
    return np.flatnonzero(fired)


@pytest.mark.parametrize("case", range(12))
def test_refresh_times(case):
    """`scheduler`: asked from step 0 on, as here; `projector`: as the reference asks.

    Up to the schedule's end, from which on the reference's gap goes on as it went.
    """
    golden = load("gap_schedule")
    start, end, *_ = (int(v) for v in golden[f"case{case:02}_settings"])
    total = int(golden[f"case{case:02}_total_iters"])
    gap = schedule(int(golden[f"case{case:02}_mode"]), start, end, total)
    projection, specs = tg.UnstructuredSparse(0.5), {"w": tg.TensorSpec()}
    ours = tg.in_subspace(optax.identity(), projection, gap, "keep", specs=specs)
    scheduler, projector = (golden[f"case{case:02}_{who}"] for who in ("scheduler", "projector"))
    n = min(2000, total)
    np.testing.assert_array_equal(refreshes(ours, n), scheduler[scheduler < n])
    reference = tg.reference_adamw(1e-3, projection, gap, specs=specs)
    np.testing.assert_array_equal(refreshes(reference, n), projector[projector < n])
    # At the end value afterwards: gaps do not shrink to one.
    later = np.diff(refreshes(ours, 2000)[-3:])
    assert total > 1800 or abs(later[-1] - max(1, end)) <= 1
