"""`chatcache models`: what can be chosen with `--model`, told from files, and fetching one from the
hub before it is needed. No weights are loaded.
"""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from chatcache import compose
from chatcache.backends.base import EngineStatus, ModelLoading
from chatcache.backends.local.engine.control import running_engines
from chatcache.backends.local.model import files, resolve
from chatcache.backends.local.model.outlook import outlook
from chatcache.backends.local.model.progress import fetch
from chatcache.backends.local.model.shelf import (
    ModelFiles,
    all_stored,
    files_at,
    files_of,
    place_of,
)
from chatcache.backends.local.model.stores.stored import StoredModel
from chatcache.commands import ShellCommand, models_perplexity, models_probe, models_remote
from chatcache.commands.parser import MODEL_HELP, Parser, settings_of
from chatcache.config import Settings
from chatcache.errors import ChatcacheError, UsageError
from chatcache.formatting import model_name, size, table
from chatcache.frontend.engines import stay_words
from chatcache.frontend.server_shelf import ServerShelf
from chatcache.frontend.shell_output import Narrator, print_json, print_line, print_result
from chatcache.model_form import named_form
from chatcache.remotes import remote_model
from chatcache.sections import EXACT_WEIGHTS

# Names that models of several families have for the same number, in nested configs too.
CONFIG_NAMES = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "max_context_tokens": ("max_position_embeddings", "n_positions", "max_sequence_length"),
    "dtype": ("dtype", "torch_dtype"),
}


def list_all(arguments: Namespace) -> int:
    settings = settings_of(arguments)
    chosen = settings.config.model.default
    servers = ServerShelf(settings.config.remotes)
    stored = all_stored(profiles=settings.config.remotes)
    if chosen not in {model.name for model in stored} and servers.find(chosen) is None:
        stored.insert(1, StoredModel(chosen, place_of(chosen)))
    models = [_summary(model, is_default=model.name == chosen) for model in stored]
    models += models_remote.rows(settings)
    engines, loaded = _running(settings), []
    for model in models:
        found = [engine for engine in engines if _is_of(engine.model, model)]
        model["engines"] = [engine.pid for engine in found]
        loaded.append(", ".join(map(stay_words, found)))
    if arguments.json:
        print_json({"models": models})
        return 0
    rows = [
        (
            f"{model_name(model['model'])}{' *' if model['default'] else ''}",
            model["architecture"] or "",
            _parameters(model["parameters"]),
            model["quantization"] or "",
            "" if model["bytes"] is None else size(model["bytes"]),
            stays,
            model["problem"] or model["path"],
        )
        for model, stays in zip(models, loaded, strict=True)
    ]
    header = ("MODEL", "ARCHITECTURE", "PARAMETERS", "QUANT", "SIZE", "LOADED", "WHERE")
    print_line(table(header, rows, "PARAMETERS SIZE"))
    Narrator().note("* answers when no --model is given.")
    return 0


def _is_of(name: str, row: dict[str, Any]) -> bool:
    """Whether an engine of this model has that of a row."""
    path = row["path"]
    is_path = path is not None and os.sep in name
    return name in (row["model"], path) or (
        is_path and os.path.realpath(name) == os.path.realpath(path)
    )


def _running(settings: Settings) -> list[EngineStatus]:
    """The engines that stay; none where it is not safe to ask."""
    try:
        found = running_engines(compose.engines_directory(settings.paths))
    except OSError:
        return []
    return [engine.status for engine in found if engine.status is not None]


def _summary(stored: StoredModel, *, is_default: bool) -> dict[str, Any]:
    """One row of the list; a model that cannot be used says why."""
    told: dict[str, Any] = {"problem": stored.problem, "advice": stored.advice}
    if not stored.problem:
        try:
            found = files_of(stored.name) if stored.path is None else files_at(stored.path)
            details = _details(stored.name, found)
            return {**details, "place": stored.place, "default": is_default, **dict.fromkeys(told)}
        except ChatcacheError as error:
            told = {"problem": error.message, "advice": error.hint}
    names = ("path", "architecture", "parameters", "bytes", "quantization", "memory_bytes", "room")
    nothing = dict.fromkeys(names)
    return {
        "model": stored.name,
        **nothing,
        "place": stored.place,
        "default": is_default,
        **told,
    }


def _details(name: str, found: ModelFiles, quantize: str = EXACT_WEIGHTS) -> dict[str, Any]:
    """What the files of a model say, and what it needs with its weights packed as is wanted."""
    room = outlook(name, found.path, quantize=quantize)
    packed = quantize if found.path.is_dir() and quantize != EXACT_WEIGHTS else None
    return {
        "model": name,
        "path": str(found.path),
        "architecture": found.architecture,
        "parameters": found.num_parameters,
        "bytes": found.num_bytes,
        "quantization": found.quantization or packed,
        "memory_bytes": None if room is None else room.num_bytes,
        "room": None if room is None else room.verdict,
        **{key: _from_config(found.config, names) for key, names in CONFIG_NAMES.items()},
    }


def _from_config(config: dict[str, Any], names: tuple[str, ...]) -> Any:
    text = config.get("text_config")
    parts = (config, text if isinstance(text, dict) else {})
    return next((part[name] for part in parts for name in names if name in part), None)


def _parameters(count: int | None) -> str:
    if count is None:
        return ""
    millions = count / 1e6
    return f"{millions / 1000:.1f} B" if millions >= 999.5 else f"{millions:.1f} M"


def _configure_show(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_json()


def show(arguments: Namespace) -> int:
    settings = settings_of(arguments, {"model.default": arguments.model})
    model = settings.config.model
    if (remote := remote_model(model.default, settings.config.remotes)) is not None:
        details = models_remote.details(remote, settings)
        rows = [(name, models_remote.words(value)) for name, value in details.items()]
    else:
        details = _details(model.default, files_of(model.default), model.quantize)
        counts = {name: f"{details[name]:,}" for name in ("parameters", "bytes")}
        if details["memory_bytes"] is not None:
            counts["memory_bytes"] = f"{details['memory_bytes']:,}"
        counts["quantization"] = details["quantization"] or "none: its weights are exact"
        shown = (details | counts).items()
        rows = [(name, "unknown" if value is None else str(value)) for name, value in shown]
    return print_result(details, table(("FIELD", "VALUE"), rows), as_json=arguments.json)


def _configure_download(parser: Parser) -> None:
    parser.description = (
        "Fetch a model into the Hugging Face cache, where every program finds it. What has been\n"
        "fetched of it before is not fetched again."
    )
    parser.add_argument("model", metavar="ORGANISATION/NAME[:QUANT]", help="a model on the hub")
    parser.add_argument(
        "--offline", action="store_true", default=None, help="only say whether it is here"
    )
    parser.add_json()
    parser.add_quiet()


def fetch_model(arguments: Namespace) -> int:
    narrator = Narrator(arguments.quiet)
    settings = settings_of(arguments)
    if remote_model(arguments.model, settings.config.remotes) is not None:
        raise UsageError("A server has its model already.", "Only a model of the hub is fetched.")
    wanted = named_form(arguments.model).model
    found = resolve.resolve_model(wanted, is_offline=settings.config.model.offline)
    is_new = not isinstance(found, Path)

    def tell(event: ModelLoading) -> None:
        of_total = f" of {size(event.total)}" if event.total else ""
        narrator.progress(f"{event.stage}: {size(event.done)}{of_total}")

    try:
        path = found if isinstance(found, Path) else fetch(found, tell)
    finally:
        narrator.release()
    resolve.check_model_dir(path)
    num_bytes = files.count_bytes(path)
    model = arguments.model
    data = {"model": model, "path": str(path), "bytes": num_bytes, "downloaded": is_new}
    words = "is here now" if is_new else "is on this machine already"
    text = f"{model} {words}: {path}, weights {size(num_bytes)}."
    return print_result(data, text, as_json=arguments.json)


COMMANDS = {
    "list": ShellCommand(
        "the built-in model, those that programs of this machine have, and servers",
        Parser.add_json,
        list_all,
    ),
    "show": ShellCommand("what the files or the profile of a model say", _configure_show, show),
    "probe": ShellCommand(
        "what a model will cost in a chat", models_probe.configure, models_probe.run
    ),
    "perplexity": ShellCommand(
        "how well a model foretells a text, and what fewer bits cost",
        models_perplexity.configure,
        models_perplexity.run,
    ),
    "download": ShellCommand("fetch a model from the hub", _configure_download, fetch_model),
}
