"""What is done to a loaded model so that it runs near the speed of the machine.

On a CPU, for families that are known to work with both: the matmul attention kernel, and linear
layers whose weights lie in the order in which the matrix kernels read them. On a GPU packed weights
are put in the order that its kernels read. Everything else stays as transformers made it.

The weight in that order (`packed/reordered.py`) replaces the original. Only an output layer that
shares its weight with the embedding costs memory: the embedding needs rows, the product needs the
other order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from chatcache.backends.local.model import attention
from chatcache.backends.local.packed import device_ready, proof
from chatcache.backends.local.packed.blocks import is_packed
from chatcache.backends.local.packed.kernel_store import Verdict
from chatcache.backends.local.packed.known import VERSION, takes_step
from chatcache.backends.local.packed.reordered import ReorderedLinear, is_sound

_MIN_WEIGHTS = 1 << 16  # below this the call costs more than the weight


@dataclass(frozen=True, slots=True)
class Tuned:
    """`kernels` are the names of what computes: other names, other bits."""

    kernels: str
    remarks: tuple[str, ...]  # on compiled code that is not used


def tune(model: Any, device: torch.device, say: Callable[[str], None] = lambda text: None) -> Tuned:
    """Change `model` in place; `say` is told what takes seconds, the first time.

    The weights can no longer be read from the model afterwards: take their digest before.
    """
    if not is_packed(model) and attention.is_tuned(model.config.get_text_config()):
        reorder_linears(model, device)
    kernels = attention.install(model, device)
    if device.type == "cuda" and is_packed(model):
        say(device_ready.GETTING_READY)
        words = f", blocks {device_ready.VERSION}" if device_ready.get_ready(model) else ""
        return Tuned(kernels + words, tuple(device_ready.remarks(model)))
    verdict = proof.settle(model, say)
    if takes_step(model):
        kernels += f", step {VERSION}"
    elif verdict == Verdict.KERNELS_ARE_WRONG:
        kernels += ", unpacked by torch"
    return Tuned(kernels, proof.remarks(verdict))


@torch.inference_mode()
def reorder_linears(model: Any, device: torch.device) -> int:
    """Replace the linear layers of a bf16 model on a CPU; returns how many were replaced."""
    if device.type != "cpu" or model.dtype != torch.bfloat16 or not is_sound():
        return 0
    num_replaced = 0
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            is_plain = type(child) is torch.nn.Linear and child.weight.dtype == torch.bfloat16
            if is_plain and child.weight.numel() >= _MIN_WEIGHTS:
                setattr(module, name, ReorderedLinear(child))
                num_replaced += 1
    return num_replaced
