"""Loads a causal language model and its tokenizer with transformers, in the engine process.

Owns: device and dtype, progress of downloads and of loading, and the translation of whatever goes
wrong into an error that names the cause. Never runs code that came with a model.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from chatcache import machine
from chatcache.backends.base import ModelLoading, SamplingParams
from chatcache.backends.local.model import files, identity, resolve
from chatcache.backends.local.model.failures import is_out_of_memory, load_error, without_gpu
from chatcache.backends.local.model.fit import Fit
from chatcache.backends.local.model.forms import Form, form_of
from chatcache.backends.local.model.generation import (
    context_limit,
    end_token_ids,
    generation_config,
    sampling_defaults,
)
from chatcache.backends.local.model.libraries import import_rest
from chatcache.backends.local.model.loadable import check_adapter
from chatcache.backends.local.model.memory_check import LOOK, MemoryCheck
from chatcache.backends.local.model.needs import SMALL_MODEL_PARAMETERS, count_weights
from chatcache.backends.local.model.progress import (
    Progress,
    fetch,
    first_line,
    reported_progress,
)
from chatcache.backends.local.model.tuning import tune
from chatcache.cache.book.namespace import EXACT, LAYOUT_VERSION, PRECISION, SOFT
from chatcache.cache.book.policy import Precision
from chatcache.errors import ModelLoadError, UnavailableError

log = logging.getLogger(__name__)

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
    """Find, download if need be, and load a model. Hashes of weights are remembered in `cache_dir`;
    `memory` looks first whether there is room.

    Raises NotFoundError, ModelLoadError (names the file), NoRoomError or UnavailableError.
    """
    began = time.perf_counter()
    path = _find(name, progress, is_offline=offline)
    check_adapter(adapter)
    remembered = None if cache_dir is None else cache_dir / "weights.json"
    progress(ModelLoading("reading the tokenizer"))
    tokenizer = load_tokenizer(path)
    tokenizer_id = identity.remembered_tokenizer_id(tokenizer, path, cache_dir)
    place = choose_device(device)
    form = form_of(path, load_config(path), place)
    config, stored = form.config, stored_dtype(form.config)
    chosen = _dtype_with_room(dtype, path, config, place, memory)
    room = memory.look(name, path, chosen, place)
    watch = identity.FileWatch(files.weight_files(path), identity.OriginWatch(path, adapter))
    with reported_progress(progress):
        model = _with_adapter(_load_weights(path, chosen, place, form), adapter)
    weights_id = identity.weights_id(files.weight_files(path), remembered, _hashing(progress))
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        name=name,
        path=path,
        description=_BUILTIN_DESCRIPTION if name == resolve.BUILTIN else "",
        architecture=str((config.architectures or [config.model_type])[0]),
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        num_layers=int(config.get_text_config().num_hidden_layers),
        dtype=model.dtype,
        device=place,
        max_context_tokens=context_limit(config.get_text_config(), tokenizer, max_context),
        end_token_ids=end_token_ids(model.generation_config, model.config, tokenizer),
        generation_defaults=sampling_defaults(model.generation_config),
        weights_id=weights_id,
        parameters_id=identity.parameters_id(model.state_dict().items()),
        tokenizer_id=tokenizer_id,
        config_id=identity.config_id(config.to_dict()),
        adapter_id=identity.adapter_id(adapter, remembered),
        attention=tune(model, place),  # last: it takes the weights out of reach
        load_ms=1000 * (time.perf_counter() - began),
        watch=watch,
        stored_dtype=stored,
        fit=room,
        notes=form.notes(name, model.dtype),
    )


def _hashing(progress: Progress) -> Callable[[int, int], None]:
    return lambda done, total: progress(ModelLoading("hashing the weights", done, total))


def _find(name: str, progress: Progress, *, is_offline: bool) -> Path:
    """The directory of a model, downloaded if need be, whose files have been looked at."""
    progress(ModelLoading("looking for the model"))
    found = resolve.resolve_model(name, is_offline=is_offline)
    path = found if isinstance(found, Path) else fetch(found, progress)
    resolve.check_model_dir(path)
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
    wanted: str, path: Path, config: Any, device: torch.device, memory: MemoryCheck
) -> torch.dtype | str:
    """As `choose_dtype`, but "auto" is never one for which this machine is too small."""
    chosen = choose_dtype(wanted, config, device, count_weights(path))
    if wanted != "auto":
        return chosen
    return memory.dtype_with_room(path, chosen, stored_dtype(config), device)


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
        tokenizer: Any = AutoTokenizer.from_pretrained(
            path, local_files_only=True, trust_remote_code=False
        )
        if not tokenizer.chat_template:
            tokenizer.chat_template = resolve.read_template(path)
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


def _load_weights(path: Path, dtype: torch.dtype | str, device: torch.device, form: Form) -> Any:
    """The model on its device; what it lacks of the libraries is imported."""
    try:
        return _try_to_load(path, dtype, device, form)
    except ModelLoadError:
        if not import_rest():
            raise
    return _try_to_load(path, dtype, device, form)


def _try_to_load(path: Path, dtype: torch.dtype | str, device: torch.device, form: Form) -> Any:
    """The model on its device, with torch's own attention kernel where it has one."""
    config = form.config
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        AutoModelForCausalLM,
    )

    def load(kernel: str) -> tuple[Any, dict[str, Any]]:
        weights = form.weights(path, dtype)
        source: Any = AutoModelForCausalLM
        if weights is not None:
            source = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        loaded: Any = source.from_pretrained(
            path if weights is None else None,
            config=config,
            dtype=dtype,
            attn_implementation=kernel,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            state_dict=weights,
            key_mapping=form.key_mapping,
        )
        model, info = loaded
        if weights is not None:
            model.generation_config = generation_config(path, config)
        return model, info

    try:
        try:
            model, info = load("sdpa")
        except ValueError as error:
            if "scaled_dot_product_attention" not in str(error):
                raise
            model, info = load("eager")
        _check_complete(path, info)
        model = model.eval().requires_grad_(False).to(device)
    except ModelLoadError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise UnavailableError(
                f"The model in {path} does not fit into the memory of {device}.",
                f"Choose a smaller model, or --dtype bfloat16.{without_gpu(error)}",
            ) from error
        log.exception("loading %s failed", path)
        raise load_error(path, config, error) from error
    return model


def _check_complete(path: Path, info: dict[str, Any]) -> None:
    """Refuse a model of which transformers made up a part."""
    missing = sorted(info.get("missing_keys") or ())
    if missing:
        raise ModelLoadError(
            f"The weights in {path} lack {len(missing)} tensors, the first is {missing[0]}.",
            "The files belong to another model or are incomplete; download it again.",
        )


def _with_adapter(model: Any, directory: Path | None) -> Any:
    """The model with an adapter, if there is one, merged in: as fast as without."""
    if directory is None:
        return model
    try:
        from peft import PeftModel  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise UnavailableError(
            "An adapter needs the package peft, which is not installed.",
            "Run 'pip install peft' in chatcache's environment, or leave out --adapter.",
        ) from error
    try:
        merged = PeftModel.from_pretrained(model, str(directory)).merge_and_unload()
    except Exception as error:
        raise ModelLoadError(
            f"The adapter in {directory} does not fit the model: {first_line(error)}.",
            "Check that it was trained on this model.",
        ) from error
    return merged.eval().requires_grad_(False)


def _has_mps() -> bool:
    backend = getattr(torch.backends, "mps", None)
    return bool(backend is not None and backend.is_available())
