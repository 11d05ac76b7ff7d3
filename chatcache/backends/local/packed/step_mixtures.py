"""The mixtures of experts of a model, for the step (`step.py`): one job of `routing.py` a layer.

Owns these jobs, which share what is computed into: layers follow each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from chatcache.backends.local.packed import kernels
from chatcache.backends.local.packed.blocks import KINDS
from chatcache.backends.local.packed.known import UnknownStepError
from chatcache.backends.local.packed.mixing import described, room_for, sizes_of
from chatcache.backends.local.packed.routing import ROUTED, mix_task

_FLOATS = {torch.float32: KINDS["F32"], torch.bfloat16: KINDS["BF16"]}
_OF_LAYER = ("experts", "router_functions", "router", "router_row_bytes", "is_normalised")


class StepMixtures:
    """Of the layers `mlps` with a router (`gate`) and experts; none for a model without."""

    def __init__(self, mlps: Sequence[Any]):
        """Raises UnknownStepError."""
        self._jobs = np.zeros(len(mlps), ROUTED)
        self._kept: list[Any] = []
        self.task = mix_task() if mlps else 0
        for words, mlp in zip(self._jobs, mlps, strict=True):
            self._fill(words, mlp)
        self._num_chosen = int(mlps[0].gate.top_k) if mlps else 0

    def address(self, layer: int) -> int:
        return int(self._jobs[layer : layer + 1].ctypes.data)

    def begin(self, num_tokens: int) -> None:
        """The next step is of so many tokens."""
        self._jobs["num_tokens"] = num_tokens

    def _fill(self, words: Any, mlp: Any) -> None:
        mixture, router = mlp.experts.mixture, mlp.gate.weight.detach()
        kind = _FLOATS.get(router.dtype)
        kinds = [stack.matrix.kind.ggml_type for stack in mixture.stacks]
        if kind is None or not router.is_contiguous() or not set(kinds) <= kernels.PRODUCT_KINDS:
            raise UnknownStepError("there is no kernel for its experts")
        about = described(mixture)
        self._kept += [about, router, mixture]
        words["experts"] = about.ctypes.data
        words["router_functions"] = kernels.product_functions(kind.ggml_type).ctypes.data
        words["router"] = router.data_ptr()
        words["router_row_bytes"] = kind.row_bytes(router.shape[1])
        words["is_normalised"] = bool(getattr(mlp.gate, "norm_topk_prob", True))

    def prepare(self, num_threads: int, num_tokens: int, states: int, out: int) -> None:
        """Room for so many threads and tokens; `states` and `out` are addresses of float32
        `[num_tokens, hidden]`."""
        if not len(self._jobs):
            return
        about, own = self._kept[0][0], self._jobs[list(_OF_LAYER)].copy()
        sizes = sizes_of(about, num_tokens, self._num_chosen, num_tokens, num_threads)
        room = room_for(sizes)
        count = num_tokens * self._num_chosen
        choices, shares = np.zeros(count, np.int64), np.zeros(count, np.float32)
        scores = np.zeros(num_tokens * int(about["num_experts"]), np.float32)
        self._jobs[:] = room.job[0]
        for name in _OF_LAYER:
            self._jobs[name] = own[name]
        self._jobs["num_chosen"], self._jobs["states"] = self._num_chosen, states
        self._jobs["out"], self._jobs["scores"] = out, scores.ctypes.data
        self._jobs["choices"], self._jobs["shares"] = choices.ctypes.data, shares.ctypes.data
        self._room = room, choices, shares, scores
