"""Loads a model in a process of its own: one JSON object of options on stdin, one `Loading` back.

The built-in model is loaded and run first, so that torch and transformers are there. Times are
those of the first load of the model, with what multiplies its weights compiled before, as after the
first start of an engine; memory is that of a second one, so that the compiler's is not taken for
the model's.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

from chatcache.backends.local.model.resolve import BUILTIN
from chatcache.bench.clock import settled_at
from chatcache.bench.contenders import Chatcache
from chatcache.bench.memory import Loading, forget_peak, process_memory
from chatcache.bench.setup import load_tuned


def measure(
    name: str,
    cache_dir: Path,
    directory: Path,
    prompts: tuple[list[int], list[int]],
    *,
    dtype: str,
    device: str,
    quantize: str | None = None,
) -> Loading:
    """Load, then read a few tokens and many; nothing of the model is left afterwards."""
    forget_peak()
    before, began = process_memory(), time.perf_counter()
    model, _ = load_tuned(name, cache_dir, dtype=dtype, quantize=quantize, device=device)
    load, loaded = settled_at(model.device) - began, process_memory()
    began = time.perf_counter()
    contender = Chatcache(model, directory)
    ready, num_before = settled_at(model.device) - began, contender.num_captured
    first_token = contender.cold(prompts[0])
    num_captured = contender.num_captured - num_before
    contender.decode(1)
    used = process_memory()
    contender.cold(prompts[1])
    busy = process_memory()
    contender.close()
    return Loading(load, first_token, before, loaded, used, busy, ready, num_captured)


def main() -> None:
    """What libraries print goes to stderr."""
    told = json.loads(sys.stdin.read())
    torch.set_num_threads(told["threads"])
    prompts, how = (told["few"], told["many"]), {"dtype": told["dtype"], "device": told["device"]}
    model, cache_dir, quantize = told["model"], Path(told["cache_dir"]), told["quantize"]
    with tempfile.TemporaryDirectory(prefix="chatcache-bench-") as scratch:
        at = Path(scratch)
        measure(BUILTIN, cache_dir, at / "built-in", prompts, **how)
        gc.collect()
        found = measure(model, cache_dir, at / "first", prompts, **how, quantize=quantize)
        if told["device"] == "cpu":  # else the memory is not that of the process
            gc.collect()
            again = measure(model, cache_dir, at / "second", prompts, **how, quantize=quantize)
            times = {name: getattr(found, name) for name in ("load", "ready", "first_token")}
            found = replace(again, **times)
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    main()
