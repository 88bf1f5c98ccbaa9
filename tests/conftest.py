"""Run-time checks of annotated arrays, and what several test files share."""

import importlib.metadata
import os
import tempfile

# Eight host devices for the sharding tests. The rest is for speed: the suite's time is the
# compiler's, its arrays are tiny. All must be set before the first use of JAX.
_FLAGS = ["--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0"]
if importlib.metadata.version("jaxlib").startswith("0.10."):  # later ones do not know it
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(_FLAGS))

# The suite builds the same programs many times (train.py started anew, say): compile them once.
_CACHE = tempfile.TemporaryDirectory(prefix="tensorgrad-tests-")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _CACHE.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import jaxtyping
import pytest

jaxtyping.install_import_hook("tensorgrad_jax", "beartype.beartype")


@pytest.fixture
def unchecked():
    """Switch the checks off: wrong arguments are to meet the library's own words."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def pytest_collection_modifyitems(items):
    """Start with the runs of train.py, which one worker does one after the other."""
    for item in items:
        if item.path.name == "test_train.py":
            item.add_marker(pytest.mark.xdist_group("train"))
    items.sort(key=lambda item: item.path.name != "test_train.py")
