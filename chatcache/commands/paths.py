"""`chatcache paths`: where everything is. Makes nothing, and works with a broken config.toml."""

from __future__ import annotations

import os
from argparse import Namespace

from chatcache.commands import ShellCommand
from chatcache.commands.parser import SETTING_OF_OPTION, Parser
from chatcache.config import Paths, resolve_paths
from chatcache.formatting import table
from chatcache.frontend.shell_output import print_json, print_line


def paths_of(arguments: Namespace) -> tuple[Paths, dict[str, str]]:
    """The places in force and who decided each, without reading the config."""
    options = {
        name: value
        for option, name in SETTING_OF_OPTION.items()
        if name.startswith("paths.") and (value := getattr(arguments, option, None)) is not None
    }
    return resolve_paths(options, os.environ)


def run(arguments: Namespace) -> int:
    paths, origins = paths_of(arguments)
    places = {
        "config": (paths.config_file, "paths.config_file"),
        "conversations": (paths.database, "paths.data_dir"),
        "data_dir": (paths.data_dir, "paths.data_dir"),
        "cache_dir": (paths.cache_dir, "paths.cache_dir"),
        "segments": (paths.segments, "paths.cache_dir"),
        "log_dir": (paths.log_dir, "paths.log_dir"),
        "engine_log": (paths.engine_log, "paths.log_dir"),
        "error_log": (paths.error_log, "paths.log_dir"),
    }
    if arguments.json:
        print_json({name: str(place) for name, (place, _) in places.items()})
        return 0
    rows = [
        (
            name.replace("_", " "),
            str(place),
            "" if place.exists() else "not there yet",
            origins[key],
        )
        for name, (place, key) in places.items()
    ]
    print_line(table(("WHAT", "WHERE", "", "BECAUSE OF"), rows))
    return 0


COMMANDS = {
    "": ShellCommand("where settings, conversations, segments and logs are", Parser.add_json, run)
}
