"""Gets the packed weights of a model ready for the kernels of a card, when it has been loaded.

A kernel is trusted once it has given, on the first rows of a matrix of each kind and width, the
weights and the products of the exact way. Then the fields of all such matrices are put apart. What
has no kernel, what does not compile here, what gives something else and what there is no memory for
stays as it is, and is computed the exact way; why is said once.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import torch

from chatcache.backends.local.packed import device_computing
from chatcache.backends.local.packed.blocks import BlockMatrix, PackedModule
from chatcache.backends.local.packed.device_layout import LAYOUTS, split
from chatcache.backends.local.packed.kernel_store import STORE

log = logging.getLogger(__name__)

VERSION = "1"  # of the arithmetic: other bits, another number
_TRIED_ROWS = 24  # of a matrix
_SUM_ERROR = 1e-5  # of float32, beside the sum of all magnitudes
_REFUSED: dict[tuple[str, int], str] = {}  # why, by kind and columns


@torch.inference_mode()
def get_ready(model: torch.nn.Module) -> bool:
    """Have kernels compute with the packed weights of a model on a card; returns whether all are."""
    modules = [module for module in model.modules() if isinstance(module, PackedModule)]
    known: dict[tuple[str, int], str] = {}
    with _compiled_code_kept():
        for module in modules:
            shape = module.matrix.kind.name, module.matrix.num_columns
            if shape not in known:
                known[shape] = why_not(module.matrix, module.dtype)
    _REFUSED.update(known)
    for shape, why in known.items():
        if why:
            log.warning("%s weights of %d columns are unpacked by torch: %s", *shape, why)
    _share_tied(model)
    for module in modules:
        if not known[module.matrix.kind.name, module.matrix.num_columns]:
            _put_apart(module)
    return all(module.split is not None for module in modules)


def remarks(model: torch.nn.Module) -> list[str]:
    """What somebody should know of packed weights on a card that no kernel computes with."""
    slow = [
        module.matrix
        for module in model.modules()
        if isinstance(module, PackedModule)
        and module.split is None
        and module.matrix.data.device.type == "cuda"
    ]
    reasons = {_REFUSED.get((matrix.kind.name, matrix.num_columns)) for matrix in slow}
    return [
        f"Each step unpacks weights ({why or 'there was no memory to put their fields apart'}). "
        "With --device cpu it may be quicker."
        for why in sorted(reasons, key=str)
    ]


def why_not(matrix: BlockMatrix, dtype: torch.dtype) -> str:
    """Why kernels do not compute with such a matrix where it lies; "" if they do."""
    if matrix.kind.name not in LAYOUTS:
        return f"there is no kernel for {matrix.kind.name}"
    try:
        from chatcache.backends.local.packed import device_products

        few = split(matrix.part(0, _TRIED_ROWS))
        weights = device_computing.unpacked(matrix.part(0, _TRIED_ROWS), torch.float32)
        if not torch.equal(device_products.unpacked(few, dtype), weights.to(dtype)):
            return f"the kernel for {matrix.kind.name} gives other weights here"
        generator = torch.Generator().manual_seed(0)
        states = torch.randn((device_computing.FEW_ROWS, matrix.num_columns), generator=generator)
        states = states.to(weights.device, dtype)
        for count in (1, len(states)):
            found = device_products.multiplied(states[:count], few)
            if not _is_close(found, states[:count], weights):
                return f"the kernel for {matrix.kind.name} gives other products here"
    except ImportError:
        return "the package triton is not installed"
    except Exception as error:  # whatever a compiler or a driver does not like
        log.warning("kernels cannot be used", exc_info=True)
        return f"kernels cannot be compiled: {str(error).partition(chr(10))[0]}"
    return ""


def _is_close(found: torch.Tensor, states: torch.Tensor, weights: torch.Tensor) -> bool:
    wide, exact = states.double(), weights.double().T
    expected, magnitudes = wide @ exact, wide.abs() @ exact.abs()
    bound = _SUM_ERROR * magnitudes + torch.finfo(found.dtype).eps * expected.abs()
    return bool(((found.double() - expected).abs() <= bound).all())


def _share_tied(model: Any) -> None:
    """An output layer with the embedding's weights has them once: moving a model copies them."""
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    if not (isinstance(embedding, PackedModule) and isinstance(output, PackedModule)):
        return
    ours, theirs = embedding.get_buffer("blocks"), output.get_buffer("blocks")
    if embedding.matrix.kind == output.matrix.kind and torch.equal(ours, theirs):
        output.blocks = ours


def _put_apart(module: PackedModule) -> None:
    ...


@contextlib.contextmanager
def _compiled_code_kept() -> Iterator[None]:
    """Keep what Triton compiles meanwhile beside the kernels of the processor."""
    try:
        from triton import knobs
    except ImportError:
        yield
        return
    place = STORE.open()
    with knobs.cache.scope():
        if place is not None:
            knobs.cache.dir = str(place / "triton")
        yield
    STORE.seal()
