"""The options become the projections and the gaps that they name."""

import pytest

import tensorgrad_jax as tg
from tensorgrad_jax.training.build import build_gap, build_projection
from tensorgrad_jax.training.config import parse


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("", tg.Residual(tg.UnstructuredSparse(0.05), tg.Tucker(0.2))),
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
    ],
)
def test_projections(flags, expected):
    assert build_projection(parse(flags.split()).opt) == expected


def test_gaps():
    assert build_gap(parse([]).opt, 100) == 200
    flags = "--opt.update_proj_gap 10 --opt.update_proj_gap_end 40 --opt.update_proj_gap_mode "
    gap = lambda mode, step: int(build_gap(parse((flags + mode).split()).opt, 100)(step))
    assert [gap("linear", s) for s in (0, 50, 100)] == [10, 25, 40]
    assert [gap("exponential", s) for s in (0, 50, 100)] == [10, 20, 40]
    assert [gap("exponential2", s) for s in (0, 50, 100)] == [10, 14, 40]
