"""Ollama's store: manifests that name a model's file by its digest, and the files themselves.

Owns the names, `ollama:NAME[:TAG]` as `ollama list` shows them, and the two folders `manifests` and
`blobs`. Nothing in them is trusted, and nothing is written. Of a model only its weights are taken:
template and parameters of the GGUF file itself count, as for any other.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from chatcache.backends.local.model.stores.stored import StoredModel
from chatcache.errors import ModelLoadError, NotFoundError, did_you_mean
from chatcache.places import path_of

PREFIX = "ollama:"
_HOST, _NAMESPACE, _TAG = "registry.ollama.ai", "library", "latest"
# Where its installer, distributions and packages put the service's store.
SYSTEM_STORES = (
    Path("/usr/share/ollama/.ollama/models"),
    Path("/var/lib/ollama/.ollama/models"),
    Path("/var/lib/ollama/models"),
    Path("/var/lib/ollama"),
    Path("/var/snap/ollama/common/models"),
)
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
_LAYER = "application/vnd.ollama.image."
_MAX_MANIFEST_BYTES = 1 << 20
_MAX_LISTED = 30
_PULL = "`ollama pull {}` fetches it."


@dataclass(frozen=True, slots=True)
class OllamaName:
    """A name in its four parts, as the folders below `manifests` are called."""

    host: str
    namespace: str
    model: str
    tag: str

    @property
    def short(self) -> str:
        """As `ollama list` shows it: what is the default is left out, but for the tag."""
        parts = [self.model]
        if self.namespace != _NAMESPACE or self.host != _HOST:
            parts.insert(0, self.namespace)
        if self.host != _HOST:
            parts.insert(0, self.host)
        return f"{'/'.join(parts)}:{self.tag}"

    @property
    def full(self) -> str:
        return f"{PREFIX}{self.short}"

    @property
    def parts(self) -> tuple[str, ...]:
        return (self.host, self.namespace, self.model, self.tag)


def parse(name: str) -> OllamaName | None:
    """What `ollama:[[HOST/]NAMESPACE/]MODEL[:TAG]` means; None if it is none of these."""
    if not name.lower().startswith(PREFIX):
        return None
    path, _, tag = name[len(PREFIX) :].strip().partition(":")
    folders = path.split("/")
    if ":" in tag or len(folders) > 3 or any(part in ("", ".", "..") for part in folders):
        return None
    host, namespace, model = (*(_HOST, _NAMESPACE)[: 3 - len(folders)], *folders)
    return OllamaName(host, namespace, model, tag or _TAG)


def find(name: str) -> Path:
    """The file of a model. Raises NotFoundError, naming those that are there, or ModelLoadError."""
    wanted = parse(name)
    if wanted is None:
        raise NotFoundError(
            f"{name!r} is no name of a model of Ollama.",
            "Write ollama:NAME or ollama:NAME:TAG, as `ollama list` shows it.",
        )
    for store in stores():
        for found, manifest in _manifests(store):
            if _folded(found) == _folded(wanted):
                return _file_of(found, manifest, store)
    raise NotFoundError(f"Ollama has no {wanted.short!r} on this machine.", _instead(wanted))


def file_of_manifest(path: Path) -> Path | None:
    """The file that a manifest names, if `path` is one in a store of Ollama; None if it is not."""
    parts = path.absolute().parts
    if len(parts) < 6 or parts[-5] != "manifests":
        return None
    return _file_of(OllamaName(*parts[-4:]), path, path.absolute().parents[4])


def stored(*, is_by_path: bool = False) -> Iterator[StoredModel]:
    """All models of all stores; what cannot be used, and a store that cannot be read, says so.

    `is_by_path`: called by their manifests, where `ollama:` means a server."""
    seen = set()
    for store in stores():
        try:
            (store / "manifests").stat()
            found = _manifests(store)
        except FileNotFoundError:
            continue
        except OSError as error:
            yield _unreadable(store, error)
            continue
        for name, manifest in found:
            if name.full not in seen:
                seen.add(name.full)
                row = _looked_at(name, manifest, store)
                yield replace(row, name=str(manifest)) if is_by_path else row


def stores() -> list[Path]:
    """Where models of Ollama are looked for: where it is told to keep them, else in its places."""
    if told := os.environ.get("OLLAMA_MODELS", "").strip():
        return [path_of(told)]
    return [path_of("~/.ollama/models"), *SYSTEM_STORES]


def _folded(name: OllamaName) -> tuple[str, ...]:
    return tuple(part.casefold() for part in name.parts)


def _manifests(store: Path) -> list[tuple[OllamaName, Path]]:
    """What is in a store, by name; a folder that cannot be read has nothing."""
    found = []
    for path in sorted((store / "manifests").glob("*/*/*/*")):
        if path.name.startswith(".") or path.is_dir():
            continue
        found.append((OllamaName(*path.parts[-4:]), path))
    return found


def _looked_at(name: OllamaName, manifest: Path, store: Path) -> StoredModel:
    try:
        path = _file_of(name, manifest, store)
        return StoredModel(name.full, "ollama", path, path.stat().st_size)
    except ModelLoadError as error:
        return StoredModel(name.full, "ollama", problem=error.message, advice=error.hint)
    except OSError as error:
        return StoredModel(name.full, "ollama", problem=f"its file cannot be read: {error}")


def _unreadable(store: Path, error: OSError) -> StoredModel:
    return StoredModel(
        PREFIX,
        "ollama",
        problem=f"{store} cannot be read: {error.strerror}.",
        advice="Join its group: sudo usermod -aG ollama $USER, and log in again.",
    )


def _file_of(name: OllamaName, manifest: Path, store: Path) -> Path:
    """The file with the weights of a model. Raises ModelLoadError."""
    layers = _layers(name, manifest)
    weights = layers.get("model", [])
    if "adapter" in layers:
        raise ModelLoadError(
            f"{name.full} is a model with an adapter on it, which cannot be put on here.",
            "Choose the model that it was made from.",
        )
    if not weights:
        is_elsewhere = not any(key in layers for key in ("tensor", "template", "license"))
        raise ModelLoadError(
            f"{name.full} answers on a server of Ollama: its weights are not on this machine."
            if is_elsewhere
            else f"{name.full} is not kept as a GGUF file.",
            "Choose a model with weights, or set up Ollama as a server.",
        )
    if len(weights) > 1:
        raise ModelLoadError(
            f"{name.full} is kept in {len(weights)} files, where one is expected.",
            "Download it as GGUF files.",
        )
    return _blob(name, weights[0], store)


def _blob(name: OllamaName, layer: dict[str, Any], store: Path) -> Path:
    digest = _DIGEST.fullmatch(str(layer.get("digest", "")))
    if digest is None:
        raise ModelLoadError(f"The manifest of {name.full} names no file.", _anew(name))
    names = [store / "blobs" / f"sha256{mark}{digest[1]}" for mark in "-:"]
    for path in names:
        try:
            num_bytes = path.stat().st_size
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ModelLoadError(
                f"The file of {name.full} cannot be read: {error.strerror}: {path}.",
                "Check its permissions.",
            ) from error
        expected = layer.get("size")
        if isinstance(expected, int) and expected != num_bytes:
            raise ModelLoadError(
                f"The file of {name.full} has {num_bytes:,} bytes instead of {expected:,}: {path}.",
                _anew(name),
            )
        return path
    is_partial = any((store / "blobs").glob(f"sha256-{digest[1]}-partial*"))
    raise ModelLoadError(
        f"{name.full} is only half downloaded."
        if is_partial
        else f"The file of {name.full} is missing: {names[0]}.",
        _anew(name),
    )


def _layers(name: OllamaName, manifest: Path) -> dict[str, list[dict[str, Any]]]:
    """The layers of a manifest by the last word of their type."""
    try:
        with manifest.open("rb") as file:
            content = json.loads(file.read(_MAX_MANIFEST_BYTES))
        layers = content.get("layers")
    except OSError as error:
        raise ModelLoadError(
            f"The manifest of {name.full} cannot be read: {error.strerror}: {manifest}.",
            "Check its permissions.",
        ) from error
    except (ValueError, RecursionError, AttributeError) as error:
        raise ModelLoadError(
            f"The manifest of {name.full} is damaged: {manifest}.", _anew(name)
        ) from error
    found: dict[str, list[dict[str, Any]]] = {}
    for layer in layers if isinstance(layers, list) else ():
        kind = layer.get("mediaType") if isinstance(layer, dict) else None
        if isinstance(kind, str) and kind.startswith(_LAYER):
            found.setdefault(kind.removeprefix(_LAYER), []).append(layer)
    return found


def _anew(name: OllamaName) -> str:
    return _PULL.format(name.short).replace("fetches it", "fetches it again")


def _instead(wanted: OllamaName) -> str:
    """What to say in place of a model that is not there."""
    there = [name.full for store in stores() for name, _ in _manifests(store)]
    near = did_you_mean(wanted.full, there)
    listed = ", ".join(dict.fromkeys(there[:_MAX_LISTED]))
    closed = [row.problem for row in stored() if row.name == PREFIX]
    has = f"It has {listed}." if there else (closed or ["It has none at all."])[0]
    return " ".join(part for part in (near, has, _PULL.format(wanted.short)) if part)
