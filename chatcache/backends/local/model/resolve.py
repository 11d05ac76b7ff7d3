"""Finds a model by name, without torch.

Owns: what a model name can mean (`builtin`, `smollm2`, a directory, a GGUF file, a model of Ollama,
a name on the hub), and whether the chat template changes by itself. What the latter costs a
conversation is told by `models probe`, which lets the template run. Whether what was found can be
loaded is decided in `loadable`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from chatcache.assets import pocket_dir
from chatcache.backends.local.model.gguf.header import read_gguf
from chatcache.backends.local.model.gguf.parts import SUFFIX, is_gguf, parts_of, whole_parts
from chatcache.backends.local.model.hub_name import HubName, hub_name
from chatcache.backends.local.model.loadable import Obstacle, obstacle
from chatcache.backends.local.model.stores import folders, hub_cache, ollama, package
from chatcache.errors import (
    ChatcacheError,
    ModelLoadError,
    NotFoundError,
    UnavailableError,
    did_you_mean,
)
from chatcache.places import path_of

BUILTIN = "builtin"
# What a model needs to be loaded; never pickles, never code.
DOWNLOADED_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.tiktoken")
NOT_DOWNLOADED = ("original/*", "onnx/*", "openvino/*", "*consolidated*")

_HUB_FOLDER = re.compile(r"models--(\w[\w.-]*?)--(\w[\w.-]*)")
# What in the source of a template tells that it changes by itself.
_TIME = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1""")
_OTHER_TIME = re.compile(r"strftime_now\s*\(")
_RANDOM = re.compile(r"\|\s*random\b")


def resolve_model(name: str, *, is_offline: bool = False) -> Path | str:
    """The directory of a model, the (first) file of a GGUF model, or the name on the hub of one
    that has to be downloaded first.

    Raises NotFoundError for a name that means nothing, ModelLoadError for a directory or a file
    that is missing, UnavailableError for a model that is not here when the network is off.
    """
    if name == BUILTIN:
        return pocket_dir()
    if name == package.SMOLLM2:
        return package.find()
    path = path_of(name)
    try:
        is_dir, is_file = path.is_dir(), path.is_file()
    except OSError as error:  # a name that is too long, a directory that others may not look into
        raise ModelLoadError(
            f"{path} cannot be looked at: {error.strerror}.", "Check the path and its permissions."
        ) from error
    if is_dir:
        found = _snapshot_in(path) or path
        return _gguf_in(found) or found
    if is_file:
        return _file(path)
    if name.lower().startswith(ollama.PREFIX):
        return ollama.find(name)
    is_of_hub = hub_name(name) is not None and not name.lower().endswith(SUFFIX)
    if not is_of_hub and (os.sep in name or name.startswith(("~", ".")) or name.endswith(SUFFIX)):
        raise _nowhere(path)
    return _of_hub(name, is_offline=is_offline or _is_hub_offline())


def whole_name(name: str) -> str:
    """A model's name, that of a directory or a file whole: an engine has another working directory.

    Any part of a GGUF model stands for the first."""
    path = path_of(name)
    if name in (BUILTIN, package.SMOLLM2) or not os.path.exists(path):  # noqa: PTH110 - never raises
        return name
    return str(path.absolute() if path.is_dir() else parts_of(path.absolute())[0])


def one_name(name: str) -> str:
    """Equal for the names of one GGUF model: the path of its first file where that is known without
    asking anybody, else the name. Other names stay as they are."""
    is_path = path_of(name).suffix.lower() == SUFFIX or os.sep in name
    if name == package.SMOLLM2 or name.lower().startswith(ollama.PREFIX) or is_path:
        try:
            found = resolve_model(name, is_offline=True) if hub_name(name) is None else name
        except ChatcacheError:
            return name
        if isinstance(found, Path) and found.is_file():
            return os.path.realpath(found)
    if (hub := hub_name(name)) is not None and hub.wanted:
        return hub.of_file(hub.wanted.casefold())
    return name


def _of_hub(name: str, *, is_offline: bool) -> Path | str:
    """A model of the hub in its cache, or its name if it may be downloaded."""
    if (folder := _HUB_FOLDER.fullmatch(name)) is not None:
        raise NotFoundError(
            f"{name!r} is the name of a folder of the Hugging Face cache, and is not here.",
            f"The model's own name is '{folder[1]}/{folder[2]}'.",
        )
    wanted = hub_name(name) or HubName(name)
    problem: Obstacle | None = None
    if not wanted.wanted:
        snapshot = cached_snapshot(name)
        problem = None if snapshot is None else obstacle(snapshot)
        if snapshot is not None and problem is None:
            return snapshot
    if (file := hub_cache.find(wanted)) is not None:
        return file
    if hub_name(name) is None:
        raise NotFoundError(
            f"There is no model {name!r}.",
            did_you_mean(name, [BUILTIN, package.SMOLLM2, *hub_cache.repositories()])
            or "Use 'builtin', a directory, a GGUF file, or a Hugging Face id such as"
            " 'Qwen/Qwen3-0.6B'.",
        )
    if problem is not None and problem.is_final:
        raise problem.error()
    if not is_offline:
        return name
    if problem is not None:
        hint = "Go online once so that the download can be finished."
        raise ModelLoadError(problem.problem, hint)
    raise UnavailableError(
        f"The model {name!r} is not on this machine, and the network is switched off.",
        "Leave out --offline (or unset HF_HUB_OFFLINE) to download it, or use --model builtin.",
    )


def _file(path: Path) -> Path:
    """What a file means as a model. Raises ModelLoadError for one that is none."""
    if is_gguf(path):
        return whole_parts(path)[0]
    if (blob := ollama.file_of_manifest(path)) is not None:
        return blob
    is_in_model = (path.parent / "config.json").is_file()
    raise ModelLoadError(
        f"{path} is a file, not the directory of a model or a GGUF file.",
        f"Name its directory, {path.parent}."
        if is_in_model
        else "Name the directory that holds config.json, or a GGUF file.",
    )


def _gguf_in(directory: Path) -> Path | None:
    """The GGUF model in a directory that has no other. Raises ModelLoadError if it has several."""
    if any(directory.glob("*.safetensors")):
        return None
    has_models_inside = any(directory.glob("*/config.json"))
    try:
        models = folders.gguf_below(directory, max_depth=1 if has_models_inside else 2)
    except OSError:
        return None  # which `obstacle` says
    if not models:
        return None
    if len(models) > 1:
        raise ModelLoadError(
            f"{directory} holds {len(models)} models: {folders.named(models)}.",
            f"Name one of them: --model {directory / models[0].names[0]}",
        )
    return whole_parts(directory / models[0].names[0])[0]


def _nowhere(path: Path) -> ModelLoadError:
    """A path where nothing is."""
    if path.suffix.lower() != SUFFIX:
        return ModelLoadError(
            f"The model directory {path} does not exist.", "Check the path, or use --model builtin."
        )
    if any(part.is_file() for part in parts_of(path)):
        try:
            whole_parts(path)
        except ModelLoadError as error:
            return error
    problem = f"The file {path} does not exist."
    if path.is_symlink():
        problem = f"{path} is a link to a file that is not there."
    names = [file.name for file in path.parent.glob(f"*{SUFFIX}")] if path.parent.is_dir() else []
    near = did_you_mean(path.name, names)
    return ModelLoadError(problem, near or "Check the path, or use --model builtin.")


def cached_snapshot(repo_id: str) -> Path | None:
    """The directory of a hub model in the Hugging Face cache, complete or not; None if absent."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        found = snapshot_download(
            repo_id, local_files_only=True, allow_patterns=list(DOWNLOADED_FILES)
        )
    except LocalEntryNotFoundError as error:
        partial = getattr(error, "snapshot_path", None)
        return Path(partial) if partial else None
    except (HFValidationError, OSError):
        return None
    return Path(found)


def free_bytes() -> int:
    """How much can be downloaded to the Hugging Face cache, which may not be there yet."""
    from huggingface_hub.constants import HF_HUB_CACHE

    place = Path(HF_HUB_CACHE).absolute()
    return shutil.disk_usage(next(p for p in (place, *place.parents) if p.exists())).free


def _snapshot_in(path: Path) -> Path | None:
    """The model in a folder of the Hugging Face cache (`models--ORGANISATION--NAME`)."""
    snapshots = path / "snapshots"
    if (path / "config.json").is_file() or not snapshots.is_dir():
        return None
    try:
        commit = (path / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        commit = ""
    if commit and (snapshots / commit).is_dir():
        return snapshots / commit
    found = [file.parent for file in snapshots.glob("*/config.json")]
    return max(found, key=lambda directory: directory.stat().st_mtime, default=None)


def check_model_dir(path: Path) -> None:
    """Raises ModelLoadError for what cannot be loaded: it says what it is, and what then."""
    if (problem := obstacle(path)) is not None:
        raise problem.error()


def _is_hub_offline() -> bool:
    from huggingface_hub.constants import HF_HUB_OFFLINE

    return bool(HF_HUB_OFFLINE)


# the chat template, read without transformers


def read_template(path: Path) -> str | None:
    """The default template of a model; None if there is none, or it cannot be read."""
    if path.is_file():
        try:
            return read_gguf(path).text("tokenizer.chat_template")
        except ModelLoadError:
            return None
    try:
        return (path / "chat_template.jinja").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        pass  # Older models have it in their tokenizer's settings.
    template: Any = None
    for name in ("tokenizer_config.json", "chat_template.json"):  # the latter: models that also see
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            template = template or json.loads((path / name).read_bytes())["chat_template"]
    if isinstance(template, list):
        entries = [entry for entry in template if isinstance(entry, dict)]
        template = {entry.get("name"): entry.get("template") for entry in entries}.get("default")
    return template if isinstance(template, str) else None


def changes_by_itself(source: str) -> str | None:
    """Which part of what a template writes differs from one time to the next: the time, the date or
    something random; None if its source shows nothing of the kind."""
    formats = [match.group(2) for match in _TIME.finditer(source)]
    if formats:
        return "the time" if any("%H" in text or "%M" in text for text in formats) else "the date"
    if _OTHER_TIME.search(source):
        return "the date or the time"
    return "something random" if _RANDOM.search(source) else None
