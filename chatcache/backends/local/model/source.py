"""Where the parts of a model are, whichever form it is kept in: a directory, or a GGUF file.

Owns the difference between the two: config and tokenizer lie beside the weights, or are made from
the file. No weights are read here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from chatcache.backends.local.model.files import read_object, weight_files
from chatcache.backends.local.model.fit import Fit, Needs
from chatcache.backends.local.model.gguf.derived import (
    GgufModel,
    derived_directory,
    open_model,
    remarks_of,
)
from chatcache.backends.local.model.memory_check import MemoryCheck
from chatcache.backends.local.model.needs import (
    context_tokens,
    count_weights,
    kv_bytes_per_token,
    text_config,
)
from chatcache.errors import UnavailableError


@dataclass(frozen=True, slots=True)
class ModelSource:
    """`path` is what the model's name leads to; config and tokenizer are in `directory`."""

    name: str
    path: Path
    directory: Path
    weight_files: tuple[Path, ...]
    num_parameters: int
    gguf: GgufModel | None = None

    @property
    def quantization(self) -> str:
        """The word that people know the weights by; "" for those that are not packed."""
        return "" if self.gguf is None else self.gguf.header.quantization

    def dtype_with_room(
        self,
        dtype: torch.dtype | str,
        stored: torch.dtype,
        device: torch.device,
        memory: MemoryCheck,
    ) -> torch.dtype | str:
        """`dtype`, or the one that was `stored` where only that has room."""
        if self.gguf is not None:
            return dtype
        return memory.dtype_with_room(self.path, dtype, stored, device)

    def look(
        self,
        dtype: torch.dtype | str,
        device: torch.device,
        memory: MemoryCheck,
        packing: str | None,
    ) -> Fit:
        """Whether there is room for it. Raises NoRoomError if surely not."""
        if self.gguf is None or not isinstance(dtype, torch.dtype):
            return memory.look(self.name, self.path, dtype, device, packing)
        is_packed = self.stays_packed(dtype, device, memory)
        return memory.judge_on(self.name, self._needs(dtype, device, is_packed=is_packed), device)

    def stays_packed(
        self, dtype: torch.dtype | str, device: torch.device, memory: MemoryCheck
    ) -> bool:
        """Whether the weights of a GGUF file stay in its blocks: on a CPU, and on a GPU that has no
        room for them otherwise."""
        if self.gguf is None or not isinstance(dtype, torch.dtype):
            return False
        if device.type != "cuda":
            return device.type == "cpu"
        return not memory.has_room_on(self._needs(dtype, device, is_packed=False), device)

    def _needs(self, dtype: torch.dtype, device: torch.device, *, is_packed: bool) -> Needs:
        text = text_config(read_object(self.directory / "config.json"))
        held, mapped = self.num_parameters * dtype.itemsize, 0
        if is_packed and self.gguf is not None:
            held, mapped = self.gguf.packed_bytes
        is_mapped = device.type == "cpu"
        return Needs(
            held=held if is_mapped else held + mapped,
            mapped=mapped if is_mapped else 0,
            bytes_per_token=kv_bytes_per_token(text, dtype.itemsize),
            max_tokens=context_tokens(text),
        )

    @property
    def remarks(self) -> tuple[str, ...]:
        return () if self.gguf is None else remarks_of(self.directory)


def open_source(name: str, path: Path, cache_dir: Path | None) -> ModelSource:
    """Raises ModelLoadError or UnavailableError."""
    if not path.is_file():
        found = tuple(weight_files(path))
        return ModelSource(name, path, path, found, count_weights(path))
    model = open_model(path)
    directory = derived_directory(model, cache_dir)
    return ModelSource(name, path, directory, tuple(model.files), model.num_parameters, model)


def check_takes_adapter(path: Path, adapter: Path | None) -> None:
    """Raises UnavailableError for a model into whose weights nothing can be merged."""
    if adapter is not None and path.is_file():
        raise UnavailableError(
            f"An adapter cannot be merged into the packed weights of {path}.",
            "Use the model as safetensors with --adapter, or leave out --adapter.",
        )
