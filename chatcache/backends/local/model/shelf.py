"""The models at hand: built-in, in the Hugging Face cache, and directories used before.

Reads files alone: no weights, no torch. A model that cannot be used says why.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from chatcache.backends.local.model import files, resolve
from chatcache.backends.local.model.cut_policy import cut_policy
from chatcache.backends.local.model.hub import asking_hub
from chatcache.errors import ChatcacheError, UnavailableError
from chatcache.places import path_of

Place = Literal["built in", "hub", "directory", "server"]


@dataclass(frozen=True, slots=True)
class ShelfModel:
    """One model. `reuse` says where its K and V can be cut; `problem` why it cannot be used, and
    `advice` what then."""

    name: str
    place: Place
    architecture: str = ""
    num_parameters: int = 0
    num_bytes: int = 0
    reuse: str = ""
    problem: str = ""
    advice: str = ""


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What the files of a model on this machine say."""

    path: Path
    config: dict[str, Any]
    num_parameters: int
    num_bytes: int

    @property
    def architecture(self) -> str:
        return files.architecture_of(self.config)


def files_of(name: str) -> ModelFiles:
    """Raises ChatcacheError for a model that is not on this machine, or whose files are broken."""
    path = resolve.resolve_model(name, is_offline=True)
    if not isinstance(path, Path):
        raise UnavailableError(f"The model {name!r} is not on this machine.", "Download it first.")
    resolve.check_model_dir(path)
    config = json.loads((path / "config.json").read_bytes())
    return ModelFiles(path, config, files.count_parameters(path), files.count_bytes(path))


def shelf(used_before: Iterable[str] = ()) -> list[ShelfModel]:
    """All models at hand. Of `used_before`, the names that are directories are looked at."""
    directories = [name for name in used_before if is_directory(name)]
    found = [_looked_at(resolve.BUILTIN, "built in")]
    found += [_looked_at(name, "hub") for name in resolve.cached_models()]
    return found + [_looked_at(name, "directory") for name in dict.fromkeys(directories)]


def at_hand(name: str) -> ShelfModel:
    """One model by name, whether it is listed or not; `problem` when it is not here."""
    if name == resolve.BUILTIN:
        return _looked_at(name, "built in")
    return _looked_at(name, "directory" if is_directory(name) else "hub")


def is_hub_id(name: str) -> bool:
    """Could this be the name of a model on the hub?"""
    return bool(resolve.HUB_ID.fullmatch(name))


def download_bytes(repo_id: str) -> int:
    """How much a download would fetch. Raises ChatcacheError when the hub does not say."""
    from huggingface_hub import HfApi

    with asking_hub(repo_id):
        info = HfApi().model_info(repo_id, files_metadata=True)
        files = [(file.rfilename, file.size or 0) for file in info.siblings or ()]
    return sum(size for name, size in files if _is_fetched(name))


def _is_fetched(name: str) -> bool:
    is_wanted = any(fnmatch(name, pattern) for pattern in resolve.DOWNLOADED_FILES)
    return is_wanted and not any(fnmatch(name, pattern) for pattern in resolve.NOT_DOWNLOADED)


def is_directory(name: str) -> bool:
    """Is this the path of a directory, with a model in it or without?"""
    return os.sep in name and path_of(name).is_dir()


def _looked_at(name: str, place: Place) -> ShelfModel:
    try:
        found = files_of(name)
        text_config = found.config.get("text_config") or found.config
        policy = cut_policy(SimpleNamespace(**text_config))
        return ShelfModel(
            name=name,
            place=place,
            architecture=found.architecture,
            num_parameters=found.num_parameters,
            num_bytes=found.num_bytes,
            reuse=policy.detail if policy.is_cuttable else f"nothing is reused: {policy.detail}",
        )
    except ChatcacheError as error:
        return ShelfModel(name, place, problem=error.message, advice=error.hint)
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        # A config is what its publisher wrote; one that means nothing must not hide the others.
        return ShelfModel(name, place, problem=f"its config.json makes no sense: {error!r}")
