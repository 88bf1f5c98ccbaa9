"""Finding and reading a configuration file."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml

from tensorgrad_jax.training.allowed import ConfigError

CONFIG_FOLDER = Path(__file__).resolve().parents[2] / "config"
"""The repository's own configuration files."""


def find_config_file(name: str) -> Path:
    """The file of that name: as given, then in the repository's config/ folder.

    The ending .yaml may be left out.

    Raises:
        ConfigError: there is no such file.
    """
    candidates = [
        folder / (name + ending) for folder in (Path(), CONFIG_FOLDER) for ending in ("", ".yaml")
    ]
    for path in candidates:
        if name and path.is_file():
            return path
    shipped = sorted(path.name for path in CONFIG_FOLDER.glob("*.yaml"))
    stems = {Path(file).stem: file for file in shipped}
    close = difflib.get_close_matches(Path(name).stem, list(stems), n=1)
    hint = f"; did you mean {stems[close[0]]}?" if close else ""
    raise ConfigError(
        f"--config_file: got {name!r}, expected a YAML file or one of {', '.join(shipped)}{hint}"
    )


def read_config_file(path: Path) -> dict[str, Any]:
    """The content of a YAML file whose top level is a mapping; {} for an empty one.

    Raises:
        ConfigError: the file is not readable, not YAML, not a mapping, or has a key twice.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"--config_file {path}{line}: {error.problem}") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"--config_file {path}: expected a YAML text file: {reason}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(
            f"--config_file {path}: got a {type(content).__name__}, expected a mapping with the "
            "sections data, fno and opt"
        )
    return content


def did_you_mean(name: str, known: list[str]) -> str:
    """A hint "; did you mean ...?" for the closest known name, or nothing.

    The last components are compared, so that learning_rate finds opt.learning_rate; of several
    equal ones that of the same section is taken.
    """
    section, _, last = name.lstrip("-").rpartition(".")
    lasts = {candidate.rpartition(".")[2].lstrip("-") for candidate in known}
    close = difflib.get_close_matches(last, sorted(lasts), n=1, cutoff=0.7)
    if not close:
        return ""
    found = [c for c in known if c.rpartition(".")[2].lstrip("-") == close[0]]
    same_section = [c for c in found if c.rpartition(".")[0].lstrip("-") == section]
    return f"; did you mean {(same_section or found)[0]}?"


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a key given twice is an error; plain YAML lets the last one win silently."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is not None and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)
