"""The configuration of a run: YAML files in groups, and options of the command line.

`configs/ortho_train.yaml` is the root. Its `defaults` name a file for each group (data, model,
tracking, training). Later ones override earlier ones: root, groups, experiment, command line. As in
the original: `model=cnn experiment=digits-minivit training.epochs=3`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent / "configs"
GROUPS = ("data", "model", "tracking", "training", "experiment")


def compose(arguments: list[str]) -> dict[str, Any]:
    """Return the configuration for these arguments of the command line.

    Raises:
        ValueError: in one line, if a file or an option is none.
    """
    given = [_taken_apart(a) for a in arguments]
    config = _read(HERE / "ortho_train.yaml")
    chosen: dict[str, str | None] = {}
    for entry in config.pop("defaults"):
        chosen.update(entry)
    chosen |= {key: value for key, value in given if key in GROUPS}
    for group in GROUPS:
        name = chosen.get(group)
        if name is None:
            continue
        path = HERE / group / f"{str(name).removesuffix('.yaml')}.yaml"
        if not path.is_file():
            known = sorted(p.stem for p in path.parent.glob("*.yaml"))
            raise ValueError(f"{group} must be one of {known}, got {name!r}")
        read = _read(path)
        config = _merged(config, read if group == "experiment" else {group: read})
    for key, value in given:
        if key not in GROUPS:
            _set(config, key, value)
    return config


def _taken_apart(argument: str) -> tuple[str, Any]:
    key, sign, value = argument.partition("=")
    if not sign:
        raise ValueError(f"an option is given as name=value, got {argument!r}")
    return key, yaml.safe_load(value)


def _read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        # A group that names another model replaces the whole of it.
        both = isinstance(old, dict) and isinstance(value, dict)
        renamed = both and "name" in value and value["name"] != old.get("name", value["name"])
        result[key] = _merged(old, value) if both and not renamed else value
    return result


def _set(config: dict[str, Any], key: str, value: Any) -> None:
    *groups, last = key.split(".")
    node = config
    for group in groups:
        node = node.get(group)
        if not isinstance(node, dict):
            raise ValueError(f"there is no option {key!r}")
    if last not in node and "fixing_method" not in groups:
        raise ValueError(f"there is no option {key!r}; there are {sorted(node)}")
    node[last] = value
