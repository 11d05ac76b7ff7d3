"""A model for the bench: random weights of a shape, or one that is on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from chatcache.backends.local.tuning import tune
from chatcache.bench.shapes import SHAPES


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


def load_shape(name: str, dtype: str, threads: int | None) -> BenchModel:
    """Random weights of a published configuration, seeded."""
    _set_threads(threads)
    fields = dict(SHAPES[name])
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        config, dtype=getattr(torch, dtype), attn_implementation="sdpa"
    )
    return _describe(name, model)


def load_named(name: str, dtype: str, threads: int | None) -> BenchModel:
    """A model by its name, as `ask` would load it. Raises ModelLoadError, NotFoundError."""
    from chatcache.backends.local.resolve import resolve_model

    _set_threads(threads)
    path = resolve_model(name, is_offline=True)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype))
    return _describe(name, model)


def tuned_copy(loaded: BenchModel) -> BenchModel:
    """The model as a turn runs it. Its weights are packed: sizes are those from before."""
    tune(loaded.model, loaded.device)
    return loaded


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


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
