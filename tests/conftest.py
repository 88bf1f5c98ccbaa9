"""Run-time checks of annotated arrays, and what several test files share."""

import importlib.metadata
import os
import platform
import tempfile
from pathlib import Path

# Eight host devices for the sharding tests. The rest is for speed: the suite's time is the
# compiler's, its arrays are tiny. All must be set before the first use of JAX.
_FLAGS = ["--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0"]
if importlib.metadata.version("jaxlib").startswith("0.10."):  # later ones do not know it
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(_FLAGS))

# The suite builds the same programs many times (train.py started anew, single operations in every
# file): compile them once.
_CACHE = tempfile.TemporaryDirectory(prefix="tensorgrad-tests-")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _CACHE.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import jaxtyping
import pytest

jaxtyping.install_import_hook("tensorgrad_jax", "beartype.beartype")


@pytest.fixture
def unchecked():
    """Switch the checks off: wrong arguments are to meet the library's own words."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True, scope="module")
def _forgotten_programs():
    """Forget the programs of a file when it is done: of all files they are gigabytes a worker."""
    yield
    jax.clear_caches()


# Programs that recorded the golden vectors, with packages that the tests do without.
collect_ignore = ["golden"]

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")

# The half of the suite that `make test-newest` runs: what depends most on the versions of Python,
# JAX (what reads its programs above all), Flax, Optax, Grain and Orbax for its seconds. Of these
# files, the tests named below take long for what they add.
NEWEST = {
    "test_composability.py",
    "test_data_files.py",
    "test_data_layout.py",
    "test_data_sets.py",
    "test_export.py",
    "test_golden_trajectories.py",
    "test_independence.py",
    "test_models_golden.py",
    "test_per_example.py",
    "test_same_derivative.py",
    "test_train.py",
    "test_train_refusals.py",
    "test_training_config.py",
    "test_training_report.py",
    "test_warnings.py",
}
NOT_NEWEST = ("test_a_run_stopped_by_a_signal_continues_exactly[8]",)

# Tests that take long for what they add to the others of their files, see thorough.txt.
THOROUGH = frozenset(
    line
    for line in (Path(__file__).parent / "thorough.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
)


def pytest_configure(config):
    """Notice a file that was renamed, rather than leave it out."""
    missing = sorted(name for name in NEWEST if not (Path(__file__).parent / name).is_file())
    if missing:
        raise pytest.UsageError(f"tests/conftest.py: NEWEST has {missing}, which are not there")


def pytest_sessionstart(session):
    """Say which versions the result holds for."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter and not hasattr(session.config, "workerinput"):
        versions = (f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
        reporter.write_line(f"Python {platform.python_version()}, {', '.join(versions)}")


def pytest_collection_modifyitems(items):
    """Start with the runs of train.py, the file that takes longest."""
    for item in items:
        if item.path.name in NEWEST and item.name not in NOT_NEWEST:
            item.add_marker(pytest.mark.newest)
        names = ("*", item.name, item.name.partition("[")[0])
        if any(f"{item.path.name}::{name}" in THOROUGH for name in names):
            item.add_marker(pytest.mark.thorough)
    items.sort(key=lambda item: item.path.name != "test_train.py")
