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
from chatcache.backends.local.model.files import weight_files
from chatcache.backends.local.model.loader import DTYPES, LoadedModel, load_model
from chatcache.backends.local.model.tuning import tune
from chatcache.backends.local.packed.blocks import BlockKind
from chatcache.bench.options import SHAPES
from chatcache.bench.report import CHATCACHE, Row
from chatcache.cache.book.namespace import namespace_id
from chatcache.cache.book.rates import RateBook
from chatcache.config import load_settings
from chatcache.errors import UnavailableError

DEFAULT_SHAPE = "qwen3-0.6b"


@dataclass(frozen=True, slots=True)
class BenchModel:
    """A model as it is run. `weight_bytes` are those that a decode step reads (tied embeddings
    count once)."""

    name: str
    model: Any
    dtype: torch.dtype
    device: torch.device
    num_layers: int
    num_parameters: int
    vocab_size: int
    weight_bytes: int

    @property
    def config(self) -> Any:
        return self.model.config.get_text_config()

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
        linear: float = 2.0 * (self.num_parameters - embedding) * tokens
        attention: float = 2.0 * tokens**2 * heads * head_dim * self.num_layers
        return linear + attention


@dataclass(frozen=True, slots=True)
class Models:
    """The same weights twice: as transformers makes the model, and as a turn runs it.

    `plain` is None where transformers cannot have them, for the reason `why_not_plain`. `source`
    is what an engine is started with: a model's name or its directory. `gguf` is the file, if the
    model is one. `cache_dir` is where its engine keeps what it made of it, `file_bytes` are the
    weights on disk, `rates` is where chats with this model keep their rates; None for a shape.
    `kernels` are words for what computes.
    """

    tuned: BenchModel
    plain: BenchModel | None
    source: str
    cache_dir: Path
    file_bytes: int
    kernels: str
    quantize: str | None = None
    gguf: Path | None = None
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
    if options.model is not None:
        return _load_named(options)
    plain = load_shape(options.shape or DEFAULT_SHAPE, options.dtype)
    source, cache_dir = shape_directory(plain, directory / "model"), directory / "cache"
    if options.quantize is not None:
        return _packed_shape(plain, source, cache_dir, options)
    tuned = replace(plain, model=copy.deepcopy(plain.model))
    kernels = tune(tuned.model, tuned.device)
    return Models(tuned, plain, source, cache_dir, plain.weight_bytes, kernels)


def load_shape(name: str, dtype: str) -> BenchModel:
    """Random weights of a published configuration, seeded; "auto" is bfloat16."""
    fields = dict(SHAPES[name])
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        config, dtype=DTYPES.get(dtype, torch.bfloat16), attn_implementation="sdpa"
    )
    return _plain(name, model)


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


def load_chat(
    name: str, cache_dir: Path, *, dtype: str = "auto", quantize: str | None = None
) -> LoadedModel:
    """A model as a chat would load it. Raises ModelLoadError, NotFoundError, UnavailableError."""
    return load_model(
        name, dtype=dtype, quantize=quantize, device="cpu", offline=True, cache_dir=cache_dir
    )


def note_rates(
    models: Models, cold: Row, tokens: int, restores: Sequence[tuple[int, float]]
) -> None:
    """Let the chats with this model know what was measured: `cold` is the row of the prefill of
    `tokens` tokens, `restores` are bytes read from a cold disk and the seconds that took."""
    if models.rates is None:
        return
    models.rates.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    book = RateBook(models.rates)
    for seconds in cold.samples[CHATCACHE]:
        book.note_prefill(tokens, seconds)
    for num_bytes, seconds in restores:
        book.note_restore(num_bytes, seconds)
    book.save()


def _load_named(options: argparse.Namespace) -> Models:
    """A model as a chat would load it, and the same without what chatcache does to it."""
    cache_dir = load_settings().paths.cache_dir
    chat = load_chat(options.model, cache_dir, dtype=options.dtype, quantize=options.quantize)
    policy = cut_policy(chat.model.config.get_text_config())
    if policy.kind != "any_token":
        raise UnavailableError(
            f"The bench measures models that resume at any token: {policy.detail}.",
            "Choose another --model, or a --shape.",
        )
    namespace = namespace_id(chat.namespace_fields())
    return Models(
        tuned=tuned_model(chat),
        plain=_plain_named(chat),
        source=options.model,
        cache_dir=cache_dir,
        file_bytes=sum(file.stat().st_size for file in weight_files(chat.path)),
        kernels=chat.attention,
        quantize=options.quantize,
        rates=cache_dir / "segments" / namespace / "rates.json",
    )


def _plain_named(chat: LoadedModel) -> BenchModel:
    model = AutoModelForCausalLM.from_pretrained(
        chat.path, dtype=chat.dtype, attn_implementation="sdpa", local_files_only=True
    )
    return _plain(chat.name, model)


def _packed_shape(
    plain: BenchModel, source: str, cache_dir: Path, options: argparse.Namespace
) -> Models:
    """The random weights packed, and as they were."""
    chat = load_chat(source, cache_dir, dtype=options.dtype, quantize=options.quantize)
    tuned = replace(tuned_model(chat), name=plain.name)
    plain = replace(plain, model=plain.model.to(chat.dtype), dtype=chat.dtype)
    return Models(
        tuned, plain, source, cache_dir, tuned.weight_bytes, chat.attention, options.quantize
    )


def tuned_model(chat: LoadedModel) -> BenchModel:
    return BenchModel(
        name=chat.name,
        model=chat.model,
        dtype=chat.dtype,
        device=chat.device,
        num_layers=chat.num_layers,
        num_parameters=chat.num_parameters,
        vocab_size=chat.model.config.get_text_config().vocab_size,
        weight_bytes=sum(tensor.nbytes for tensor, _ in _packed_tensors(chat.model))
        or chat.num_parameters * chat.dtype.itemsize,
    )


def weight_kinds(tuned: BenchModel) -> dict[str, int]:
    """Bytes of the weights by the kind of their blocks, most first; by dtype where they are
    exact."""
    kinds: dict[str, int] = {}
    for tensor, name in _packed_tensors(tuned.model):
        kinds[name] = kinds.get(name, 0) + tensor.nbytes
    if not kinds:
        return {tuned.dtype_name: tuned.weight_bytes}
    return dict(sorted(kinds.items(), key=lambda item: -item[1]))


def _packed_tensors(model: Any) -> list[tuple[torch.Tensor, str]]:
    """The distinct tensors of a model with packed weights, each with the name of its kind; none
    of another model, whose weights may be out of reach."""
    found: dict[int, tuple[torch.Tensor, str]] = {}
    is_packed = False
    for module in model.modules():
        kind = getattr(module, "kind", None)
        if isinstance(kind, BlockKind):
            is_packed = True
            found[module.blocks.data_ptr()] = module.blocks, kind.name
        for parameter in module.parameters(recurse=False):
            found[parameter.data_ptr()] = parameter, str(parameter.dtype).removeprefix("torch.")
    return list(found.values()) if is_packed else []


def _plain(name: str, model: Any) -> BenchModel:
    model.eval()
    config = model.config.get_text_config()
    return BenchModel(
        name=name,
        model=model,
        dtype=model.dtype,
        device=model.device,
        num_layers=config.num_hidden_layers,
        num_parameters=model.num_parameters(),
        vocab_size=config.vocab_size,
        weight_bytes=sum(parameter.nbytes for parameter in model.parameters()),
    )
