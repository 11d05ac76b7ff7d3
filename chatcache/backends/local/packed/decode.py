"""The decode step of one model, on its live KV.

Owns the job that `step.py` reads: where each weight is, and where the cache keeps K and V. Which
models are known is `known.py`'s business.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

import numpy as np
import torch

from chatcache.backends.local.packed import kernels
from chatcache.backends.local.packed.blocks import KINDS
from chatcache.backends.local.packed.known import UnknownStepError, check, size_of
from chatcache.backends.local.packed.modules import BlockLinear
from chatcache.backends.local.packed.step import JOB, LAYER, step_task
from chatcache.backends.local.packed.team import BARRIER_WORDS, team
from chatcache.cache.tensors.layers import Buffers
from chatcache.cache.tensors.live_kv import LiveKV

_POSITIONS = 256  # rotary angles computed at once
_FLOATS = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_ATTENTION = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"}
_MLP = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}


class DecodeStep:
    """Appends one token to a live KV and gives the scores of the next. Not thread-safe."""

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
        self._score_room, self._num_threads = 0, 0

    @torch.inference_mode()
    def __call__(self, kv: LiveKV, token_id: int, position: int) -> torch.Tensor:
        """Append the token at `position`, behind all that is held; returns float32 `[1, vocab]`,
        which the next step leaves alone."""
        job = self._job[0]
        self._find_room(kv, position)
        self._prepare(torch.get_num_threads(), position + 1)
        vector = self._base.embed_tokens(torch.tensor([token_id]))
        self._states[:] = vector[0].float().numpy()
        job["rotary"] = self._rotary(position)
        job["num_keys"] = position + 1
        logits = torch.empty((1, int(job["vocab"])))
        job["logits"] = logits.data_ptr()
        team(self._num_threads).run(self._task, self._job.ctypes.data)
        for layer in kv.growing:
            layer.set_length(position + 1)
        return logits

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
        for words, layer in zip(self._layers, layers, strict=True):
            for names, module in ((_ATTENTION, layer.self_attn), (_MLP, layer.mlp)):
                for name, attribute in names.items():
                    self._put_matrix(words[name], getattr(module, attribute), shapes[name])
            self._put_norms(words, layer)
            words["is_rotated"] = int(getattr(layer.self_attn, "use_rope", 1))
        self._put_matrix(job["head"], model.lm_head, shapes["head"])
        job["final_norm"] = self._norm(self._base.norm)
        job["layers"] = self._layers.ctypes.data
        self._states = self._floats(job, "states", hidden)
        for name, size in (("queries", queries), ("new_keys", keys), ("new_values", keys)):
            self._floats(job, name, size)
        self._floats(job, "seen", queries)
        self._floats(job, "gated", inner)
        barrier = np.zeros(BARRIER_WORDS, np.int64)
        self._kept.append(barrier)
        job["barrier"] = barrier.ctypes.data

    def _put_matrix(self, words: Any, module: Any, shape: tuple[int, int]) -> None:
        if size_of(module) != shape:
            raise UnknownStepError(f"a matrix is {size_of(module)}, not {shape}")
        if isinstance(module, BlockLinear):
            kind, weights = module.kind, module.matrix.data
        else:
            kind, weights = KINDS[_FLOATS[module.weight.dtype]], module.weight.detach()
        if kind.ggml_type not in kernels.PRODUCT_KINDS or not weights.is_contiguous():
            raise UnknownStepError(f"there is no kernel for {kind.name}")
        self._kept.append(weights)
        words["function"] = kernels.product_rows(kind.ggml_type)
        words["weights"], words["group"] = weights.data_ptr(), kernels.group_of(kind.ggml_type)
        words["row_bytes"] = kind.row_bytes(shape[1])
        if module.bias is not None:
            words["bias"] = self._keep(module.bias)

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

    def _floats(self, job: Any, name: str, size: int) -> np.ndarray:
        values = np.zeros(size, np.float32)
        self._kept.append(values)
        job[name] = values.ctypes.data
        return values

    # what changes

    def _find_room(self, kv: LiveKV, position: int) -> None:
        """Where keys and values of the new token go; a layer's buffers may have moved."""
        job = self._job[0]
        for number, layer in enumerate(kv.growing):
            for kind in ("key", "value"):
                layer.allocate(
                    kind, int(job["num_kv_heads"]), int(job["head_dim"]), kv.dtype, kv.device
                )
            layer.claim(position, position + 1)
            home = layer.home
            if home is self._homes[number]:
                continue
            self._homes[number] = home
            words = self._layers[number]
            words["keys"] = home.tensors["key"].data_ptr()
            words["values"] = home.tensors["value"].data_ptr()
            words["room"] = home.room
        job["is_bfloat16"] = kv.dtype is torch.bfloat16

    def _prepare(self, num_threads: int, num_keys: int) -> None:
        """What each thread has for itself."""
        if num_threads == self._num_threads and num_keys <= self._score_room:
            return
        job = self._job[0]
        heads = int(job["num_heads"] // job["num_kv_heads"])
        widest = max(int(job[name]) for name in ("hidden", "inner"))
        widest = max(widest, int(job["num_heads"] * job["head_dim"]))
        self._num_threads, self._score_room = num_threads, -(-num_keys // 1024) * 1024
        sizes = {
            "record": kernels.record_bytes(widest),
            "sums": 4 * widest,
            "scores": 4 * heads * self._score_room,
        }
        own = sum(-(-size // 64) * 64 for size in sizes.values()) + 4 * int(job["hidden"])
        own = -(-own // 64) * 64
        self._own = np.zeros(own * num_threads + 64, np.uint8)
        address = -(-self._own.ctypes.data // 64) * 64
        job["own_bytes"], job["score_room"] = own, self._score_room
        for name, size in sizes.items():
            job[name] = address
            address += -(-size // 64) * 64
        for thread in range(num_threads):
            kernels.make_record(
                int(job["record"]) + own * thread, widest, floats=address + own * thread
            )

    def _rotary(self, position: int) -> int:
        """The address of the cosines and sines of a position."""
        start = position - position % _POSITIONS
        if self._angles is None or self._angles[0] != start:
            positions = torch.arange(start, start + _POSITIONS)[None]
            cosines, sines = self._base.rotary_emb(torch.empty((1, 1)), positions)
            half = cosines.shape[-1] // 2
            angles = torch.cat([cosines[0, :, :half], sines[0, :, :half]], dim=-1).float()
            self._angles = start, np.ascontiguousarray(angles.numpy())
        table = self._angles[1]
        return int(table.ctypes.data) + table.strides[0] * (position - start)


_LOCK = threading.Lock()
_STEPS: weakref.WeakKeyDictionary[torch.nn.Module, DecodeStep] = weakref.WeakKeyDictionary()


def decode_step(model: Any) -> DecodeStep:
    """The step of a model, made once. Raises UnknownStepError."""
    with _LOCK:
        if model not in _STEPS:
            _STEPS[model] = DecodeStep(model)
        return _STEPS[model]
