"""The directory made from a GGUF file: config, tokenizer and chat template, as any model has them.

Owns `CACHE_DIR/gguf/KEY/`, where it is kept: to make one takes seconds. The key is a digest of what
it is made from, so it never has to be compared; whoever deletes it loses that time only.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from chatcache.backends.local.model.gguf.config import config_of
from chatcache.backends.local.model.gguf.header import GgufHeader, GgufTensor, read_gguf
from chatcache.backends.local.model.gguf.known import check_known
from chatcache.backends.local.model.gguf.parts import whole_parts
from chatcache.backends.local.model.gguf.tokenizer import (
    build_tokenizer,
    check_tokenizer,
    generation_fields,
)
from chatcache.backends.local.model.gguf.types import READ_AS_Q8_0
from chatcache.errors import ModelLoadError, UnavailableError

log = logging.getLogger(__name__)

_FORMAT = 4  # of what is written here: another number makes all of it anew
_FOLDER = "gguf"
_REMARKS = "remarks.json"
_NEEDED = ("config.json", "tokenizer.json", "tokenizer_config.json", _REMARKS)
_MAX_KEPT = 32
_UNFINISHED = ".new-"
_UNFINISHED_SECONDS = 24 * 3600
_Q8_0_BYTES = 34 / 32  # for a weight


@dataclass(frozen=True, slots=True)
class GgufModel:
    """A model in one or several files, the first of which has the metadata."""

    headers: tuple[GgufHeader, ...]

    @property
    def header(self) -> GgufHeader:
        return self.headers[0]

    @property
    def tensors(self) -> list[GgufTensor]:
        return [tensor for header in self.headers for tensor in header.tensors]

    @property
    def files(self) -> list[Path]:
        return [header.path for header in self.headers]

    @property
    def num_parameters(self) -> int:
        return sum(header.num_parameters for header in self.headers)

    @property
    def packed_bytes(self) -> tuple[int, int]:
        """What its weights take while they stay packed: in memory of their own, and mapped."""
        apart = [each for each in self.tensors if each.type.name in READ_AS_Q8_0]
        held = int(sum(tensor.num_weights for tensor in apart) * _Q8_0_BYTES)
        of_file, changed = (sum(each.num_bytes for each in some) for some in (self.tensors, apart))
        return held, of_file - changed


def open_model(path: Path) -> GgufModel:
    """The headers of all parts of a model that can be talked to. Raises ModelLoadError."""
    headers = tuple(map(read_gguf, whole_parts(path)))
    first = headers[0]
    check_known(first)
    check_tokenizer(first)
    names = [tensor.name for header in headers for tensor in header.tensors]
    if first.num_splits != len(headers) or len(set(names)) != len(names):
        raise ModelLoadError(
            f"{first.path} says that it has {first.num_splits} parts, and there are {len(headers)}."
            if first.num_splits != len(headers)
            else f"{first.path} and its other parts have a tensor twice.",
            "Download all parts again, under the names that they were published with.",
        )
    if "token_embd.weight" not in names:
        raise ModelLoadError(
            f"{first.path} has no embeddings: token_embd.weight is missing.",
            "Download the file again, or choose another with --model.",
        )
    return GgufModel(headers)


def derived_directory(model: GgufModel, cache_dir: Path | None) -> Path:
    """Where config and tokenizer of a model are, made if need be. Raises ModelLoadError."""
    if cache_dir is None:
        return _in_temporary(model)
    place = cache_dir / _FOLDER / _key(model)
    if _is_whole(place):
        _touch(place)
        return place
    try:
        return _keep(model, place)
    except OSError as error:
        log.warning("what was made of %s cannot be kept: %s", model.header.path, error)
        return _in_temporary(model)


def remarks_of(directory: Path) -> tuple[str, ...]:
    """What is to be said of the tokenizer that was made; () for a directory of another kind."""
    try:
        content = json.loads((directory / _REMARKS).read_bytes())
    except (OSError, ValueError):
        return ()
    return tuple(text for text in content if isinstance(text, str))


def _key(model: GgufModel) -> str:
    import tokenizers
    import transformers

    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{_FORMAT}|{transformers.__version__}|{tokenizers.__version__}".encode())
    for header in model.headers:
        with header.path.open("rb") as file:
            digest.update(file.read(header.data_offset))
    return digest.hexdigest()


def _is_whole(place: Path) -> bool:
    return all((place / name).is_file() for name in _NEEDED)


def _touch(place: Path) -> None:
    try:
        os.utime(place)
    except OSError as error:
        log.info("%s is not noted as used: %s", place, error)


def _keep(model: GgufModel, place: Path) -> Path:
    """Make the directory beside its place, and move it there at once. Raises OSError."""
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    _remove_old(place.parent)
    made = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=place.parent))
    try:
        _make(model, made)
        if place.exists() and not _is_whole(place):
            shutil.rmtree(place)
        try:
            made.rename(place)
        except OSError:
            if not _is_whole(place):  # else another process was quicker, and made the same
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return place


def _remove_old(folder: Path) -> None:
    """Forget those that were not used for longest, and what a process left half made."""
    found = []
    for entry in folder.iterdir():
        age = time.time() - entry.stat().st_mtime
        if not entry.name.startswith(_UNFINISHED):
            found.append((age, entry))
        elif age > _UNFINISHED_SECONDS:
            shutil.rmtree(entry, ignore_errors=True)
    for _, entry in sorted(found)[_MAX_KEPT - 1 :]:
        shutil.rmtree(entry, ignore_errors=True)


def _in_temporary(model: GgufModel) -> Path:
    """Made for this process alone."""
    try:
        place = Path(tempfile.mkdtemp(prefix="chatcache-gguf-"))
        atexit.register(shutil.rmtree, place, ignore_errors=True)
        _make(model, place)
    except OSError as error:
        raise UnavailableError(
            f"The tokenizer of {model.header.path} cannot be written anywhere: {error.strerror}.",
            "Make room in the cache directory or in the one for temporary files.",
        ) from error
    return place


def _make(model: GgufModel, place: Path) -> None:
    """Write all files. Raises OSError, or ModelLoadError."""
    tokenizer, remarks = build_tokenizer(model.header)
    config = config_of(model.header, model.tensors)
    config.save_pretrained(place)
    tokenizer.save_pretrained(place)
    fields = generation_fields(model.header)
    (place / "generation_config.json").write_text(json.dumps(fields), encoding="utf-8")
    (place / _REMARKS).write_text(json.dumps(remarks), encoding="utf-8")
    for file in place.iterdir():
        file.chmod(0o600)
