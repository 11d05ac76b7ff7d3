"""Gets the packed weights of a model ready for the kernels of a GPU, once it has been loaded.

A kernel is trusted when it has given, on the first rows of a matrix of each kind and width, the
weights and the products of the exact way. Then the fields of all such matrices are put apart. What
has no kernel, what does not compile here, what gives something else and what there is no memory for
stays as it is, and is computed the exact way; why is said once.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from collections.abc import Iterator
from typing import Any

import torch

from chatcache.backends.local.packed import device_computing
from chatcache.backends.local.packed.blocks import BlockMatrix
from chatcache.backends.local.packed.device_layout import LAYOUTS, SplitMatrix, split
from chatcache.backends.local.packed.kernel_store import GPU_FOLDER, STORE
from chatcache.backends.local.packed.modules import BlockExperts, BlockModule

log = logging.getLogger(__name__)

VERSION = "1"  # of the arithmetic: other bits, another number
GETTING_READY = "getting packed weights ready for the GPU"  # what is said while it takes seconds
_TRIED_ROWS = 24  # of a matrix
_SUM_ERROR = 1e-5  # of sums in float32, beside the sum of all magnitudes


@torch.inference_mode()
def get_ready(model: Any) -> bool:
    """Have kernels compute with the packed weights of a model; returns whether they do with any."""
    modules = [module for module in model.modules() if isinstance(module, BlockModule)]
    shapes = {(module.kind, module.matrix.num_columns): module.matrix for module in modules}
    with _compiled_code_kept():
        refused = {shape: why_not(matrix, model.dtype) for shape, matrix in shapes.items()}
    _share_tied(model)
    made: dict[int, SplitMatrix] = {}  # by address: tied weights are there once
    for module in modules:
        matrix = module.matrix
        module.why_whole = refused[matrix.kind, matrix.num_columns]
        if module.why_whole:
            continue
        try:
            if matrix.address not in made:
                made[matrix.address] = split(matrix)
            module.replace_blocks(made[matrix.address])
        except torch.OutOfMemoryError:
            module.why_whole = "there is no memory to put their fields apart"
    for module in model.modules():
        if isinstance(module, BlockExperts):
            module.why_whole = "there is no kernel for experts"
    torch.cuda.empty_cache()  # of what the blocks took
    for remark in remarks(model):
        log.warning("%s", remark)
    return bool(made)


def remarks(model: Any) -> list[str]:
    """What somebody should know of packed weights on a GPU that no kernel computes with."""
    found = {m.why_whole for m in model.modules() if isinstance(m, BlockModule | BlockExperts)}
    return [
        f"Packed weights are unpacked at each step, as {why}. With --device cpu it may be quicker."
        for why in sorted(found - {""})
    ]


def why_not(matrix: BlockMatrix, dtype: torch.dtype) -> str:
    """Why kernels do not compute with such a matrix where it lies; "" if they do."""
    name = matrix.kind.name
    if name not in LAYOUTS:
        return f"there is no kernel for {name}"
    try:
        from chatcache.backends.local.packed import device_products

        some = matrix.part(0, _TRIED_ROWS)
        few, weights = split(some), device_computing.unpacked(some, torch.float32)
        if not torch.equal(device_products.unpacked(few, dtype), weights.to(dtype)):
            return f"the kernel for {name} gives other weights here"
        generator = torch.Generator().manual_seed(0)
        states = torch.randn((device_computing.FEW_ROWS, matrix.num_columns), generator=generator)
        states = states.to(weights.device, dtype)
        for count in (1, len(states)):
            found = device_products.multiplied(states[:count], few)
            if not _is_close(found, states[:count], weights):
                return f"the kernel for {name} gives other products here"
    except ImportError as error:
        return f"the package {error.name} is not installed"
    except Exception as error:  # whatever a compiler or a driver does not like
        log.warning("kernels for packed weights cannot be used", exc_info=True)
        return f"the kernels of the GPU cannot be used: {str(error).strip().partition(chr(10))[0]}"
    return ""


def _is_close(found: torch.Tensor, states: torch.Tensor, weights: torch.Tensor) -> bool:
    wide, exact = states.double(), weights.double().T
    expected, magnitudes = wide @ exact, wide.abs() @ exact.abs()
    bound = _SUM_ERROR * magnitudes + torch.finfo(found.dtype).eps * expected.abs()
    return bool(((found.double() - expected).abs() <= bound).all())


def _share_tied(model: Any) -> None:
    """An output layer with the embedding's weights has them once: moving a model copies them."""
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    if not (isinstance(embedding, BlockModule) and isinstance(output, BlockModule)):
        return
    ours, theirs = embedding.get_buffer("blocks"), output.get_buffer("blocks")
    if embedding.kind == output.kind and torch.equal(ours, theirs):
        output.blocks = ours


@contextlib.contextmanager
def _compiled_code_kept() -> Iterator[None]:
    """Keep what Triton compiles meanwhile beside the kernels of the processor."""
    place = STORE.open()
    if place is None or importlib.util.find_spec("triton") is None:
        yield
        return
    from triton import knobs

    with knobs.cache.scope():
        knobs.cache.dir = str(place / GPU_FOLDER)
        yield
    STORE.seal()
