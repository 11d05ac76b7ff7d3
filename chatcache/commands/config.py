"""`chatcache config`: the settings, where each comes from, and changing them."""

from __future__ import annotations

import sys
from argparse import Namespace
from dataclasses import fields
from typing import Any

from chatcache.commands import ShellCommand
from chatcache.commands.parser import Parser, settings_of
from chatcache.commands.paths import paths_of
from chatcache.config import KEYS_SECTION, Settings, load_settings, read_config
from chatcache.configfile import set_value, toml_value, write_default
from chatcache.errors import StorageError, UsageError
from chatcache.formatting import table
from chatcache.frontend.editor import edit_file
from chatcache.frontend.shell_output import is_terminal, print_line, print_result
from chatcache.remotes import SECTION as REMOTE_SECTION
from chatcache.sections import SECTIONS


def configure_show(parser: Parser) -> None:
    parser.add_engine()
    parser.add_json()


def show(arguments: Namespace) -> int:
    settings = settings_of(arguments)
    found = {
        name: {"value": value, "origin": _origin(settings, name, value)}
        for name, value in _values(settings)
    }
    rows = []
    for name, entry in found.items():
        value = "(not set)" if entry["value"] is None else toml_value(entry["value"])
        rows.append((name, value, entry["origin"]))
    data = {"config": str(settings.paths.config_file), "settings": found}
    text = table(("SETTING", "VALUE", "BECAUSE OF"), rows)
    return print_result(data, text, as_json=arguments.json)


def _values(settings: Settings) -> list[tuple[str, Any]]:
    values = [
        (f"{section}.{key.name}", getattr(getattr(settings.config, section), key.name))
        for section, kind in SECTIONS.items()
        for key in fields(kind)
    ]
    values += [(f"{KEYS_SECTION}.{name}", keys) for name, keys in settings.config.keys.items()]
    return values + [
        (f"{REMOTE_SECTION}.{profile.name}.{name}", value)
        for profile in settings.config.remotes.values()
        for name, value in profile.values()
    ]


def _origin(settings: Settings, name: str, value: Any) -> str:
    """Who decided a setting; what a profile has is from the file."""
    in_profile = "default" if value is None else str(settings.paths.config_file)
    return settings.origins.get(name, in_profile)


def configure_set(parser: Parser) -> None:
    parser.add_argument("name", metavar="SECTION.KEY", help="e.g. ui.theme")
    parser.add_argument("value", metavar="VALUE", help="as TOML or as plain text")


def set_one(arguments: Namespace) -> int:
    paths, _ = paths_of(arguments)
    value = set_value(paths.config_file, arguments.name, arguments.value)
    origin = load_settings({"paths.config_file": paths.config_file}).origins.get(arguments.name, "")
    print_line(f"{arguments.name} = {toml_value(value)}")
    if origin.startswith("environment"):
        sys.stderr.write(f"chatcache: The {origin} goes before it and is in force now.\n")
    return 0


def configure_edit(parser: Parser) -> None:
    parser.description = "Open config.toml in $VISUAL or $EDITOR, and check it afterwards."


def edit(arguments: Namespace) -> int:
    path = paths_of(arguments)[0].config_file
    if not is_terminal(sys.stdin):
        raise UsageError(
            "An editor needs a terminal, and this is not one.",
            "For scripts there is `chatcache config set`.",
        )
    write_default(path)
    if not path.exists():
        raise StorageError(f"{path} cannot be written.", "Name another file with --config.")
    edit_file(path)
    read_config(path)
    return 0


COMMANDS = {
    "show": ShellCommand("the settings in force and where each comes from", configure_show, show),
    "set": ShellCommand("change one setting in config.toml", configure_set, set_one),
    "edit": ShellCommand("open config.toml in your editor", configure_edit, edit),
}
