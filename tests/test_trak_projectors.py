"""TRAK's projectors: traker's names and arguments, its features for its matrices, its errors."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensorgrad_jax import trak
from tensorgrad_jax.random_matrices import Rademacher, key_from
from tensorgrad_jax.trak import devices, projectors

GOLDEN = Path(__file__).parent / "golden"
P, K = 60, 16
KINDS = [kind.value for kind in trak.ProjectionType]


def draw(seed, *shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def integers(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).integers(-8, 9, size=shape), jnp.float32)


def distance(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30)


def basic(grad_dim=P, proj_dim=K, seed=0, proj_type="rademacher", device=None, **more):
    return trak.BasicProjector(grad_dim, proj_dim, seed, proj_type, device, **more)


@pytest.fixture
def cuda(monkeypatch):
    """Take the CPU for the GPU that there is not: what is under test is the class's own part."""
    monkeypatch.setattr(projectors, "is_gpu", lambda place: True)
    return lambda size=8, p=P, k=K, seed=0: trak.CudaProjector(
        p, k, seed, "rademacher", "cpu", size
    )


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(GOLDEN / "trak_projectors.npz"))


@pytest.mark.parametrize("name", ["single_normal", "basic_normal", "basic_rademacher"])
def test_features_are_those_of_traker_for_its_matrices(golden, name):
    """Dictionaries in traker's order, with a parameter that is one number per example."""
    grads = {n[6:]: a for n, a in golden.items() if n.startswith("grads_")}
    assert list(grads) != sorted(grads)
    replay = trak.ExplicitProjector({i: golden[f"{name}_{i}_matrix"] for i in (0, 1)})
    for model_id in (0, 1):
        assert distance(replay.project(grads, model_id), golden[f"{name}_{model_id}"]) < 1e-5


def test_chunks_are_those_of_traker_for_its_matrices(golden):
    grads = {n[6:]: a for n, a in golden.items() if n.startswith("grads_")}
    parts = [trak.ExplicitProjector({1: golden[f"chunked_matrix_{i}"]}) for i in (0, 1)]
    sizes = [p.grad_dim for p in parts]
    for feat_bs in (6, 4):  # of 6 examples: traker knows no other batch than feat_bs or less
        chunked = trak.ChunkedCudaProjector(parts, 24, sizes, feat_bs, "cpu", jnp.float32)
        assert distance(chunked.project(grads, 1), golden["chunked"]) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_all_classes_share_one_matrix(kind, cuda):
    """Enum or string, one matrix or a dictionary, any class: the features of the engine."""
    grads = {"b": draw(1, 3, 4, 5), "a": draw(2, 3), "c": draw(3, 3, 13, 3)}
    flat = jnp.concatenate([g.reshape(3, -1) for g in grads.values()], axis=1)
    engine = trak.Projector(basic(proj_type=kind).engine.matrix, key_from(0))
    expected = engine.project(flat, 2)
    assert distance(expected, flat @ engine.materialise(2)) < 2e-6
    for projector in (
        basic(proj_type=trak.ProjectionType(kind)),
        trak.BasicSingleBlockProjector(P, K, 0, kind, "cpu"),
        trak.CudaProjector(P, K, 0, kind, "cpu", 2),
        trak.ChunkedCudaProjector([basic(proj_type=kind)], P, [P], 2, "cpu", jnp.float32),
    ):
        assert distance(projector.project(grads, 2), expected) < 2e-6
        assert distance(projector.project(flat, 2), expected) < 2e-6
    key = jax.random.fold_in(key_from(0), 0)
    assert distance(trak.jl_project(flat, 0, K, kind),
                    engine.matrix.multiply_transposed(key, flat)) < 1e-6  # fmt: skip


def test_the_engine_takes_trees_in_their_own_order_under_jit():
    grads = {"b": draw(1, 3, 4), "a": draw(2, 3, 2)}
    engine = trak.Projector(Rademacher(6, K), key_from(0))
    flat = jnp.concatenate([grads["a"], grads["b"]], axis=1)
    run = jax.jit(lambda engine, grads: engine.project(grads, 1))
    assert distance(run(engine, grads), engine.project(flat, 1)) < 1e-6


def test_the_adjoint_and_the_scale():
    g, y = draw(1, 4, P), draw(2, 4, K)
    engine = trak.Projector(Rademacher(P, K), key_from(5), "jl")
    left, right = (engine.project(g, 3) * y).sum(), (g * engine.adjoint(y, 3)).sum()
    assert abs(left - right) < 1e-4
    unscaled = trak.Projector(Rademacher(P, K), key_from(5))
    assert distance(engine.project(g) * K**0.5, unscaled.project(g)) < 1e-6
    assert distance(engine.materialise(1) * K**0.5, unscaled.materialise(1)) < 1e-6


# What traker's own tests of its CUDA kernel ask for, sharper.


@pytest.mark.parametrize(("n", "p", "k"), [(45, 1049, 128), (9, 10002, 64), (1, 1, 5)])
def test_norms_and_products_are_preserved(n, p, k):
    """E |y|^2 = k |g|^2, P itself not scaled: the mean of |y|^2 / k|g|^2 within 4 / sqrt(k B)."""
    projector, g = basic(p, k), draw(1, n, p)
    y = np.asarray(projector.project(g, 0))
    ratio = (y**2).sum(1) / k / np.asarray((g**2).sum(1))
    assert abs(ratio.mean() - 1) <= 4 / np.sqrt(k * n)
    products = y @ y.T / k - np.asarray(g @ g.T)
    assert np.sqrt((products**2).mean()) < 2 * p / np.sqrt(k)


def test_features_repeat_and_differ_by_seed_and_model():
    g = draw(1, 2, P)
    first = basic().project(g, 0)
    np.testing.assert_array_equal(basic().project(g, 0), first)
    projector = basic()
    for model_id in (1, 7, 2**31):
        assert distance(projector.project(g, model_id), first) > 0.3
    np.testing.assert_array_equal(projector.project(g, 0), first)  # whatever came between
    for seed in (1, 1000, 10**5, 2**40):
        assert distance(basic(seed=seed).project(g, 0), first) > 0.3


@pytest.mark.parametrize("place", [0, 31, P - 1])
def test_one_nonzero_number_gives_its_row(place):
    g = jnp.zeros((2, P)).at[:, place].set(3.0)
    y = basic().project(g, 0)
    np.testing.assert_array_equal(y, 3 * jnp.stack([basic().engine.materialise(0)[place]] * 2))


def test_equal_examples_have_equal_features():
    y = basic().project(jnp.broadcast_to(draw(1, 1, P), (5, P)), 0)
    assert distance(y, jnp.broadcast_to(y[:1], y.shape)) < 1e-7


@pytest.mark.parametrize("block_size", [1, 7, 100, K])
def test_block_size_changes_no_bit(block_size):
    g = integers(1, 5, P)
    y = basic(block_size=block_size).project(g, 1)
    np.testing.assert_array_equal(y, basic().project(g, 1))


def test_groups_and_chunks_and_any_batch_change_no_bit(cuda):
    g = integers(1, 7, P)
    whole = basic().project(g, 1)
    for size in (1, 3, 24, 100):
        np.testing.assert_array_equal(cuda(size).project(g, 1), whole)
    sizes = [7, 33, 20]
    parts = [basic(n, seed=i) for i, n in enumerate(sizes)]
    leaves = {"a": g[:, :10].reshape(7, 2, 5), "b": g[:, 10:]}  # borders lie within leaves
    cuts = np.cumsum([0, *sizes])
    expected = sum(
        part.project(g[:, a:b], 1) for part, a, b in zip(parts, cuts, cuts[1:], strict=False)
    )
    for feat_bs in (2, 7, 64):
        chunked = trak.ChunkedCudaProjector(parts, 33, sizes, feat_bs, None, jnp.float32)
        np.testing.assert_array_equal(chunked.project(leaves, 1), expected)
        assert chunked.grad_dim == P


def test_devices_change_no_bit():
    g = integers(1, 8, P)
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d"))
    whole = basic().project(g, 0)
    for device in ("cpu:3", jax.devices()[5], spread):
        y = basic(device=device).project({"a": g[:, :20], "b": g[:, 20:]}, 0)
        np.testing.assert_array_equal(y, whole)
        expected = spread.device_set if device is spread else {basic(device=device).device}
        assert y.sharding.device_set == expected
    single = trak.BasicSingleBlockProjector(P, K, 0, "rademacher", spread)
    np.testing.assert_array_equal(single.project(g, 0), whole)


def test_dtypes_of_features():
    g = draw(1, 3, P)
    for dtype in (jnp.bfloat16, "float16", np.float32):
        y = basic(dtype=dtype).project(g, 0)
        assert y.dtype == jnp.dtype(dtype)
        cast = g.astype(dtype).astype(jnp.float32)
        assert distance(y, basic().project(cast, 0)) < 1e-2
    # Beyond float16's 65504, which traker's kernel makes infinite.
    assert np.all(np.isfinite(basic().project(1e5 * g, 0)))


def test_dtypes_and_devices_of_torch_are_understood(unchecked):
    class Foreign:
        def __init__(self, name):
            self.name = name

        def __str__(self):
            return self.name

    Foreign.__module__ = "torch"
    projector = basic(device=Foreign("cpu"), dtype=Foreign("torch.bfloat16"))
    assert projector.dtype == jnp.bfloat16
    assert projector.device == jax.devices("cpu")[0]


def test_complex_gradients_are_twice_as_many_real_ones():
    z = draw(1, 3, 4, 5) + 1j * draw(2, 3, 4, 5)
    flat = jnp.concatenate([z.real.reshape(3, 20), z.imag.reshape(3, 20)], axis=1)
    for projector in (basic(40), trak.BasicSingleBlockProjector(40, K, 0, "rademacher", None)):
        assert distance(projector.project({"z": z}, 0), projector.project(flat, 0)) < 1e-6


def test_no_op_returns_gradients_as_they_are():
    projector, g = trak.NoOpProjector(), draw(1, 3, 8)
    assert projector.project(g, 5) is g
    np.testing.assert_array_equal(
        projector.project({"b": g[:, 2:], "a": g[:, :2]}, 0)[:, :6], g[:, 2:]
    )
    assert (projector.grad_dim, projector.proj_dim, projector.proj_type) == (0, 0, "na")
    projector.free_memory()


def test_memory_can_be_freed_between_calls(cuda):
    g = draw(1, 3, P)
    single = trak.BasicSingleBlockProjector(P, K, 0, "normal", None, jnp.float32, 4)
    assert single.model_id == 4
    for projector in (single, basic(proj_type="normal"), cuda()):
        before = projector.project(g, 4)
        projector.free_memory()
        np.testing.assert_array_equal(projector.project(g, 4), before)
    single.free_memory()
    assert single.proj_matrix is None
    trak.ChunkedCudaProjector([single], P, [P], 4, None, jnp.float32).free_memory()


def test_arguments_are_kept_where_traker_keeps_them():
    projector = basic(seed=3, block_size=10, dtype=jnp.float32, model_id=2, max_batch_size=8)
    kept = ("grad_dim", "proj_dim", "seed", "proj_type", "block_size", "model_id")
    assert [getattr(projector, n) for n in kept] == [P, K, 3, "rademacher", 10, 2]
    assert isinstance(projector, trak.AbstractProjector)
    with pytest.raises(TypeError, match="abstract"):
        trak.AbstractProjector(1, 1, 0, "normal", None)  # type: ignore[abstract]


def test_an_unknown_type_is_a_key_error_and_a_value_error():
    for error in (KeyError, ValueError):
        with pytest.raises(error, match="Projection type 'cauchy' not recognized") as caught:
            basic(proj_type="cauchy")
        assert str(caught.value).startswith("Projection type 'cauchy' not recognized: must be one")


def test_cuda_needs_a_gpu():
    with pytest.raises(ValueError, match="device must be a GPU, got 'cpu': use BasicProjector"):
        trak.CudaProjector(P, K, 0, "rademacher", "cpu", 8)
    assert not devices.is_gpu(None)
    with pytest.raises(ValueError, match="there is no device 'cuda:0', only"):
        trak.CudaProjector(P, K, 0, "rademacher", "cuda:0", 8)


def test_less_memory_means_fewer_examples_at_once(cuda, monkeypatch):
    """The engine refuses more examples than it has memory for, as XLA does."""
    sizes, g = [], integers(1, 7, P)
    expected, room = basic().project(g, 0), 2
    project = trak.Projector.project

    def scarce(self, grads, model_id=0):
        sizes.append(len(grads[0]))
        if len(grads[0]) > room:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return project(self, grads, model_id)

    projector = cuda(8)
    monkeypatch.setattr(trak.Projector, "project", scarce)
    np.testing.assert_array_equal(projector.project(g, 0), expected)
    assert sizes[:2] == [7, 3]
    assert max(sizes[2:]) == 1
    room = 0
    with pytest.raises(RuntimeError, match=r"reduce max_batch_size \(proj_max_batch_size\), now 8"):
        projector.project(g, 0)
    monkeypatch.setattr(
        trak.Projector,
        "project",
        lambda *a: (_ for _ in ()).throw(jax.errors.JaxRuntimeError("INTERNAL")),
    )
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        projector.project(g, 0)


def test_what_cannot_work_fails_at_construction(monkeypatch):
    def fails(*args):
        raise jax.errors.JaxRuntimeError("no kernel for this device")

    monkeypatch.setattr(Rademacher, "multiply_transposed", fails)
    with pytest.raises(jax.errors.JaxRuntimeError, match="no kernel"):
        basic()


def test_nan_is_found_where_jax_is_asked_to_look():
    g = draw(1, 2, P).at[1, 3].set(jnp.nan)
    assert np.isnan(np.asarray(basic().project(g, 0)[1])).all()
    with jax.debug_nans(True), pytest.raises(FloatingPointError):
        basic().project(g, 0)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: basic(grad_dim=0), "grad_dim must be a positive integer, got 0"),
        (lambda: basic(proj_dim=0), "proj_dim must be a positive integer, got 0"),
        (lambda: basic(proj_dim=2.5), "proj_dim must be a positive integer, got 2.5"),
        (lambda: basic(seed=-1), "seed must be an integer from 0"),
        (lambda: basic(block_size=0), "block_size must be a positive integer"),
        (lambda: basic(dtype=int), "dtype must be a floating-point dtype"),
        (lambda: basic(dtype="float"), "needs jax_enable_x64"),
        (lambda: basic(model_id=True), "model_id must be an integer from 0"),
        (lambda: basic(device="abacus"), "device must be None, a JAX device"),
        (lambda: basic(device="cpu:99"), "there is no device 'cpu:99'"),
        (lambda: basic().project(draw(1, P), 0), r"must have shape \(batch, parameters\)"),
        (lambda: basic().project(draw(1, 2, 3, 4), 0), r"must have shape \(batch, parameters\)"),
        (lambda: basic().project(draw(1, 2, 5), 0), "grad_dim=60 numbers per example, got 5"),
        (
            lambda: basic().project({"a": draw(1, 2, 20), "b": draw(1, 3, 40)}, 0),
            "one leading size, the batch, got shapes",
        ),
        (lambda: basic().project({"a": jnp.float32(1)}, 0), "one leading size, the batch"),
        (lambda: basic().project({}, 0), "one leading size, the batch"),
        (lambda: basic().project(jnp.ones((2, P), int), 0), "floating-point or complex.*int32"),
        (lambda: basic().project(draw(1, 2, P), -1), "model_id must be an integer from 0"),
        (lambda: basic().project(draw(1, 2, P), 1.0), "model_id must be .*, got 1.0"),
        (lambda: trak.NoOpProjector().project(draw(1, 2, P), -1), "model_id must be"),
        (lambda: trak.Projector(Rademacher(2, 2), key_from(0), "l2"), "scale must be None or 'jl'"),
        (lambda: trak.ExplicitProjector({}), "matrices must be matrices of one shape"),
        (
            lambda: trak.ExplicitProjector({3: jnp.ones((P, 2))}).project(draw(1, 2, P), 0),
            r"no matrix for model_id 0, only \[3\]",
        ),
        (
            lambda: trak.ChunkedCudaProjector([basic(5)], 9, [6], 4, None, jnp.float32),
            r"must be the projectors' grad_dim \[5\], got \[6\]",
        ),
        (
            lambda: trak.ChunkedCudaProjector([basic(5)], 4, [5], 4, None, jnp.float32),
            "may not exceed max_chunk_size=4",
        ),
        (
            lambda: trak.ChunkedCudaProjector(
                [basic(5), basic(5, 3)], 5, [5, 5], 4, None, jnp.float32
            ),
            "must agree on proj_dim",
        ),
        (
            lambda: trak.ChunkedCudaProjector([basic(5)], 5, [5], 0, None, jnp.float32),
            "feat_bs must be a positive integer",
        ),
    ],
)
def test_bad_input_is_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("size", [0, -8, 2.0, None])
def test_batch_sizes_are_any_positive_integers(cuda, size):
    with pytest.raises(ValueError, match="max_batch_size must be a positive integer"):
        cuda(size)
    assert cuda(24).max_batch_size == 24  # traker has kernels for 8, 16 and 32 alone
