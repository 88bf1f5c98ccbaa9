"""From the command line and a YAML file to a `Config`, and back.

A dotted flag overrides the file, the file overrides the defaults, wherever the flags stand. Every
mistake is a `ConfigError` of one line; only --help prints and ends the process.
"""

import contextlib
import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NoReturn

import yaml
from pydantic import TypeAdapter, ValidationError
from yaml.composer import ComposerError

from tensorgrad_jax.training.options import OPTIONS, Config, ConfigError, allowed, describe, wrong

CONFIG_FOLDER = Path(__file__).resolve().parents[2] / "config"
# What the YAML reader raises, for a wrong tag for instance.
_UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError)
_SECTIONS = ("data", "fno", "opt")
_HELP = "usage: train.py [--config_file FILE] [--SECTION.OPTION VALUE ...]\n\nThe options:"


def parse(argv: list[str], base: Mapping[str, Any] | None = None) -> Config:
    """The configuration given by command-line arguments.

    Args:
        argv: `--config_file FILE` (as given or in config/, also without its ending .yaml) and
            flags `--section.option VALUE` or `--section.option=VALUE`; the last of two counts.
        base: what stands where there is no `--config_file`, as a file's content; None: nothing.

    Raises:
        ConfigError: an option is unknown, wrong, contradicts others or, as a flag, has no effect.
        SystemExit: with status 0, after printing all options, for --help.
    """
    if "--help" in argv or "-h" in argv:
        print(_HELP, describe("\n--{} {}\n    {}; expects {}"), sep="\n")
        raise SystemExit(0)
    flags = _read_flags(argv)
    if "config_file" in flags:
        path = _find(flags.pop("config_file"))
        given = _by_full_name(_load(path), str(path))
    else:
        given = _by_full_name(base or {}, "the run's checkpoint")
    tree: dict[str, Any] = {section: {} for section in ("", *_SECTIONS)}
    for name, (value, source) in (given | {name: (flags[name], "") for name in flags}).items():
        section, _, option = name.rpartition(".")
        tree[section][option] = _converted(name, value, source)
    groups: dict[str, Any] = {s: Config.model_fields[s].annotation for s in _SECTIONS}
    config = Config(**tree[""], **{section: groups[section](**tree[section]) for section in groups})
    unused = config.unused()
    # Flags only: a file may hold the settings of what is switched off for the moment.
    for name, text in flags.items():
        if name in unused and text != "null":
            raise ConfigError(f"--{name} {text}: has no effect: {unused[name]}")
    return config


def folder_to_resume(argv: list[str]) -> str | None:
    """The folder that `--opt.resume_from_dir` names, None without one or for --help.

    Raises:
        ConfigError: an option is unknown, or its value is missing or not allowed.
    """
    if "--help" in argv or "-h" in argv:
        return None
    name = "opt.resume_from_dir"
    return _converted(name, _read_flags(argv).get(name, "null"), "")


def to_yaml(config: Config) -> str:
    """The complete configuration as YAML; `parse` of a file with this text gives an equal one."""
    options = config.model_dump(mode="json")
    return yaml.dump(options, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


def _converted(name: str, value: Any, source: str) -> Any:
    """A value of the option's own type, from what a flag, or the file `source`, says."""
    option = OPTIONS[name]
    hint: Any = Annotated[option.annotation, option]  # pyright: ignore[reportInvalidTypeForm]
    adapter = TypeAdapter(hint, config=Config.model_config)
    # In a file the name 2024 needs no quotes.
    other = {str: _as_yaml, int: str, float: str}.get(type(value), lambda same: same)(value)
    for reading in (None if value == "null" and not source else value, other):
        with contextlib.suppress(ValidationError):
            return adapter.validate_python(reading)
    raise wrong(name, value, allowed(option), source)


def _read_flags(argv: list[str]) -> dict[str, str]:
    flags, known, rest = {}, [*OPTIONS, "config_file"], list(argv)
    while rest:
        token = rest.pop(0)
        name, equals, value = token.partition("=")
        if not name.startswith("-"):
            expected = "expected a flag such as --opt.learning_rate 1e-3"
            hint = "(a list is one argument: [64,64] without spaces, or in quotes)"
            raise ConfigError(f"got the argument {token!r}, {expected} {hint}")
        if not name.startswith("--") or name[2:] not in known:
            _unknown(name, "", ["--" + option for option in known])
        if not equals and (not rest or rest[0].startswith("--")):
            expected = allowed(OPTIONS[name[2:]]) if name[2:] in OPTIONS else "a YAML file"
            raise ConfigError(f"{name}: got no value, expected {expected}")
        flags[name[2:]] = value if equals else rest.pop(0)
    return flags


def _by_full_name(tree: Mapping[Any, Any], source: str) -> dict[str, tuple[Any, str]]:
    """The options of sections by full name, each with where it is from."""
    given = {}
    for key, content in tree.items():
        if key in _SECTIONS and not isinstance(content, dict | None):
            raise ConfigError(f"{key}: got {content!r} in {source}, expected a mapping of options")
        prefix = f"{key}." if key in _SECTIONS else ""
        for option, value in (content or {}).items() if prefix else [(key, content)]:
            if f"{prefix}{option}" not in OPTIONS or (not prefix and "." in option):
                known = list(OPTIONS) if prefix else [*Config.model_fields, *OPTIONS]
                _unknown(f"{prefix}{option}", f" in {source}", known)
            given[f"{prefix}{option}"] = value, source
    return given


def _find(name: str) -> Path:
    """The file of that name: as given, then in config/; the ending .yaml may be left out."""
    for path in (f / (name + end) for f in (Path(), CONFIG_FOLDER) for end in ("", ".yaml")):
        if name and path.is_file():
            return path
    shipped = sorted(path.name for path in CONFIG_FOLDER.glob("*.yaml"))
    close = difflib.get_close_matches(Path(name).stem + ".yaml", shipped, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise wrong("--config_file", name, f"a YAML file or one of {', '.join(shipped)}{hint}")


def _load(path: Path) -> dict[Any, Any]:
    where = f"--config_file {path}"
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except RecursionError:
        raise ConfigError(f"{where}: nested too deeply") from None
    except _UNREADABLE as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        told = problem or f"expected a YAML text file: {' '.join(str(error).split())}"
        raise ConfigError(f"{where}{f', line {mark.line + 1}' if mark else ''}: {told}") from None
    if not isinstance(content, dict | None):
        found, expected = type(content).__name__, "a mapping with the sections data, fno and opt"
        raise ConfigError(f"{where}: got a {found}, expected {expected}")
    return content or {}


def _as_yaml(text: str) -> Any:
    try:  # YAML takes 0012 for octal, and nothing for null
        return int(text) if text.isdecimal() else text and yaml.load(text, Loader=_Loader)
    except (RecursionError, *_UNREADABLE):
        return text


def _unknown(name: str, where: str, known: list[str]) -> NoReturn:
    """Raise the error, with the option that is called most alike, if possible of that section."""
    split = {option: option.lstrip("-").rpartition(".")[::2] for option in (*known, name)}
    section, last = split.pop(name)
    close = difflib.get_close_matches(last, sorted({other for _, other in split.values()}), 1, 0.7)
    found = [option for option in split if split[option][1] in close]
    found.sort(key=lambda option: split[option][0] != section)
    if name in found:  # at the top of a file
        section, _, last = name.rpartition(".")
        raise ConfigError(f"{name}: got it{where}, expected {last} below {section}:")
    hint = f"did you mean {found[0]}?" if found else "--help lists all options"
    raise ConfigError(f"{name}: unknown option{where}; {hint}")


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, and a key given twice and an alias are errors.

    Aliases of aliases can make of a few lines more than any memory holds, or what never ends.
    """

    def compose_node(self, parent, index):
        if self.check_event(yaml.events.AliasEvent):
            problem = "aliases such as *name are not read"
            raise ComposerError(None, None, problem, self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        keys = [key for key, _ in node.value]
        for i, key in enumerate(keys):
            if key.value in [other.value for other in keys[:i]]:
                problem = f"the key {key.value} is given twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
        return super().construct_mapping(node, deep)


_POWER = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _POWER, list("-+0123456789"))


class _Dumper(yaml.SafeDumper):
    """YAML with lists on one line."""


_Dumper.add_representer(list, lambda d, v: d.represent_sequence("tag:yaml.org,2002:seq", v, True))
