"""TRAK's scores: traker's for its matrices, its order for ours, a store that survives a stop."""

import sys
from pathlib import Path

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from tensorgrad_jax import trak
from tensorgrad_jax.trak import attributor as attributor_module
from tensorgrad_jax.trak.features import projected_gradients
from tensorgrad_jax.trak.scores import kernel

GOLDEN = Path(__file__).parent / "golden"
LAYERS = ("0.weight", "0.bias", "2.weight", "2.bias")
P = 2410


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(GOLDEN / "trak_scores.npz"))


@pytest.fixture(scope="module")
def digits(golden):
    pixels, labels = golden["pixels"].astype(np.float32) / 16, golden["labels"].astype(np.int32)
    return (pixels[:400], labels[:400]), (pixels[400:], labels[400:])


def apply(params, x):
    """PyTorch's network with its parameters in its order: a list, as traker concatenates them."""
    w1, b1, w2, b2 = params
    return w2 @ jax.nn.relu(w1 @ x + b1) + b2


OUTPUT = trak.classification(apply)


def checkpoints(golden):
    return [[jnp.asarray(golden[f"model{i}_{n}"]) for n in LAYERS] for i in (0, 1)]


def scored(golden, digits, projector, path, lambda_reg=0.0, **options):
    attributor = trak.Attributor(
        OUTPUT, projector, path, lambda_reg=lambda_reg, chunk_size=50, block_size=200, **options
    )
    for model_id, params in enumerate(checkpoints(golden)):
        attributor.featurize(params, model_id, digits[0], "train")
        attributor.featurize(params, model_id, digits[1], "target")
    return attributor


def replayed(golden):
    signs = [np.unpackbits(golden[f"signs_{i}"], axis=1).astype(np.float32) for i in (0, 1)]
    return trak.ExplicitProjector({i: 2 * s - 1 for i, s in enumerate(signs)})


def spearman(a, b):
    """The mean over targets of the rank correlation over training examples."""
    return np.mean([scipy.stats.spearmanr(x, y)[0] for x, y in zip(a.T, b.T, strict=True)])


@pytest.fixture(scope="module")
def replay(golden, digits, tmp_path_factory):
    path = tmp_path_factory.mktemp("trak") / "features.h5"
    return scored(golden, digits, replayed(golden), path)


def test_scores_are_those_of_traker_for_its_matrices(golden, replay):
    got, expected = replay.scores("train", "target"), golden["scores_64"]
    assert got.shape == (400, 50)
    assert np.linalg.norm(got - expected) < 1e-4 * np.linalg.norm(expected)


def test_scores_of_chunks_are_those_of_the_whole(replay):
    whole = replay.scores("train", "target")
    assert np.allclose(replay.scores("train", "target", chunk=7), whole, rtol=1e-4, atol=1e-4)
    one = replay.scores("train", "target", model_ids=[1])
    assert spearman(one, whole) < 0.999  # checkpoints are averaged over


def test_our_matrices_order_examples_as_those_of_traker(golden, digits, tmp_path):
    """At k = 1024, with the regularisation without which no two matrices agree."""
    projector = trak.BasicProjector(P, 1024, 3, "rademacher")
    attributor = scored(
        golden, digits, projector, tmp_path / "f.h5", float(golden["regularisation"])
    )
    got = attributor.scores("train", "target")
    assert spearman(got, golden["scores_1024"]) > 0.9
    assert abs(spearman(np.random.default_rng(0).permutation(got), got)) < 0.1


def test_more_features_come_closer_to_none_projected(golden, digits, tmp_path):
    """Of the last layer. F^T F of k features is about k times that of the gradients."""
    last = lambda path: path in ("2", "3")

    def scores(projector, lambda_reg):
        path = tmp_path / f"{projector.proj_dim}.h5"
        attributor = scored(golden, digits, projector, path, lambda_reg, grad_wrt=last)
        return attributor.scores("train", "target")

    expected = scores(trak.NoOpProjector(), 3.0)
    agreement = [
        spearman(scores(trak.BasicProjector(330, k, 0, "sjlt"), 3.0 * k), expected)
        for k in (8, 64, 512)
    ]
    assert agreement == sorted(agreement)
    assert agreement[-1] > 0.85


def test_margins_and_weights_are_what_they_are_called():
    logits = jnp.asarray([0.3, -1.0, 2.0])
    p = jax.nn.softmax(logits)[0]
    assert abs(trak.margin(logits, 0) - jnp.log(p / (1 - p))) < 1e-6
    output = trak.classification(lambda params, x: params * x, temperature=2.0)
    example = (logits, 0)
    assert abs(output.weight(1.0, example) - (1 - jax.nn.softmax(logits / 2)[0])) < 1e-6
    # The weight is the derivative of the loss with respect to the margin.
    slope = jax.grad(lambda m: jax.nn.softplus(-m))(trak.margin(logits, 0))
    assert abs(trak.classification(lambda w, x: w * x).weight(1.0, example) + slope) < 1e-6


def linear_data():
    r = np.random.default_rng(0)
    x = r.normal(size=(40, 5)).astype(np.float32)
    return x, (x @ np.arange(5.0) + r.normal(size=40)).astype(np.float32)


def squared(w, example):
    x, y = example
    return 0.5 * (x @ w["a"] + w["b"] - y) ** 2


def test_scores_of_losses_say_what_leaving_out_does(tmp_path):
    """Least squares without projection: the influence function in closed form, its sign too."""
    x, y = linear_data()
    design = np.concatenate([x, np.ones((40, 1))], axis=1).astype(np.float64)
    solution = np.linalg.lstsq(design, y, rcond=None)[0]
    params = {"a": jnp.asarray(solution[:5], jnp.float32), "b": jnp.float32(solution[5])}
    attributor = trak.Attributor(
        trak.sample_loss(squared), trak.NoOpProjector(), tmp_path / "f.h5", chunk_size=16
    )
    attributor.featurize(params, 0, (x, y), "train")
    attributor.featurize(params, 0, (x[:6] + 1, y[:6]), "target")
    got = attributor.scores("train", "target")
    more = []
    for i in range(40):
        kept = np.arange(40) != i
        without = np.linalg.lstsq(design[kept], y[kept], rcond=None)[0]
        loss = lambda w: 0.5 * ((x[:6] + 1) @ w[:5] + w[5] - y[:6]) ** 2
        more.append(loss(without) - loss(solution))
    # F^T F is that of gradients, not of the design: correlated, not equal.
    assert spearman(got, np.asarray(more)) > 0.8


def test_gradients_of_a_part_of_the_parameters(tmp_path):
    x, y = linear_data()
    params = {"a": jnp.ones(5), "b": jnp.zeros(())}
    attributor = trak.Attributor(
        trak.sample_loss(squared), trak.NoOpProjector(), tmp_path / "f.h5",
        grad_wrt=lambda path: path == "a",
    )  # fmt: skip
    attributor.featurize(params, 0, (x, y), "train")
    features, _ = attributor.store.read("train", 0, slice(0, 40))
    expected = (x.sum(1) - y)[:, None] * x / np.sqrt(5)
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)
    attributor.grad_wrt = lambda path: False
    with pytest.raises(ValueError, match=r"grad_wrt selects none of the parameters \['a', 'b'\]"):
        attributor.featurize(params, 1, (x, y), "train")


def network(params, example):
    """Several kinds of parameters, one of them complex, one used twice, one not at all."""
    x, y = example
    h = jnp.tanh(x @ params["in"] + params["b"])
    h = jnp.abs(params["complex"] @ (h + 1j * h**2))
    return (h @ params["out"] @ h + params["b"].sum() ** 2 - y) ** 2


def network_parameters():
    r = np.random.default_rng(1)
    draw = lambda *shape: jnp.asarray(r.normal(size=shape), jnp.float32)
    return {
        "b": draw(7), "complex": draw(3, 7) + 1j * draw(3, 7), "in": draw(5, 7),
        "out": draw(3, 3), "unused": draw(2),
    }  # fmt: skip


class OneOfOnesOwn(trak.AbstractProjector):
    def project(self, grads, model_id):
        parts = [part.reshape(len(part), -1) for part in jax.tree.leaves(grads)]
        parts = [y for x in parts for y in ((x.real, x.imag) if jnp.iscomplexobj(x) else (x,))]
        return jnp.concatenate(parts, 1)[:, : self.proj_dim]


NETWORK_P = 7 + 2 * 21 + 35 + 9 + 2


def chunked():
    parts = [trak.BasicProjector(n, 6, i, "sjlt") for i, n in enumerate((40, NETWORK_P - 40))]
    return trak.ChunkedCudaProjector(parts, 64, [40, NETWORK_P - 40], 8)


@pytest.mark.parametrize(
    "make",
    [
        lambda: trak.BasicProjector(NETWORK_P, 6, 0, "rademacher"),
        lambda: trak.BasicProjector(NETWORK_P, 6, 0, "srft"),
        lambda: trak.BasicSingleBlockProjector(NETWORK_P, 6, 0, "normal"),
        lambda: trak.ExplicitProjector({2: np.random.default_rng(0).normal(size=(NETWORK_P, 6))}),
        lambda: trak.KroneckerProjector(NETWORK_P, 6, 0),
        chunked,
        trak.NoOpProjector,
        lambda: OneOfOnesOwn(NETWORK_P, 6, 0, "na", None),
    ],
)
def test_features_of_a_backward_pass_are_those_of_gradients(make):
    x, y = linear_data()
    params, projector = network_parameters(), make()
    output = trak.sample_loss(network)
    got, weights = projected_gradients(output, params, (x, y), projector, 2, (True,) * 5, 16)
    gradients = jax.vmap(jax.grad(network), (None, 0))(params, (x, y))
    expected = np.asarray(make().project(gradients, 2))
    assert np.linalg.norm(got - expected) < 1e-5 * np.linalg.norm(expected)
    assert np.all(weights == 1)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: trak.KroneckerProjector(0, 6, 0), "grad_dim must be a positive integer, got 0"),
        (lambda: trak.KroneckerProjector(6, -1, 0), "proj_dim must be a positive integer, got -1"),
        (lambda: trak.KroneckerProjector(6, 6, -1), "seed must be an integer from 0"),
        (lambda: kron().project(jnp.ones((2, 6)), 0), "must be a tree with an array per parameter"),
        (lambda: kron().project([jnp.ones((2, 5))], 0), "grad_dim=6 numbers per example, got 5"),
        (lambda: kron().project([jnp.ones((2, 6))], 1.5), "model_id must be an integer from 0"),
    ],
)
def test_mistakes_with_kronecker_products_are_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def kron():
    return trak.KroneckerProjector(6, 6, 0)


def test_features_of_narrow_dtypes():
    x, y = linear_data()
    params = network_parameters()
    features = [
        projected_gradients(
            trak.sample_loss(network), params, (x, y),
            trak.BasicProjector(NETWORK_P, 6, 0, "normal", dtype=dtype), 0, (True,) * 5, 16,
        )[0]
        for dtype in ("float32", "bfloat16")
    ]  # fmt: skip
    error = np.linalg.norm(features[1] - features[0]) / np.linalg.norm(features[0])
    assert 1e-4 < error < 1e-2
    assert np.all(features[1] == np.asarray(jnp.asarray(features[1], jnp.bfloat16), np.float32))


def test_a_stopped_run_goes_on_where_it_was(tmp_path, monkeypatch):
    x, y = linear_data()
    params, path = {"a": jnp.ones(5), "b": jnp.zeros(())}, tmp_path / "f.h5"
    make = lambda: trak.Attributor(
        trak.sample_loss(squared), trak.BasicProjector(6, 4, 0, "normal"), path,
        block_size=10, chunk_size=4,
    )  # fmt: skip
    real, calls = attributor_module.projected_gradients, []

    def stopping(*arguments):
        calls.append(len(arguments[2][0]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(attributor_module, "projected_gradients", stopping)
    with pytest.raises(KeyboardInterrupt):
        make().featurize(params, 0, (x, y), "train")
    with pytest.raises(
        ValueError, match="2 blocks of features of 'train' at model_id 0 are missing"
    ):
        make().scores("train", "train")
    make().featurize(params, 0, (x, y), "train")
    assert calls == [10] * 5  # the third one twice
    again = make()
    again.featurize(params, 0, (x, y), "train")
    assert len(calls) == 5
    features, weights = again.store.read("train", 0, slice(0, 40))
    expected, _ = real(
        trak.sample_loss(squared), params, (x, y), again.projector, 0, (True, True), 40
    )
    np.testing.assert_allclose(features, expected / np.sqrt(6), rtol=1e-4, atol=1e-5)
    assert np.all(weights == 1)
    with h5py.File(path) as file:
        assert file["train/0/done"][:].tolist() == [1] * 4
    for change, message in (
        ({"block_size": 20}, "were begun with block_size=10, not 20"),
        ({"projector": trak.BasicProjector(6, 4, 1, "normal")}, "begun with description=.*seed 0"),
    ):
        other = make()
        for name, value in change.items():
            setattr(other, name, value)
        with pytest.raises(ValueError, match=message):
            other.featurize(params, 0, (x, y), "train")


def test_devices_change_nothing(tmp_path):
    """Examples spread over eight devices, a last chunk that does not fill them."""
    x, y = linear_data()
    params = {"a": jnp.ones(5), "b": jnp.zeros(())}
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d"))
    features = []
    for device in (None, spread):
        projector = trak.BasicProjector(6, 4, 0, "rademacher", device)
        attributor = trak.Attributor(
            trak.sample_loss(squared), projector, tmp_path / f"{device is None}.h5", chunk_size=16
        )
        attributor.featurize(params, 0, (x, y), "train")
        features.append(attributor.store.read("train", 0, slice(0, 40))[0])
    np.testing.assert_allclose(*features, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: a(lambda_reg=-1.0), "lambda_reg must be a finite number of at least 0, got -1"),
        (lambda a: a(block_size=0), "block_size must be a positive integer, got 0"),
        (lambda a: a(chunk_size=2.5), "chunk_size must be a positive integer, got 2.5"),
        (lambda a: a().featurize(PARAMS, -1, DATA, "t"), "model_id must be an integer from 0"),
        (lambda a: a().featurize(PARAMS, 0, (DATA[0], DATA[1][:3]), "t"), "one leading size"),
        (lambda a: a().featurize(PARAMS, 0, (DATA[0][:0], DATA[1][:0]), "t"), "at least 1"),
        (lambda a: a().featurize({"a": jnp.ones(3)}, 0, DATA, "t"), "grad_dim=6, the parameters"),
        (lambda a: a().scores("train", "nothing", [0]), "no features of 'nothing' at model_id 0"),
        (lambda a: a().scores("train", "nothing"), "no features of 'nothing' at any checkpoint"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, message, tmp_path):
    def make(**options):
        output, projector = trak.sample_loss(squared), trak.BasicProjector(6, 4, 0, "normal")
        attributor = trak.Attributor(output, projector, tmp_path / "f.h5", **options)
        if not options:
            attributor.featurize(PARAMS, 0, DATA, "train")
        return attributor

    with pytest.raises(ValueError, match=message):
        call(make)


PARAMS, DATA = {"a": jnp.ones(5), "b": jnp.zeros(())}, linear_data()


def test_projectors_need_no_hdf5(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ModuleNotFoundError, match=r"tensorgrad-jax\[train\]"):
        trak.Attributor(OUTPUT, trak.NoOpProjector(), tmp_path / "f.h5")


def test_a_singular_kernel_is_refused():
    features = np.random.default_rng(0).normal(size=(5, 9)).astype(np.float32)
    with pytest.raises(ValueError, match="lambda_reg must be larger; it is needed wherever"):
        kernel([features])
    inverse = kernel([features[:2], features[2:]], 1.0)
    expected = np.linalg.inv(features.T @ features + np.eye(9))
    np.testing.assert_allclose(inverse, expected / np.abs(expected).mean(), rtol=1e-3, atol=1e-3)
