"""The model that another one was made from: an adapter's, or that of a fine-tune.

Owns reading its name from the files, and finding it on this machine. No torch; nothing is fetched.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Any

from chatcache.backends.local.model.files import INDEX, WEIGHTS, read_object
from chatcache.errors import ModelLoadError
from chatcache.places import path_of

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_TOKENIZER = "tokenizer.json"
_TOKENIZERS = (
    *("tokenizer.json", "vocab.json", "vocab.txt", "tekken.json", "*.tiktoken"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
)
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
# In the front matter of a model card: one name, or the first of a list.
_CARD = re.compile(
    r"\A---\n.*?^base_model:\s*(?:\n\s*-\s*)?[\"']?(\S+?)[\"']?\s*$.*?^---$", re.M | re.S
)
_CARD_BYTES = 20_000


def is_only_adapter(path: Path) -> bool:
    """Whether a directory holds an adapter, and no model."""
    is_model = (path / WEIGHTS).is_file() or (path / INDEX).is_file()
    return (path / ADAPTER_CONFIG).is_file() and not is_model


def base_of_adapter(path: Path) -> str | None:
    """The name of the model that the adapter in `path` is for; None if it does not say."""
    return _name(_read(path / ADAPTER_CONFIG).get("base_model_name_or_path"))


def base_of_model(path: Path) -> str | None:
    """The name of the model that the one in `path` was trained from; None if nothing says it."""
    named = _name(_read(path / "config.json").get("_name_or_path"))
    if named is not None and named != str(path):
        return named
    try:
        with (path / "README.md").open(encoding="utf-8", errors="replace") as card:
            found = _CARD.match(card.read(_CARD_BYTES))
    except OSError:
        return None
    return found[1] if found else None


def directory_of(name: str) -> Path | None:
    """Where a model is on this machine, by its directory or its name on the hub; None: it is not
    here."""
    with contextlib.suppress(OSError):  # a name that is too long for a path
        if (path := path_of(name)).is_dir():
            return path
    if not _HUB_NAME.fullmatch(name):
        return None
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    try:
        commit = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    snapshot = folder / "snapshots" / commit
    return snapshot if commit and snapshot.is_dir() else None


def lent_tokenizer(path: Path) -> Path | None:
    """The directory of the model that the one in `path` was trained from, if its tokenizer can
    stand in for a missing one: both know as many tokens."""
    base = base_of_model(path)
    found = None if base is None else directory_of(base)
    if found is None or not (found / _TOKENIZER).is_file():
        return None
    sizes = [_vocab_size(_read(place / "config.json")) for place in (path, found)]
    return found if sizes[0] is not None and sizes[0] == sizes[1] else None


def tokenizer_home(path: Path) -> Path:
    """The directory that the tokenizer of the model in `path` is read from."""
    if any(next(path.glob(pattern), None) for pattern in _TOKENIZERS):
        return path
    return lent_tokenizer(path) or path


def adapted(model: str, adapter: Path | None) -> tuple[str, Path | None]:
    """`model` and `adapter`; where the model named is an adapter, its base and the adapter."""
    path = directory_of(model) if "/" in model or os.sep in model else None
    if adapter is not None or path is None or not is_only_adapter(path):
        return model, adapter
    if not (path / ADAPTER_WEIGHTS).is_file():
        return model, adapter
    base = base_of_adapter(path)
    if base is None or not (_HUB_NAME.fullmatch(base) or directory_of(base)):
        return model, adapter
    return base, path


def _vocab_size(config: dict[str, Any]) -> int | None:
    text = config.get("text_config")
    size = config.get("vocab_size", text.get("vocab_size") if isinstance(text, dict) else None)
    return size if isinstance(size, int) else None


def _name(value: Any) -> str | None:
    return value if isinstance(value, str) and value.strip() else None


def _read(file: Path) -> dict[str, Any]:
    try:
        return read_object(file)
    except ModelLoadError:
        return {}
