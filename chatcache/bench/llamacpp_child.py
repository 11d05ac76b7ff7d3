"""llama.cpp in a process of its own: reads one JSON command per line, answers with one line.

It calls the C API through llama-cpp-python, with llama.cpp's own defaults but for the threads, the
length of the context and, for float32 weights, a float32 KV cache (its default is float16, as many
bytes as bfloat16). Prompts go through `llama_decode` in batches of 2,048 (512 at a time inside).
`pack` needs no model: it makes one file of another with llama.cpp's own quantiser.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from chatcache.bench.memory import Loading, forget_peak, process_memory

_BATCH_TOKENS = 2048
_TYPE_F32 = 0
_SEQUENCE = 0
_ALL_LAYERS = 999


class Llama:
    """One model, one context, one sequence. Times are seconds."""

    def __init__(
        self,
        path: str,
        *,
        num_threads: int,
        num_context: int,
        is_float32: bool,
        is_on_gpu: bool,
    ):
        self._api = _backend()
        forget_peak()
        self._before, began = process_memory(), time.perf_counter()
        options = self._api.llama_model_default_params()
        options.n_gpu_layers = _ALL_LAYERS if is_on_gpu else 0
        self._model = self._api.llama_model_load_from_file(path.encode(), options)
        params = self._api.llama_context_default_params()
        params.n_ctx, params.n_batch = num_context, _BATCH_TOKENS
        params.n_threads = params.n_threads_batch = num_threads
        if is_float32:
            params.type_k = params.type_v = _TYPE_F32
        self._context = self._api.llama_init_from_model(self._model, params)
        if not self._model or not self._context:
            raise RuntimeError("llama.cpp cannot load the converted model")
        self._memory = self._api.llama_get_memory(self._context)
        vocab = self._api.llama_model_get_vocab(self._model)
        self._num_vocab = int(self._api.llama_vocab_n_tokens(vocab))
        self._kept: ctypes.Array[ctypes.c_uint8] | None = None
        self._load = time.perf_counter() - began
        self._loaded = process_memory()

    def loading(self, few: Sequence[int], many: Sequence[int]) -> dict[str, Any]:
        """What loading took, and what this process holds after a few tokens and after many."""
        first_token = self.cold(few)["seconds"]
        used = process_memory()
        self.cold(many)
        return asdict(
            Loading(self._load, first_token, self._before, self._loaded, used, process_memory())
        )

    def cold(self, ids: Sequence[int]) -> dict[str, Any]:
        began = time.perf_counter()
        self._api.llama_memory_clear(self._memory, False)
        self._first_token(ids)
        return {"seconds": time.perf_counter() - began}

    def live(self, keep: int, ids: Sequence[int]) -> dict[str, Any]:
        """The first `keep` tokens of the sequence stay as they are."""
        began = time.perf_counter()
        self._cut(keep)
        self._first_token(ids)
        return {"seconds": time.perf_counter() - began}

    def decode(self, count: int) -> dict[str, Any]:
        """Greedy steps behind what is there."""
        token, tokens = 1, []
        began = time.perf_counter()
        for _ in range(count):
            self._append([token])
            token = self._best()
            tokens.append(token)
        return {"seconds": (time.perf_counter() - began) / count, "tokens": tokens}

    def keep(self, count: int) -> dict[str, Any]:
        """Copy the state of the first `count` tokens into memory, as llama-server's cache does."""
        self._cut(count)
        began = time.perf_counter()
        size = self._api.llama_state_seq_get_size(self._context, _SEQUENCE)
        self._kept = (ctypes.c_uint8 * size)()
        self._api.llama_state_seq_get_data(self._context, self._kept, size, _SEQUENCE)
        return {"seconds": time.perf_counter() - began, "bytes": size}

    def ram(self, ids: Sequence[int]) -> dict[str, Any]:
        """Put the state kept in memory back, then the message."""
        began = time.perf_counter()
        self._api.llama_memory_clear(self._memory, False)
        kept = self._kept
        if kept is None or not self._api.llama_state_seq_set_data(
            self._context, kept, len(kept), _SEQUENCE
        ):
            raise RuntimeError("llama.cpp did not take its state back")
        self._first_token(ids)
        return {"seconds": time.perf_counter() - began}

    def save(self, path: str, ids: Sequence[int]) -> dict[str, Any]:
        """Write the state to a file, as llama-server's slot save does."""
        self._cut(len(ids))
        tokens = (self._api.llama_token * len(ids))(*ids)
        began = time.perf_counter()
        size = self._api.llama_state_seq_save_file(
            self._context, path.encode(), _SEQUENCE, tokens, len(ids)
        )
        return {"seconds": time.perf_counter() - began, "bytes": int(size)}

    def load(self, path: str, ids: Sequence[int]) -> dict[str, Any]:
        """Restore the state from a file, then the message `ids` behind it."""
        began = time.perf_counter()
        self._api.llama_memory_clear(self._memory, False)
        capacity = self._api.llama_n_ctx(self._context)
        tokens, count = (self._api.llama_token * capacity)(), ctypes.c_size_t()
        size = self._api.llama_state_seq_load_file(
            self._context, path.encode(), _SEQUENCE, tokens, capacity, ctypes.byref(count)
        )
        if not size:
            raise RuntimeError("llama.cpp did not restore its file")
        self._first_token(ids)
        return {"seconds": time.perf_counter() - began, "bytes": int(size)}

    def logits(self) -> dict[str, Any]:
        """The logits behind the last token."""
        logits = self._api.llama_get_logits_ith(self._context, -1)
        return {"logits": [logits[index] for index in range(self._num_vocab)]}

    def _first_token(self, ids: Sequence[int]) -> None:
        for start in range(0, len(ids), _BATCH_TOKENS):
            self._append(ids[start : start + _BATCH_TOKENS])
        self._best()

    def _append(self, ids: Sequence[int]) -> None:
        tokens = (self._api.llama_token * len(ids))(*ids)
        batch = self._api.llama_batch_get_one(tokens, len(ids))
        if code := self._api.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode failed with {code}")

    def _cut(self, num_tokens: int) -> None:
        self._api.llama_memory_seq_rm(self._memory, _SEQUENCE, num_tokens, -1)

    def _best(self) -> int:
        logits = self._api.llama_get_logits_ith(self._context, -1)
        numpy: Any = importlib.import_module("numpy")
        return int(numpy.ctypeslib.as_array(logits, shape=(self._num_vocab,)).argmax())


def pack(source: str, target: str, mix: str) -> dict[str, Any]:
    """Make a file of packed weights: `mix` is a name like Q4_K_M."""
    api = _backend()
    options = api.llama_model_quantize_default_params()
    options.ftype = getattr(api, f"LLAMA_FTYPE_MOSTLY_{mix}")
    if code := api.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(options)):
        raise RuntimeError(f"llama_model_quantize failed with {code}")
    return {}


def offload() -> dict[str, Any]:
    """Whether layers can be computed on a GPU."""
    return {"can": bool(_backend().llama_supports_gpu_offload())}


def _backend() -> Any:
    api: Any = importlib.import_module("llama_cpp")
    api.llama_backend_init()
    return api


def main() -> None:
    """Serve until stdin ends. What llama.cpp itself prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    llama: Llama | None = None
    for line in sys.stdin:
        command = json.loads(line)
        name = command.pop("do")
        try:
            if name == "pack":
                answer = pack(**command)
            elif name == "offload":
                answer = offload()
            elif llama is None:
                llama, answer = Llama(**command), {}
            else:
                answer = getattr(llama, name)(**command)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
