"""Layers that are stacked by `nnx.vmap`, `nnx.scan` or `jax.vmap` are tensors of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tensorgrad_jax.models import FNO, SpectralConv, tensor_specs

import tensorgrad_jax as tg


def convolution(key, n_modes=(4, 4), **options):
    return SpectralConv(3, 3, n_modes, rngs=nnx.Rngs(key), **options)


def stacked(*counts, **options):
    """Convolutions built under one `nnx.vmap` per count."""
    build = lambda key: convolution(key, **options)
    for _ in counts:
        build = nnx.vmap(build)
    return build(jax.random.split(jax.random.key(0), counts))


VIEWS = {
    "module": lambda model: model,
    "state": lambda model: nnx.state(model, nnx.Param),
    "arrays": lambda model: jax.tree.map(
        lambda v: v[...],
        nnx.state(model, nnx.Param),
        is_leaf=lambda v: isinstance(v, nnx.Variable),
    ),
    "dict": lambda model: nnx.to_pure_dict(nnx.state(model, nnx.Param)),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("counts", [(2,), (3,), (2, 2), (2, 3)])
def test_axes_of_stacked_layers_are_batch_axes(counts, view):
    """Two layers are not the two parts of a complex number."""
    n = len(counts)
    expected = tg.TensorSpec(
        complex_axis=n,
        batch_axes=tuple(range(n)),
        groups=((n + 1, n + 2, n + 3), (n + 1, n + 2, n + 4)),
        matrix_axes=(n + 3, n + 4),
    )
    specs = tensor_specs(VIEWS[view](stacked(*counts)))
    is_spec = lambda x: x is None or isinstance(x, tg.TensorSpec)
    found = dict(jax.tree_util.tree_leaves_with_path(specs, is_leaf=is_spec))
    assert [spec for spec in found.values() if spec is not None] == [expected]


@pytest.mark.parametrize("options", [{"n_modes": (2,)}, {"n_modes": (2, 2), "separable": True}])
def test_modes_are_not_taken_for_added_axes(options):
    """The weights of two modes look like those of two layers: (2, 2, 3, 3) and (2, 2, 2, 3)."""
    for view in VIEWS.values():
        spec = tensor_specs(view(convolution(0, **options)))["spectral_weight"]
        spec = jax.tree.leaves(spec, is_leaf=lambda x: isinstance(x, tg.TensorSpec))[0]
        assert (spec.complex_axis, spec.batch_axes) == (0, ())


def test_a_model_built_under_jax_vmap():
    """An ensemble, as one tree of parameters."""
    keys = jax.random.split(jax.random.key(0), 2)
    build = lambda key: nnx.state(FNO((4, 4), 1, 1, 4, 1, rngs=nnx.Rngs(key)), nnx.Param)
    specs = jax.tree.leaves(
        tensor_specs(jax.vmap(build)(keys)), is_leaf=lambda x: isinstance(x, tg.TensorSpec)
    )
    assert [(s.complex_axis, s.batch_axes) for s in specs] == [(1, (0,))]


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: tg.projected_adamw(1e-2, tg.Tucker(0.3), update_proj_gap=2, specs=tensor_specs),
        lambda: optax.chain(tg.scale_by_factored_rms(specs=tensor_specs), optax.scale(-1e-2)),
    ],
    ids=["projected_adamw", "scale_by_factored_rms"],
)
def test_stacked_layers_are_updated_like_single_ones(optimizer):
    params = nnx.to_pure_dict(nnx.state(stacked(2), nnx.Param))
    draw = lambda step: jax.tree.map(
        lambda p: jax.random.normal(jax.random.key(step), p.shape), params
    )
    gradients = [draw(step) for step in range(3)]

    def updated(params, gradients):
        rule = optimizer()
        state, update = rule.init(params), jax.jit(rule.update)
        for gradient in gradients:
            updates, state = update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        return params

    found = updated(params, gradients)
    for i in range(2):
        of_layer = lambda tree, i=i: jax.tree.map(lambda x: x[i], tree)
        expected = updated(of_layer(params), [of_layer(g) for g in gradients])
        for name, value in of_layer(found).items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_scanned_layers_take_a_step():
    """`nnx.Optimizer` shows variables to `init` and plain arrays to `update`."""

    class Scanned(nnx.Module):
        def __init__(self):
            self.convs = stacked(3)

        def __call__(self, v):
            apply = nnx.scan(
                lambda v, conv: v + conv(v), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry
            )
            return apply(v, self.convs)

    model = Scanned()
    optimizer = nnx.Optimizer(
        model, tg.tensorgrad(1e-2, update_proj_gap=2, specs=tensor_specs), wrt=nnx.Param
    )
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))

    @nnx.jit
    def step(model, optimizer):
        loss, gradients = nnx.value_and_grad(lambda m: jnp.mean((m(x) - jnp.sin(x)) ** 2))(model)
        optimizer.update(model, gradients)
        return loss

    losses = [step(model, optimizer) for _ in range(3)]
    assert losses[2] < losses[0]


def test_what_says_nothing_of_stacking_is_refused():
    weight = nnx.to_pure_dict(nnx.state(stacked(2)))["spectral_weight"]
    with pytest.raises(ValueError, match=r"\(2, 2, 4, 3, 3, 3\) comes without its bias"):
        tensor_specs({"spectral_weight": weight})
    behind = nnx.vmap(lambda key: convolution(key), out_axes=nnx.StateAxes({nnx.Param: 1}))
    model = behind(jax.random.split(jax.random.key(0), 3))
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 3, 3, 3\).*imaginary part at axis 1"):
        tensor_specs(model)
