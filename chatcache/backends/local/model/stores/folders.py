"""Folders of GGUF files that are called by their paths: those of LM Studio and of llama.cpp.

Owns where these are, the walk through them, and what is said of downloads that were not finished.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from chatcache.backends.local.model.gguf.choice import GgufFile, models_among
from chatcache.backends.local.model.gguf.parts import SUFFIX
from chatcache.backends.local.model.stores.stored import Place, StoredModel
from chatcache.formatting import one_line, size
from chatcache.places import path_of

_DEPTH = 4  # PUBLISHER/REPOSITORY/FILE, and a folder for the parts of a large one
_MAX_FILES = 20_000
_MAX_NAMED = 20
_UNFINISHED = (".part", ".incomplete", ".downloadinprogress", ".download", ".crdownload", ".tmp")
_UNFINISHED_PREFIX = "downloading_"


def lm_studio() -> list[Path]:
    """Where LM Studio keeps models: as its settings say, and where versions of it did."""
    home = _lm_studio_home()
    told = _told_folder(home / "settings.json")
    places = [told] if told is not None else [home / "models"]
    return [*places, path_of("~/.lmstudio/models"), path_of("~/.cache/lm-studio/models")]


def llama_cpp() -> list[Path]:
    """Where llama.cpp keeps what it downloads."""
    if told := os.environ.get("LLAMA_CACHE", "").strip():
        return [path_of(told)]
    if sys.platform == "darwin":
        return [path_of("~/Library/Caches/llama.cpp")]
    cache = os.environ.get("XDG_CACHE_HOME", "").strip() or "~/.cache"
    return [path_of(cache) / "llama.cpp"]


def stored() -> Iterator[StoredModel]:
    """All models in these folders, each once."""
    seen: set[Path] = set()
    places: list[tuple[Place, Path]] = [("LM Studio", folder) for folder in lm_studio()]
    places += [("llama.cpp", folder) for folder in llama_cpp()]
    for place, folder in places:
        real = Path(os.path.realpath(folder))
        if real not in seen:
            seen.add(real)
            yield from _in_folder(folder, place)


def gguf_below(directory: Path, max_depth: int = 1) -> list[GgufFile]:
    """The models in a directory; where there are none, those further down. Raises OSError."""
    for depth in range(1, max_depth + 1):
        files = [path for path in _walk(directory, depth) if path.name.lower().endswith(SUFFIX)]
        models = models_among(
            (path.relative_to(directory).as_posix(), _size(path)) for path in files[:_MAX_FILES]
        )
        if models:
            return models
    return []


def named(models: Sequence[GgufFile]) -> str:
    """Models by their files, the smallest first."""
    ordered = sorted(models, key=lambda model: model.num_bytes)
    words = [f"{one_line(model.names[0])} ({size(model.num_bytes)})" for model in ordered]
    more = len(words) - _MAX_NAMED
    return ", ".join(words[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def _in_folder(folder: Path, place: Place) -> Iterator[StoredModel]:
    files: dict[str, int] = {}
    unfinished: list[Path] = []
    try:
        for path in _walk(folder, _DEPTH):
            if path.name.lower().endswith(SUFFIX) and not path.name.startswith(_UNFINISHED_PREFIX):
                files[str(path)] = _size(path)
            elif _is_unfinished(path):
                unfinished.append(path)
            if len(files) >= _MAX_FILES:
                break
    except FileNotFoundError:
        return
    except OSError as error:
        problem = f"{folder} cannot be read: {error.strerror}."
        yield StoredModel(str(folder), place, problem=problem, advice="Check its permissions.")
        return
    for model in models_among(files.items()):
        yield StoredModel(model.names[0], place, Path(model.names[0]), model.num_bytes)
    for path in unfinished:
        if str(_finished(path)) not in files:
            yield StoredModel(
                str(_finished(path)),
                place,
                num_bytes=_size(path),
                problem=f"{_finished(path)} is only half downloaded.",
                advice=f"{place} can go on with it.",
            )


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    """The files below a folder, through links too. Raises OSError for the folder itself; what may
    not be looked into further down has nothing."""
    for path in sorted(folder.iterdir()):
        try:
            is_dir = path.is_dir()
        except OSError:
            continue
        if not is_dir:
            yield path
        elif depth > 1:
            try:
                yield from list(_walk(path, depth - 1))
            except OSError:
                continue


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # a link that leads nowhere; whoever opens it says so


def _is_unfinished(path: Path) -> bool:
    return SUFFIX in path.name.lower() and path.name.lower().endswith(_UNFINISHED)


def _finished(path: Path) -> Path:
    """The file that an unfinished download would become."""
    name = path.name[: path.name.lower().rindex(SUFFIX) + len(SUFFIX)]
    return path.with_name(name.removeprefix(_UNFINISHED_PREFIX))


def _lm_studio_home() -> Path:
    """Its folder, which a file in the home directory may name."""
    try:
        told = path_of("~/.lmstudio-home-pointer").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        told = ""
    return path_of(told or "~/.lmstudio")


def _told_folder(settings: Path) -> Path | None:
    try:
        told = json.loads(settings.read_bytes())["downloadsFolder"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return path_of(told) if isinstance(told, str) and told.strip() else None
