"""train.py --fno.low_rank oialr: cores, their checkpoints, and what does not go with them."""

import json
import os
import signal

import jax.numpy as jnp
import pytest
from test_train import arguments, assert_same_run, data, final_state  # noqa: F401

import train
from tensorgrad_jax.training import loop
from tensorgrad_jax.training.build import build_data, build_training
from tensorgrad_jax.training.config import parse

CORES = {
    "fno__low_rank": "oialr", "fno__hidden_channels": 16, "fno__low_rank_delay": 4,
    "fno__low_rank_frequency": 4, "fno__low_rank_cutoff": 0.9, "opt__update_proj_gap": "null",
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):  # noqa: F811
    runs = tmp_path_factory.mktemp("low_rank")
    assert train.main(arguments(data, runs, name="whole", **CORES)) == 0
    return runs / "whole"


# Looks at steps 2, 5, ...: of the four axes some have frozen by step 8, and not all in the end.
SETTLING = CORES | {
    "fno__low_rank_freeze": "stability", "fno__low_rank_threshold": 0.91,
    "fno__low_rank_delay": 2, "fno__low_rank_frequency": 3, "opt__learning_rate": 0.05,
}  # fmt: skip


@pytest.fixture(scope="module")
def settling(data, tmp_path_factory):  # noqa: F811
    runs = tmp_path_factory.mktemp("settling")
    assert train.main(arguments(data, runs, name="whole", **SETTLING)) == 0
    return runs / "whole"


def shapes(folder):
    return {p: x.shape for p, x in final_state(folder).items() if "params" in p and "spectral" in p}


def test_spectral_weights_become_cores_that_shrink(whole):
    summary = json.loads((whole / "summary.json").read_text())
    low_rank = summary["low_rank"]
    assert low_rank["trainable_spectral_share"] <= 0.25
    assert len(low_rank["ranks"]) == 2
    ranks = list(low_rank["ranks"].values())
    assert any(min(r) < 8 for r in ranks)
    for shape, rank in zip(shapes(whole).values(), ranks, strict=True):
        assert shape[:3] == (2, 4, 3)
        assert all(r <= p <= 8 for r, p in zip(rank, shape[-2:], strict=True))
    # Parameters of the dense model are what the reader is told of.
    assert summary["n_params"] > low_rank["trainable_params"]
    assert summary["test_l2"] < 1


# Steps 4 and 8 come to cores, or to other ranks, before the fifth and the ninth.
@pytest.mark.parametrize("stop_at", [2, 6, 11])
def test_a_run_continues_exactly_across_ranks(data, whole, tmp_path, monkeypatch, stop_at):  # noqa: F811
    stopped_and_resumed(data, whole, tmp_path, monkeypatch, stop_at, CORES)


@pytest.mark.parametrize("stop_at", [4, 9, 12])
def test_a_run_continues_exactly_between_two_axes(data, settling, tmp_path, monkeypatch, stop_at):  # noqa: F811
    record = stopped_and_resumed(data, settling, tmp_path, monkeypatch, stop_at, SETTLING)
    frozen = sum(p < 16 for size in record["sizes"].values() for p in size[-2:])
    assert frozen == 0 if stop_at == 4 else 0 < frozen < 4
    assert record["previous"]


def test_axes_that_never_settle_stay_whole_and_are_counted(data, settling, tmp_path):  # noqa: F811
    low_rank = json.loads((settling / "summary.json").read_text())["low_rank"]
    assert 0 < sum(len(r) for r in low_rank["ranks"].values()) < 4
    assert low_rank["trainable_spectral_share"] < 1
    never = SETTLING | {"fno__low_rank_threshold": 1.0}
    assert train.main(arguments(data, tmp_path, name="never", **never)) == 0
    low_rank = json.loads((tmp_path / "never" / "summary.json").read_text())["low_rank"]
    assert low_rank["ranks"] == {}
    assert low_rank["trainable_spectral_share"] == 1


def stopped_and_resumed(data, whole, tmp_path, monkeypatch, stop_at, options):  # noqa: F811
    original, steps = loop.batches, [0]

    def interrupted(source, batch_size, **options):
        for batch in original(source, batch_size, **options):
            if options.get("shuffle", True):
                if steps[0] == stop_at:
                    os.kill(os.getpid(), signal.SIGTERM)
                steps[0] += 1
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(loop, "batches", interrupted)
        assert train.main(arguments(data, tmp_path, name="whole", **options)) == 130
    folder = tmp_path / "whole"
    newest = max((folder / "checkpoints").iterdir(), key=lambda path: int(path.name))
    record = json.loads((newest / "record.json").read_text())
    assert train.main(["--opt.resume_from_dir", str(folder)]) == 0
    assert_same_run(folder, whole)
    return record["low_rank"]


def test_adamw_trains_cores_too(data, tmp_path):  # noqa: F811
    options = CORES | {"opt__optimizer_type": "adamw", "opt__tensorgrad": "False"}
    assert train.main(arguments(data, tmp_path, name="adamw", **options)) == 0
    summary = json.loads((tmp_path / "adamw" / "summary.json").read_text())
    assert summary["low_rank"]["trainable_spectral_share"] <= 0.25
    assert summary["optimizer_state_bytes"] < summary["adamw_state_bytes"] / 2


def test_the_model_holds_the_weights_made_of_the_cores(data, tmp_path):  # noqa: F811
    config = parse(arguments(data, tmp_path, **CORES))
    sets = build_data(config)
    training = build_training(config, sets)
    training.fit(1)
    x = jnp.asarray(sets.tests[0].source[0]["x"][None])
    expected = training.predict(x)
    assert training.state.bases
    weight = training.model.blocks[0].conv.spectral_weight
    assert weight.shape == (2, 4, 3, 16, 16)
    encoded = x if sets.encoding.x is None else sets.encoding.x.encode(x)
    y = training.model(encoded)
    y = y if sets.encoding.y is None else sets.encoding.y.decode(y)
    assert abs(y - expected).max() < 1e-4 * abs(expected).max()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"opt__tensorgrad": "True"}, "opt.optimizer_type: got"),
        ({"fno__fno_block_weights_precision": "half", "fno__fno_block_precision": "mixed"},
         "fno.fno_block_weights_precision: got 'half'"),
        ({"fno__low_rank_share": "1.0"}, r"fno.low_rank_share: got '1.0', expected a number in"),
        ({"fno__low_rank_cutoff": "1"}, "fno.low_rank_cutoff: got '1', expected a number in"),
        ({"fno__low_rank_delay": "0"}, "fno.low_rank_delay: got '0', expected an integer"),
        ({"fno__low_rank": "svd"}, "fno.low_rank: got 'svd', expected oialr or null"),
        ({"fno__low_rank": "null"}, "fno.low_rank_delay"),
        ({"fno__low_rank_threshold": 0.9}, "fno.low_rank_threshold: has no effect"),
        ({"fno__low_rank_freeze": "early"}, "fno.low_rank_freeze: got 'early', expected one of"),
        ({"fno__low_rank_freeze": "stability", "fno__low_rank_threshold": "0"},
         "fno.low_rank_threshold: got '0', expected a number in"),
    ],
)  # fmt: skip
def test_what_does_not_go_with_cores(data, tmp_path, capsys, change, message):  # noqa: F811
    status = train.main(arguments(data, tmp_path, **(CORES | change)))
    error = capsys.readouterr().err
    assert message.split(":")[0] in error
    assert status == 2
    assert "Traceback" not in error
