"""The configuration of a run: from the command line and a YAML file to a `Config`, and back.

A dotted flag overrides the file, the file overrides the defaults, wherever the flags stand. Every
mistake is a `ConfigError` of one line; nothing is printed and the process does not exit, except
for --help.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import jsonargparse
import yaml

from tensorgrad_jax.training.allowed import ConfigError, not_allowed, options_of
from tensorgrad_jax.training.config_files import did_you_mean, find_config_file, read_config_file
from tensorgrad_jax.training.options import Config, DataConfig, FnoConfig, OptConfig
from tensorgrad_jax.training.projection_plan import (
    ProjectionPart,
    ProjectionPlan,
    resolve_projection_plan,
)
from tensorgrad_jax.training.unused_options import unused_options

__all__ = [
    "Config",
    "ConfigError",
    "DataConfig",
    "FnoConfig",
    "OptConfig",
    "ProjectionPart",
    "ProjectionPlan",
    "parse",
    "resolve_projection_plan",
    "to_yaml",
]

_SECTIONS = {"data": DataConfig, "fno": FnoConfig, "opt": OptConfig}
_GENERAL = ("name", "seed")
# Every option by its full name, in the order of the help and of the written file.
_OPTIONS = {name: options_of(Config)[name] for name in _GENERAL} | {
    f"{section}.{name}": option
    for section, cls in _SECTIONS.items()
    for name, option in options_of(cls).items()
}


class _Given(NamedTuple):
    """A value as it was written, and the file it comes from ("" for the command line)."""

    value: Any
    source: str


def parse(argv: Sequence[str]) -> Config:
    """The configuration given by command-line arguments.

    Args:
        argv: `--config_file FILE` and flags `--section.option VALUE` or `--section.option=VALUE`,
            in any order. The last of two equal flags counts. FILE is looked up as given, then in
            the repository's config/ folder, also without its ending .yaml.

    Returns:
        The checked configuration.

    Raises:
        ConfigError: one line that names the option, the value and what is allowed: an unknown
            option (with the closest known one), a wrong value, values that contradict each
            other, a flag that has no effect beside the others, a file that cannot be read.
        SystemExit: with status 0, after printing all options, for --help.
    """
    flags = _read_flags(argv)
    parser = _parser()
    if "help" in flags:
        parser.print_help()
        raise SystemExit(0)
    config_file = flags.pop("config_file", None)
    given = _read_file(config_file.value) if config_file else {}
    given |= flags
    values = {name: _converted(parser, name, *item) for name, item in given.items()}
    sections = {
        section: cls(
            **{
                name.partition(".")[2]: values[name]
                for name in values
                if name.startswith(section + ".")
            }
        )
        for section, cls in _SECTIONS.items()
    }
    config = Config(**{name: values[name] for name in _GENERAL if name in values}, **sections)
    resolve_projection_plan(config.opt)  # contradictions show here, before anything is written
    unused = unused_options(config)
    # Flags only: a file may hold the settings of what is switched off for the moment.
    for name, (value, _) in flags.items():
        if name in unused and value != "null":
            raise ConfigError(f"--{name} {value}: has no effect: {unused[name]}")
    return config


def to_yaml(config: Config) -> str:
    """The complete configuration as YAML; `parse` of a file with this text gives an equal one."""
    tree: dict[str, Any] = {name: getattr(config, name) for name in _GENERAL}
    for section, cls in _SECTIONS.items():
        part = getattr(config, section)
        tree[section] = {name: getattr(part, name) for name in options_of(cls)}
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


def _read_flags(argv: Sequence[str]) -> dict[str, _Given]:
    known = [*_OPTIONS, "config_file"]
    flags: dict[str, _Given] = {}
    rest = list(argv)
    while rest:
        token = rest.pop(0)
        name, equals, value = token.partition("=")
        if token in ("--help", "-h"):
            flags["help"] = _Given(True, "")
            continue
        if not name.startswith("-"):
            raise ConfigError(
                f"got the argument {token!r}, expected a flag such as --opt.learning_rate 1e-3 "
                "(a list is one argument: [64,64] without spaces, or in quotes)"
            )
        if not name.startswith("--") or name[2:] not in known:
            _unknown(name, "", ["--" + option for option in known])
        name = name[2:]
        if not equals:
            if not rest or rest[0].startswith("--"):
                allowed = _OPTIONS[name].allowed.text if name in _OPTIONS else "a YAML file"
                raise ConfigError(f"--{name}: got no value, expected {allowed}")
            value = rest.pop(0)
        flags[name] = _Given(value, "")
    return flags


def _read_file(name: str) -> dict[str, _Given]:
    path = find_config_file(name)
    given: dict[str, _Given] = {}
    for key, content in read_config_file(path).items():
        if key in _GENERAL:
            given[key] = _Given(content, str(path))
        elif key not in _SECTIONS:
            _unknown(str(key), str(path), [*_GENERAL, *_SECTIONS, *_OPTIONS])
        elif isinstance(content, dict):
            for option, value in content.items():
                if f"{key}.{option}" not in _OPTIONS:
                    _unknown(f"{key}.{option}", str(path), list(_OPTIONS))
                given[f"{key}.{option}"] = _Given(value, str(path))
        elif content is not None:
            raise ConfigError(f"{key}: got {content!r} in {path}, expected a mapping of options")
    return given


def _unknown(name: str, path: str, known: list[str]) -> NoReturn:
    where = f" in {path}" if path else ""
    hint = did_you_mean(name, known) or "; --help lists all options"
    raise ConfigError(f"{name}: unknown option{where}{hint}")


def _converted(parser: jsonargparse.ArgumentParser, name: str, value: Any, source: str) -> Any:
    option = _OPTIONS[name]
    if source and option.type in (str, str | None):
        # In a file "null" in quotes is a text, and the name 2024 needs no quotes.
        converted = str(value) if type(value) in (int, float) else value
        if not option.allowed.holds(converted):
            raise not_allowed(name, value, option.allowed, source)
        return converted
    try:
        # One option at a time, so that a failure is known to be this option's.
        converted = parser.parse_object({name: value}, defaults=False)[name]
    except jsonargparse.ArgumentError:
        raise not_allowed(name, value, option.allowed, source) from None
    if not option.allowed.holds(converted):
        raise not_allowed(name, value, option.allowed, source)
    return converted


@functools.cache
def _parser() -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(
        prog="train.py",
        usage="train.py [--config_file FILE] [--SECTION.OPTION VALUE ...]",
        description="Trains a Fourier neural operator with compressed optimizer states.",
        exit_on_error=False,
    )
    parser.add_argument(
        "--config_file", metavar="FILE", help="YAML file, as given or in config/; flags override it"
    )
    groups = {
        section: parser.add_argument_group(f"{section}: {(cls.__doc__ or '').split('.')[0]}")
        for section, cls in _SECTIONS.items()
    }
    for name, option in _OPTIONS.items():
        section, dot, _ = name.partition(".")
        group = groups[section] if dot else parser
        text = f"{option.help}; expects {option.allowed.text}".replace("%", "%%")
        group.add_argument("--" + name, type=option.type, default=option.default, help=text)
    return parser


class _Dumper(yaml.SafeDumper):
    """YAML with lists on one line and without references between equal ones."""

    def ignore_aliases(self, data):
        return True


_Dumper.add_representer(
    tuple, lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:seq", value, True)
)
