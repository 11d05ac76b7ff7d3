"""What is done to a loaded model so that it runs near the speed of the machine.

On a CPU: the matmul attention kernel and packed weights, for families that are known to work with
both. Everything else, and every other device, stays as transformers made it.
"""

from __future__ import annotations

from typing import Any

import torch

from chatcache.backends.local.model.packing import pack_linears
from chatcache.backends.local.run import attention


def tune(model: Any, device: torch.device) -> str:
    """Change `model` in place; returns the name of the attention kernel that it runs with.

    The weights can no longer be read from the model afterwards: take their digest before.
    """
    if attention.is_tuned(model.config.get_text_config()):
        pack_linears(model, device)
    return attention.install(model, device)
