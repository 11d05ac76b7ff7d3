"""What downloading and loading a model tells meanwhile.

Owns: the bars of transformers and huggingface_hub, turned into `ModelLoading` events, and the
download of one model into the Hugging Face cache.
"""

from __future__ import annotations

import glob
import io
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chatcache.backends.base import ModelLoading
from chatcache.backends.local.model import resolve
from chatcache.backends.local.model.bases import is_only_adapter
from chatcache.backends.local.model.hub import asking_hub
from chatcache.backends.local.model.hub_files import model_on_hub
from chatcache.backends.local.model.loadable import obstacle

Progress = Callable[[ModelLoading], None]


class ProgressBar:
    """Stands in for a tqdm bar: tells `progress` and writes nothing."""

    def __init__(self, progress: Progress, arguments: tuple[Any, ...], options: dict[str, Any]):
        self._iterable: Any = arguments[0] if arguments else options.get("iterable")
        total = options.get("total")
        if total is None and isinstance(self._iterable, Sized):
            total = len(self._iterable)
        self.total = int(total or 0)
        self.n = 0
        self.desc = str(options.get("desc") or "loading")
        self._progress = progress
        self._percent = -1

    def update(self, count: float = 1) -> None:
        self.n += int(count)
        percent = 100 * self.n // self.total if self.total else self.n
        if percent != self._percent:
            self._percent = percent
            stage = self.desc[:1].lower() + self.desc[1:]
            self._progress(ModelLoading(stage, self.n, self.total))

    def __iter__(self) -> Iterator[Any]:
        for item in self._iterable or ():
            yield item
            self.update()

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def __getattr__(self, name: str) -> Callable[..., None]:
        """The rest of a bar's methods (close, refresh, set_postfix, …) only draw."""
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *arguments, **options: None


@contextmanager
def reported_progress(progress: Progress) -> Iterator[None]:
    """Bars that transformers draws meanwhile are told to `progress` instead."""
    from transformers.utils import logging as transformers_logging

    previous = transformers_logging.set_tqdm_hook(
        lambda factory, arguments, options: ProgressBar(progress, arguments, options)
    )
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(previous)


def fetch(
    name: str,
    progress: Progress,
    check: Callable[[str, int, bool], None] = lambda name, num_bytes, is_packed: None,
) -> Path:
    """Download a model; its weights only when what describes it says that it can be loaded, and
    when `check`, which is told its bytes and whether these are GGUF's, does not raise.

    Returns its directory, or the first file of a GGUF model. Raises ModelLoadError for one that
    cannot be loaded, and what `model_on_hub` and `download` raise."""
    progress(ModelLoading(f"asking the hub for {name}"))
    model = model_on_hub(name)
    check(name, model.num_bytes, model.gguf is not None)
    if model.gguf is not None:
        patterns = [glob.escape(file) for file in model.gguf.names]
        return _snapshot(model.repo_id, model.name, progress, patterns) / model.gguf.names[0]
    described = download(name, progress, has_weights=False)
    if (found := obstacle(described, has_weights=False)) is not None:
        if is_only_adapter(described):  # small; what is advised works then
            download(name, progress)
        raise found.error()
    return download(name, progress)


def download(repo_id: str, progress: Progress, *, has_weights: bool = True) -> Path:
    """Fetch a model from the hub into the Hugging Face cache; returns its directory.

    Without weights only what describes the model is fetched. Raises ChatcacheError.
    """
    ignored = [*resolve.NOT_DOWNLOADED, *([] if has_weights else ["*.safetensors"])]
    return _snapshot(repo_id, repo_id, progress, list(resolve.DOWNLOADED_FILES), ignored)


def _snapshot(
    repo_id: str,
    name: str,
    progress: Progress,
    patterns: list[str],
    ignored: list[str] | None = None,
) -> Path:
    """Fetch those files of a repository that are not here yet. `name` is told meanwhile."""
    from huggingface_hub import snapshot_download

    progress(ModelLoading(f"downloading {name}"))
    with asking_hub(repo_id):
        return Path(
            snapshot_download(
                repo_id,
                allow_patterns=patterns,
                ignore_patterns=ignored,
                tqdm_class=_download_bar(name, progress),
            )
        )


def _download_bar(name: str, progress: Progress) -> type[Any]:
    """A tqdm class that reports bytes to `progress` and draws nothing."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    class DownloadBar(tqdm):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            options.pop("name", None)
            options["file"] = io.StringIO()  # it ends its line where it has drawn none
            super().__init__(*arguments, **options)

        def display(self, *arguments: Any, **options: Any) -> bool:
            if self.unit == "B":
                stage = f"downloading {name}"
                progress(ModelLoading(stage, int(self.n), int(self.total or 0)))
            return True

    return DownloadBar


def first_line(error: Exception) -> str:
    """The first line of an error's message, with the next one where it ends in a colon, and without
    the full stop; behind the name of its class, unless the message says enough by itself."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    goes_on = lines[0].endswith(":") and len(lines) > 1
    text = (f"{lines[0]} {lines[1].strip()}" if goes_on else lines[0]).rstrip(".")
    says_enough = isinstance(error, (OSError, RuntimeError, ValueError))
    return text if says_enough else f"{type(error).__name__}: {text}"
