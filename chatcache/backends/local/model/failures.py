"""What kind of failure an error of torch is, and the way out that a person has.

Owns telling a full memory and a trouble of the GPU from everything else, by class and by words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from chatcache.backends.local.model.progress import first_line
from chatcache.errors import ChatcacheError, ModelLoadError, UnavailableError

_NO_MEMORY = re.compile(r"not enough memory|out of memory|can't allocate memory|bad alloc", re.I)
_GPU = re.compile(
    r"\b(CUDA|cuDNN|cuBLAS\w*|cuSOLVER|NVRTC|NVIDIA|NCCL|HIP|ROCm|MIOpen|MPS|Metal|GPU|Triton)\b",
    re.I,
)


def is_out_of_memory(error: BaseException) -> bool:
    is_of_kind = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return is_of_kind or (isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error))))


def is_of_gpu(error: BaseException) -> bool:
    """Whether an error comes from a GPU or from its driver."""
    is_class = isinstance(error, (torch.OutOfMemoryError, torch.AcceleratorError))
    return is_class or bool(_GPU.search(str(error)))


def without_gpu(error: BaseException) -> str:
    """The sentence that goes on without the GPU, where the GPU is what failed."""
    return " --device cpu does without the GPU." if is_of_gpu(error) else ""


@contextmanager
def naming_gpu() -> Iterator[None]:
    """What a GPU or its driver raises meanwhile becomes an UnavailableError that says so."""
    try:
        yield
    except ChatcacheError:
        raise
    except Exception as error:
        if not is_of_gpu(error):
            raise
        raise UnavailableError(
            f"The GPU cannot be used: {first_line(error)}.",
            f"Check its driver.{without_gpu(error)}",
        ) from error


def load_error(path: Path, config: Any, error: Exception) -> ModelLoadError:
    """What transformers and torch say, in words that a person can do something with."""
    if "ignore_mismatched_sizes" in str(error):
        return ModelLoadError(
            f"The weights in {path} have other shapes than config.json says.",
            "The files belong to different models; download it again.",
        )
    if isinstance(error, KeyError) and f'"{error.args[0]}"' in config.to_json_string():
        return ModelLoadError(
            f"{path / 'config.json'} names {error.args[0]!r}, which this version of transformers "
            "does not know.",
            "A newer chatcache may know it; choose another model with --model.",
        )
    return ModelLoadError(
        f"The model in {path} cannot be loaded: {first_line(error)}.",
        f"The log has the details; choose another model with --model.{without_gpu(error)}",
    )
