"""Finds a model by name and checks its files, without torch.

Owns: what a model name can mean (`builtin`, a directory, a Hugging Face id), and the look at the
files that tells a person which one is missing or broken before anything is loaded, and whether the
chat template changes by itself. What the latter costs a conversation is told by `models probe`,
which lets the template run.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from chatcache.assets import pocket_dir
from chatcache.errors import ModelLoadError, NotFoundError, UnavailableError, did_you_mean
from chatcache.places import path_of

BUILTIN = "builtin"
# What a model needs to be loaded; never pickles, never code.
DOWNLOADED_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.tiktoken")
NOT_DOWNLOADED = ("original/*", "onnx/*", "openvino/*", "*consolidated*")

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
)
_MAX_HEADER_BYTES = 100_000_000
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
    if path.is_dir():
        return path
    if path.is_file():
        raise ModelLoadError(
            f"{path} is a file, not the directory of a model.",
            "Name the directory that holds config.json.",
        )
    if not HUB_ID.fullmatch(name) and (os.sep in name or name.startswith(("~", "."))):
        raise ModelLoadError(
            f"The model directory {path} does not exist.", "Check the path, or use --model builtin."
        )
    snapshot = cached_snapshot(name)
    if snapshot is not None and not (problem := _first_problem(snapshot)):
        return snapshot
    if not HUB_ID.fullmatch(name):
        raise NotFoundError(
            f"There is no model {name!r}.",
            did_you_mean(name, [BUILTIN, *cached_models()])
            or "Use 'builtin', a directory, or a Hugging Face id such as 'Qwen/Qwen3-0.6B'.",
        )
    if not (is_offline or _is_hub_offline()):
        return name
    if snapshot is not None:
        raise ModelLoadError(problem, "Go online once so that the download can be finished.")
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


def check_model_dir(path: Path) -> None:
    """Raises ModelLoadError that names the first file of a model that is missing or broken."""
    problem = _first_problem(path)
    if problem:
        raise ModelLoadError(problem, "Download the model again, or choose another with --model.")


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a model in a fixed order. Raises ModelLoadError like the check."""
    single = path / _WEIGHTS
    if single.is_file():
        return [single]
    weight_map = _read_json(path / _INDEX).get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise ModelLoadError(f"{path / _INDEX} does not say which file has which weights.")
    return [path / name for name in sorted(set(names))]


def count_parameters(path: Path) -> int:
    """The number of stored weights, from the file headers alone."""
    total = 0
    for file in weight_files(path):
        total += sum(math.prod(tensor["shape"]) for tensor in _read_header(file).values())
    return total


def count_bytes(path: Path) -> int:
    """The size of a model's weights on disk."""
    return sum(file.stat().st_size for file in weight_files(path))


def architecture_of(config: Mapping[str, Any]) -> str:
    """The name of the class that a config asks for; else the family."""
    declared = config.get("architectures")
    named = declared if isinstance(declared, list) else []
    return str(next(iter(named), config.get("model_type", "unknown")))


def _first_problem(path: Path) -> str:
    """What is wrong with a model directory, or "". A sentence that names the file."""
    try:
        _check_config(path)
        _check_weights(path)
    except ModelLoadError as error:
        return error.message
    if not any((path / name).is_file() for name in _TOKENIZERS) and not any(
        path.glob("*.tiktoken")
    ):
        return f"{path} has no tokenizer: tokenizer.json is missing."
    return ""


def _check_config(path: Path) -> None:
    config = _read_json(path / "config.json")
    if "model_type" not in config:
        raise ModelLoadError(f"{path / 'config.json'} does not say its model_type.")
    if (path / "generation_config.json").exists():  # transformers makes one up if it is broken
        _read_json(path / "generation_config.json")


def _check_weights(path: Path) -> None:
    if not (path / _WEIGHTS).is_file() and not (path / _INDEX).is_file():
        if any((path / name).is_file() for name in _PICKLES):
            raise ModelLoadError(
                f"{path} has its weights as a pickle only, which can run code; "
                f"{_WEIGHTS} is missing."
            )
        raise ModelLoadError(f"{path} has no weights: {_WEIGHTS} is missing.")
    missing = [file.name for file in weight_files(path) if not file.is_file()]
    if missing:
        raise ModelLoadError(f"{path} lacks weight files: {', '.join(missing)}.")
    for file in weight_files(path):
        _read_header(file)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ModelLoadError(f"{path} is missing.") from error
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:  # the latter: brackets nested by the thousand
        raise ModelLoadError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ModelLoadError(f"{path} is not a JSON object.")
    return content


def _read_header(path: Path) -> dict[str, Any]:
    """The tensors of a safetensors file, once its length is what the header promises.

    A file that is too short must never be memory-mapped: reading behind its end kills the process.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
                raise ModelLoadError(f"{path} is not a whole safetensors file.")
            tensors = _tensors(json.loads(file.read(length)))
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path} has a broken safetensors header.") from error
    ends = (entry["data_offsets"][1] for entry in tensors.values())
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise ModelLoadError(
            f"{path} is truncated: it has {size:,} bytes instead of {expected:,}."
            if size < expected
            else f"{path} has {size - expected:,} bytes too many."
        )
    return tensors


def _tensors(header: Any) -> dict[str, Any]:
    """The entries of a safetensors header. Raises ValueError if it is another thing."""
    if not isinstance(header, dict):
        raise ValueError("not an object")
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    for entry in tensors.values():
        shape, offsets = (
            entry.get(key) if isinstance(entry, dict) else None for key in ("shape", "data_offsets")
        )
        if not (_are_lengths(shape) and _are_lengths(offsets) and len(offsets) == 2):
            raise ValueError("no tensor")
    return tensors


def _are_lengths(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(
        isinstance(length, int) and length >= 0 for length in value
    )


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
