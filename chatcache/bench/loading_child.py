"""Loads a model in a process of its own: one JSON object of options on stdin, one `Loading` back.

The built-in model is loaded and run first, and a product is made with each kind of blocks: what the
libraries and the compiler take of time and memory is not the model's, and not counted.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import torch

from chatcache.backends.local.model.resolve import BUILTIN
from chatcache.backends.local.packed.blocks import KINDS, BlockMatrix
from chatcache.bench.contenders import Chatcache
from chatcache.bench.memory import Loading, forget_peak, process_memory
from chatcache.bench.setup import load_tuned

_COLUMNS = 1024


def measure(
    model: str,
    cache_dir: Path,
    directory: Path,
    *,
    dtype: str,
    quantize: str | None,
    kinds: list[str],
    few: list[int],
    many: list[int],
) -> Loading:
    """Load, then read a few tokens and many."""
    first, _ = load_tuned(BUILTIN, directory, dtype=dtype, quantize=quantize)
    warm_up = Chatcache(first, directory / "first")
    warm_up.cold([0] * len(many))
    warm_up.decode(2)
    _compile(kinds, first.dtype)
    forget_peak()
    before, began = process_memory(), time.perf_counter()
    loaded, _ = load_tuned(model, cache_dir, dtype=dtype, quantize=quantize)
    load, after = time.perf_counter() - began, process_memory()
    contender = Chatcache(loaded, directory / "second")
    first_token = contender.cold(few)
    used = process_memory()
    contender.cold(many)
    result = Loading(load, first_token, before, after, used, process_memory())
    contender.close()
    warm_up.close()
    return result


def _compile(kinds: list[str], dtype: torch.dtype) -> None:
    """Run a product with each kind of blocks, by few rows of activations and by many."""
    if not any(kind in KINDS for kind in kinds):
        return
    from chatcache.backends.local.packed.modules import BlockLinear

    for kind in (KINDS[name] for name in kinds if name in KINDS):
        blocks = torch.zeros((64, kind.row_bytes(_COLUMNS)), dtype=torch.uint8)
        linear = BlockLinear(BlockMatrix(kind, blocks, _COLUMNS))
        for num_rows in (1, 64):
            linear(torch.ones((num_rows, _COLUMNS), dtype=dtype))


def main() -> None:
    """What libraries print goes to stderr."""
    options = json.loads(sys.stdin.read())
    torch.set_num_threads(options["threads"])
    with tempfile.TemporaryDirectory(prefix="chatcache-bench-") as directory:
        result = measure(
            options["model"],
            Path(options["cache_dir"]),
            Path(directory),
            dtype=options["dtype"],
            quantize=options["quantize"],
            kinds=options["kinds"],
            few=options["few"],
            many=options["many"],
        )
    print(json.dumps(asdict(result)))


if __name__ == "__main__":
    main()
