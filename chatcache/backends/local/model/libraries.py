"""Imports torch and transformers without what no chat needs: most of a cold start was imports.

Torch's compiler, its rules for tensors without data, what transformers needs to distribute a model,
sympy, and the list of every class of transformers come when somebody asks for them, which a chat
never does. Measured in CPU time: 3.6 s of imports became 1.0 s.

It is done once, in a process of the engine, before torch is imported. Everything works without it.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import importlib.util
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from chatcache.backends.local.model.deferral import Deferral, Rule

log = logging.getLogger(__name__)

# Imported first: they have parts in C, and the dynamic linker does one library at a time.
_NATIVE = (
    *("decimal", "fcntl", "hashlib", "heapq", "queue", "sqlite3", "ssl", "uuid"),
    *("markupsafe", "numpy", "regex", "safetensors", "tokenizers", "xxhash", "yaml"),
)
# Imported while it does torch: Python, nothing else, and nothing of it needs torch.
_BESIDE = ("chatcache.cache.files.store", "huggingface_hub.hf_api", "jinja2.sandbox")
_LIBRARIES = (
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
)
_KNOWN_TORCH = "2.13."
_deferral: Deferral | None = None


def import_libraries() -> None:
    """Import torch and transformers, with as little of them as goes."""
    global _deferral
    if _deferral is not None or "torch" in sys.modules:
        return
    _deferral = Deferral(_rules())
    sys.meta_path.insert(0, _deferral)
    _import_early(_NATIVE)
    with _torch_linked():
        _import_early(_BESIDE)
    importlib.import_module("torch")
    _import_early(["torch._prims.rng_prims"])  # without it torch has no Generator
    try:
        _import_transformers()
    except Exception:
        log.exception("transformers cannot be imported in parts: it is imported whole")
        sys.meta_path.remove(_deferral)
        _deferral.run_all()


def import_rest() -> bool:
    """Import all that was deferred: something has failed, perhaps for the lack of it.

    Returns whether there was anything."""
    return _deferral is not None and _deferral.run_all()


@contextmanager
def collector_off() -> Iterator[None]:
    """Imports and a model make millions of objects that stay: the garbage collector need not walk
    through them meanwhile, nor ever again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()


def _import_early(names: Iterable[str]) -> None:
    """Import what is needed later; if it is not there, who needs it says so."""
    for name in names:
        with suppress(ImportError):
            importlib.import_module(name)


@contextmanager
def _torch_linked() -> Iterator[None]:
    """Have the dynamic linker load torch in a thread meanwhile: a quarter of importing it, which
    Python would wait for. What fails here is told by the import."""
    found = importlib.util.find_spec("torch")
    places = [] if found is None else found.submodule_search_locations or []
    folders = [Path(place, "lib") for place in places]
    # A build for a GPU has libraries of its maker, which torch itself looks for in the right order.
    is_plain = not any((folder / "libtorch_cuda.so").exists() for folder in folders)
    libraries = [folder / "libtorch_cpu.so" for folder in folders] if is_plain else []
    thread = threading.Thread(target=_link, args=(libraries,), name="linker")
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _link(libraries: Iterable[Path]) -> None:
    linker = ctypes.CDLL(None)  # a call of its functions lets other threads go on
    linker.dlopen.argtypes, linker.dlopen.restype = (ctypes.c_char_p, ctypes.c_int), ctypes.c_void_p
    for library in libraries:
        if sys.platform == "linux" and library.is_file():
            linker.dlopen(os.fsencode(library), os.RTLD_NOW)


def _rules() -> dict[str, Rule]:
    """What can wait. Of torch, only in the version whose insides were looked at."""
    torch_rules = _torch_rules() if version("torch").startswith(_KNOWN_TORCH) else {}
    return torch_rules | {
        "transformers": Rule(given={"__version__": version("transformers")}, is_list=True),
        "transformers.models": Rule(is_list=True),
    }


def _torch_rules() -> dict[str, Rule]:
    return {
        # What it marks is for the compiler, which is not there before it has been run.
        "torch._dynamo": Rule(
            given={
                "allow_in_graph": _unmarked,
                "assume_constant_result": _unmarked,
                "disable": _unmarked,
            },
            submodules=frozenset({"_trace_wrapped_higher_order_op"}),
        ),
        "torch._meta_registrations": Rule(),
        "torch._prims": Rule(submodules=frozenset({"rng_prims"})),
    }


def _unmarked(
    fn: Callable[..., Any] | None = None, recursive: bool = True, **options: Any
) -> Callable[..., Any]:
    """A decorator that changes nothing, with arguments or without."""
    return (lambda marked: marked) if fn is None else fn


def _import_transformers() -> None:
    utils: Any = importlib.import_module("transformers.utils")
    _leave_out_distributed(utils.import_utils)
    with _given(utils, "direct_transformers_import", lambda path: sys.modules["transformers"]):
        importlib.import_module("transformers.processing_utils")
    for name in _LIBRARIES:
        importlib.import_module(name)


def _leave_out_distributed(import_utils: Any) -> None:
    """Let transformers find no `torch.distributed`, as in builds of torch without it: it asks once,
    and remembers."""
    distributed: Any = importlib.import_module("torch.distributed")
    with _given(distributed, "is_available", lambda: False):
        import_utils.is_torch_distributed_available()


@contextmanager
def _given(module: Any, name: str, value: object) -> Iterator[None]:
    """A module with another value for one of its names meanwhile."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)
