"""Which files of a model the hub has, and which are fetched: safetensors, or one GGUF model.

Owns the choice, for a question before a download and for the download alike. Asks the hub; keeps
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

from chatcache.backends.local.model import resolve
from chatcache.backends.local.model.gguf.choice import (
    GgufFile,
    listed,
    matching,
    models_among,
    preferred,
)
from chatcache.backends.local.model.gguf.known import ARCHITECTURES
from chatcache.backends.local.model.hub import asking_hub
from chatcache.backends.local.model.hub_name import HubName, hub_name
from chatcache.errors import ModelLoadError, NotFoundError
from chatcache.formatting import one_line


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model that the hub has. `name` says which of its files is meant, where there are several;
    `gguf` is that file, and `others` are the ones beside it."""

    name: str
    repo_id: str
    num_bytes: int
    gguf: GgufFile | None = None
    others: tuple[GgufFile, ...] = ()


def model_on_hub(name: str) -> HubModel:
    """What a download of `name` would fetch. Raises NotFoundError for a file that the hub has not,
    naming those it has, ModelLoadError, and ChatcacheError when the hub does not say."""
    from huggingface_hub import HfApi

    wanted = hub_name(name) or HubName(name)
    with asking_hub(wanted.repo_id):
        info = HfApi().model_info(wanted.repo_id, files_metadata=True)
        files = [(file.rfilename, file.size or 0) for file in info.siblings or ()]
    ggufs = models_among(files)
    is_safetensors = any(fnmatch(file, "*.safetensors") for file, _ in files)
    if not wanted.wanted and (is_safetensors or not ggufs):
        return HubModel(name, wanted.repo_id, sum(size for file, size in files if is_fetched(file)))
    chosen = _chosen(wanted, ggufs)
    _check_architecture(wanted.repo_id, info.gguf)
    others = tuple(model for model in ggufs if model != chosen)
    return HubModel(
        wanted.of_file(word_for(chosen, ggufs)), wanted.repo_id, chosen.num_bytes, chosen, others
    )


def _check_architecture(repo_id: str, told: object) -> None:
    """Raises ModelLoadError for what could not be loaded afterwards, as far as the hub tells."""
    architecture = told.get("architecture") if isinstance(told, dict) else None
    if isinstance(architecture, str) and architecture not in ARCHITECTURES:
        raise ModelLoadError(
            f"{repo_id} has a model of the architecture {one_line(architecture)!r}, which is not "
            "read from GGUF files.",
            "Choose a copy of it as safetensors; these are read: "
            f"{', '.join(sorted(ARCHITECTURES))}.",
        )


def is_fetched(file: str) -> bool:
    """Is this one of the files of a model that is no GGUF file?"""
    is_wanted = any(fnmatch(file, pattern) for pattern in resolve.DOWNLOADED_FILES)
    return is_wanted and not any(fnmatch(file, pattern) for pattern in resolve.NOT_DOWNLOADED)


def word_for(model: GgufFile, models: Sequence[GgufFile]) -> str:
    """What is written behind the colon for one of these models: its quantisation if no other has
    the same, else the name of its file."""
    alike = [other for other in models if other.quantization == model.quantization]
    return model.quantization if model.quantization and len(alike) == 1 else model.stem


def _chosen(wanted: HubName, ggufs: Sequence[GgufFile]) -> GgufFile:
    """Raises NotFoundError or ModelLoadError."""
    if not ggufs:
        raise NotFoundError(
            f"{wanted.repo_id} has no GGUF files, so no {wanted.wanted!r}.",
            f"Leave out ':{wanted.wanted}', or name a repository with GGUF in its name.",
        )
    there = listed([model for model in ggufs if not model.missing]) or "none that is whole"
    found = matching(ggufs, wanted.wanted) if wanted.wanted else [preferred(ggufs)]
    if not found:
        raise NotFoundError(f"{wanted.repo_id} has no {wanted.wanted!r}.", f"It has {there}.")
    if len(found) > 1:
        names = ", ".join(wanted.of_file(model.stem) for model in found)
        raise NotFoundError(
            f"{wanted.repo_id} has {len(found)} files of {wanted.wanted!r}.",
            f"Name one of them: {names}",
        )
    if found[0].missing:
        raise ModelLoadError(
            f"{wanted.repo_id} lacks parts of that model: {', '.join(found[0].missing)}.",
            f"Choose another: {there}.",
        )
    return found[0]
