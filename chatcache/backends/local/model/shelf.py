"""The models at hand: built-in, in the Hugging Face cache, in the stores of other programs, and
directories and files used before.

Reads files alone: no weights, no torch. A model that cannot be used says why.
"""

from __future__ import annotations

import json
import os
from collections.abc import Container, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from chatcache.backends.local.model import files, resolve
from chatcache.backends.local.model.cut_policy import cut_policy
from chatcache.backends.local.model.families import text_family
from chatcache.backends.local.model.gguf.derived import open_model
from chatcache.backends.local.model.gguf.known import ARCHITECTURES, family_of
from chatcache.backends.local.model.gguf.parts import SUFFIX, whole_parts
from chatcache.backends.local.model.hub_name import hub_name
from chatcache.backends.local.model.stores import folders, hub_cache, ollama, package
from chatcache.backends.local.model.stores.stored import Place, StoredModel
from chatcache.errors import ChatcacheError, UnavailableError
from chatcache.places import path_of
from chatcache.remotes import OLLAMA

# Architectures of GGUF files whose name alone says where K and V can be cut.
_TOLD_BY_NAME = ARCHITECTURES - {"phi3"}


@dataclass(frozen=True, slots=True)
class ShelfModel:
    """One model. `quantization`: the word for how its weights are packed, as files and lists call
    it. `reuse` says where its K and V can be cut; `problem` why it cannot be used, and `advice`
    what then."""

    name: str
    place: Place
    architecture: str = ""
    num_parameters: int = 0
    num_bytes: int = 0
    reuse: str = ""
    problem: str = ""
    advice: str = ""
    quantization: str = ""


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What the files of a model on this machine say."""

    path: Path
    config: dict[str, Any]
    num_parameters: int
    num_bytes: int
    quantization: str = ""

    @property
    def architecture(self) -> str:
        return files.architecture_of(self.config)


def files_of(name: str) -> ModelFiles:
    """Raises ChatcacheError for a model that is not on this machine, or whose files are broken."""
    path = resolve.resolve_model(name, is_offline=True)
    if not isinstance(path, Path):
        raise UnavailableError(f"The model {name!r} is not on this machine.", "Download it first.")
    return files_at(path)


def files_at(path: Path) -> ModelFiles:
    """Of a model in a directory, or a GGUF file. Raises ModelLoadError."""
    if path.is_file():
        parts = [part.stat() for part in whole_parts(path)]
        return _gguf_files(path, tuple((part.st_size, part.st_mtime_ns) for part in parts))
    resolve.check_model_dir(path)
    config = json.loads((path / "config.json").read_bytes())
    return ModelFiles(path, config, files.count_parameters(path), files.count_bytes(path))


@lru_cache(maxsize=256)
def _gguf_files(path: Path, stamps: tuple[tuple[int, int], ...]) -> ModelFiles:
    """Remembered for as long as the files stay as they are: a header with a large vocabulary takes
    a tenth of a second, and lists are long."""
    model = open_model(path)
    header = model.header
    config = {
        "model_type": family_of(header),
        "architectures": [header.architecture],
        "num_hidden_layers": header.num_layers,
        "max_position_embeddings": header.context_length,
    }
    num_bytes = sum(num_bytes for num_bytes, _ in stamps)
    return ModelFiles(path, config, model.num_parameters, num_bytes, header.quantization)


def shelf(used_before: Iterable[str] = (), profiles: Container[str] = ()) -> list[ShelfModel]:
    """All models at hand. Of `used_before`, the names that are directories or files are looked
    at; `profiles` are the names of servers."""
    return [_of_store(stored) for stored in all_stored(used_before, profiles)]


def all_stored(used_before: Iterable[str] = (), profiles: Container[str] = ()) -> list[StoredModel]:
    """Where the models at hand are; their files have not been looked at."""
    found = [StoredModel(resolve.BUILTIN, "built in"), *package.stored(), *hub_cache.stored()]
    for repo_id in hub_cache.repositories():
        if not hub_cache.is_gguf_only(repo_id):
            found.append(StoredModel(repo_id, "hub"))
    found += [*ollama.stored(is_by_path=OLLAMA in profiles), *folders.stored()]
    known = {_real(stored) for stored in found if stored.path is not None}
    for name in used_before:
        place = place_of(name)
        if place in ("directory", "file") and os.path.realpath(path_of(name)) not in known:
            found.append(StoredModel(name, place))
    once = {_real(stored): stored for stored in reversed(found)}  # a store may link into another
    return [stored for stored in found if once.get(_real(stored)) is stored]


def _real(stored: StoredModel) -> str:
    return stored.name if stored.path is None else os.path.realpath(stored.path)


def at_hand(name: str) -> ShelfModel:
    """One model by name, whether it is listed or not; `problem` when it is not here."""
    return _looked_at(name, place_of(name))


def is_hub_id(name: str) -> bool:
    """Could this be the name of a model on the hub?"""
    return hub_name(name) is not None


def is_name(name: str) -> bool:
    """Could this name a model, whether it is here or not?"""
    is_local = place_of(name) != "hub" or os.sep in name or name.lower().endswith(SUFFIX)
    return is_local or is_hub_id(name)


def is_on_disk(name: str) -> bool:
    """Is this the path of a directory or a file, with a model in it or without?"""
    is_path = os.sep in name or name.lower().endswith(SUFFIX)
    try:
        return is_path and path_of(name).exists()
    except (OSError, ValueError):
        return False


def place_of(name: str) -> Place:
    if name == resolve.BUILTIN:
        return "built in"
    if name == package.SMOLLM2:
        return "package"
    if is_on_disk(name):
        return "directory" if path_of(name).is_dir() else "file"
    return "ollama" if name.lower().startswith(ollama.PREFIX) else "hub"


def _of_store(stored: StoredModel) -> ShelfModel:
    """The row of a model, its file looked at."""
    if stored.problem:
        return ShelfModel(
            stored.name,
            stored.place,
            num_bytes=stored.num_bytes,
            problem=stored.problem,
            advice=stored.advice,
        )
    row = _looked_at(stored.name, stored.place, stored.path)
    return replace(row, num_bytes=row.num_bytes or stored.num_bytes)


def _looked_at(name: str, place: Place, path: Path | None = None) -> ShelfModel:
    """`path`: where it is, if that is known already."""
    try:
        found = files_of(name) if path is None else files_at(path)
        return ShelfModel(
            name=name,
            place=place,
            architecture=found.architecture,
            num_parameters=found.num_parameters,
            num_bytes=found.num_bytes,
            reuse=_reuse(found),
            quantization=found.quantization,
        )
    except ChatcacheError as error:
        return ShelfModel(name, place, problem=error.message, advice=error.hint)
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        # A config is what its publisher wrote; one that means nothing must not hide the others.
        return ShelfModel(name, place, problem=f"its config.json makes no sense: {error!r}")


def _reuse(found: ModelFiles) -> str:
    if found.quantization and found.architecture not in _TOLD_BY_NAME:
        return ""  # which the load tells
    fields = dict(found.config.get("text_config") or found.config)
    if (family := text_family(found.config)) is not None:
        fields["model_type"] = family
    policy = cut_policy(SimpleNamespace(**fields))
    return policy.detail if policy.is_cuttable else f"nothing is reused: {policy.detail}"
