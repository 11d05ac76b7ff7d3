"""Which models take steps that a graph can hold: the same operations on the same memory each time.

Owns the verdict, from the config and from where the weights are; what the layers of such a model
see of the past; and the form in which it computes meanwhile. What computes such a step is
`run/static_step.py`; `tests/equivalence` compares it with the ordinary one in every family that may
be cut at any token, and finds out which ask the device for a number.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers.configuration_utils import PreTrainedConfig

from chatcache.backends.local.model import device_attention, device_experts
from chatcache.backends.local.model.cut_policy import cut_policy, rotary_kinds
from chatcache.backends.local.packed.modules import BlockExperts

# Families whose code does not fit, though they may be cut at any token.
_EAGER = {
    "bloom": "its attention adds a bias of its own making (ALiBi)",
}
# Families whose layers have masks by kind, and families with one window for all layers. Others see
# the whole past, whatever their config says. (A test compares the tables with transformers' code.)
BY_LAYER = frozenset(
    """
    cohere2 exaone4 gemma2 gemma3_text gpt_oss llama4_text ministral olmo3 qwen2 qwen2_moe qwen3
    smollm3
    """.split()  # noqa: SIM905
)
ONE_WINDOW = frozenset({"ministral3", "mistral", "mixtral", "phi3", "qwen3_moe", "starcoder2"})


@dataclass(frozen=True, slots=True)
class Sight:
    """What a layer sees of the past: all of it, the last `window` positions (its own is one of
    them), or those in the same `chunk`."""

    window: int | None = None
    chunk: int | None = None

    def seen(self, keys: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """bool `[num_positions, num_keys]`: which keys, by their positions, are seen from where."""
        at = positions[:, None]
        is_seen = keys <= at
        if self.window is not None:
            is_seen = is_seen & (keys > at - self.window)
        if self.chunk is not None:
            is_seen = is_seen & (keys // self.chunk == at // self.chunk)
        return is_seen

    def reach(self, num_positions: int) -> int | None:
        """How many keys in a row are seen from so many positions at most; None: all before them."""
        size = self.window or self.chunk
        return None if size is None else size + num_positions

    def first(self, position: torch.Tensor) -> torch.Tensor:
        """The first key that is seen from a position, or what would be its place before all."""
        if self.chunk is not None:
            return position // self.chunk * self.chunk
        return position - (self.window or 0) + 1


def layer_kinds(config: Any) -> list[str]:
    """The kind of attention of each layer, as the code of the family takes it."""
    family, num_layers = config.model_type, int(config.num_hidden_layers)
    kinds = getattr(config, "layer_types", None)
    if family in BY_LAYER and kinds:
        return list(kinds[:num_layers])
    has_window = family in ONE_WINDOW and getattr(config, "sliding_window", None) is not None
    return ["sliding_attention" if has_window else "full_attention"] * num_layers


def sight_of(kind: str, config: Any) -> Sight:
    """What layers of a kind see in a model with this config."""
    if kind == "sliding_attention":
        return Sight(window=int(config.sliding_window))
    if kind == "chunked_attention":
        return Sight(chunk=int(config.attention_chunk_size))
    return Sight()


def why_eager(config: Any) -> str | None:
    """Why a GPU cannot replay the steps of a model with this config; None: it can."""
    cut = cut_policy(config)
    if cut.needs_states:
        return "its recurrent or convolution layers have a state that moves"
    if not cut.is_cuttable:
        return f"its steps are not known to be the same each time ({cut.detail})"
    if "dynamic" in rotary_kinds(config):
        return "its rotary embedding (dynamic) is made anew as the text grows"
    return _EAGER.get(config.model_type)


def takes_static_step(model: Any, device: torch.device) -> bool:
    """Whether the steps of a loaded model can be captured. Packed experts ask the device which of
    them were chosen."""
    if any(isinstance(module, BlockExperts) for module in model.modules()):
        return False
    is_whole = all(weight.device == device for weight in model.parameters())
    is_moved = any(hasattr(module, "_hf_hook") for module in model.modules())
    return is_whole and not is_moved and why_eager(model.config.get_text_config()) is None


class StaticForm:
    """Has a model compute attention and experts in ways that a graph can hold."""

    def __init__(self, model: Any, device: torch.device):
        for module in model.modules():  # frequencies that are no buffers were left where they were
            for name, value in list(vars(module).items()):
                if name.endswith("inv_freq") and isinstance(value, torch.Tensor):
                    setattr(module, name, value.to(device))
        found = (getattr(module, "config", None) for module in model.modules())
        configs = {id(config): config for config in found if isinstance(config, PreTrainedConfig)}
        self._configs: list[Any] = list(configs.values())

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        usual = [(c._attn_implementation, c._experts_implementation) for c in self._configs]
        try:
            for config in self._configs:
                config._attn_implementation = device_attention.NAME
                config._experts_implementation = device_experts.NAME
            yield
        finally:
            for config, (attention, experts) in zip(self._configs, usual, strict=True):
                config._attn_implementation = attention
                config._experts_implementation = experts
