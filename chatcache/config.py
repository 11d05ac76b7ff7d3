"""Settings: what can be set, where a value came from, and where chatcache keeps its files.

Owns the sections and keys of config.toml (each documented by the docstring below it), their checks,
and the order option, environment, config file, default. It builds nothing and knows no backend.
Writing config.toml is in `configfile.py`.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from chatcache.checks import (
    key_names,
)
from chatcache.errors import UsageError, did_you_mean
from chatcache.model_form import named_form
from chatcache.personas import SECTION as PERSONAS_SECTION
from chatcache.personas import Persona, read_personas
from chatcache.places import default_directory, path_of
from chatcache.remotes import SECTION as REMOTE_SECTION
from chatcache.remotes import RemoteProfile, read_remotes
from chatcache.sections import (
    EXACT_WEIGHTS,
    SECTIONS,
    BillingSection,
    CacheSection,
    EngineSection,
    ModelSection,
    SamplingSection,
    UiSection,
)

DATABASE_NAME = "conversations.sqlite3"


@dataclass(frozen=True, slots=True)
class Config:
    """All sections. `keys` maps the id of a binding to the keys that trigger it."""

    model: ModelSection = field(default_factory=ModelSection)
    engine: EngineSection = field(default_factory=EngineSection)
    cache: CacheSection = field(default_factory=CacheSection)
    sampling: SamplingSection = field(default_factory=SamplingSection)
    billing: BillingSection = field(default_factory=BillingSection)
    ui: UiSection = field(default_factory=UiSection)
    keys: Mapping[str, str] = field(default_factory=dict)
    personas: Mapping[str, Persona] = field(default_factory=dict)
    remotes: Mapping[str, RemoteProfile] = field(default_factory=dict)


KEYS_SECTION = "keys"
SETTABLE = (*SECTIONS, KEYS_SECTION, REMOTE_SECTION)
ALL_SECTIONS = (*SETTABLE, PERSONAS_SECTION)
KEYS_DOC = 'Other keys for the actions of the chat, by their ids, e.g. quit = "ctrl+q,f10".'


@dataclass(frozen=True, slots=True)
class Paths:
    """Where things are. Words are in `data_dir`, and in nothing else that may be deleted."""

    data_dir: Path
    cache_dir: Path
    config_file: Path
    log_dir: Path

    @property
    def database(self) -> Path:
        return self.data_dir / DATABASE_NAME

    @property
    def segments(self) -> Path:
        return self.cache_dir / "segments"

    @property
    def engine_log(self) -> Path:
        return self.log_dir / "engine.log"

    @property
    def state_dir(self) -> Path:
        """For what is of no use after a restart of the machine."""
        return self.log_dir.parent

    @property
    def error_log(self) -> Path:
        return self.log_dir / "errors.log"


@dataclass(frozen=True, slots=True)
class Settings:
    """What is in force. `origins` says for each "section.key" and directory who decided it."""

    config: Config
    paths: Paths
    origins: Mapping[str, str]


ENVIRONMENT = {
    "paths.data_dir": "CHATCACHE_DATA_DIR",
    "paths.cache_dir": "CHATCACHE_CACHE_DIR",
    "paths.config_file": "CHATCACHE_CONFIG",
    "model.default": "CHATCACHE_MODEL",
    "model.quantize": "CHATCACHE_QUANTIZE",
    "model.offline": "HF_HUB_OFFLINE",
    "engine.keep_alive": "CHATCACHE_KEEP_ALIVE",
}
TRUE_WORDS = frozenset({"1", "true", "yes", "on"})


def load_settings(
    options: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None
) -> Settings:
    """What is in force, given the options of a command ("section.key" or "paths.*" to value).

    Raises UsageError for a key, a type or a value that is wrong, wherever it came from.
    """
    environ = os.environ if environ is None else environ
    given = {name: value for name, value in (options or {}).items() if value is not None}
    paths, origins = resolve_paths(given, environ)
    from_file = read_config(paths.config_file)
    values: dict[str, Any] = {}
    for section_name, section in SECTIONS.items():
        chosen = {}
        for key in fields(section):
            name = f"{section_name}.{key.name}"
            chosen[key.name], origins[name] = _choose(name, key, given, environ, from_file, paths)
        values[section_name] = section(**chosen)
    keys = from_file.get(KEYS_SECTION, {})
    origins.update({f"{KEYS_SECTION}.{name}": str(paths.config_file) for name in keys})
    values["personas"] = from_file.get(PERSONAS_SECTION, {})
    values["remotes"] = from_file.get(REMOTE_SECTION, {})
    _apply_form(values, origins)
    return Settings(Config(**values, keys=keys), paths, origins)


def _apply_form(values: dict[str, Any], origins: dict[str, str]) -> None:
    """`NAME:4bit` as the model says how it is quantised, unless somebody said that closer by.

    Raises UsageError where two options contradict each other."""
    model: ModelSection = values["model"]
    name, form = model.default, named_form(model.default, values["remotes"])
    if not form.form:
        return
    named_by, said_by = origins["model.default"], origins["model.quantize"]
    quantize = form.quantize or EXACT_WEIGHTS
    if named_by == said_by == "option" and quantize != model.quantize:
        raise UsageError(
            f"The model is called {name!r}, and --quantize says {model.quantize}.",
            "Leave one of the two out.",
        )
    if _closeness(said_by) > _closeness(named_by):
        quantize = model.quantize
    else:
        origins["model.quantize"] = named_by
    values["model"] = replace(model, default=form.model, quantize=quantize)


def _closeness(origin: str) -> int:
    """An option is closer to what is being done than the environment, and that than the file."""
    order = ("default", "file", "environment", "option")
    word = origin.partition(" ")[0]
    return order.index(word if word in order else "file")


def _choose(
    name: str,
    key: Field[Any],
    options: Mapping[str, Any],
    environ: Mapping[str, str],
    from_file: Mapping[str, Mapping[str, Any]],
    paths: Paths,
) -> tuple[Any, str]:
    section_name, _, key_name = name.partition(".")
    variable = ENVIRONMENT.get(name, "")
    if name in options:
        return checked(options[name], key, f"The option for {name}"), "option"
    if environ.get(variable):
        value: Any = environ[variable]
        if key.default is False or key.default is True:
            value = value.strip().lower() in TRUE_WORDS
        return checked(value, key, variable), f"environment {variable}"
    if key_name in from_file.get(section_name, {}):
        return from_file[section_name][key_name], str(paths.config_file)
    return key.default, "default"


def resolve_paths(
    options: Mapping[str, Any], environ: Mapping[str, str]
) -> tuple[Paths, dict[str, str]]:
    """The directories and who decided each. Nothing is created.

    Logs stay beside the data when the data directory was chosen by the user, so that a portable
    or a throw-away installation is all in one place; and so does all else where there is no home.
    Raises UsageError where there is no home and nothing was chosen.
    """
    origins: dict[str, str] = {}

    def choose(key: str, default: Callable[[], Path]) -> Path:
        name = f"paths.{key}"
        variable = ENVIRONMENT[name]
        chosen = options.get(name) or environ.get(variable)
        origins[name] = (
            "option" if options.get(name) else f"environment {variable}" if chosen else "default"
        )
        return path_of(chosen).absolute() if chosen else default()

    data_dir = choose("data_dir", lambda: default_directory("data"))
    cache_dir = choose("cache_dir", lambda: default_directory("cache", data_dir))
    config_file = choose(
        "config_file", lambda: default_directory("config", data_dir) / "config.toml"
    )
    is_own_place = origins["paths.data_dir"] != "default"
    log_dir = data_dir / "logs" if is_own_place else default_directory("log")
    origins["paths.log_dir"] = origins["paths.data_dir"]
    return Paths(data_dir, cache_dir, config_file, log_dir), origins


def read_config(path: Path) -> dict[str, dict[str, Any]]:
    """The checked contents of config.toml, by section; nothing when there is no such file."""
    try:
        content = path.read_bytes().decode("utf-8-sig")  # some editors put a mark first
    except FileNotFoundError:
        return {}
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not UTF-8 (byte {error.start:,}).", "Save it as UTF-8."
        ) from error
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}.",
            "Check its permissions, or name another file with --config.",
        ) from error
    return parse_config(content, path)


def parse_config(content: str, path: Path) -> dict[str, dict[str, Any]]:
    """Parse and check TOML text; `path` is only named in messages."""
    try:
        document = tomllib.loads(content)
    except (ValueError, RecursionError) as error:  # of numbers and brackets without end, too
        raise UsageError(
            f"{path} is not valid TOML: {error}.", "Mend it with `chatcache config edit`."
        ) from error
    sections: dict[str, dict[str, Any]] = {}
    for section_name, table in document.items():
        where = f"{path}, line {_line_of(content, section_name)}"
        if section_name not in ALL_SECTIONS:
            raise UsageError(
                f"{where}: there is no section or setting {section_name!r}.",
                did_you_mean(section_name, ALL_SECTIONS)
                or f"The sections are {', '.join(ALL_SECTIONS)}.",
            )
        if not isinstance(table, dict):
            raise UsageError(f"{where}: {section_name!r} is a section.", f"Write [{section_name}].")
        if section_name == PERSONAS_SECTION:
            sampling = {key.name: key.metadata["check"] for key in fields(SamplingSection)}
            sections[section_name] = read_personas(table, sampling, str(path))
        elif section_name == REMOTE_SECTION:
            sections[section_name] = read_remotes(table, str(path))
        else:
            sections[section_name] = {
                key_name: _checked_entry(section_name, key_name, value, content, path)
                for key_name, value in table.items()
            }
    return sections


def _checked_entry(section_name: str, key_name: str, value: Any, content: str, path: Path) -> Any:
    where = f"{path}, line {_line_of(content, section_name, key_name)}"
    if section_name == KEYS_SECTION:
        try:
            return key_names(value)
        except ValueError as error:
            raise UsageError(f"{where}: {section_name}.{key_name} {error}.", KEYS_DOC) from error
    return checked(value, find_key(section_name, key_name, where), f"{where}: {key_name}")


def find_key(section_name: str, key_name: str, where: str = "") -> Field[Any]:
    """The key of a section. Raises UsageError that names the nearest one."""
    section = SECTIONS.get(section_name)
    there = f"{where}: there" if where else "There"
    if section_name == PERSONAS_SECTION:
        raise UsageError("Personas are written in the file.", "`chatcache config edit` opens it.")
    if section is None:
        raise UsageError(
            f"{there} is no section {section_name!r}.",
            did_you_mean(section_name, SETTABLE) or f"The sections are {', '.join(SETTABLE)}.",
        )
    by_name = {key.name: key for key in fields(section)}
    if key_name in by_name:
        return by_name[key_name]
    raise UsageError(
        f"{there} is no setting {key_name!r} in [{section_name}].",
        did_you_mean(key_name, by_name) or f"The settings are {', '.join(by_name)}.",
    )


def checked(value: Any, key: Field[Any], where: str) -> Any:
    """`value` as the setting keeps it. Raises UsageError; `where` names the place it came from."""
    try:
        return key.metadata["check"](value)
    except ValueError as error:
        raise UsageError(f"{where} {error}.", "See `chatcache config show`.") from error


def _line_of(content: str, section_name: str, key_name: str | None = None) -> int:
    """The line of a section or of a key in it; 1 when the file writes it in an unusual way."""
    current, section_line = "", 1
    for number, line in enumerate(content.splitlines(), 1):
        if header := re.match(r"\s*\[\s*\"?([^\]\"]+?)\"?\s*\]", line):
            current = header[1]
            if current == section_name:
                section_line = number
                if key_name is None:
                    return number
        elif assigned := re.match(r"\s*\"?([\w-]+)\"?(?:\.\"?([\w-]+)\"?)?\s*=", line):
            names = [name for name in (current, assigned[1], assigned[2]) if name]
            wanted = [section_name] if key_name is None else [section_name, key_name]
            if names[: len(wanted)] == wanted:
                return number
    return section_line
