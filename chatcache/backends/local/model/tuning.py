"""What is done to a loaded model so that it runs near the speed of the machine.

On a CPU, for families that are known to work with both: the matmul attention kernel, and linear
layers whose weights lie in the order in which the matrix kernels read them. Everything else, and
every other device, stays as transformers made it.

oneDNN reorders a weight for its kernels at every call unless it is given one in that order. Packed
once, a bf16 weight is read at the speed of memory by a single row, and the results are the same
bits. The operators are internal to torch, so they are tried out first, and left alone where they
are missing or do not give the same bits. The packed weight replaces the original. Only an output
layer that shares its weight with the embedding costs memory: the embedding needs rows, the product
needs the packed order.
"""

from __future__ import annotations

import logging
from typing import Any

import torch

from chatcache.backends.local.model import attention
from chatcache.backends.local.packed.blocks import is_packed
from chatcache.backends.local.packed.known import VERSION, takes_step

log = logging.getLogger(__name__)

_MIN_WEIGHTS = 1 << 16  # below this the call costs more than the weight


def tune(model: Any, device: torch.device) -> str:
    """Change `model` in place; returns the names of what computes attention.

    The weights can no longer be read from the model afterwards: take their digest before.
    """
    if not is_packed(model) and attention.is_tuned(model.config.get_text_config()):
        pack_linears(model, device)
    kernel = attention.install(model, device)
    return f"{kernel}, step {VERSION}" if takes_step(model) else kernel


class PackedLinear(torch.nn.Module):
    """Computes what the `nn.Linear` it replaces computed."""

    def __init__(self, linear: torch.nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self._packed = _pack(linear.weight)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """`[..., in_features]` to `[..., out_features]`."""
        return _multiply(states, self._packed, self.bias)


@torch.inference_mode()
def pack_linears(model: Any, device: torch.device) -> int:
    """Replace the linear layers of a bf16 model on a CPU; returns how many were replaced."""
    if device.type != "cpu" or model.dtype != torch.bfloat16 or not _is_sound():
        return 0
    num_packed = 0
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            is_plain = type(child) is torch.nn.Linear and child.weight.dtype == torch.bfloat16
            if is_plain and child.weight.numel() >= _MIN_WEIGHTS:
                setattr(module, name, PackedLinear(child))
                num_packed += 1
    return num_packed


def _pack(weight: torch.Tensor) -> torch.Tensor:
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), 1)
    return packed


def _multiply(
    states: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(states, packed, bias, "none", [], "")
    return product


def _is_sound() -> bool:
    """Whether the operators are there and give the bits of the ordinary product."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    generator = torch.Generator().manual_seed(0)
    weight, bias = (
        torch.randn(shape, generator=generator).bfloat16() for shape in ((96, 64), (96,))
    )
    try:
        packed = _pack(weight)
        for num_rows in (1, 5, 40):
            states = torch.randn((1, num_rows, 64), generator=generator).bfloat16()
            expected = torch.nn.functional.linear(states, weight, bias)
            if not torch.equal(_multiply(states, packed, bias), expected):
                return False
    except (RuntimeError, AttributeError) as error:
        log.info("weights are not packed: %s", error)
        return False
    return True
