"""Command lines and configuration files at random."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import yaml
from hypothesis import strategies as st

from tensorgrad_jax.training.config import parse, to_yaml
from tensorgrad_jax.training.options import OPTIONS, Config, ConfigError

from .runs import Case

_NUMBERS = st.one_of(
    st.integers(),
    st.integers(-3, 70),
    st.sampled_from([2**31 - 1, 2**31, 2**32, 2**63, 10**30, 10**400, -1, 0]),
    st.floats(),
    st.floats(0, 2),
    st.sampled_from([1e-300, 1e308, 5e-324, 1e-45, 0.5, 1.0]),
)
_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), _NUMBERS, st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=2)
    ),
    max_leaves=6,
)
_WORDS = [
    "True", "False", "null", "~", "[4,4]", "[0.5]", "0x10", "0o7", "1_000", "1e3", ".inf", "nan",
    "-0", "+1", "[", "]", "{", "&a [*a]", "*a", "!!int ''", "'", '"', "[1,[2]]", "low_rank",
    "adamw", "tensorgrad", "StepLR", "half", "mixed", "linear", "burgers", "darcy", "nsforcing",
]  # fmt: skip
_NAMES = st.one_of(
    st.sampled_from(sorted(OPTIONS)),
    st.sampled_from(sorted(OPTIONS)).map(lambda name: name[:-1]),
    st.text(max_size=12),
)
_WRITTEN = st.one_of(
    st.sampled_from(_WORDS), _NUMBERS.map(str), st.text(max_size=10), _VALUES.map(repr)
)
_FLAGS = st.tuples(_NAMES, _WRITTEN, st.booleans()).map(
    lambda flag: [f"--{flag[0]}={flag[1]}"] if flag[2] else [f"--{flag[0]}", flag[1]]
)
_COMMANDS = st.lists(
    st.one_of(_FLAGS, st.text(max_size=8).map(lambda word: [word])), max_size=5
).map(lambda parts: [word for part in parts for word in part])
_SECTIONS = st.dictionaries(
    st.one_of(st.sampled_from(["data", "fno", "opt", "seed", "name", "optt"]), st.text(max_size=4)),
    st.one_of(
        st.dictionaries(
            st.one_of(
                st.sampled_from(sorted(name.rpartition(".")[2] for name in OPTIONS)),
                st.text(max_size=6),
            ),
            _VALUES,
            max_size=4,
        ),
        _VALUES,
    ),
    max_size=4,
)


def _check(config: Config) -> None:
    """What is accepted can be written, and read again as the same."""
    assert parse([], base=yaml.safe_load(to_yaml(config))) == config


def _settings(n: int) -> hypothesis.settings:
    return hypothesis.settings(
        max_examples=n, deadline=None, database=None, derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip


def _one_line(error: ConfigError) -> None:
    # train.py prints it so.
    assert " ".join(str(error).split())


def command_lines(n: int) -> Iterator[Case]:
    """n command lines: a configuration that survives being written, or one line."""
    tried = [0]

    @_settings(n)
    @hypothesis.given(_COMMANDS)
    def attempt(argv):
        tried[0] += 1
        if "--help" in argv or "-h" in argv or any("config_file" in word for word in argv):
            return
        try:
            _check(parse(argv))
        except ConfigError as error:
            _one_line(error)

    yield _outcome("fuzzed command lines", attempt, tried)


def files(folder: Path, n: int) -> Iterator[Case]:
    """n configuration files, from trees of values and from texts."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "fuzzed.yaml"
    tried = [0]
    texts = st.one_of(
        _SECTIONS.map(lambda tree: yaml.safe_dump(tree, allow_unicode=True)),
        st.text(alphabet="abopt:-[]{}&*!?|>'\"\n\t 019.,#", max_size=60),
    )

    @_settings(n)
    @hypothesis.given(texts)
    def attempt(text):
        tried[0] += 1
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        try:
            _check(parse(["--config_file", str(path)]))
        except ConfigError as error:
            _one_line(error)

    yield _outcome("fuzzed files", attempt, tried)


def _outcome(kind: str, attempt, tried: list[int]) -> Case:
    try:
        attempt()
    except Exception as escaped:  # what the parser did not answer
        return Case(
            kind, f"attempt {tried[0]}", False, f"{type(escaped).__name__}: {escaped}"[:400]
        )
    return Case(kind, "at random", True, times=tried[0])
