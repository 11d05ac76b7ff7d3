"""The step of one model through compiled code, on its live KV: one token, or a few.

Owns the job that `step.py` reads: where each weight is, and where the cache keeps K and V. Which
models are known is `known.py`'s business.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from chatcache.backends.local.packed import kernels
from chatcache.backends.local.packed.attending import TOKENS_AT_ONCE, scores_of, sums_of
from chatcache.backends.local.packed.blocks import KINDS
from chatcache.backends.local.packed.known import UnknownStepError, check, size_of
from chatcache.backends.local.packed.modules import BlockLinear
from chatcache.backends.local.packed.pairs import pair_functions
from chatcache.backends.local.packed.reordered import ReorderedLinear
from chatcache.backends.local.packed.step import JOB, LAYER, step_task
from chatcache.backends.local.packed.step_mixtures import StepMixtures
from chatcache.backends.local.packed.team import BARRIER_WORDS, team
from chatcache.cache.tensors.layers import Buffers
from chatcache.cache.tensors.live_kv import LiveKV

_AT_ONCE = 32  # tokens
_ALIGNED = 64
_POSITIONS = 256  # rotary angles computed at once
_FLOATS = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_ATTENTION = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"}
_MLP = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}


class DecodeStep:
    """Appends tokens to a live KV and gives the scores of the next. Not thread-safe."""

    def __init__(self, model: Any):
        """Raises UnknownStepError."""
        config = model.config.get_text_config()
        check(model)
        self._config, self._base = config, model.model
        self._kept: list[Any] = []  # whose memory the job points to
        self._homes: list[Buffers | None] = [None] * config.num_hidden_layers
        self._angles: tuple[int, np.ndarray] | None = None
        self._job = np.zeros(1, JOB)
        self._layers = np.zeros(config.num_hidden_layers, LAYER)
        self._task = step_task()
        self._fill(model)
        self._set_kind(model.dtype)
        self._room = 0, 0, 0  # for threads, tokens and keys

    @torch.inference_mode()
    def __call__(self, kv: LiveKV, token_ids: Sequence[int], position: int) -> torch.Tensor:
        """Append tokens from `position` on, behind all that is held; returns float32 `[1, vocab]`,
        behind the last, which the next step leaves alone. A token gets the same bits whatever is
        appended with it."""
        logits = torch.empty((1, int(self._job[0]["vocab"])))
        for first in range(0, len(token_ids), _AT_ONCE):
            self._append(kv, token_ids[first : first + _AT_ONCE], position + first, logits)
        return logits

    def _append(
        self, kv: LiveKV, token_ids: Sequence[int], position: int, logits: torch.Tensor
    ) -> None:
        job, num_tokens = self._job[0], len(token_ids)
        stop = position + num_tokens
        self._find_room(kv, position, stop)
        self._prepare(torch.get_num_threads(), num_tokens, stop)
        vectors = self._base.embed_tokens(torch.tensor(list(token_ids)))
        self._states[:num_tokens] = vectors.float().numpy()
        job["rotary"] = self._rotary(position)
        job["num_tokens"], job["num_keys"] = num_tokens, stop
        self._mixtures.begin(num_tokens)
        job["logits"] = logits.data_ptr()
        team(self._room[0]).run(self._task, self._job.ctypes.data)
        for layer in kv.growing:
            layer.set_length(stop)

    # what stays the same

    def _fill(self, model: Any) -> None:
        config, job = self._config, self._job[0]
        layers = self._base.layers
        first = layers[0].self_attn
        job["num_layers"], job["hidden"] = len(layers), config.hidden_size
        job["num_heads"] = config.num_attention_heads
        job["num_kv_heads"] = config.num_key_value_heads
        job["head_dim"], job["inner"] = first.head_dim, config.intermediate_size
        job["vocab"] = size_of(model.lm_head)[0]
        job["epsilon"], job["scale"] = self._base.norm.variance_epsilon, first.scaling
        queries = config.num_attention_heads * first.head_dim
        keys = config.num_key_value_heads * first.head_dim
        hidden, inner = config.hidden_size, config.intermediate_size
        shapes = {"q": (queries, hidden), "k": (keys, hidden), "v": (keys, hidden)}
        shapes |= {"o": (hidden, queries), "gate": (inner, hidden), "up": (inner, hidden)}
        shapes |= {"down": (hidden, inner), "head": (int(job["vocab"]), hidden)}
        has_experts = hasattr(layers[0].mlp, "experts")
        self._mixtures = StepMixtures([layer.mlp for layer in layers] if has_experts else [])
        job["mix_task"] = self._mixtures.task
        for number, (words, layer) in enumerate(zip(self._layers, layers, strict=True)):
            groups = [(_ATTENTION, layer.self_attn), (_MLP, layer.mlp)]
            if has_experts:
                words["routed"] = self._mixtures.address(number)
            for names, module in groups[:1] if has_experts else groups:
                for name, attribute in names.items():
                    self._put_matrix(words[name], getattr(module, attribute), shapes[name])
            self._put_norms(words, layer)
            words["is_rotated"] = int(getattr(layer.self_attn, "use_rope", 1))
        self._put_matrix(job["head"], model.lm_head, shapes["head"])
        job["final_norm"] = self._norm(self._base.norm)
        job["layers"] = self._layers.ctypes.data
        self._sizes = {"states": hidden, "queries": queries, "new_keys": keys, "new_values": keys}
        self._sizes |= {"seen": queries, "gated": inner, "normed": hidden}
        barrier = np.zeros(BARRIER_WORDS, np.int64)
        self._kept.append(barrier)
        job["barrier"] = barrier.ctypes.data

    def _put_matrix(self, words: Any, module: Any, shape: tuple[int, int]) -> None:
        if size_of(module) != shape:
            raise UnknownStepError(f"a matrix is {size_of(module)}, not {shape}")
        if module.bias is not None:
            words["bias"] = self._keep(module.bias)
        if isinstance(module, ReorderedLinear):
            self._kept.append(module)
            words["functions"], words["is_paired"] = pair_functions().ctypes.data, 1
            words["weights"] = module.pairs_at
            return
        if isinstance(module, BlockLinear):
            kind, weights = module.kind, module.matrix.data
        else:
            kind, weights = KINDS[_FLOATS[module.weight.dtype]], module.weight.detach()
        if kind.ggml_type not in kernels.PRODUCT_KINDS or not weights.is_contiguous():
            raise UnknownStepError(f"there is no kernel for {kind.name}")
        self._kept.append(weights)
        words["functions"] = kernels.product_functions(kind.ggml_type).ctypes.data
        words["weights"], words["group"] = weights.data_ptr(), kernels.group_of(kind.ggml_type)
        words["row_bytes"] = kind.row_bytes(shape[1])

    def _put_norms(self, words: Any, layer: Any) -> None:
        words["input_norm"] = self._norm(layer.input_layernorm)
        words["output_norm"] = self._norm(layer.post_attention_layernorm)
        has_norms = [hasattr(layer.self_attn, name) for name in ("q_norm", "k_norm")]
        if all(has_norms):
            words["q_norm"] = self._norm(layer.self_attn.q_norm)
            words["k_norm"] = self._norm(layer.self_attn.k_norm)

    def _norm(self, module: Any) -> int:
        return self._keep(module.weight)

    def _keep(self, tensor: torch.Tensor) -> int:
        """The address of a tensor's values as float32."""
        values = tensor.detach().float().contiguous().clone()
        self._kept.append(values)
        return int(values.data_ptr())

    # what changes

    def _find_room(self, kv: LiveKV, position: int, stop: int) -> None:
        """Where keys and values of the new tokens go; a layer's buffers may have moved."""
        job = self._job[0]
        for number, layer in enumerate(kv.growing):
            for kind in ("key", "value"):
                layer.allocate(
                    kind, int(job["num_kv_heads"]), int(job["head_dim"]), kv.dtype, kv.device
                )
            layer.claim(position, stop)
            home = layer.home
            if home is self._homes[number]:
                continue
            self._homes[number] = home
            words = self._layers[number]
            words["keys"] = home.tensors["key"].data_ptr()
            words["values"] = home.tensors["value"].data_ptr()
            words["room"] = home.room
        self._set_kind(kv.dtype)

    def _set_kind(self, dtype: torch.dtype) -> None:
        """Of keys and values."""
        job, kind = self._job[0], KINDS[_FLOATS[dtype]].ggml_type
        job["is_bfloat16"] = dtype is torch.bfloat16
        job["scores_of"], job["sums_of"] = scores_of(kind), sums_of(kind)

    def _prepare(self, num_threads: int, num_tokens: int, num_keys: int) -> None:
        """What is computed into: by all threads together, and by each alone."""
        had_threads, had_tokens, had_keys = self._room
        if num_threads == had_threads and num_tokens <= had_tokens and num_keys <= had_keys:
            return
        num_tokens = 1 if num_tokens == 1 and had_tokens < 2 else _AT_ONCE
        num_keys = max(had_keys, -(-num_keys // 1024) * 1024)
        self._room = num_threads, num_tokens, num_keys
        job = self._job[0]
        self._shared = {
            name: np.zeros((num_tokens, size), np.float32) for name, size in self._sizes.items()
        }
        self._states = self._shared["states"]
        for name, values in self._shared.items():
            job[name] = values.ctypes.data
        self._mixtures.prepare(num_threads, num_tokens, int(job["normed"]), int(job["states"]))
        heads = int(job["num_heads"] // job["num_kv_heads"]) * min(num_tokens, TOKENS_AT_ONCE)
        hidden, widest = self._sizes["states"], max(self._sizes.values())
        record = kernels.record_bytes(widest)
        sizes = {
            "records": record * num_tokens,
            "sums": 4 * max(hidden, self._sizes["gated"]) * num_tokens,
            "scores": 4 * heads * num_keys,
            "heads": 2 * 4 * heads * int(job["head_dim"]),
            "scratch": kernels.scratch_bytes(widest),
        }
        own = sum(_aligned(size) for size in sizes.values()) + _aligned(4 * hidden) * num_tokens
        self._own = np.zeros(own * num_threads + _ALIGNED, np.uint8)
        address = _aligned(self._own.ctypes.data)
        job["own_bytes"], job["score_room"], job["record_bytes"] = own, num_keys, record
        for name, size in sizes.items():
            job[name] = address
            address += _aligned(size)
        for thread in range(num_threads):
            for token in range(num_tokens):
                place = int(job["records"]) + own * thread + record * token
                floats = address + own * thread + _aligned(4 * hidden) * token
                kernels.make_record(place, widest, floats=floats)

    def _rotary(self, position: int) -> int:
        """The address of the cosines and sines of a position, and of those behind it."""
        start = position - position % _POSITIONS
        if self._angles is None or self._angles[0] != start:
            positions = torch.arange(start, start + _POSITIONS + _AT_ONCE)[None]
            cosines, sines = self._base.rotary_emb(torch.empty((1, 1)), positions)
            half = cosines.shape[-1] // 2
            angles = torch.cat([cosines[0, :, :half], sines[0, :, :half]], dim=-1).float()
            self._angles = start, np.ascontiguousarray(angles.numpy())
        table = self._angles[1]
        return int(table.ctypes.data) + table.strides[0] * (position - start)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


_LOCK = threading.Lock()
_STEPS: weakref.WeakKeyDictionary[torch.nn.Module, DecodeStep] = weakref.WeakKeyDictionary()


def decode_step(model: Any) -> DecodeStep:
    """The step of a model, made once. Raises UnknownStepError."""
    with _LOCK:
        if model not in _STEPS:
            _STEPS[model] = DecodeStep(model)
        return _STEPS[model]
