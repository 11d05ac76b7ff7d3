"""The tokenizers of other models, for the same text read by two. No weights are read for them."""

from __future__ import annotations

from pathlib import Path

from chatcache.backends.local.model import resolve
from chatcache.backends.local.model.gguf.derived import derived_directory, open_model
from chatcache.backends.local.model.loader import load_tokenizer
from chatcache.backends.local.prompt.template import ChatTemplate
from chatcache.backends.local.study.pieces import Vocabulary
from chatcache.errors import UnavailableError

_MAX_KEPT = 3


class Vocabularies:
    """By the name of their models, as `--model` takes it. `cache_dir`: where what is made of GGUF
    files is kept."""

    def __init__(self, cache_dir: Path, *, is_offline: bool) -> None:
        self._cache_dir = cache_dir
        self._is_offline = is_offline
        self._kept: dict[str, Vocabulary] = {}

    def of(self, name: str) -> Vocabulary:
        """Raises NotFoundError, ModelLoadError, or UnavailableError for one that is not here."""
        found = self._kept.pop(name, None) or self._load(name)
        self._kept[name] = found  # the one used last stays longest
        while len(self._kept) > _MAX_KEPT:
            del self._kept[next(iter(self._kept))]
        return found

    def _load(self, name: str) -> Vocabulary:
        path = resolve.resolve_model(name, is_offline=self._is_offline)
        if not isinstance(path, Path):
            raise UnavailableError(
                f"The model {name!r} is not on this machine, and nothing is downloaded for this.",
                "Chat with it once, or name a model that is here: `chatcache models` lists them.",
            )
        if path.is_file():
            path = derived_directory(open_model(path), self._cache_dir)
        tokenizer = load_tokenizer(path)
        return Vocabulary(tokenizer, ChatTemplate(tokenizer).codec, name)
