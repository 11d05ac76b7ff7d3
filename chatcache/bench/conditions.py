"""What a run was made on: model, machine, versions."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import torch
import transformers

from chatcache.bench.rows import MESSAGE_TOKENS
from chatcache.bench.setup import BenchModel


def conditions(loaded: BenchModel, tokens: int, runs: int, *, has_llama: bool) -> dict[str, Any]:
    """The `conditions` of the JSON."""
    return {
        "model": loaded.name,
        "parameters": loaded.num_parameters,
        "dtype": loaded.dtype_name,
        "device": str(loaded.device),
        "threads": torch.get_num_threads(),
        "tokens": tokens,
        "message_tokens": MESSAGE_TOKENS,
        "runs": runs,
        "cpu": cpu_name(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "llama_cpp": importlib.metadata.version("llama-cpp-python") if has_llama else None,
    }


def cpu_name() -> str:
    """As the kernel calls it, else the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
