"""Loads a model in a process of its own: one JSON object of options on stdin, one `Loading` back.

The built-in model is loaded and run first, in the same way: what the libraries take of time and
memory when they are first used is neither the model's nor counted.
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
from chatcache.bench.contenders import Chatcache
from chatcache.bench.memory import Loading, forget_peak, process_memory
from chatcache.bench.setup import load_tuned


def measure(
    model: str,
    cache_dir: Path,
    directory: Path,
    *,
    dtype: str,
    quantize: str | None,
    few: list[int],
    many: list[int],
) -> Loading:
    """Load, then read a few tokens and many."""
    first, _ = load_tuned(BUILTIN, directory, dtype=dtype, quantize=quantize)
    warm_up = Chatcache(first, directory / "first")
    warm_up.cold([0] * len(many))
    warm_up.decode(2)
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
            few=options["few"],
            many=options["many"],
        )
    print(json.dumps(asdict(result)))


if __name__ == "__main__":
    main()
