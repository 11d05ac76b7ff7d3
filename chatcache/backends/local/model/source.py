"""Where the parts of a model are, whichever form it is kept in: a directory, or a GGUF file.

Owns the difference between the two: config and tokenizer lie beside the weights, or are made from
the file. No weights are read here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from chatcache.backends.local.model import files
from chatcache.backends.local.model.gguf.derived import (
    GgufModel,
    derived_directory,
    open_model,
    remarks_of,
)
from chatcache.errors import UnavailableError


@dataclass(frozen=True, slots=True)
class ModelSource:
    """`path` is what the model's name leads to; config and tokenizer are in `directory`."""

    path: Path
    directory: Path
    weight_files: tuple[Path, ...]
    num_parameters: int
    gguf: GgufModel | None = None

    @property
    def quantization(self) -> str:
        """The word that people know the weights by; "" for those that are not packed."""
        return "" if self.gguf is None else self.gguf.header.quantization

    @property
    def remarks(self) -> tuple[str, ...]:
        return () if self.gguf is None else remarks_of(self.directory)


def open_source(path: Path, cache_dir: Path | None) -> ModelSource:
    """Raises ModelLoadError or UnavailableError."""
    if not path.is_file():
        weight_files = tuple(files.weight_files(path))
        return ModelSource(path, path, weight_files, files.count_parameters(path))
    model = open_model(path)
    directory = derived_directory(model, cache_dir)
    return ModelSource(path, directory, tuple(model.files), model.num_parameters, model)


def check_takes_adapter(path: Path, adapter: Path | None) -> None:
    """Raises UnavailableError for a model into whose weights nothing can be merged."""
    if adapter is not None and path.is_file():
        raise UnavailableError(
            f"An adapter cannot be merged into the packed weights of {path}.",
            "Use the model as safetensors with --adapter, or leave out --adapter.",
        )
