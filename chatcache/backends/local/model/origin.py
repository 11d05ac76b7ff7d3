"""The weights of a model, in whichever form they are loaded: exact, made smaller, or as in a GGUF.

Owns which of these is done, the id of what comes of it, and what is watched so that it stays so.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from chatcache.backends.base import ModelLoading
from chatcache.backends.local.model import identity
from chatcache.backends.local.model.forms import Form
from chatcache.backends.local.model.generation import generation_config
from chatcache.backends.local.model.gguf.loading import load_gguf
from chatcache.backends.local.model.memory_check import MemoryCheck
from chatcache.backends.local.model.progress import Progress, reported_progress
from chatcache.backends.local.model.quantized import load_quantized
from chatcache.backends.local.model.quantized_form import QUANTIZER_VERSION, QuantizedForm
from chatcache.backends.local.model.source import ModelSource
from chatcache.backends.local.model.weights import load_weights, with_adapter
from chatcache.backends.local.packed.blocks import is_packed
from chatcache.cache.book.namespace import EXACT
from chatcache.formatting import model_name

_AS_IN_FILE = "gguf"  # multiplied as they lie in a GGUF file


@dataclass(frozen=True, slots=True)
class Weights:
    """A model with its weights, and what is to be watched so that they stay what they are."""

    model: Any
    weights_id: str
    num_parameters: int  # tied weights count once; what is packed has another size in memory
    watch: identity.FileWatch
    remarks: tuple[str, ...] = ()
    form: str = EXACT


@dataclass(frozen=True, slots=True)
class WeightsOrigin:
    """Where weights come from: the files of a model, and an adapter. `memory` tells what a GPU has
    room for."""

    source: ModelSource
    form: Form
    adapter: Path | None
    cache_dir: Path | None
    memory: MemoryCheck

    @property
    def adapter_id(self) -> str:
        return identity.adapter_id(self.adapter, self._remembered)

    def weights(
        self,
        packing: str | None,
        dtype: torch.dtype | str,
        stored: torch.dtype,
        device: torch.device,
        progress: Progress,
    ) -> Weights:
        """In `dtype`, or packed; those that are packed are read as they were `stored`."""
        changes = identity.OriginWatch(self.source.path, self.adapter)
        watch = identity.FileWatch(self.source.weight_files, changes)
        with reported_progress(progress):
            if self.source.gguf is not None:
                return self._of_gguf(dtype, device, watch, progress)
            if packing is not None:
                return self._packed(packing, dtype, stored, device, watch, progress)
            model = self._load(dtype, device)
        num_parameters = sum(parameter.numel() for parameter in model.parameters())
        return Weights(model, self._hash(progress), num_parameters, watch)

    def _of_gguf(
        self,
        dtype: torch.dtype | str,
        device: torch.device,
        watch: identity.FileWatch,
        progress: Progress,
    ) -> Weights:
        if self.source.gguf is None or not isinstance(dtype, torch.dtype):
            raise TypeError("a GGUF file is loaded in a dtype")
        is_unpacked = not self.source.stays_packed(dtype, device, self.memory)
        model, said = load_gguf(
            self.source.gguf, self.form.config, dtype, device, is_unpacked=is_unpacked
        )
        model.generation_config = generation_config(self.source.directory, self.form.config)
        name = model_name(self.source.name)
        return Weights(
            model,
            self._hash(progress),
            self.source.num_parameters,
            watch,
            tuple(f"{name}: {text}" for text in (*self.source.remarks, *said)),
            _AS_IN_FILE if is_packed(model) else EXACT,
        )

    def _packed(
        self,
        packing: str,
        dtype: torch.dtype | str,
        stored: torch.dtype,
        device: torch.device,
        watch: identity.FileWatch,
        progress: Progress,
    ) -> Weights:
        weights_id = self._hash(progress)
        found = load_quantized(
            QuantizedForm(packing, weights_id, self.adapter_id),
            self.form.config,
            lambda: self._load(stored, torch.device("cpu")),
            dtype=dtype if isinstance(dtype, torch.dtype) else stored,
            cache_dir=self.cache_dir,
            progress=progress,
        )
        found.model.generation_config = generation_config(self.source.path, self.form.config)
        watch.add(found.file)
        return Weights(
            found.model.to(device),
            weights_id,
            found.num_parameters,
            watch,
            found.remarks,
            f"{packing}/{QUANTIZER_VERSION}",
        )

    @property
    def _remembered(self) -> Path | None:
        return None if self.cache_dir is None else self.cache_dir / identity.REMEMBERED

    def _load(self, dtype: torch.dtype | str, device: torch.device) -> Any:
        model = load_weights(self.source.path, dtype, device, self.form)
        return with_adapter(model, self.adapter)

    def _hash(self, progress: Progress) -> str:
        def tell(done: int, total: int) -> None:
            progress(ModelLoading("hashing the weights", done, total))

        return identity.weights_id(self.source.weight_files, self._remembered, tell)
