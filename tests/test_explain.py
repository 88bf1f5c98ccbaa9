"""The table of what will be compressed says what the optimizers then do."""

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from tensorgrad_jax.models import FNO, tensor_specs

import tensorgrad_jax as tg


def struct(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


PARAMS = {
    "conv": struct(2, 8, 5, 12, 12),
    "layers": struct(3, 2, 16, 20),
    "z": struct(12, 10, 11, dtype=jnp.complex64),
    "half": struct(12, 10, 11, dtype=jnp.bfloat16),
    "dense": struct(40, 30),
    "gate": struct(),
}
SPECS = {
    "conv": tg.TensorSpec(0),
    "layers": tg.TensorSpec(1, (0,)),
    "z": tg.TensorSpec(),
    "half": tg.TensorSpec(),
    "dense": None,
    "gate": None,
}
PROJECTIONS = [
    tg.Tucker(0.1),
    tg.Tucker(0.1, factors="real"),
    tg.MatrixLowRank(0.25),
    tg.StructuredSparse(0.25),
    tg.RandomProjection(0.1),
    tg.Residual(tg.UnstructuredSparse(0.05, "topk"), tg.Tucker(0.2)),
]


@pytest.mark.parametrize("projection", PROJECTIONS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("specs", [SPECS, None], ids=["specs", "rule"])
def test_the_bytes_are_those_of_the_state(projection, specs):
    told = tg.explain(PARAMS, specs, projection)
    optimizer = tg.in_subspace(tg.scale_by_adam(), projection, specs=specs)
    counted = tg.state_bytes(jax.eval_shape(optimizer.init, PARAMS))
    scalars = 2 * 4  # moments of the gate, which state_bytes counts among other scalars
    assert sum(leaf.moments for leaf in told.leaves) == counted["moments"] + scalars
    assert sum(leaf.basis for leaf in told.leaves) == counted["basis"]
    adamw = tg.state_bytes(jax.eval_shape(optax.scale_by_adam().init, PARAMS))
    assert told.adamw == adamw["moments"] + scalars


def test_what_the_projection_sees():
    by_name = {leaf.name: leaf for leaf in tg.explain(PARAMS, SPECS).leaves}
    assert by_name["conv"].seen == "complex (8, 5, 12, 12)"
    assert by_name["layers"].seen == "3 x complex (16, 20)"
    assert by_name["z"].seen == "complex (12, 10, 11)"
    assert by_name["dense"].how == by_name["gate"].how == "AdamW: no spec"
    assert by_name["conv"].how == "Tucker(0.05)"
    assert by_name["dense"].total == by_name["dense"].adamw == 2 * 4 * 40 * 30


def test_projections_are_written_as_one_writes_them():
    how = lambda p: tg.explain(struct(8, 9, 10), tg.TensorSpec(), p).leaves[0].how
    assert how(tg.Tucker(4, method="svd")) == "Tucker(4, method='svd')"
    assert how(tg.Tucker((..., 0.5))) == "Tucker((..., 0.5))"
    sparse, low_rank = tg.UnstructuredSparse(0.05), tg.Tucker((4, 5, 6))
    written = "(UnstructuredSparse(0.05), Tucker((4, 5, 6)))"
    assert how(tg.Residual(sparse, low_rank)) == f"Residual{written}"
    assert how(tg.Sum(sparse, low_rank)) == f"Sum{written}"


def test_the_default_rule_says_why_it_leaves_a_parameter_alone():
    """Both traps: stacked matrices are one tensor to it, single matrices are none."""
    layers, matrix = struct(12, 64, 64), struct(64, 64)
    told = tg.explain({"layers": layers, "small": struct(4, 4, 4), "matrix": matrix})
    assert [leaf.seen for leaf in told.leaves] == ["(12, 64, 64)", "", ""]
    assert [leaf.how for leaf in told.leaves[1:]] == ["AdamW: 2 dimensions", "AdamW: 64 elements"]
    assert "Nothing" not in str(told)
    assert str(tg.explain({"matrix": matrix})).splitlines()[-1] == (
        "Nothing is compressed. Without specs only parameters of 3 or more dimensions and more "
        "than 1,000 elements are."
    )


def test_the_table_has_a_row_per_parameter_and_their_sums():
    told = tg.explain(PARAMS, SPECS)
    head, *rows, total = str(told).splitlines()
    assert head.split()[:2] == ["parameter", "shape"]
    assert [row.split()[0] for row in rows] == sorted(PARAMS)
    share = f"{told.total / told.adamw:.1%}"
    assert total.split()[0] == "all"
    assert total.split()[-3:] == [f"{told.total:,}", f"{told.adamw:,}", share]
    assert str(tg.explain({})).splitlines()[1].split() == ["all", "0", "0", "0", "0", "-"]


def test_a_model_that_was_never_allocated():
    model = nnx.eval_shape(lambda: FNO((4, 4), 1, 1, 8, n_layers=2, rngs=nnx.Rngs(0)))
    told = tg.explain(nnx.state(model, nnx.Param), tensor_specs)
    compressed = [leaf.name for leaf in told.leaves if leaf.compact]
    assert compressed == [f"blocks.{i}.conv.spectral_weight" for i in range(2)]


def test_a_tree_of_projections_says_itself_which_parameters_are_meant():
    projections = {"a": tg.Tucker((3, 4)), "b": None}
    a, b = tg.explain({"a": struct(8, 9), "b": struct(8, 9)}, None, projections).leaves
    assert (a.how, a.compact, b.how) == ("Tucker((3, 4))", "(3, 4)", "AdamW: no spec")


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"parameter 'w' .* complex_axis=0 must have size 2"):
        tg.explain({"w": struct(3, 4, 5)}, {"w": tg.TensorSpec(0)})
