"""Integers, booleans and 16-bit numbers are the float32 numbers they stand for; complex ones are
refused."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tensorgrad_jax.models import FNO, SpectralConv, from_neuralop, gelu, to_neuralop

from tensorgrad_jax.data.normalizers import UnitGaussianNormalizer
from tensorgrad_jax.training.losses import h1_loss, lp_loss

MASK = np.random.default_rng(0).integers(0, 2, (2, 9, 8, 1))


def small_fno(n_modes=(4, 4), **options):
    return FNO(n_modes, 1, 1, 6, 1, rngs=nnx.Rngs(0), **options)


def assert_same(module, numbers, dtypes):
    """What `module` makes of the numbers does not depend on their dtype."""
    graph, state = nnx.split(module)
    apply = lambda state, inputs: [nnx.merge(graph, state)(x) for x in inputs]
    inputs = [jnp.asarray(numbers, dtype) for dtype in (*dtypes, jnp.float32)]
    *outputs, expected = jax.jit(apply)(state, inputs)
    for dtype, found in zip(dtypes, outputs, strict=True):
        np.testing.assert_array_equal(found, expected, err_msg=str(dtype))


@pytest.mark.parametrize(
    "options",
    [
        {"transform": "matrix"},
        {"transform": "fft"},
        {"positional_embedding": None},
        {"fno_block_precision": "mixed"},
        {"fno_block_precision": "half", "transform": "matrix"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_a_mask_gives_what_its_float32_numbers_give(options):
    assert_same(small_fno(**options), MASK, ["bool", "int32", "uint8", "bfloat16", "float16"])


@pytest.mark.parametrize("transform", ["matrix", "fft"])
def test_so_does_a_convolution_alone(transform):
    conv = SpectralConv(1, 2, (4, 4), transform=transform, rngs=nnx.Rngs(0))
    assert_same(conv, MASK, ["bool", "int32", "uint8", "bfloat16"])


def test_gelu_of_integers_is_not_cut_off():
    x = [-1, 0, 1, 3]
    np.testing.assert_array_equal(gelu(jnp.array(x)), gelu(jnp.array(x, jnp.float32)))


def test_coordinates_are_not_rounded_to_the_dtype_of_the_input():
    """1,000 points have 507 coordinates in bfloat16. These numbers are the same in all three."""
    numbers = np.random.default_rng(0).normal(size=(1, 1000, 1)).astype(jnp.float8_e4m3fn)
    assert_same(small_fno((4,)), numbers, ["bfloat16", "float16"])


Z = jnp.ones((2, 8, 8, 1), jnp.complex64) * (1 + 2j)
FIELDS = [{"y": np.asarray(z)} for z in Z]
NORMALIZER = UnitGaussianNormalizer(jnp.zeros(1), jnp.ones(1))
# The annotations, which are checked in the tests only, would notice some of these earlier.
LOSSES = {"lp_loss": inspect.unwrap(lp_loss), "h1_loss": inspect.unwrap(h1_loss)}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: small_fno()(Z), "FNO: .*real.*complex64"),
        (lambda: small_fno(positional_embedding=None)(Z), "FNO: .*real.*complex64"),
        (
            lambda: SpectralConv(1, 1, (4, 4), transform="matrix", rngs=nnx.Rngs(0))(Z),
            "SpectralConv: .*real.*complex64",
        ),
        (
            lambda: SpectralConv(1, 1, (4, 4), transform="fft", rngs=nnx.Rngs(0))(Z),
            "SpectralConv: .*real.*complex64",
        ),
        (lambda: gelu(Z), "gelu: .*real.*complex64"),
        (lambda: LOSSES["lp_loss"](Z, Z + 1j), "lp_loss: pred must be real, got complex64"),
        (lambda: LOSSES["lp_loss"](Z, Z + 1j, p=3), "lp_loss: pred must be real"),
        (lambda: LOSSES["lp_loss"](Z.real, Z), "lp_loss: target must be real"),
        (lambda: LOSSES["h1_loss"](Z, Z + 1j), "h1_loss: pred must be real, got complex64"),
        (lambda: LOSSES["h1_loss"](Z.real, Z, periodic=False), "h1_loss: target must be real"),
        (lambda: NORMALIZER.encode(Z), "UnitGaussianNormalizer: .*real.*complex64"),
        (lambda: NORMALIZER.decode(Z), "UnitGaussianNormalizer: .*real.*complex64"),
        (lambda: UnitGaussianNormalizer.fit(FIELDS, "y"), "UnitGaussianNormalizer: .*real"),
    ],
)
def test_complex_numbers_are_refused(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_complex_weights_where_real_ones_are_expected_are_refused():
    arrays = to_neuralop(small_fno())
    arrays["lifting.fcs.0.bias"] = arrays["lifting.fcs.0.bias"] + 1j
    with pytest.raises(ValueError, match=r"lifting.fcs.0.bias must be real, got complex64"):
        from_neuralop(arrays)
