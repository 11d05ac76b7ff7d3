"""A full memory and a GPU that fails are named, with the way out; nothing else is."""

from __future__ import annotations

import pytest
import torch

from chatcache.backends.local.model.failures import (
    is_of_gpu,
    is_out_of_memory,
    naming_gpu,
    without_gpu,
)
from chatcache.backends.local.run.forward import memory_for
from chatcache.errors import ModelLoadError, UnavailableError

OF_GPU: list[Exception] = [
    RuntimeError("CUDA error: no kernel image is available for execution on the device"),
    RuntimeError("Found no NVIDIA driver on your system."),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
    RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate, cublas"),
    RuntimeError("HIP error: invalid device function"),
    RuntimeError("MPS backend out of memory (MPS allocated: 17.00 GB)"),
    AssertionError("Torch not compiled with CUDA enabled"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    torch.AcceleratorError("an illegal memory access was encountered"),
]
OF_MEMORY: list[Exception] = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("MPS backend out of memory"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
]
OTHERS: list[Exception] = [
    RuntimeError("shape mismatch"),
    ValueError("Unrecognized configuration class"),
    KeyError("hips"),
]


@pytest.mark.parametrize("error", OF_GPU)
def test_a_failing_gpu_names_the_way_without_it(error: Exception) -> None:
    assert is_of_gpu(error)
    with pytest.raises(UnavailableError) as caught, naming_gpu():
        raise error
    assert "GPU" in caught.value.message
    assert "--device cpu" in caught.value.hint


@pytest.mark.parametrize("error", OF_MEMORY)
def test_a_full_memory_is_told_from_a_fault(error: Exception) -> None:
    assert is_out_of_memory(error)
    with pytest.raises(UnavailableError, match="not enough memory") as caught, memory_for(4096):
        raise error
    assert ("--device cpu" in caught.value.hint) == is_of_gpu(error)


@pytest.mark.parametrize("error", OTHERS)
def test_others_stay_what_they_are(error: Exception) -> None:
    assert not is_of_gpu(error)
    assert not is_out_of_memory(error)
    assert without_gpu(error) == ""
    with pytest.raises(type(error)), naming_gpu():
        raise error


def test_what_is_explained_already_is_left_alone() -> None:
    with pytest.raises(ModelLoadError, match="of the GPU file"), naming_gpu():
        raise ModelLoadError("A file of the GPU file is missing.")
