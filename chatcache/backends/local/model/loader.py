"""Loads a causal language model and its tokenizer with transformers, in the engine process.

Owns: device and dtype, progress of downloads and of loading, and the translation of whatever goes
wrong into an error that names the cause. Never runs code that came with a model.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from chatcache import machine
from chatcache.backends.base import ModelLoading, SamplingParams
from chatcache.backends.local.model import identity, resolve
from chatcache.backends.local.model.bases import tokenizer_home
from chatcache.backends.local.model.fit import Fit
from chatcache.backends.local.model.forms import form_of
from chatcache.backends.local.model.generation import (
    context_limit,
    end_token_ids,
    sampling_defaults,
)
from chatcache.backends.local.model.loadable import check_adapter
from chatcache.backends.local.model.memory_check import LOOK, MemoryCheck
from chatcache.backends.local.model.needs import SMALL_MODEL_PARAMETERS
from chatcache.backends.local.model.origin import WeightsOrigin
from chatcache.backends.local.model.progress import Progress, fetch, first_line
from chatcache.backends.local.model.quantized import packing_of
from chatcache.backends.local.model.source import (
    ModelSource,
    check_takes_adapter,
    open_source,
)
from chatcache.backends.local.model.tuning import Tuned, tune
from chatcache.cache.book.namespace import (
    EXACT,
    LAYOUT_VERSION,
    PRECISION,
    QUANTIZATION,
    SOFT,
    WEIGHTS_FORM,
)
from chatcache.cache.book.policy import Precision
from chatcache.errors import ModelLoadError, UnavailableError
from chatcache.sections import EXACT_WEIGHTS

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

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
    stored_dtype: torch.dtype  # that it was saved in
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
        rest; no more do weights that are multiplied as they are packed."""
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
            **({QUANTIZATION: self.quantization} if self.quantization else {}),
        }


def load_model(
    name: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    quantize: str | None = None,
    adapter: Path | None = None,
    offline: bool = False,
    max_context: int | None = None,
    memory: MemoryCheck = LOOK,
    cache_dir: Path | None = None,
    progress: Progress = lambda event: None,
) -> LoadedModel:
    """Find, download if need be, and load a model. Hashes of weights are remembered in `cache_dir`;
    `memory` looks first whether there is room.

    Raises NotFoundError, ModelLoadError (names the file), NoRoomError or UnavailableError.
    """
    began = time.perf_counter()
    path = _find(name, adapter, memory, progress, is_offline=offline)
    source = open_source(name, path, cache_dir)
    tokenizer, place = load_tokenizer(source.directory), choose_device(device)
    form = form_of(source.directory, load_config(source.directory), place)
    config, stored = form.config, stored_dtype(form.config)
    chosen = _dtype_with_room(dtype, source, config, place, memory)
    packing, said = _packing(quantize, source, place)
    room = source.look(chosen, place, memory, packing)
    origin = WeightsOrigin(source, form, adapter, cache_dir, memory)
    weights = origin.weights(packing, chosen, stored, place, progress)
    model, (parameters_id, tuned) = weights.model, _tuned(weights.model, place, progress)
    notes = (*form.notes(name, None if packing else model.dtype), *weights.remarks, *said)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        name=name,
        path=path,
        description=_BUILTIN_DESCRIPTION if name == resolve.BUILTIN else "",
        architecture=str((config.architectures or [config.model_type])[0]),
        num_parameters=weights.num_parameters,
        num_layers=int(config.get_text_config().num_hidden_layers),
        dtype=model.dtype,
        device=place,
        max_context_tokens=context_limit(config.get_text_config(), tokenizer, max_context),
        end_token_ids=end_token_ids(model.generation_config, model.config, tokenizer),
        generation_defaults=sampling_defaults(model.generation_config),
        weights_id=weights.weights_id,
        parameters_id=parameters_id,
        tokenizer_id=_tokenizer_id(tokenizer, source, cache_dir),
        config_id=identity.config_id(config.to_dict()),
        adapter_id=origin.adapter_id,
        attention=tuned.kernels,
        load_ms=1000 * (time.perf_counter() - began),
        watch=weights.watch,
        stored_dtype=stored if weights.form == EXACT else model.dtype,
        fit=room,
        notes=(*notes, *tuned.remarks),
        quantization=packing or source.quantization,
        weights_form=weights.form,
    )


def _packing(
    quantize: str | None, source: ModelSource, device: torch.device
) -> tuple[str | None, list[str]]:
    """How the weights are to be packed, and what to say to who wants it of a file that is packed as
    it comes."""
    if source.gguf is None:
        return packing_of(quantize, device), []
    if quantize in (None, EXACT_WEIGHTS):
        return None, []
    return None, [f"Its weights stay in {source.quantization}: {quantize} is for safetensors."]


def _tuned(model: Any, device: torch.device, progress: Progress) -> tuple[str, Tuned]:
    """The digest of the parameters, and how the model was made quick: weights may be out of reach
    then."""
    parameters_id = identity.parameters_id(model.state_dict().items())
    return parameters_id, tune(model, device, lambda text: progress(ModelLoading(text)))


def _tokenizer_id(tokenizer: Any, source: ModelSource, cache_dir: Path | None) -> str:
    home = tokenizer_home(source.directory)
    return identity.remembered_tokenizer_id(tokenizer, home, cache_dir)


def _find(
    name: str, adapter: Path | None, memory: MemoryCheck, progress: Progress, *, is_offline: bool
) -> Path:
    """The directory of a model, or its file, downloaded if need be; all that can be known before it
    is loaded has been looked at."""
    progress(ModelLoading("looking for the model"))
    found = resolve.resolve_model(name, is_offline=is_offline)
    path = found if isinstance(found, Path) else fetch(found, progress, memory.before_download)
    resolve.check_model_dir(path)
    check_adapter(adapter)
    check_takes_adapter(path, adapter)
    progress(ModelLoading("reading the tokenizer"))
    return path


def choose_device(wanted: str) -> torch.device:
    """The device to run on, with its index, as tensors on it have it; "auto" takes a GPU if there
    is one. Raises UnavailableError."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": _has_mps()}
    if wanted == "auto":
        wanted = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    kind, _, index = wanted.partition(":")
    if not available.get(kind, False):
        usable = ", ".join(f"--device {kind}" for kind, is_there in available.items() if is_there)
        raise UnavailableError(
            f"This machine has no device {wanted!r} that torch can use.",
            f"Use --device auto, or {usable}.",
        )
    if kind == "cuda" and not index:
        return torch.device(kind, torch.cuda.current_device())
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
        home = tokenizer_home(path)
        tokenizer: Any = AutoTokenizer.from_pretrained(
            home, local_files_only=True, trust_remote_code=False
        )
        if not tokenizer.chat_template:
            tokenizer.chat_template = resolve.read_template(home)
        return tokenizer
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


def _has_mps() -> bool:
    backend = getattr(torch.backends, "mps", None)
    return bool(backend is not None and backend.is_available())
