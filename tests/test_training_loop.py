"""`Training` without a configuration: what a notebook does with it."""

import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tensorgrad_jax.models import FNO, tensor_specs

import tensorgrad_jax as tg
from tensorgrad_jax.data import DataError
from tensorgrad_jax.training import loop
from tensorgrad_jax.training.data_sets import TestSet as OneTest
from tensorgrad_jax.training.data_sets import data_sets
from tensorgrad_jax.training.loop import InterruptedRunError, Training
from tensorgrad_jax.training.report import write_report
from tensorgrad_jax.training.stops import Interrupts


def samples(n, points, seed=0, channels=1):
    x = np.random.default_rng(seed).normal(size=(n, points, channels)).astype(np.float32)
    return [{"x": field, "y": np.roll(field, 1, 0)[:, :1]} for field in x]


def training(**options):
    model = FNO((4,), 1, 1, hidden_channels=12, n_layers=1, rngs=nnx.Rngs(0))
    optimizer = tg.tensorgrad(1e-2, specs=tensor_specs)
    data = data_sets(samples(12, 16), [OneTest(16, samples(3, 16, 1), 2)])
    return Training(model, optimizer, data, 1e-2, batch_size=4, **options)


def same(a, b):
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) for x, y in leaves)


@pytest.fixture(scope="module")
def two_epochs():
    trained = training()
    trained.fit(2)
    return trained


def test_the_model_holds_what_was_trained(two_epochs):
    x = jnp.stack([sample["x"] for sample in samples(2, 16, 2)])
    encoding = two_epochs.data.encoding
    expected = encoding.y.decode(two_epochs.model(encoding.x.encode(x)))
    np.testing.assert_allclose(two_epochs.predict(x), expected, rtol=1e-5, atol=1e-6)
    untrained = FNO((4,), 1, 1, hidden_channels=12, n_layers=1, rngs=nnx.Rngs(0))
    assert not same(nnx.state(untrained, nnx.Param), nnx.state(two_epochs.model, nnx.Param))


def test_fitting_on_is_fitting_at_once(two_epochs):
    stepwise = training()
    stepwise.fit(1)
    stepwise.fit(2)
    assert same(stepwise.state, two_epochs.state)
    assert [row["step"] for row in stepwise.rows] == [3, 6]
    assert stepwise.rows[0]["learning_rate"] == pytest.approx(1e-2)


def test_a_stop_leaves_a_training_that_goes_on(two_epochs, monkeypatch):
    stopped, original = training(), loop.batches

    def interrupted(source, batch_size, **options):
        if options.get("start") == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return original(source, batch_size, **options)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
    try:
        with monkeypatch.context() as patch:
            patch.setattr(loop, "batches", interrupted)
            with pytest.raises(InterruptedRunError, match=r"^stopped after step 0$"):
                stopped.fit(2)
    finally:
        signal.signal(signal.SIGINT, before)
    stopped.fit(2)
    assert same(stopped.state, two_epochs.state)


def test_an_epoch_may_be_cut_short():
    short = training(max_batches=2, loss="h1")
    short.fit(1)
    assert short.position.step == 2
    assert short.rows[0]["train_loss"] > 0


def test_a_report_needs_no_configuration(two_epochs, tmp_path, capsys):
    write_report(two_epochs, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "loss.png", "prediction.png", "summary.json",
    }  # fmt: skip
    assert "of AdamW" in capsys.readouterr().out


def test_test_sets_of_other_channels_are_refused():
    with pytest.raises(DataError, match="x has 2 channels, expected 1"):
        data_sets(samples(4, 8), [OneTest(8, samples(4, 8, channels=2), 2)])
    plain = data_sets(samples(4, 8), encode_input=False, encode_output=False)
    assert plain.encoding == (None, None)


def test_a_diverging_training_says_so():
    model = FNO((4,), 1, 1, hidden_channels=4, n_layers=1, rngs=nnx.Rngs(0))
    wild = Training(model, optax.sgd(1e30), data_sets(samples(8, 8)), 1e30, batch_size=4)
    with pytest.raises(loop.DivergedError, match=r"diverged in epoch 1: the loss is not finite$"):
        wild.fit(3)


def test_a_signal_that_is_ignored_stays_so():
    """As SIGHUP is under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts() as interrupts:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not interrupts.received
            os.kill(os.getpid(), signal.SIGTERM)
            assert interrupts.received
    finally:
        signal.signal(signal.SIGHUP, before)
