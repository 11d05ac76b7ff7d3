"""Tells models apart: what must be equal for keys and values of one run to be valid in another.

Owns: the digests of weight files (remembered, because hashing gigabytes takes seconds), of the
parameters in memory, of the tokenizer and of the config. Names, shapes and file headers can be
equal for different weights, so content is what counts.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from chatcache.atomic_write import write_atomically

REMEMBERED = "weights.json"  # below the cache directory: the hashes of files
NO_ADAPTER = "none"

_SHA256 = re.compile(r"[0-9a-f]{64}")
_BLOB = re.compile(rf"(?:sha256-)?({_SHA256.pattern})")
_DIGEST = re.compile(r"[0-9a-f]{32}")
_BLOCK_BYTES = 1 << 22
_REMEMBERED_TOKENIZERS = 32
_TOKENIZER_SUFFIXES = frozenset({".jinja", ".json", ".model", ".tiktoken", ".txt"})
_ORIGIN_SUFFIXES = _TOKENIZER_SUFFIXES | {".safetensors", ""}  # "": of the hub's `refs`
_SAMPLES = 64
# Fields of a config that say where it came from, not what the model computes.
_NOT_COMPUTED = frozenset(
    {"_name_or_path", "name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"}
)


def weights_id(
    files: Sequence[Path],
    remembered: Path | None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> str:
    """A digest over the contents of weight files, in the given order.

    The hub and Ollama name their files by their hash; of others a full hash is taken once and
    remembered in the file `remembered` for as long as path, size, time and inode stay the same.
    """
    book = HashBook(remembered)
    total = sum(file.stat().st_size for file in files)
    done = 0
    digests = []
    for file in files:
        start = done
        digests.append(book.sha256(file, lambda read, start=start: progress(start + read, total)))  # type: ignore[misc]
        done += file.stat().st_size
    book.save()
    return _digest(digests)


def known_weights_id(files: Sequence[Path], remembered: Path | None) -> str | None:
    """`weights_id`, if it can be told without reading the files."""
    book = HashBook(remembered)
    digests = [book.known(file) if file.is_file() else None for file in files]
    return None if not digests or None in digests else _digest(map(str, digests))


def adapter_id(directory: Path | None, remembered: Path | None) -> str:
    """A digest over an adapter's weights and config (its scale is in there)."""
    if directory is None:
        return NO_ADAPTER
    files = [*sorted(directory.glob("adapter_*.safetensors")), directory / "adapter_config.json"]
    return weights_id(files, remembered)


class HashBook:
    """SHA-256 of files, remembered by real path, size, modification time and inode."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._entries: dict[str, list[Any]] = _load_entries(path)
        self._is_changed = False

    def known(self, file: Path) -> str | None:
        """The hash of a file if it can be told without reading it."""
        real = file.resolve()
        blob = _BLOB.fullmatch(real.name)
        if real.parent.name == "blobs" and blob is not None:
            return blob[1]
        entry = self._entries.get(str(real))
        return str(entry[3]) if entry is not None and entry[:3] == _stamp(real) else None

    def sha256(self, file: Path, progress: Callable[[int], None] = lambda done: None) -> str:
        """The hash of a file's content; `progress` is told the bytes read so far."""
        known = self.known(file)
        if known is not None:
            return known
        real = file.resolve()
        before = _stamp(real)
        digest = hashlib.sha256()
        done = 0
        with real.open("rb") as stream:
            while block := stream.read(_BLOCK_BYTES):
                digest.update(block)
                done += len(block)
                progress(done)
        if _stamp(real) == before:  # else it was written to meanwhile: not to be trusted again
            self._entries[str(real)] = [*before, digest.hexdigest()]
            self._is_changed = True
        return digest.hexdigest()

    def save(self) -> None:
        """Write the book if it changed. A book that cannot be written costs time only."""
        if not self._is_changed or self._path is None:
            return
        entries = {path: entry for path, entry in self._entries.items() if Path(path).exists()}
        self._is_changed = not _save(self._path, entries)


class FileWatch:
    """Weight files as they were when a model was loaded from them.

    Weights that need no conversion are mapped from their file, so whoever writes into it changes
    the model in memory, and the keys and values that it computes."""

    def __init__(self, files: Iterable[Path], origin: OriginWatch | None = None) -> None:
        self._stamps = {file: _stamp(file) for file in map(Path.resolve, files)}
        self._origin = origin

    def add(self, file: Path | None) -> None:
        """Another file that weights are mapped from, if there is one."""
        if file is None:
            return
        real = file.resolve()
        self._stamps[real] = _stamp(real)

    def is_outdated(self) -> bool:
        """Whether the model's name leads to another model by now."""
        return self._origin is not None and self._origin.is_changed()

    def changed(self) -> Path | None:
        """A file that was written to. One that was removed, or replaced by another one of its name,
        is still mapped as it was."""
        for file, before in self._stamps.items():
            try:
                now = _stamp(file)
            except OSError:
                continue
            if now != before and now[-1] == before[-1]:
                return file
        return None


class OriginWatch:
    """What a name of a model, and of an adapter, led to when it was loaded. Another revision from
    the hub, a file that was replaced, and one that is missing, make it another model."""

    def __init__(self, model: Path, adapter: Path | None) -> None:
        self._places = [model] if adapter is None else [model, adapter]
        for place in model.parents:
            if place.name == "snapshots":  # of the hub's cache, where `refs` says which counts
                self._places.append(place.with_name("refs"))
        self._files = self._found()

    def is_changed(self) -> bool:
        return self._found() != self._files

    def _found(self) -> dict[Path, list[Any]]:
        found: dict[Path, list[Any]] = {}
        for place in self._places:
            with contextlib.suppress(OSError):
                if place.is_file():
                    found[place] = _stamp(place)
                    continue
                for file in place.iterdir():
                    if file.suffix in _ORIGIN_SUFFIXES:
                        found[file] = _stamp(file)
        return found


def parameters_id(named_tensors: Iterable[tuple[str, Any]]) -> str:
    """A digest of parameters in memory: names, shapes, dtypes, integer sums, and samples for order.

    Weights that were loaded differently than their files say (an adapter, a file overwritten while
    it was read) are told apart by this, at memory speed.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in named_tensors:
        flat = _as_integers(tensor.detach())
        stride = max(1, flat.numel() // _SAMPLES)
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}".encode())
        digest.update(str(_sum(flat)).encode())
        digest.update(str(flat[::stride][:_SAMPLES].tolist()).encode())
    return digest.hexdigest()


def tokenizer_id(tokenizer: Any) -> str:
    """A digest of what ids mean: vocabulary, merges, added tokens, decoding. Not the template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        added = sorted((id_, str(token)) for id_, token in tokenizer.added_tokens_decoder.items())
        vocabulary = sorted(tokenizer.get_vocab().items())
        return _digest([json.dumps([vocabulary, added], ensure_ascii=False)])
    content = json.loads(backend.to_str())
    parts = ("normalizer", "pre_tokenizer", "decoder", "added_tokens", "model")
    return _digest(json.dumps(content.get(part), sort_keys=True) for part in parts)


def remembered_tokenizer_id(tokenizer: Any, path: Path, directory: Path | None) -> str:
    """`tokenizer_id` of the tokenizer in the model directory `path`, remembered in `directory`.

    That of a large one takes tenths of a second. It is known by what makes it: the contents of the
    files that a tokenizer may be read from, and the versions of who reads them."""
    if directory is None:
        return tokenizer_id(tokenizer)
    book = directory / "tokenizers.json"
    key = _tokenizer_key(path, type(tokenizer).__name__)
    entries = _load_object(book)
    known = entries.pop(key, None)
    if not (isinstance(known, str) and _DIGEST.fullmatch(known)):
        known = tokenizer_id(tokenizer)
        kept = dict(list(entries.items())[1 - _REMEMBERED_TOKENIZERS :])
        _save(book, kept | {key: known})
    return known


def _tokenizer_key(path: Path, kind: str) -> str:
    import tokenizers
    import transformers

    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{kind}|{tokenizers.__version__}|{transformers.__version__}".encode())
    for file in sorted(path.iterdir()):
        if file.suffix in _TOKENIZER_SUFFIXES and file.is_file():
            digest.update(f"|{file.name}|{file.stat().st_size}|".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def config_id(config: Mapping[str, Any]) -> str:
    """A digest of a model's config without the fields that only say where it came from."""
    return _digest([json.dumps(_computed(config), sort_keys=True, default=str)])


def _computed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            str(key): _computed(item) for key, item in value.items() if key not in _NOT_COMPUTED
        }
    return [_computed(item) for item in value] if isinstance(value, (list, tuple)) else value


def _as_integers(tensor: Any) -> Any:
    """The bits of a tensor as a flat tensor of integers."""
    import torch

    flat = tensor.contiguous().flatten()
    if flat.dtype == torch.uint8 and flat.numel() % 8 == 0 and flat.storage_offset() % 8 == 0:
        return flat.view(torch.int64)  # packed weights: summed at the speed of memory
    same_width = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return flat.view(same_width[flat.element_size()])


def _sum(flat: Any) -> int:
    """The sum of integers, modulo 2**64. numpy makes it at the speed of memory; torch takes ten
    times as long to widen what is narrower than 64 bits."""
    return int(flat.numpy().sum(dtype="int64") if flat.device.type == "cpu" else flat.sum())


def _stamp(path: Path) -> list[Any]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def _load_entries(path: Path | None) -> dict[str, list[Any]]:
    """The remembered hashes; a book that is missing or damaged is an empty one."""
    return {
        name: entry
        for name, entry in ({} if path is None else _load_object(path)).items()
        if isinstance(entry, list) and len(entry) == 4 and _SHA256.fullmatch(str(entry[3]))
    }


def _load_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _save(path: Path, entries: Mapping[str, Any]) -> bool:
    """Whether the entries are on disk now; where they cannot be it costs time only."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(path, json.dumps(entries).encode())
    except OSError:
        return False
    return True


def _digest(parts: Iterable[str]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part.encode())
        digest.update(b"\0")
    return digest.hexdigest()
