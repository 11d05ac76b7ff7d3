"""Python's side of the pretended device: what `torch.cuda` says, streams, events, graphs.

It is imported without its package, by `path/sitecustomize.py`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map, tree_map_only

NAME = "pretended GPU"
_TOTAL_BYTES, _FREE_BYTES = 8 << 30, 6 << 30
# An answer of the device, or a size that it decides.
_ASKS = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "aten.equal")


def install(library: str) -> None:
    """Make `torch.cuda` this device."""
    torch.ops.load_library(library)
    cuda: Any = torch.cuda
    for name, answer in _ANSWERS.items():
        setattr(cuda, name, answer)
    cuda.Event, cuda.Stream, cuda.CUDAGraph = _Event, _Stream, _Graph
    cuda.stream = _on_stream
    cuda.current_stream = lambda device=None: _state.stream
    cuda.is_current_stream_capturing = lambda: _state.recorder is not None
    _pin(torch)
    _run_on_host(torch.nn.functional, "conv1d")
    _count_in_float(torch)
    _draw_on_host(torch)
    _clone_storages(torch)


class _State(threading.local):
    """Of one thread."""

    def __init__(self) -> None:
        self.stream = _DEFAULT_STREAM
        self.recorder: _Recorder | None = None


class _Event:
    def __init__(self, enable_timing: bool = False, **options: Any) -> None:
        self._at: float | None = None

    def record(self, stream: Any = None) -> None:
        self._at = time.perf_counter()

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        """Everything was done at once."""

    def wait(self, stream: Any = None) -> None:
        """The same."""

    def elapsed_time(self, later: _Event) -> float:
        assert self._at is not None
        assert later._at is not None
        return 1000 * (later._at - self._at)


class _Stream:
    cuda_stream = 0

    def __init__(self, device: Any = None, **options: Any) -> None:
        self.device = torch.device("cuda", 0)

    def wait_stream(self, other: Any) -> None:
        """What is queued is done at once."""

    def wait_event(self, event: Any) -> None:
        """The same."""

    def record_event(self, event: Any = None) -> Any:
        event = event or _Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        """Nothing is left to wait for."""

    def query(self) -> bool:
        return True


class _Recorder(TorchDispatchMode):
    """Keeps the operations of a capture, and refuses what a graph cannot hold."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if any(word in name for word in _ASKS):
            raise RuntimeError(f"{name}: operation not permitted when stream is capturing")
        output = func(*args, **(kwargs or {}))
        for tensor in _tensors((args, kwargs, output)):
            if tensor.device.type == "cpu" and tensor.dim() > 0 and not tensor.is_pinned():
                raise RuntimeError(f"{name}: memory of the host takes part in a capture")
        self.calls.append((func, args, kwargs or {}, output))
        return output


class _Graph:
    """Repeats what was recorded, on the memory that it was recorded with."""

    def __init__(self, keep_graph: bool = False) -> None:
        self._calls: list[tuple[Any, Any, Any, Any]] = []

    def capture_begin(self, pool: Any = None, **options: Any) -> None:
        _state.recorder = _Recorder()
        _state.recorder.__enter__()

    def capture_end(self) -> None:
        recorder, _state.recorder = _state.recorder, None
        assert recorder is not None
        recorder.__exit__(None, None, None)
        self._calls = recorder.calls

    def reset(self) -> None:
        self._calls = []

    def pool(self) -> tuple[int, int]:
        return (0, 1)

    @torch.inference_mode()
    def replay(self) -> None:
        made: dict[int, Any] = {}

        def current(tensor: torch.Tensor) -> Any:
            return made.get(id(tensor), tensor)

        for func, args, kwargs, recorded in self._calls:
            output = func(
                *tree_map_only(torch.Tensor, current, args),
                **tree_map_only(torch.Tensor, current, kwargs),
            )
            for old, new in zip(_tensors(recorded), _tensors(output), strict=True):
                made[id(old)] = new


@contextlib.contextmanager
def _on_stream(stream: Any) -> Iterator[None]:
    before, _state.stream = _state.stream, stream or _state.stream
    try:
        yield
    finally:
        _state.stream = before


def _tensors(tree: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    tree_map(lambda leaf: found.append(leaf) if isinstance(leaf, torch.Tensor) else None, tree)
    return found


def _pin(module: Any) -> None:
    """Locked memory: which memory is such is known by its address."""
    locked: set[int] = set()

    def locking(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def made(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
            tensor = make(*args, **kwargs)
            if pin_memory:
                locked.add(tensor.untyped_storage().data_ptr())
            return tensor

        return made

    def is_pinned(tensor: torch.Tensor, device: Any = None) -> bool:
        is_here = tensor.device.type == "cpu"
        return is_here and tensor.untyped_storage().data_ptr() in locked

    _device_constructors()  # torch remembers the real ones, which is what is called
    module.empty, module.zeros = locking(module.empty), locking(module.zeros)
    module.Tensor.is_pinned = is_pinned


def _clone_storages(module: Any) -> None:
    """As a deep copy of a model does."""
    clone = module.UntypedStorage.clone

    def call(storage: Any) -> Any:
        if storage.device.type == "cpu":
            return clone(storage)
        empty = module.empty(0, dtype=module.uint8, device=storage.device)
        return empty.set_(storage, 0, (storage.nbytes(),), (1,)).clone().untyped_storage()

    module.UntypedStorage.clone = call


def _draw_on_host(module: Any) -> None:
    """There is one kind of generator: the CPU's."""
    of_host = module.Generator

    class Generator(of_host):  # type: ignore[misc, valid-type]
        def __new__(cls, device: Any = "cpu") -> Any:
            return of_host.__new__(of_host, "cpu")

    module.Generator = Generator


def _run_on_host(module: Any, name: str) -> None:
    """A function that chooses its kernel by the device before any operation is seen."""
    function = getattr(module, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        tensors = _tensors((args, kwargs))
        places = {tensor.device for tensor in tensors}
        if len(places) > 1:
            raise RuntimeError(f"{name}: expected all tensors to be on one device")
        args, kwargs = tree_map_only(torch.Tensor, lambda tensor: tensor.cpu(), (args, kwargs))
        return function(*args, **kwargs).to(tensors[0].device)

    setattr(module, name, call)


def _count_in_float(module: Any) -> None:
    """A CPU counts no whole numbers, a GPU does."""
    histc = module.histc

    def call(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        counted: torch.Tensor = histc(tensor.float(), *args, **kwargs)
        return counted.to(tensor.dtype)

    module.histc = call


_DEFAULT_STREAM = _Stream()
_state = _State()
_PROPERTIES = SimpleNamespace(
    name=NAME, total_memory=_TOTAL_BYTES, major=9, minor=0, multi_processor_count=132
)
_ANSWERS: dict[str, Any] = {
    "_lazy_init": lambda: None,
    "_sleep": lambda cycles: None,
    "current_device": lambda: 0,
    "default_stream": lambda device=None: _DEFAULT_STREAM,
    "device_count": lambda: 1,
    "empty_cache": lambda: None,
    "get_device_capability": lambda device=None: (9, 0),
    "get_device_name": lambda device=None: NAME,
    "get_device_properties": lambda device=None: _PROPERTIES,
    "graph_pool_handle": lambda: (0, 1),
    "is_available": lambda: True,
    "is_bf16_supported": lambda including_emulation=True: True,
    "is_initialized": lambda: True,
    "manual_seed_all": lambda seed: None,
    "max_memory_allocated": lambda device=None: _TOTAL_BYTES - _FREE_BYTES,
    "mem_get_info": lambda device=None: (_FREE_BYTES, _TOTAL_BYTES),
    "memory_allocated": lambda device=None: _TOTAL_BYTES - _FREE_BYTES,
    "memory_reserved": lambda device=None: _TOTAL_BYTES - _FREE_BYTES,
    "reset_peak_memory_stats": lambda device=None: None,
    "set_device": lambda device: None,
    "synchronize": lambda device=None: None,
}
