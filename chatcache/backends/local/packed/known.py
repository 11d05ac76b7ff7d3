"""Which models can take a step in compiled code (`step.py`), and of how many tokens.

Every module is looked at: what is not exactly as the step computes it goes through transformers'
modules. Nothing is compiled or imported for the answer. `proof.py` refuses those whose compiled
step was found to be wrong.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch

from chatcache.backends.local.packed.blocks import PackedModule, is_packed
from chatcache.backends.local.packed.modules import BlockExperts
from chatcache.backends.local.packed.reordered import ReorderedLinear

VERSION = "2"  # of the arithmetic: other bits, another number
_LANES = 16
# Tokens up to which weights are quicker read by the step, measured; fewer behind a long history,
# over which many tokens attend more quickly in the modules.
_PACKED_TOKENS = 128, 64
_BFLOAT16_TOKENS = 16, 8
_FLOAT32_TOKENS = 1, 1
_LONG_HISTORY = 2048
_MIXTURE_TOKENS = 32, 32  # more of them share experts, which a step reads anew for each 32
_MIXTURES = frozenset({"mixtral", "qwen3_moe"})
_FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3", "smollm3"}) | _MIXTURES
_STATIC_ROTARY = frozenset({"default", "linear", "llama3", "yarn"})  # the same at any length


class UnknownStepError(ValueError):
    """A model is not one that can take this step; the message says what is different."""


_REFUSED: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()


def refuse(model: Any) -> None:
    """Let a model take no step from now on: it is wrong here."""
    _REFUSED.add(model)


def takes_step(model: Any) -> bool:
    """Whether tokens can go through compiled code."""
    try:
        check(model)
    except UnknownStepError:
        return False
    return True


def step_limit(model: Any) -> Callable[[int], int]:
    """How many tokens at a time go through compiled code, by the position of the first."""
    if not takes_step(model):
        return no_step
    exact = _BFLOAT16_TOKENS if model.dtype is torch.bfloat16 else _FLOAT32_TOKENS
    most, most_behind = _PACKED_TOKENS if is_packed(model) else exact
    if model.config.get_text_config().model_type in _MIXTURES:
        most, most_behind = _MIXTURE_TOKENS
    return lambda position: most if position < _LONG_HISTORY else most_behind


def no_step(position: int) -> int:
    return 0


def check(model: Any) -> None:
    """Raises UnknownStepError."""
    if model in _REFUSED:
        raise UnknownStepError("it says something else than the modules, on this processor")
    config = model.config.get_text_config()
    _check_config(config, model.dtype)
    try:
        _check_modules(model)
    except AttributeError as error:
        raise UnknownStepError(f"it is built in another way: {error}") from error


def _check_modules(model: Any) -> None:
    base, first = model.model, model.model.layers[0].self_attn
    size_of(model.lm_head)
    for layer in base.layers:
        block, mlp = layer.self_attn, layer.mlp
        for module in (block.q_proj, block.k_proj, block.v_proj, block.o_proj):
            size_of(module)
        if model.config.get_text_config().model_type in _MIXTURES:
            _check_mixture(mlp)
        else:
            for module in (mlp.gate_proj, mlp.up_proj, mlp.down_proj):
                size_of(module)
        norms = [layer.input_layernorm, layer.post_attention_layernorm]
        norms += [getattr(block, name) for name in ("q_norm", "k_norm") if hasattr(block, name)]
        if {norm.variance_epsilon for norm in norms} != {base.norm.variance_epsilon}:
            raise UnknownStepError("norms have different epsilons")
        if block.scaling != first.scaling:
            raise UnknownStepError("layers scale their scores differently")
    if first.head_dim % _LANES:
        raise UnknownStepError(f"heads of {first.head_dim} are not whole vectors")


def _check_mixture(layer: Any) -> None:
    if not isinstance(layer.experts, BlockExperts):
        raise UnknownStepError("its experts are not packed")
    if layer.gate.weight.device.type != "cpu":
        raise UnknownStepError("a router is on another device")


def _check_config(config: Any, dtype: torch.dtype) -> None:
    rotary = getattr(config, "rope_parameters", None) or {}
    kinds = set(getattr(config, "layer_types", None) or ())
    window = None if kinds else getattr(config, "sliding_window", None)
    activation = getattr(config, "hidden_act", None)
    for is_known, what in (
        (dtype in (torch.float32, torch.bfloat16), dtype),
        (config.model_type in _FAMILIES, config.model_type),
        (rotary.get("rope_type", "default") in _STATIC_ROTARY, rotary.get("rope_type")),
        (rotary.get("partial_rotary_factor", 1.0) == 1.0, "partial rotary embedding"),
        (activation == "silu", activation),
        (kinds <= {"full_attention"} and not window, "a window"),
    ):
        if not is_known:
            raise UnknownStepError(f"this step does not know {what}")


def size_of(module: Any) -> tuple[int, int]:
    """Rows and columns of a linear layer on a CPU, exact or packed. Raises UnknownStepError."""
    is_known = isinstance(module, PackedModule) or type(module) is torch.nn.Linear
    if isinstance(module, ReorderedLinear):
        is_known = module.pairs_at is not None
    weights = [*module.parameters(), *module.buffers()]
    if not is_known or any(tensor.device.type != "cpu" for tensor in weights):
        raise UnknownStepError(f"{type(module).__name__} is no linear layer that is known")
    return int(module.out_features), int(module.in_features)
