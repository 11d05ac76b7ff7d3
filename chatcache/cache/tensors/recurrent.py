"""States of layers that keep no K and V per token: recurrent and convolution layers.

Such a layer sums the past up in tensors of fixed size, which stand at one position and cannot be
taken back. Owns the layers that transformers is given for them, and copying their states out and
in: a checkpoint. Layers overwrite their states in place when decoding, so a checkpoint is cloned on
save and on restore. Knows neither token ids nor files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers.cache_utils import DummyLayer, DynamicCache, DynamicLayer, LinearAttentionLayer
from transformers.configuration_utils import PreTrainedConfig

from chatcache.cache.tensors.layers import GrowingLayer

_KINDS = ("conv", "recurrent")


class HybridLayer(LinearAttentionLayer, GrowingLayer):  # type: ignore[override]
    """A layer that has both: K and V that grow in place, and states."""

    is_compileable = False

    def __init__(self, number_of_states: int = 1):
        GrowingLayer.__init__(self)
        LinearAttentionLayer.__init__(self, number_of_states=number_of_states)

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """transformers tells the two halves apart by how it passes what it knows."""
        if args:
            GrowingLayer.lazy_initialization(self, *args)
        else:
            LinearAttentionLayer.lazy_initialization(self, **kwargs)

    def reset(self) -> None:
        """Forget the states; K and V are cut by `set_length`."""
        LinearAttentionLayer.reset(self)  # type: ignore[no-untyped-call]


def layers_for(config: PreTrainedConfig) -> list[Any]:
    """A layer for each that transformers makes for this config, growing in place where it has K
    and V. Windows are kept whole: the mask of the model hides what is behind them."""
    return [_layer_like(layer) for layer in DynamicCache(config=config).layers]


def _layer_like(layer: Any) -> Any:
    if isinstance(layer, LinearAttentionLayer):
        has_kv = isinstance(layer, DynamicLayer)
        return HybridLayer(layer.number_of_states) if has_kv else layer
    return layer if isinstance(layer, DummyLayer) else GrowingLayer()


def has_states(layer: Any) -> bool:
    return isinstance(layer, LinearAttentionLayer)


@torch.inference_mode()
def reset_states(layers: Sequence[Any]) -> None:
    """As before the first token."""
    for layer in layers:
        if has_states(layer):
            layer.reset()


@torch.inference_mode()
def copy_states(layers: Sequence[Any]) -> dict[str, torch.Tensor]:
    """The states of all layers in host memory, by name (`conv.LAYER.I`, `recurrent.LAYER.I`)."""
    return {
        name: tensor.to("cpu", copy=True).contiguous() for name, tensor in states_of(layers).items()
    }


@torch.inference_mode()
def load_states(layers: Sequence[Any], states: Mapping[str, torch.Tensor]) -> None:
    """Put a checkpoint back. Raises ValueError if it is not one of this model.

    The model must have run once: until then nobody knows which states its layers have.
    """
    known = states_of(layers)
    if known.keys() != states.keys():
        raise ValueError("the checkpoint has other states than the model")
    for name, tensor in states.items():
        target = known[name]
        if tensor.shape != target.shape or tensor.dtype != target.dtype:
            raise ValueError(f"{name} is {tensor.dtype}{list(tensor.shape)} in the checkpoint")
    for name, tensor in states.items():
        known[name].copy_(tensor)
    for layer in layers:
        if has_states(layer):
            layer.has_previous_state = dict.fromkeys(layer.has_previous_state, True)


@torch.inference_mode()
def state_like(layers: Sequence[Any], name: str) -> torch.Tensor | None:
    """Empty host memory of the shape and dtype of a state; None if there is no such state."""
    known = states_of(layers).get(name)
    return None if known is None else torch.empty_like(known, device="cpu")


def states_of(layers: Sequence[Any]) -> dict[str, torch.Tensor]:
    """The states themselves, by name."""
    found: dict[str, torch.Tensor] = {}
    for number, layer in enumerate(layers):
        if not has_states(layer):
            continue
        for kind, states in zip(_KINDS, (layer.conv_states, layer.recurrent_states), strict=True):
            for index, tensor in states.items():
                if tensor is not None:
                    found[f"{kind}.{number}.{index}"] = tensor
    return found
