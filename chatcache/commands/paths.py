"""`chatcache paths`: where everything is. Makes nothing, and works with a broken config.toml."""

from __future__ import annotations

import os
from argparse import Namespace

from chatcache import compose
from chatcache.commands import GROUPS, ShellCommand
from chatcache.commands.parser import Parser, options_of
from chatcache.config import Paths, resolve_paths
from chatcache.formatting import table
from chatcache.frontend.shell_output import print_result


def paths_of(arguments: Namespace) -> tuple[Paths, dict[str, str]]:
    """The places in force and who decided each, without reading the config."""
    return resolve_paths(options_of(arguments), os.environ)


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
        "engines": (compose.engines_directory(paths), "paths.log_dir"),
    }
    data = {name: str(place) for name, (place, _) in places.items()}
    rows = []
    for name, (place, key) in places.items():
        state = "" if place.exists() else "not there yet"
        rows.append((name.replace("_", " "), str(place), state, origins[key]))
    text = table(("WHAT", "WHERE", "", "BECAUSE OF"), rows)
    return print_result(data, text, as_json=arguments.json)


COMMANDS = {"": ShellCommand(GROUPS["paths"], Parser.add_json, run)}
