"""Loads a causal language model and its tokenizer with transformers, in the engine process.

Owns: device and dtype, progress of downloads and of loading, and the translation of whatever goes
wrong into an error that names the cause. Never runs code that came with a model.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from chatcache import machine
from chatcache.backends.base import ModelLoading, SamplingParams
from chatcache.backends.local.model import identity, resolve
from chatcache.backends.local.model.fit import Fit
from chatcache.backends.local.model.forms import Form, form_of
from chatcache.backends.local.model.generation import (
    context_limit,
    end_token_ids,
    generation_config,
    sampling_defaults,
)
from chatcache.backends.local.model.gguf.loading import load_gguf
from chatcache.backends.local.model.loadable import check_adapter
from chatcache.backends.local.model.memory_check import LOOK, MemoryCheck
from chatcache.backends.local.model.needs import SMALL_MODEL_PARAMETERS
from chatcache.backends.local.model.progress import (
    Progress,
    fetch,
    first_line,
    reported_progress,
)
from chatcache.backends.local.model.source import (
    ModelSource,
    check_takes_adapter,
    open_source,
)
from chatcache.backends.local.model.tuning import tune
from chatcache.backends.local.model.weights import load_weights, with_adapter
from chatcache.backends.local.packed.modules import BlockLinear
from chatcache.cache.book.namespace import EXACT, LAYOUT_VERSION, PRECISION, SOFT, WEIGHTS_FORM
from chatcache.cache.book.policy import Precision
from chatcache.errors import ModelLoadError, UnavailableError
from chatcache.formatting import model_name

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

_PACKED_FORM = "blocks"  # multiplied as they lie in a GGUF file
_BUILTIN_DESCRIPTION = "the small model that comes with chatcache"


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready to be run, and all that is worth knowing about it."""

    model: Any  # transformers.PreTrainedModel, in eval mode, without gradients
    tokenizer: Any
    name: str
    path: Path
    description: str
    architecture: str
    num_parameters: int
    num_layers: int
    dtype: torch.dtype
    device: torch.device
    attention: str
    max_context_tokens: int
    end_token_ids: frozenset[int]
    generation_defaults: SamplingParams
    weights_id: str
    parameters_id: str
    tokenizer_id: str
    config_id: str
    adapter_id: str
    load_ms: float
    watch: identity.FileWatch
    stored_dtype: torch.dtype  # that it was saved in; of packed weights, that it runs in
    fit: Fit  # in the memory that there was
    notes: tuple[str, ...] = ()  # what was done to it so that it could be loaded
    quantization: str = ""  # the word for how its weights are packed
    weights_form: str = EXACT

    def check_files(self) -> None:
        """Raises UnavailableError if the weights in memory may no longer be what was loaded."""
        changed = self.watch.changed()
        if changed is not None:
            raise UnavailableError(
                f"{changed} was written to while {self.name} was in use: it may answer wrongly.",
                "Start chatcache again, so that it is loaded anew; nothing was kept of it.",
            )

    def namespace_fields(self, precision: Precision = "exact") -> dict[str, str]:
        """Everything that a namespace consists of; fields that start with `soft.` are for people.

        `precision`: how K and V are kept. What is exact has no such field, and never meets the
        rest."""
        return {
            "weights": self.weights_id,
            "parameters": self.parameters_id,
            "config": self.config_id,
            "tokenizer": self.tokenizer_id,
            "adapter": self.adapter_id,
            "dtype": str(self.dtype).removeprefix("torch."),
            "attention": self.attention,
            "layout": LAYOUT_VERSION,
            "transformers": transformers.__version__,
            **({} if precision == EXACT else {PRECISION: precision}),
            **({} if self.weights_form == EXACT else {WEIGHTS_FORM: self.weights_form}),
            # Its own class would take torch to the front end.
            SOFT + "torch": str(torch.__version__),
            SOFT + "device": str(self.device),
            SOFT + "threads": str(torch.get_num_threads()),
            SOFT + "name": self.name,
        }


def load_model(
    name: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    adapter: Path | None = None,
    offline: bool = False,
    max_context: int | None = None,
    memory: MemoryCheck = LOOK,
    cache_dir: Path | None = None,
    progress: Progress = lambda event: None,
) -> LoadedModel:
    """Find, download if need be, and load a model. What takes long is kept in `cache_dir`.

    Raises NotFoundError, ModelLoadError (names the file), NoRoomError or UnavailableError."""
    began = time.perf_counter()
    path = _find(name, adapter, progress, is_offline=offline)
    remembered = None if cache_dir is None else cache_dir / "weights.json"
    progress(ModelLoading("reading the tokenizer"))
    source = open_source(name, path, cache_dir)
    tokenizer, place = load_tokenizer(source.directory), choose_device(device)
    form = form_of(source.directory, load_config(source.directory), place)
    config, stored = form.config, stored_dtype(form.config)
    chosen = _dtype_with_room(dtype, source, config, place, memory)
    room = source.look(chosen, place, memory)
    watch = identity.FileWatch(source.weight_files, identity.OriginWatch(path, adapter))
    with reported_progress(progress):
        model, notes = _load_weights(source, chosen, place, form)
        model = with_adapter(model, adapter)
    weights_form = _weights_form(model)
    weights_id = identity.weights_id(source.weight_files, remembered, _hashing(progress))
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        name=name,
        path=path,
        description=_BUILTIN_DESCRIPTION if name == resolve.BUILTIN else "",
        architecture=str((config.architectures or [config.model_type])[0]),
        num_parameters=_num_parameters(source, model),
        num_layers=int(config.get_text_config().num_hidden_layers),
        dtype=model.dtype,
        device=place,
        max_context_tokens=context_limit(config.get_text_config(), tokenizer, max_context),
        end_token_ids=end_token_ids(model.generation_config, model.config, tokenizer),
        generation_defaults=sampling_defaults(model.generation_config),
        weights_id=weights_id,
        parameters_id=identity.parameters_id(model.state_dict().items()),
        tokenizer_id=identity.remembered_tokenizer_id(tokenizer, source.directory, cache_dir),
        config_id=identity.config_id(config.to_dict()),
        adapter_id=identity.adapter_id(adapter, remembered),
        attention=tune(model, place),  # last: it takes the weights out of reach
        load_ms=1000 * (time.perf_counter() - began),
        watch=watch,
        stored_dtype=stored if weights_form == EXACT else model.dtype,
        fit=room,
        notes=notes,
        quantization=source.quantization,
        weights_form=weights_form,
    )


def _hashing(progress: Progress) -> Callable[[int, int], None]:
    return lambda done, total: progress(ModelLoading("hashing the weights", done, total))


def _find(name: str, adapter: Path | None, progress: Progress, *, is_offline: bool) -> Path:
    """The directory of a model, or its file, downloaded if need be; all that can be known before it
    is loaded has been looked at."""
    progress(ModelLoading("looking for the model"))
    found = resolve.resolve_model(name, is_offline=is_offline)
    path = found if isinstance(found, Path) else fetch(found, progress)
    resolve.check_model_dir(path)
    check_adapter(adapter)
    check_takes_adapter(path, adapter)
    return path


def choose_device(wanted: str) -> torch.device:
    """The device to run on; "auto" takes a GPU if there is one. Raises UnavailableError."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": _has_mps()}
    if wanted == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if available[kind]))
    kind = wanted.partition(":")[0]
    if not available.get(kind, False):
        usable = ", ".join(f"--device {kind}" for kind, is_there in available.items() if is_there)
        raise UnavailableError(
            f"This machine has no device {wanted!r} that torch can use.",
            f"Use --device auto, or {usable}.",
        )
    return torch.device(wanted)


def choose_dtype(
    wanted: str, config: Any, device: torch.device, num_parameters: int
) -> torch.dtype | str:
    """The dtype to load in; "auto" is the string for a quantised model, which brings its own."""
    if wanted != "auto":
        return DTYPES[wanted]
    settings = getattr(config, "quantization_config", None)
    if settings is not None and not (isinstance(settings, dict) and settings.get("dequantize")):
        return "auto"
    if num_parameters < SMALL_MODEL_PARAMETERS:
        return torch.float32
    stored = stored_dtype(config)
    if device.type != "cpu" or stored is torch.float32:
        return stored
    return torch.bfloat16 if has_fast_bfloat16() else torch.float32


def _dtype_with_room(
    wanted: str, source: ModelSource, config: Any, device: torch.device, memory: MemoryCheck
) -> torch.dtype | str:
    """As `choose_dtype`, but "auto" is never one for which this machine is too small."""
    chosen = choose_dtype(wanted, config, device, source.num_parameters)
    if wanted != "auto":
        return chosen
    return source.dtype_with_room(chosen, stored_dtype(config), device, memory)


def stored_dtype(config: Any) -> torch.dtype:
    """The dtype that a model was saved in; float32 if its config does not say."""
    stored = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    if isinstance(stored, torch.dtype):
        return stored
    return DTYPES.get(str(stored).removeprefix("torch."), torch.float32)


def has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    if any(bool(getattr(torch.cpu, check, lambda: False)()) for check in checks):
        return True
    return machine.has_fast_bfloat16()


# steps of loading


def load_tokenizer(path: Path) -> Any:
    """The tokenizer of a model directory. Raises ModelLoadError."""
    from transformers.models.auto.tokenization_auto import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        load_config(path)  # which a tokenizer reads too, and which may be what is wrong
        raise ModelLoadError(
            f"The tokenizer in {path} cannot be loaded: {first_line(error)}.",
            "Download the model again, or choose another with --model.",
        ) from error


def load_config(path: Path) -> Any:
    """The config of a model directory. Raises ModelLoadError."""
    from transformers.models.auto.configuration_auto import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise ModelLoadError(
            f"{path / 'config.json'} describes no model that this version of transformers "
            f"knows: {first_line(error)}.",
            "A newer chatcache may know it; models that bring their own code are not run.",
        ) from error


def _load_weights(
    source: ModelSource, dtype: torch.dtype | str, device: torch.device, form: Form
) -> tuple[Any, tuple[str, ...]]:
    """The model, and what somebody should know of how it was loaded."""
    if source.gguf is None:
        model = load_weights(source.path, dtype, device, form)
        return model, form.notes(source.name, model.dtype)
    if not isinstance(dtype, torch.dtype):
        raise TypeError("only safetensors bring a dtype of their own")
    model, said = load_gguf(source.gguf, form.config, dtype, device)
    model.generation_config = generation_config(source.directory, form.config)
    return model, tuple(f"{model_name(source.name)}: {text}" for text in (*source.remarks, *said))


def _weights_form(model: Any) -> str:
    is_packed = any(isinstance(module, BlockLinear) for module in model.modules())
    return _PACKED_FORM if is_packed else EXACT


def _num_parameters(source: ModelSource, model: Any) -> int:
    """Tied weights count once. What is packed has another size in memory."""
    if source.gguf is not None:
        return source.num_parameters
    return sum(parameter.numel() for parameter in model.parameters())


def _has_mps() -> bool:
    backend = getattr(torch.backends, "mps", None)
    return bool(backend is not None and backend.is_available())
