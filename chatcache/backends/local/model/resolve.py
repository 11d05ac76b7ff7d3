"""Finds a model by name, without torch.

Owns: what a model name can mean (`builtin`, a directory, a Hugging Face id), and whether the chat
template changes by itself. What the latter costs a conversation is told by `models probe`, which
lets the template run. Whether what was found can be loaded is decided in `loadable`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from chatcache.assets import pocket_dir
from chatcache.backends.local.model.gguf.parts import is_gguf
from chatcache.backends.local.model.loadable import obstacle
from chatcache.errors import ModelLoadError, NotFoundError, UnavailableError, did_you_mean
from chatcache.places import path_of

BUILTIN = "builtin"
# What a model needs to be loaded; never pickles, never code.
DOWNLOADED_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.tiktoken")
NOT_DOWNLOADED = ("original/*", "onnx/*", "openvino/*", "*consolidated*")

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_HUB_FOLDER = re.compile(r"models--(\w[\w.-]*?)--(\w[\w.-]*)")
# What in the source of a template tells that it changes by itself.
_TIME = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1""")
_OTHER_TIME = re.compile(r"strftime_now\s*\(")
_RANDOM = re.compile(r"\|\s*random\b")


def resolve_model(name: str, *, is_offline: bool = False) -> Path | str:
    """The directory of a model, or the hub id of one that has to be downloaded first.

    Raises NotFoundError for a name that means nothing, ModelLoadError for a directory that is
    missing, UnavailableError for a model that is not on this machine when the network is off.
    """
    if name == BUILTIN:
        return pocket_dir()
    path = path_of(name)
    try:
        is_dir, is_file = path.is_dir(), path.is_file()
    except OSError as error:  # a name that is too long, a directory that others may not look into
        raise ModelLoadError(
            f"{path} cannot be looked at: {error.strerror}.", "Check the path and its permissions."
        ) from error
    if is_dir:
        return _snapshot_in(path) or path
    if is_file and is_gguf(path):
        return path
    if is_file:
        is_in_model = (path.parent / "config.json").is_file()
        raise ModelLoadError(
            f"{path} is a file, not the directory of a model.",
            f"Name its directory, {path.parent}."
            if is_in_model
            else "Name the directory that holds config.json.",
        )
    if not HUB_ID.fullmatch(name) and (os.sep in name or name.startswith(("~", "."))):
        raise ModelLoadError(
            f"The model directory {path} does not exist.", "Check the path, or use --model builtin."
        )
    if (folder := _HUB_FOLDER.fullmatch(name)) is not None:
        raise NotFoundError(
            f"{name!r} is the name of a folder of the Hugging Face cache, and is not here.",
            f"The model's own name is '{folder[1]}/{folder[2]}'.",
        )
    snapshot = cached_snapshot(name)
    problem = None if snapshot is None else obstacle(snapshot)
    if snapshot is not None and problem is None:
        return snapshot
    if not HUB_ID.fullmatch(name):
        raise NotFoundError(
            f"There is no model {name!r}.",
            did_you_mean(name, [BUILTIN, *cached_models()])
            or "Use 'builtin', a directory, or a Hugging Face id such as 'Qwen/Qwen3-0.6B'.",
        )
    if problem is not None and problem.is_final:
        raise problem.error()
    if not (is_offline or _is_hub_offline()):
        return name
    if problem is not None:
        hint = "Go online once so that the download can be finished."
        raise ModelLoadError(problem.problem, hint)
    raise UnavailableError(
        f"The model {name!r} is not on this machine, and the network is switched off.",
        "Leave out --offline (or unset HF_HUB_OFFLINE) to download it, or use --model builtin.",
    )


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


def cached_models() -> list[str]:
    """The ids of the models in the Hugging Face cache, in order."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folders = Path(HF_HUB_CACHE).glob("models--*")
    return sorted(folder.name.removeprefix("models--").replace("--", "/") for folder in folders)


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
    if path.is_file():
        return  # its header says it
    if (problem := obstacle(path)) is not None:
        raise problem.error()


def _is_hub_offline() -> bool:
    from huggingface_hub.constants import HF_HUB_OFFLINE

    return bool(HF_HUB_OFFLINE)


# the chat template, read without transformers


def read_template(path: Path) -> str | None:
    """The default template in a model directory; None if there is none, or it cannot be read."""
    try:
        return (path / "chat_template.jinja").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        pass  # Older models have it in their tokenizer's settings.
    try:
        template: Any = json.loads((path / "tokenizer_config.json").read_bytes())["chat_template"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
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
