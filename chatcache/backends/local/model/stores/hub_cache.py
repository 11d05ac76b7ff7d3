"""GGUF files in the cache of the Hugging Face hub, where llama.cpp and others put theirs, too.

Owns the folders of a repository there: which of its snapshots counts, and which files are whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from chatcache.backends.local.model.gguf.choice import GgufFile, matching, models_among, preferred
from chatcache.backends.local.model.gguf.parts import SUFFIX
from chatcache.backends.local.model.hub_name import HubName
from chatcache.backends.local.model.stores.stored import StoredModel


def repositories() -> list[str]:
    """The ids of the models in the cache, in order."""
    folders = _cache().glob("models--*")
    return sorted(folder.name.removeprefix("models--").replace("--", "/") for folder in folders)


def find(name: HubName) -> Path | None:
    """The first file of a GGUF model that is in the cache as a whole; None if there is none.

    Where several files have the name, that says nothing: the hub is asked which there are."""
    for snapshot in snapshots(folder_of(name.repo_id)):
        whole = [model for model in ggufs(snapshot) if not model.missing]
        found = matching(whole, name.wanted) if name.wanted else whole
        if len(found) == 1 or (found and not name.wanted):
            return snapshot / preferred(found).names[0]
    return None


def stored() -> Iterator[StoredModel]:
    for repo_id in repositories():
        seen: set[str] = set()
        for snapshot in snapshots(folder_of(repo_id)):
            models = ggufs(snapshot)
            words = Counter(model.quantization for model in models)
            for model in models:
                is_only = bool(model.quantization) and words[model.quantization] == 1
                name = HubName(repo_id).of_file(model.quantization if is_only else model.stem)
                if name not in seen:
                    seen.add(name)
                    yield StoredModel(name, "hub", snapshot / model.names[0], model.num_bytes)


def is_gguf_only(repo_id: str) -> bool:
    """Are GGUF files all that is here of a repository?"""
    found = snapshots(folder_of(repo_id))
    return any(map(ggufs, found)) and not any(
        True for snapshot in found for _ in snapshot.glob("*.safetensors")
    )


def folder_of(repo_id: str) -> Path:
    return _cache() / f"models--{repo_id.replace('/', '--')}"


def snapshots(folder: Path) -> list[Path]:
    """The snapshots of a repository, that of `main` first, then the newest."""
    try:
        commit = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):  # no text, or a name that no path can have
        commit = ""
    try:
        found = [path for path in (folder / "snapshots").iterdir() if path.is_dir()]
    except (OSError, ValueError):
        found = []
    return sorted(found, key=lambda path: (path.name == commit, path.stat().st_mtime), reverse=True)


def ggufs(snapshot: Path) -> list[GgufFile]:
    """The models among the files of a snapshot, in its folders too."""
    files = (path for path in snapshot.rglob("*") if path.name.lower().endswith(SUFFIX))
    there = ((path, path.stat().st_size) for path in files if path.is_file())
    return models_among((path.relative_to(snapshot).as_posix(), length) for path, length in there)


def _cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)
