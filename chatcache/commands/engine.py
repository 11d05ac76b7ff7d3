"""`chatcache engine`: the processes that hold models, and ending them."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from chatcache import compose
from chatcache.backends.local.engine.control import RunningEngine, end_engine, running_engines
from chatcache.backends.local.model.resolve import one_name
from chatcache.commands import ShellCommand
from chatcache.commands.cache_engines import use_json
from chatcache.commands.parser import Parser
from chatcache.commands.paths import paths_of
from chatcache.errors import NotFoundError, UnavailableError, UsageError
from chatcache.formatting import model_label, model_name, plural, size, table
from chatcache.frontend.engines import stay_words
from chatcache.frontend.shell_output import print_result
from chatcache.places import path_of

REASON = "it was ended by `chatcache engine stop`"


def running(arguments: Namespace) -> list[RunningEngine]:
    """Raises UnavailableError where somebody else could have put them there."""
    directory = compose.engines_directory(paths_of(arguments)[0])
    try:
        return running_engines(directory)
    except OSError as error:
        raise UnavailableError(
            f"{error.filename or directory} cannot be used for engines: {error.strerror}.",
            "Remove it, or set XDG_RUNTIME_DIR to a directory of your own.",
        ) from error


def list_all(arguments: Namespace) -> int:
    engines = running(arguments)
    rows = [_row(engine) for engine in engines]
    header = ("MODEL", "PID", "MEMORY", "STAYS", "USED BY", "CACHE")
    text = table(header, rows, "PID MEMORY") if rows else "No engine is running."
    data = {"engines": [as_json(engine) for engine in engines]}
    return print_result(data, text, as_json=arguments.json)


def _row(engine: RunningEngine) -> tuple[str, ...]:
    status = engine.status
    if status is None:
        return ("(does not answer)", str(engine.pid or ""), "", "", "", "")
    used_by = ", ".join(name or "a program" for name in status.front_ends)
    state = "loading" if status.state == "loading" else stay_words(status)
    memory = size(status.memory_bytes) if status.memory_bytes else ""
    model = model_label(status.model, status.quantization)
    return (model, str(status.pid), memory, state, used_by, status.cache_dir)


def as_json(engine: RunningEngine) -> dict[str, Any]:
    """One entry of `engine list --json`."""
    status = engine.status
    if status is None:
        return {"pid": engine.pid, "key": engine.place.key, "state": "does not answer"}
    return {
        "pid": status.pid,
        "key": engine.place.key,
        "state": status.state,
        "model": status.model,
        "adapter": status.adapter,
        "device": status.device,
        "dtype": status.dtype,
        "quantization": status.quantization or None,
        "cache_dir": status.cache_dir,
        "version": status.version,
        "started_at": status.started_at,
        "memory_bytes": status.memory_bytes,
        **use_json(status),
        "front_ends": list(status.front_ends),
        "is_answering": status.is_answering,
        "keep_alive_seconds": status.keep_alive_seconds,
        "seconds_left": status.seconds_left,
    }


def _configure_stop(parser: Parser) -> None:
    parser.description = (
        "End an engine. What is being answered is stopped and kept, the cache is written out, and\n"
        "chats that are open start another engine with their next message."
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="its model, or its process id")
    parser.add_argument("--all", action="store_true", help="all engines of this user")
    parser.add_json()


def stop(arguments: Namespace) -> int:
    engines = running(arguments)
    chosen = _chosen(engines, arguments.model, is_all=arguments.all)
    left = [engine for engine in chosen if not end_engine(engine, REASON)]
    if left:
        pids = ", ".join(str(engine.pid) for engine in left)
        raise UnavailableError(f"Process {pids} could not be ended.", "Look at it with `ps`.")
    text = f"Ended {plural(len(chosen), 'engine')}." if chosen else "No engine is running."
    return print_result({"stopped": len(chosen)}, text, as_json=arguments.json)


def _chosen(
    engines: list[RunningEngine], model: str | None, *, is_all: bool
) -> list[RunningEngine]:
    """Raises UsageError or NotFoundError."""
    if is_all and model is not None:
        raise UsageError("MODEL and --all say different things.", "Leave one of them out.")
    if model is not None:
        found = [engine for engine in engines if _is_of(engine, model)]
        if not found:
            raise NotFoundError(
                f"No engine of {model!r} is running.", "`chatcache engine list` names them."
            )
        return found
    if len(engines) > 1 and not is_all:
        raise UsageError(
            f"{len(engines)} engines are running.", "Name a model, or add --all to end them all."
        )
    return engines


def _is_of(engine: RunningEngine, word: str) -> bool:
    names = {engine.place.key, str(engine.pid)}
    if engine.status is not None:
        model = engine.status.model
        names |= {model, Path(model).name, model_name(model), str(engine.status.pid)}
        if one_name(model) == one_name(word):
            return True
        if Path(model).is_absolute() and os.path.realpath(path_of(word)) == os.path.realpath(model):
            return True
    return word in names


COMMANDS = {
    "list": ShellCommand("the engines that are running", Parser.add_json, list_all),
    "stop": ShellCommand("end an engine, or all of them", _configure_stop, stop),
}
