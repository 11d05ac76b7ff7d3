"""A model for the bench: random weights of a shape, or one that is on this machine; exact, packed
into 4 or 8 bits, or a GGUF file.

For packed weights "the same" in transformers are the ones they were packed from, and for a GGUF
file those it holds, unpacked; in the dtype that chatcache computes in.
"""

from __future__ import annotations

import argparse
import copy
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as progress

from chatcache.assets import pocket_dir
from chatcache.backends.local.model.cut_policy import cut_policy
from chatcache.backends.local.model.gguf.derived import GgufModel
from chatcache.backends.local.model.loader import DTYPES, LoadedModel, load_model
from chatcache.backends.local.model.tuning import tune
from chatcache.backends.local.packed.blocks import PackedModule, is_packed
from chatcache.backends.local.packed.kernel_store import STORE
from chatcache.backends.local.packed.modules import BlockExperts
from chatcache.backends.local.run.card_notes import card_name
from chatcache.bench.bare_gguf import gguf_of, load_bare, load_unpacked, why_not_unpacked
from chatcache.bench.options import SHAPES
from chatcache.bench.report import CHATCACHE, TRANSFORMERS, Row
from chatcache.cache.book.namespace import namespace_id
from chatcache.cache.book.rates import RateBook
from chatcache.config import load_settings
from chatcache.errors import UnavailableError, UsageError

DEFAULT_SHAPE = "qwen3-0.6b"


@dataclass(frozen=True, slots=True)
class BenchModel:
    """A model as it is run. `weight_bytes` are all, tied ones once, and `step_bytes` those that a
    decode step reads: of `num_parameters` a token goes through `num_active`, where there are
    experts. `kernels` are words for what computes."""

    name: str
    model: Any
    dtype: torch.dtype
    device: torch.device
    num_layers: int
    num_parameters: int
    num_active: int
    vocab_size: int
    weight_bytes: int
    step_bytes: int
    kernels: str = ""

    @property
    def config(self) -> Any:
        return self.model.config.get_text_config()

    @property
    def max_context_tokens(self) -> int:
        return int(self.config.max_position_embeddings)

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def random_ids(self, draw: random.Random, count: int) -> list[int]:
        return [draw.randrange(self.vocab_size) for _ in range(count)]

    def num_flops(self, tokens: int) -> float:
        """Multiplications and additions of reading a prompt: linear layers and causal attention."""
        config = self.config
        heads = config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        embedding = self.vocab_size * config.hidden_size
        linear: float = 2.0 * (self.num_active - embedding) * tokens
        attention: float = 2.0 * tokens**2 * heads * head_dim * self.num_layers
        return linear + attention


@dataclass(frozen=True, slots=True)
class Models:
    """The same weights twice: as transformers makes the model, and as a turn runs it.

    `plain` is None where transformers cannot have them, for the reason `why_not_plain`. `source`
    is what an engine is started with: a model's name or its directory, "" if nobody starts one;
    without a tokenizer there can be none. `gguf` is the file, if the model is one. `cache_dir` is
    where its engine keeps what it made of it, `file_bytes` are the weights on disk, `rates` is
    where chats with this model keep their rates; None for a shape.
    """

    tuned: BenchModel
    plain: BenchModel | None
    source: str
    cache_dir: Path
    file_bytes: int
    quantize: str | None = None
    gguf: Path | None = None
    has_tokenizer: bool = True
    rates: Path | None = None
    why_not_plain: str = ""

    @property
    def is_packed(self) -> bool:
        return self.quantize is not None or self.gguf is not None

    @property
    def is_float32(self) -> bool:
        """Whether other programs are to compute in float32, too."""
        return not self.is_packed and self.tuned.dtype is torch.float32


def load_models(options: argparse.Namespace, directory: Path) -> Models:
    """What the options name; `directory` is for what has to be written.

    Raises ModelLoadError, NotFoundError, UnavailableError."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UnavailableError(
            "The bench was asked for a GPU, and torch finds none.",
            "Leave --device out, or install a torch that is made for CUDA.",
        )
    if options.model is not None:
        return _load_named(options)
    plain = load_shape(options.shape or DEFAULT_SHAPE, options.dtype, options.device)
    source, cache_dir = "", directory / "cache"
    if options.engine or options.program or options.quantize is not None:
        source = shape_directory(plain, directory / "model")
    if options.quantize is not None:
        return _packed_shape(plain, source, cache_dir, options)
    tuned = _copy(plain.model, plain.device)
    kernels = tune(tuned, plain.device).kernels
    return Models(
        tuned=replace(plain, model=tuned, kernels=kernels),
        plain=plain,
        source=source,
        cache_dir=cache_dir,
        file_bytes=plain.weight_bytes,
    )


def load_shape(name: str, dtype: str, device: str = "cpu") -> BenchModel:
    """Random weights of a published configuration, seeded; "auto" is bfloat16."""
    fields = dict(SHAPES[name])
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=DTYPES.get(dtype, torch.bfloat16), attn_implementation="sdpa"
        )
    return _plain(name, model.to(device))


def _copy(model: Any, device: torch.device) -> Any:
    """Another model, to be tuned. On a GPU weights stay as they are, and are shared."""
    if device.type == "cpu":
        return copy.deepcopy(model)
    shared = [*model.parameters(), *model.buffers()]
    for module in model.modules():  # what is no buffer, too
        shared += [value for value in vars(module).values() if isinstance(value, torch.Tensor)]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})


def shape_directory(plain: BenchModel, directory: Path) -> str:
    """The random weights as a model that a chat can load, with the built-in tokenizer.

    Raises UnavailableError when the vocabulary of the shape is smaller than the tokenizer's."""
    tokenizer = AutoTokenizer.from_pretrained(pocket_dir(), local_files_only=True)
    if len(tokenizer) > plain.vocab_size:
        raise UnavailableError(
            f"A vocabulary of {plain.vocab_size:,} is too small for the built-in tokenizer.",
            "Choose a larger shape.",
        )
    progress.disable_progress_bar()  # type: ignore[no-untyped-call]
    plain.model.save_pretrained(directory)
    progress.enable_progress_bar()  # type: ignore[no-untyped-call]
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(pocket_dir() / name, directory / name)
    return str(directory)


def load_tuned(
    name: str,
    cache_dir: Path,
    *,
    dtype: str = "auto",
    quantize: str | None = None,
    device: str = "cpu",
) -> tuple[BenchModel, LoadedModel | None]:
    """A model as a chat would load it; without what a chat needs besides for a file that has no
    tokenizer. Raises ModelLoadError, NotFoundError, UnavailableError, UsageError."""
    STORE.keep_in(cache_dir / "kernels")
    gguf = gguf_of(name)
    if gguf is None or gguf.header.has_tokenizer:
        chat = load_model(
            name, dtype=dtype, device=device, quantize=quantize, offline=True, cache_dir=cache_dir
        )
        return _described(name, chat.model, chat.num_parameters, chat.attention), chat
    model, attention = load_bare(gguf, dtype)
    return _described(name, model, gguf.num_parameters, attention), None


def note_rates(
    models: Models, cold: Row, tokens: int, restores: Sequence[tuple[int, float]]
) -> None:
    """Let the chats with this model know what was measured: `cold` is the row of the prefill of
    `tokens` tokens, `restores` are bytes read from a cold disk and the seconds that took."""
    if models.rates is None:
        return
    models.rates.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    book = RateBook(models.rates, card_name(models.tuned.device))
    for seconds in cold.samples[CHATCACHE]:
        book.note_prefill(tokens, seconds)
    for num_bytes, seconds in restores:
        book.note_restore(num_bytes, seconds)
    book.save()


def _load_named(options: argparse.Namespace) -> Models:
    """A model as a chat would load it, and the same without what chatcache does to it."""
    gguf = gguf_of(options.model)
    if gguf is not None and options.quantize is not None:
        raise UsageError(f"bench: {options.model} is packed already.", "Leave --quantize out.")
    cache_dir = load_settings().paths.cache_dir
    tuned, chat = load_tuned(
        options.model,
        cache_dir,
        dtype=options.dtype,
        quantize=options.quantize,
        device=options.device,
    )
    policy = cut_policy(tuned.config)
    if policy.kind != "any_token":
        raise UnavailableError(
            f"The bench measures models that resume at any token: {policy.detail}.",
            "Choose another --model, or a --shape.",
        )
    models = Models(tuned, None, options.model, cache_dir, tuned.weight_bytes, options.quantize)
    if chat is not None:
        namespace = namespace_id(chat.namespace_fields())
        models = replace(models, rates=cache_dir / "segments" / namespace / "rates.json")
    return _with_plain(models, gguf, chat, options)


def _with_plain(
    models: Models, gguf: GgufModel | None, chat: LoadedModel | None, options: argparse.Namespace
) -> Models:
    """The same with what transformers runs. Of a GGUF file that is made only where it is wanted:
    it takes several times the memory."""
    tuned = models.tuned
    if gguf is None:
        assert chat is not None
        stock = _stock(chat.path, chat.dtype).to(tuned.device)
        return replace(models, plain=_plain(tuned.name, stock))
    models = replace(
        models,
        gguf=gguf.header.path,
        file_bytes=sum(file.stat().st_size for file in gguf.files),
        has_tokenizer=chat is not None,
    )
    if options.against is not None and TRANSFORMERS not in options.against:
        return models
    reason = why_not_unpacked(gguf, tuned.dtype)
    if reason:
        return replace(models, why_not_plain=reason)
    unpacked = load_unpacked(gguf, tuned.dtype).to(tuned.device)
    return replace(models, plain=_plain(tuned.name, unpacked))


def _stock(directory: Path, dtype: torch.dtype) -> Any:
    """A model as the documentation of transformers loads it."""
    return AutoModelForCausalLM.from_pretrained(
        directory, dtype=dtype, attn_implementation="sdpa", local_files_only=True
    )


def _packed_shape(
    plain: BenchModel, source: str, cache_dir: Path, options: argparse.Namespace
) -> Models:
    """The random weights packed, and as they were."""
    tuned, _ = load_tuned(
        source, cache_dir, dtype=options.dtype, quantize=options.quantize, device=options.device
    )
    return Models(
        tuned=replace(tuned, name=plain.name),
        plain=replace(plain, model=plain.model.to(tuned.dtype), dtype=tuned.dtype),
        source=source,
        cache_dir=cache_dir,
        file_bytes=tuned.weight_bytes,
        quantize=options.quantize,
    )


def weight_kinds(tuned: BenchModel) -> dict[str, int]:
    """Bytes of the weights by the kind of their blocks, most first; by dtype where they are
    exact."""
    kinds: dict[str, int] = {}
    for num_bytes, name in _packed_weights(tuned.model):
        kinds[name] = kinds.get(name, 0) + num_bytes
    if not kinds:
        return {tuned.dtype_name: tuned.weight_bytes}
    return dict(sorted(kinds.items(), key=lambda item: -item[1]))


def _packed_weights(model: Any) -> list[tuple[int, str]]:
    """The bytes of the distinct weights of a model with packed ones, each with the name of its
    kind; none of another model, whose weights may be out of reach."""
    found: dict[int, tuple[int, str]] = {}
    for module in model.modules():
        if isinstance(module, PackedModule):
            for matrix in module.matrices:
                found[matrix.address] = matrix.num_bytes, matrix.kind.name
        for parameter in module.parameters(recurse=False):
            dtype = str(parameter.dtype).removeprefix("torch.")
            found[parameter.data_ptr()] = parameter.nbytes, dtype
    return list(found.values()) if is_packed(model) else []


def _idle(model: Any) -> tuple[int, int]:
    """The weights that a token does not go through, and their bytes: those of experts that are not
    chosen for it."""
    chosen = getattr(model.config.get_text_config(), "num_experts_per_tok", None)
    num_weights, num_bytes = 0.0, 0.0
    for name, module in model.named_modules():
        if isinstance(module, BlockExperts):
            num_experts = module.mixture.num_experts
            parts = [
                (
                    matrix.num_bytes // matrix.kind.num_bytes * matrix.kind.num_weights,
                    matrix.num_bytes,
                )
                for matrix in module.matrices
            ]
        elif name.endswith(".experts"):
            num_experts = getattr(module, "num_experts", 0)
            parts = [(weight.numel(), weight.nbytes) for weight in module.parameters()]
        else:
            continue
        share = 1 - chosen / num_experts if chosen and num_experts else 0.0
        num_weights += share * sum(num for num, _ in parts)
        num_bytes += share * sum(size for _, size in parts)
    return round(num_weights), round(num_bytes)


def _plain(name: str, model: Any) -> BenchModel:
    return _described(name, model, model.num_parameters(), "sdpa")


def _described(name: str, model: Any, num_parameters: int, kernels: str) -> BenchModel:
    model.eval()
    config = model.config.get_text_config()
    packed = sum(num_bytes for num_bytes, _ in _packed_weights(model))
    weight_bytes = packed or num_parameters * model.dtype.itemsize
    idle_weights, idle_bytes = _idle(model)
    return BenchModel(
        name=name,
        model=model,
        dtype=model.dtype,
        device=model.device,
        num_layers=config.num_hidden_layers,
        num_parameters=num_parameters,
        num_active=num_parameters - idle_weights,
        vocab_size=config.vocab_size,
        weight_bytes=weight_bytes,
        step_bytes=weight_bytes - idle_bytes,
        kernels=kernels,
    )
