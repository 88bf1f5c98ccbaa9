"""A test in which our code uses what a library will remove or change fails."""

import warnings

import jax
import jax.numpy as jnp
import pytest
from tensorgrad_jax.models.fourier import truncated_rfftn

# A library's function that is out of date and says so to its caller, as those of JAX do, and how it
# is called.
LIBRARY = """
import warnings

def old(category, level=2):
    warnings.warn("use the new one", category, stacklevel=level)
"""
CATEGORIES = [DeprecationWarning, PendingDeprecationWarning, FutureWarning]


def call(caller, category, library="jax.numpy", **options):
    """Call the old function from a module called `caller`."""
    functions = {"__name__": library}
    exec(LIBRARY, functions)
    names = {"__name__": caller, "old": functions["old"], "category": category, "options": options}
    exec("old(category, **options)", names)


@pytest.mark.parametrize("category", CATEGORIES)
@pytest.mark.parametrize(
    "caller",
    [
        "tensorgrad_jax",
        "tensorgrad_jax.optimizers",
        "tensorgrad_jax.transforms.subspace",
        "tensorgrad_jax.models",
        "tensorgrad_jax.models.fno",
        "train",
        "studies.grid",
        "conftest",
        "test_warnings",
    ],
)
def test_our_own_calls(caller, category):
    with pytest.raises(category, match="use the new one"):
        call(caller, category)


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_real_call_within_a_compiled_function(monkeypatch, category):
    rfft = jnp.fft.rfft

    def old_rfft(*arguments, **options):
        warnings.warn("use the new one", category, stacklevel=2)
        return rfft(*arguments, **options)

    monkeypatch.setattr(jnp.fft, "rfft", old_rfft)
    transform = jax.jit(lambda x: truncated_rfftn(x, [range(-2, 2), range(3)], "fft"))
    with pytest.raises(category, match="use the new one"):
        transform(jnp.ones((1, 8, 8, 1)))


@pytest.mark.parametrize("category", CATEGORIES)
@pytest.mark.parametrize("module", ["jax", "jax._src.core", "jax.numpy"])
def test_a_warning_of_jax_that_points_at_jax(module, category):
    """Where a function is called through `jax.jit`, its warning names JAX as the caller."""
    with pytest.raises(category, match="use the new one"):
        call("tensorgrad_jax", category, library=module, level=1)


@pytest.mark.parametrize("category", CATEGORIES)
@pytest.mark.parametrize("caller", ["optax.transforms", "matplotlib.figure", "jaxtyping"])
def test_calls_of_other_libraries_are_their_concern(caller, category):
    with warnings.catch_warnings(record=True) as caught:
        call(caller, category)
    assert [w.category for w in caught] == [category]
