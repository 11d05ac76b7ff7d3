"""A model for the bench: random weights of a shape, or one that is on this machine."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from chatcache.backends.local.model.cut_policy import cut_policy
from chatcache.backends.local.model.loader import load_model
from chatcache.backends.local.model.tuning import tune
from chatcache.bench.options import SHAPES
from chatcache.bench.report import CHATCACHE, Row
from chatcache.cache.book.namespace import namespace_id
from chatcache.cache.book.rates import RateBook
from chatcache.config import load_settings
from chatcache.errors import UnavailableError

DEFAULT_SHAPE = "qwen3-0.6b"


@dataclass(frozen=True, slots=True)
class BenchModel:
    name: str
    model: Any
    dtype: torch.dtype
    device: torch.device
    num_layers: int
    num_parameters: int
    vocab_size: int

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def random_ids(self, draw: random.Random, count: int) -> list[int]:
        return [draw.randrange(self.vocab_size) for _ in range(count)]

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights that a decode step reads (tied embeddings count once)."""
        return sum(parameter.nbytes for parameter in self.model.parameters())

    def num_flops(self, tokens: int) -> float:
        """Multiplications and additions of reading a prompt: linear layers and causal attention."""
        config = self.model.config.get_text_config()
        heads = config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        embedding = self.vocab_size * config.hidden_size
        linear: float = 2.0 * (self.num_parameters - embedding) * tokens
        attention: float = 2.0 * tokens**2 * heads * head_dim * self.num_layers
        return linear + attention


@dataclass(frozen=True, slots=True)
class Models:
    """The same weights twice: as transformers makes the model, and as a turn runs it.

    `source` is what the engine is started with: a model's name, or None for a shape. `rates` is
    where chats with this model keep their rates; None for a shape.
    """

    loaded: BenchModel
    tuned: BenchModel
    source: str | None = None
    rates: Path | None = None


def load_models(model: str | None, shape: str | None, dtype: str, threads: int | None) -> Models:
    """Raises ModelLoadError, NotFoundError, UnavailableError."""
    if threads is not None:
        torch.set_num_threads(threads)
    if model is not None:
        return _load_named(model, dtype)
    name = shape or DEFAULT_SHAPE
    chosen = "bfloat16" if dtype == "auto" else dtype
    loaded = load_shape(name, chosen)
    tuned = replace(loaded, model=copy.deepcopy(loaded.model))
    tune(tuned.model, tuned.device)
    return Models(loaded, tuned)


def load_shape(name: str, dtype: str) -> BenchModel:
    """Random weights of a published configuration, seeded."""
    fields = dict(SHAPES[name])
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        config, dtype=getattr(torch, dtype), attn_implementation="sdpa"
    )
    return _describe(name, model)


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


def _load_named(name: str, dtype: str) -> Models:
    """A model as a chat would load it, and the same without what chatcache does to it."""
    settings = load_settings()
    cache_dir = settings.paths.cache_dir
    chat = load_model(name, dtype=dtype, device="cpu", offline=True, cache_dir=cache_dir)
    policy = cut_policy(chat.model.config.get_text_config())
    if policy.kind != "any_token":
        raise UnavailableError(
            f"The bench measures models that resume at any token: {policy.detail}.",
            "Choose another --model, or a --shape.",
        )
    model = AutoModelForCausalLM.from_pretrained(
        chat.path, dtype=chat.dtype, attn_implementation="sdpa", local_files_only=True
    )
    loaded = _describe(name, model)
    namespace = namespace_id(chat.namespace_fields())
    return Models(
        loaded=loaded,
        tuned=replace(loaded, model=chat.model),
        source=name,
        rates=cache_dir / "segments" / namespace / "rates.json",
    )


def _describe(name: str, model: Any) -> BenchModel:
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
    )
