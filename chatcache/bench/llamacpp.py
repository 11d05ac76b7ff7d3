"""llama.cpp as a contender, when llama-cpp-python is installed.

Method: the same weights are written as a GGUF file in the same dtype (`gguf_file.py`), and packed
by llama.cpp's own quantiser where chatcache packs them (4bit: Q4_K_M, 8bit: Q8_0); a model that is
a GGUF file is run as it is. llama.cpp runs in a process of its own (`llamacpp_child.py`), on the
same ids, with the same number of threads, in turn with the others. Its rows: prefill and decode as
`llama_decode` does them; live: the sequence is cut behind the history; RAM:
`llama_state_seq_set_data`; disk: `llama_state_seq_load_file` with the page cache cold or warm; keep
and spill: the calls that make these copies, the whole sequence every time. Everything else is as
llama.cpp chooses.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chatcache.bench.gguf_file import refusal, write_gguf
from chatcache.bench.limits import drop_page_cache
from chatcache.bench.memory import Loading
from chatcache.bench.processes import child_environment
from chatcache.errors import UnavailableError

_SPARE_TOKENS = 256
_CHILD = "chatcache.bench.llamacpp_child"
INSTALL = "pip install 'chatcache[bench]'"
# What llama.cpp's quantiser makes where chatcache makes its own.
MIXES = {"4bit": "Q4_K_M", "8bit": "Q8_0"}


def why_not_installed() -> str | None:
    """What is missing of the packages that it needs; None when nothing is."""
    for package, module in (("llama-cpp-python", "llama_cpp"), ("gguf", "gguf")):
        if importlib.util.find_spec(module) is None:
            return f"{package} is not installed ({INSTALL})"
    return None


def has_cuda() -> bool:
    """Whether llama.cpp can compute on a GPU. Asked in a process of its own."""
    process = _Process()
    try:
        return bool(process.call("offload")["can"])
    finally:
        process.close()


def why_not(config: Any) -> str | None:
    """Why llama.cpp cannot run converted weights; None when it can."""
    return why_not_installed() or refusal(config)


def converted(model: Any, directory: Path, quantize: str | None = None) -> Path:
    """The weights of `model` as a file for llama.cpp, packed if `quantize` says so.

    Raises UnavailableError."""
    exact = directory / "model.gguf"
    write_gguf(model, exact)
    if quantize is None:
        return exact
    packed = directory / f"model-{quantize}.gguf"
    process = _Process()
    try:
        process.call("pack", source=str(exact), target=str(packed), mix=MIXES[quantize])
    finally:
        process.close()
    exact.unlink()
    return packed


class LlamaCpp:
    """llama.cpp on a GGUF file, one sequence at a time. Times are seconds."""

    def __init__(
        self,
        weights: Path,
        directory: Path,
        num_tokens: int,
        num_threads: int,
        *,
        is_float32: bool = False,
        is_on_gpu: bool = False,
    ):
        """`directory` is for the state it writes, `num_tokens` the longest history, `is_float32`
        the dtype of K and V. Raises UnavailableError."""
        self._state = directory / "slot.bin"
        self._num_kept = 0
        self._process = _Process()
        self._call(
            "open",
            path=str(weights),
            num_threads=num_threads,
            num_context=num_tokens + _SPARE_TOKENS,
            is_float32=is_float32,
            is_on_gpu=is_on_gpu,
        )

    def loading(self, few: Sequence[int], many: Sequence[int]) -> Loading:
        """What loading took, and what the process holds after these prompts."""
        return Loading.of(self._call("loading", few=list(few), many=list(many)))

    def cold(self, ids: Sequence[int]) -> float:
        return self._seconds("cold", ids=list(ids))

    def decode(self, num_tokens: int) -> float:
        """Seconds per token of greedy decoding behind the last prompt."""
        return self._seconds("decode", count=num_tokens)

    def greedy(self, num_tokens: int) -> list[int]:
        """The tokens of `decode`, which starts with token 1."""
        tokens: list[int] = self._call("decode", count=num_tokens)["tokens"]
        return tokens

    def logits(self) -> list[float]:
        """Those behind the last token, `[vocab]`."""
        logits: list[float] = self._call("logits")["logits"]
        return logits

    def keep(self, ids: Sequence[int]) -> tuple[float, float, int]:
        """Keep the state of `ids`, whose tokens are there: seconds to RAM and to a file, bytes."""
        self._num_kept = len(ids)
        in_ram = self._seconds("keep", count=len(ids))
        saved = self._call("save", path=str(self._state), ids=list(ids))
        return in_ram, float(saved["seconds"]), int(saved["bytes"])

    def live(self, message: Sequence[int]) -> float:
        """A message behind the history that is in the sequence."""
        return self._seconds("live", keep=self._num_kept, ids=list(message))

    def from_ram(self, message: Sequence[int]) -> float:
        return self._seconds("ram", ids=list(message))

    def from_disk(self, message: Sequence[int], *, is_page_cache_cold: bool) -> float:
        if is_page_cache_cold:
            drop_page_cache(self._state)
        return self._seconds("load", path=str(self._state), ids=list(message))

    def close(self) -> None:
        """End the process. Its files are the caller's directory's."""
        self._process.close()

    def _seconds(self, command: str, **options: Any) -> float:
        return float(self._call(command, **options)["seconds"])

    def _call(self, command: str, **options: Any) -> dict[str, Any]:
        return self._process.call(command, **options)


class _Process:
    """llama.cpp's process: one JSON object each way."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", _CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=child_environment(),
        )

    def call(self, command: str, **options: Any) -> dict[str, Any]:
        """Raises UnavailableError with what it says."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("the process has no pipes")
        try:
            stdin.write(json.dumps({"do": command, **options}) + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        answer: dict[str, Any] = json.loads(line) if line else {"error": "its process ended"}
        if "error" in answer:
            raise UnavailableError(
                f"llama.cpp failed at {command!r}: {answer['error']}.",
                "Leave it out with --against transformers.",
            )
        return answer

    def close(self) -> None:
        """End it."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
