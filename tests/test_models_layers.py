"""Layers that a user puts in the place of others are called, whatever they are."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tensorgrad_jax.models import FNO, to_neuralop

X = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
LINEAR = (
    "lifting.inner", "lifting.outer", "projection.inner", "projection.outer",
    "blocks.0.skip.linear", "blocks.0.channel_mlp.inner", "blocks.0.channel_mlp.outer",
)  # fmt: skip
LAYERS = (
    *LINEAR, "lifting", "projection", "blocks.0", "blocks.0.conv", "blocks.0.skip",
    "blocks.0.channel_mlp", "blocks.0.channel_mlp_skip", "blocks.0.conv_norm",
    "blocks.0.output_norm",
)  # fmt: skip


def small_fno(**options):
    return FNO((4, 4), 1, 1, 6, 2, rngs=nnx.Rngs(0), **options)


def owner_and_name(model, path):
    *owners, name = path.split(".")
    for owner in owners:
        model = model[int(owner)] if owner.isdigit() else getattr(model, owner)
    return model, name


def replace(model, path, make):
    """Put make(layer) in the place of the layer."""
    owner, name = owner_and_name(model, path)
    if name.isdigit():
        owner[int(name)] = make(owner[int(name)])
    else:
        setattr(owner, name, make(getattr(owner, name)))
    return model


def run(model, x=X):
    graph, state = nnx.split(model)
    return jax.jit(lambda state, x: nnx.merge(graph, state)(x))(state, x)


def relative_error(value, expected):
    return jnp.linalg.norm(value - expected) / jnp.linalg.norm(expected)


class Recorded(nnx.Module):
    """Calls a layer and remembers that it did, and on which shape."""

    def __init__(self, layer, seen):
        self.layer, self.seen = layer, seen

    def __call__(self, x):
        self.seen.append(x.shape)
        return self.layer(x)


@pytest.mark.parametrize("checkpoint", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("path", LAYERS)
def test_every_layer_is_called_on_the_grid(path, checkpoint):
    seen: list[tuple[int, ...]] = []
    options = {"norm": "group_norm", "activation_checkpoint": checkpoint}
    model = replace(small_fno(**options), path, lambda layer: Recorded(layer, nnx.static(seen)))
    y = jax.eval_shape(model, X)
    assert y.shape == X.shape
    assert seen
    assert {shape[:-1] for shape in seen} == {(2, 8, 8)}


def low_rank(layer, seed=1, rank=2):
    draw = lambda key, *shape: jax.random.normal(jax.random.key(key), shape)
    return draw(seed, layer.in_features, rank), draw(seed + 9, rank, layer.out_features)


def merged(layer):
    a, b = low_rank(layer)
    layer.kernel[...] += a @ b
    return layer


def lora_linear(layer):
    new = nnx.LoRALinear(
        layer.in_features,
        layer.out_features,
        lora_rank=2,
        use_bias=layer.bias is not None,
        rngs=nnx.Rngs(0),
    )
    new.kernel[...] = layer.kernel[...]
    if layer.bias is not None:
        new.bias[...] = layer.bias[...]
    new.lora.lora_a[...], new.lora.lora_b[...] = low_rank(layer)
    return new


def lora_around(layer):
    new = nnx.LoRA(layer.in_features, 2, layer.out_features, base_module=layer, rngs=nnx.Rngs(0))
    new.lora_a[...], new.lora_b[...] = low_rank(layer)
    return new


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [({}, 1e-5), ({"fno_block_precision": "mixed"}, 0.02), ({"activation_checkpoint": True}, 1e-5)],
    ids=["full", "mixed", "recomputed"],
)
@pytest.mark.parametrize("adapted", [lora_linear, lora_around])
def test_low_rank_adapters_are_the_merged_kernel(adapted, options, tolerance):
    """In the places of all linear maps at once; two of three would leave an error above .1."""
    models = {make: small_fno(**options) for make in (None, merged, adapted)}
    for make, model in models.items():
        for path in LINEAR if make else ():
            replace(model, path, make)
    plain, expected, found = (run(model) for model in models.values())
    assert relative_error(expected, plain) > 0.1
    assert relative_error(found, expected) <= tolerance


def test_adapters_alone_are_trained():
    model = small_fno()
    for path in LINEAR:
        replace(model, path, lora_linear)
    before = nnx.to_pure_dict(nnx.state(model))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.LoRAParam)

    @nnx.jit
    def step(model, optimizer):
        loss = lambda model: jnp.mean(model(X) ** 2)
        gradients = nnx.grad(loss, argnums=nnx.DiffState(0, nnx.LoRAParam))(model)
        optimizer.update(model, gradients)

    step(model, optimizer)
    after = nnx.to_pure_dict(nnx.state(model))
    flat = jax.tree_util.tree_leaves_with_path
    for (path, old), (_, new) in zip(flat(before), flat(after), strict=True):
        adapter = "lora" in jax.tree_util.keystr(path)
        assert bool(jnp.any(old != new)) == adapter, jax.tree_util.keystr(path)


def test_products_chosen_by_the_user_are_used():
    """Whoever quantises sets `dot_general` of an `nnx.Linear`."""
    seen = []

    def dot_general(*arguments, **options):
        seen.append(arguments[0].shape)
        return jax.lax.dot_general(*arguments, **options)

    model, plain = small_fno(), small_fno()
    for path in LINEAR:
        owner, name = owner_and_name(model, path)
        getattr(owner, name).dot_general = dot_general
    assert relative_error(run(model), run(plain)) < 1e-5
    assert len(seen) == len(LINEAR)


def test_half_of_the_gated_skip_may_be_taken_out():
    """u + d * v without the network, s(u) without the skip: what is left is still computed."""
    outputs = {}
    for gone in (None, "channel_mlp", "channel_mlp_skip"):
        model = small_fno()
        if gone:
            setattr(model.blocks[0], gone, None)
        outputs[gone] = run(model)
    assert relative_error(outputs["channel_mlp"], outputs["channel_mlp_skip"]) > 0.01
    replaced = replace(small_fno(), "blocks.0.channel_mlp", lambda _: nnx.Sequential())
    assert relative_error(outputs["channel_mlp"], run(replaced)) < 1e-6


def test_a_layer_may_be_put_where_there_is_none():
    plain, normed, put = small_fno(), small_fno(norm="group_norm"), small_fno()
    for block in put.blocks:
        for name in ("conv_norm", "output_norm"):
            norm = nnx.GroupNorm(6, num_groups=1, epsilon=1e-5, rngs=nnx.Rngs(0))
            setattr(block, name, norm)
    nnx.update(put, nnx.state(normed))
    assert relative_error(run(normed), run(plain)) > 0.01
    assert relative_error(run(put), run(normed)) < 1e-5


def test_layers_with_a_state_keep_it_when_recomputed():
    """Running averages and the random stream of dropout change as without checkpointing."""
    results = []
    for checkpoint in (False, True):
        model = small_fno(norm="group_norm", activation_checkpoint=checkpoint)
        model.blocks[0].conv_norm = nnx.BatchNorm(6, rngs=nnx.Rngs(1))
        dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(2))
        replace(model, "blocks.1.skip", lambda skip, d=dropout: nnx.Sequential(skip, d))

        @nnx.jit
        def step(model):
            return nnx.value_and_grad(lambda model: jnp.mean(model(X) ** 2))(model)

        steps = [step(model), step(model)]
        counted = nnx.state(model, (nnx.BatchStat, nnx.RngCount))
        results.append((steps, nnx.to_pure_dict(counted)))
    (steps, state), (steps_recomputed, state_recomputed) = results
    assert steps[0][0] != steps[1][0]  # another mask
    for found, expected in zip(
        jax.tree.leaves((steps_recomputed, state_recomputed)),
        jax.tree.leaves((steps, state)),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-6)
    mean = state["blocks"][0]["conv_norm"]["mean"]
    assert jnp.linalg.norm(mean) > 0


def test_a_layer_that_adds_variables_is_refused_when_recomputed():
    class Noting(nnx.Module):
        def __call__(self, v):
            self.seen = nnx.Intermediate(v)
            return v

    model = small_fno(norm="group_norm", activation_checkpoint=True)
    model.blocks[0].conv_norm = Noting()
    with pytest.raises(ValueError, match=r"activation_checkpoint: a call of FNOBlock adds"):
        model(X)


@pytest.mark.parametrize(
    ("path", "make", "message"),
    [
        ("lifting.inner", lora_linear, r"model.lifting.inner.*ChannelLinear.*got LoRALinear"),
        ("blocks.1.skip.linear", lora_around, r"blocks\[1\].skip.linear.*got LoRA\b"),
        ("blocks.0.conv", lambda _: jnp.tanh, r"blocks\[0\].conv.*SpectralConv"),
        ("blocks.0.channel_mlp", lambda _: None, r"blocks\[0\].channel_mlp.*got NoneType"),
        ("blocks.1.output_norm", lambda _: None, r"blocks\[1\].output_norm.*got NoneType"),
    ],
)
def test_export_refuses_what_it_would_read_and_not_call(path, make, message):
    with pytest.raises(ValueError, match=message):
        to_neuralop(replace(small_fno(norm="group_norm"), path, make))
