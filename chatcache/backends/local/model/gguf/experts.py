"""The experts of a mixture in a GGUF file: three tensors a layer, each with that matrix of all.

Owns their names and sizes, and how they become the two tensors that transformers has: those of
`gate` and `up` joined one behind the other, or for gpt-oss by turns, and transposed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from chatcache.backends.local.model.gguf.header import GgufTensor
from chatcache.backends.local.packed.blocks import BlockMatrix
from chatcache.backends.local.packed.install import is_experts, replace_with_experts
from chatcache.backends.local.packed.mixture import Stack
from chatcache.errors import ModelLoadError

_LAYER = re.compile(r"\.layers\.(\d+)\.")
_PARTS = ("gate", "up", "down")


class Tensors(Protocol):
    """What reads them."""

    def matrix(self, tensor: GgufTensor) -> BlockMatrix: ...

    def unpacked(self, tensor: GgufTensor, dtype: torch.dtype) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True)
class LayerExperts:
    """The tensors of `gate`, `up` and `down`; `biases` of the same, or none at all. `shapes` are
    those of the module's parameters."""

    module_name: str
    shapes: Mapping[str, torch.Size]
    is_transposed: bool
    tensors: tuple[GgufTensor, ...]
    biases: tuple[GgufTensor, ...]

    def install(self, model: Any, source: Tensors) -> None:
        """Put them into the model as they are in the file."""
        stacks = []
        for number, tensor in enumerate(self.tensors):
            bias = source.unpacked(self.biases[number], torch.float32) if self.biases else None
            num_rows = tensor.shape[1]
            stacks.append(Stack(source.matrix(tensor), num_rows, num_rows, bias=bias))
        gate, up, down = stacks
        replace_with_experts(model, self.module_name, gate, up, down)

    def stand_ins(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """What takes no memory until it is replaced."""
        nothing = torch.zeros((), dtype=dtype)
        return {f"{self.module_name}.{name}": nothing.expand(s) for name, s in self.shapes.items()}

    def unpacked(self, source: Tensors, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """The parameters of the module."""
        gate, up, down = (source.unpacked(tensor, dtype) for tensor in self.tensors)
        found = {"gate_up_proj": self._joined(gate, up), "down_proj": down}
        if self.is_transposed:
            found = {name: weights.mT.contiguous() for name, weights in found.items()}
        if self.biases:
            gate, up, down = (source.unpacked(tensor, dtype) for tensor in self.biases)
            found |= {"gate_up_proj_bias": self._joined(gate, up), "down_proj_bias": down}
        return {f"{self.module_name}.{name}": weights for name, weights in found.items()}

    def _joined(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        if not self.is_transposed:
            return torch.cat([gate, up], dim=1)
        return torch.stack([gate, up], dim=2).flatten(1, 2)


def take_experts(skeleton: Any, found: dict[str, GgufTensor], path: Path) -> list[LayerExperts]:
    """The experts of all layers of a model without weights; their tensors are taken out of `found`.

    Raises ModelLoadError for one that is missing, or of another size."""
    return [
        _of_layer(name, module, found, path)
        for name, module in skeleton.named_modules()
        if is_experts(module)
    ]


def _of_layer(name: str, module: Any, found: dict[str, GgufTensor], path: Path) -> LayerExperts:
    shapes = {key: weight.shape for key, weight in module.named_parameters()}
    is_transposed = bool(module.is_transposed)
    num_experts, *sizes = shapes["down_proj"]
    hidden, inner = reversed(sizes) if is_transposed else sizes
    wanted = {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}

    def take(part: str, suffix: str, shape: tuple[int, ...]) -> GgufTensor:
        own = f"blk.{layer_of(name)}.ffn_{part}_exps.{suffix}"
        if own not in found:
            raise ModelLoadError(
                f"{path} lacks the experts {own}.",
                "Download the file again, or choose a newer copy: old ones keep them in other "
                "tensors.",
            )
        if found[own].shape != shape:
            told, expected = (" x ".join(map(str, s)) for s in (found[own].shape, shape))
            raise ModelLoadError(
                f"{path} has {own} as {told}, where its other tensors say {expected}.",
                "Download the file again, or choose another with --model.",
            )
        return found.pop(own)

    tensors = tuple(take(part, "weight", (num_experts, *wanted[part])) for part in _PARTS)
    with_bias = _PARTS if "down_proj_bias" in shapes else ()
    biases = tuple(take(part, "bias", (num_experts, wanted[part][0])) for part in with_bias)
    return LayerExperts(name, shapes, is_transposed, tensors, biases)


def layer_of(name: str) -> int:
    """The number of the layer that a module belongs to."""
    found = _LAYER.search(name)
    if found is None:
        raise ValueError(f"{name} is in no layer")
    return int(found[1])
