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

from chatcache.backends.base import ModelLoading, SamplingParams
from chatcache.backends.local.model import identity, resolve
from chatcache.backends.local.model.generation import (
    context_limit,
    end_token_ids,
    read_generation_config,
    sampling_defaults,
)
from chatcache.backends.local.model.gguf.loading import load_gguf
from chatcache.backends.local.model.loadable import check_adapter
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

SMALL_MODEL_PARAMETERS = 100_000_000  # below this float32 costs little and greedy text is stable
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

_PACKED_FORM = "blocks"
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
    quantization: str = ""  # the word for how its weights are packed
    weights_form: str = EXACT
    remarks: tuple[str, ...] = ()

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
        }


def load_model(
    name: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    adapter: Path | None = None,
    offline: bool = False,
    cache_dir: Path | None = None,
    progress: Progress = lambda event: None,
) -> LoadedModel:
    """Find, download if need be, and load a model. Hashes of weights are remembered in `cache_dir`.

    Raises NotFoundError, ModelLoadError (names the file) or UnavailableError.
    """
    began = time.perf_counter()
    path = _find(name, progress, is_offline=offline)
    check_adapter(adapter)
    check_takes_adapter(path, adapter)
    remembered = None if cache_dir is None else cache_dir / "weights.json"
    progress(ModelLoading("reading the tokenizer"))
    source = open_source(path, cache_dir)
    tokenizer = load_tokenizer(source.directory)
    tokenizer_id = identity.remembered_tokenizer_id(tokenizer, source.directory, cache_dir)
    config = load_config(source.directory)
    place, stored = choose_device(device), stored_dtype(config)
    chosen = choose_dtype(dtype, config, place, source.num_parameters)
    watch = identity.FileWatch(source.weight_files, identity.OriginWatch(path, adapter))
    with reported_progress(progress):
        model, said = _load_weights(source, config, chosen, place)
        model = with_adapter(model, adapter)
    is_packed = any(isinstance(module, BlockLinear) for module in model.modules())
    weights_id = identity.weights_id(
        source.weight_files,
        remembered,
        lambda done, total: progress(ModelLoading("hashing the weights", done, total)),
    )
    text_config = config.get_text_config()
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        name=name,
        path=path,
        description=_BUILTIN_DESCRIPTION if name == resolve.BUILTIN else "",
        architecture=str((config.architectures or [config.model_type])[0]),
        num_parameters=_num_parameters(source, model),
        num_layers=int(text_config.num_hidden_layers),
        dtype=model.dtype,
        device=place,
        max_context_tokens=context_limit(text_config, tokenizer),
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
        stored_dtype=model.dtype if is_packed else stored,
        quantization=source.quantization,
        weights_form=_PACKED_FORM if is_packed else EXACT,
        remarks=(*source.remarks, *said),
    )


def _load_weights(
    source: ModelSource, config: Any, dtype: torch.dtype | str, device: torch.device
) -> tuple[Any, tuple[str, ...]]:
    """The model, and what somebody should know of its weights."""
    if source.gguf is None:
        return load_weights(source.path, config, dtype, device), ()
    assert isinstance(dtype, torch.dtype)  # only safetensors bring one of their own
    model, said = load_gguf(source.gguf, config, dtype, device)
    model.generation_config = read_generation_config(source.directory) or model.generation_config
    return model, said


def _num_parameters(source: ModelSource, model: Any) -> int:
    """Tied weights count once. What is packed has another size in memory."""
    if source.gguf is not None:
        return source.num_parameters
    return sum(parameter.numel() for parameter in model.parameters())


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
    if getattr(config, "quantization_config", None) is not None:
        return "auto"
    if num_parameters < SMALL_MODEL_PARAMETERS:
        return torch.float32
    stored = stored_dtype(config)
    if device.type != "cpu" or stored is torch.float32:
        return stored
    return torch.bfloat16 if has_fast_bfloat16() else torch.float32


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
    try:
        words = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(words)


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


def _has_mps() -> bool:
    backend = getattr(torch.backends, "mps", None)
    return bool(backend is not None and backend.is_available())
