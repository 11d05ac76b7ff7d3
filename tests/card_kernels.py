"""Kernels of a GPU without one: run by Triton's interpreter, and compiled for cards by name.

Each needs a process of its own, because Triton decides when it is imported. Tests run the first for
all kinds and the second for some. All of it, and how quick they are on a card that is there:

    TRITON_INTERPRET=1 python -m tests.card_kernels run
    python -m tests.card_kernels compile 80 89 90
    python -m tests.card_kernels time
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from chatcache.backends.local.packed import device_computing, device_products
from chatcache.backends.local.packed.blocks import KINDS, BlockMatrix
from chatcache.backends.local.packed.device_layout import LAYOUTS, split
from tests.unit.test_packed_kernels import random_blocks, reference

# Of float32 sums, beside the sum of all magnitudes: what is taken off at the end of a segment is up
# to ten times what stays.
_ROUNDING = 5e-6


def run(names: list[str]) -> None:
    """Raises AssertionError where a kernel gives something else than the blocks mean."""
    for name in names or LAYOUTS:
        _check(name, num_rows=5, num_columns=3 * KINDS[name].num_weights, num_tokens=(1, 9))
    _check("Q4_0", num_rows=2, num_columns=32 * 70, num_tokens=(1,))  # more than once around
    assert device_products.groups_of(32 * 70) == 32


def _check(name: str, num_rows: int, num_columns: int, num_tokens: tuple[int, ...]) -> None:
    matrix = random_blocks(name, num_rows, num_columns)
    apart, weights = split(matrix), reference(matrix)
    for dtype in (torch.float32, torch.float16):
        assert torch.equal(device_products.unpacked(apart, dtype), weights.to(dtype)), name
    some = torch.tensor([num_rows - 1, 0, 0])
    assert torch.equal(device_products.unpacked(apart.rows(some), torch.float32), weights[some])
    for count in num_tokens:
        states = torch.randn((count, num_columns), generator=torch.Generator().manual_seed(1))
        states[:, 5] *= 50  # a channel that is far larger than the others, as models have them
        found = device_products.multiplied(states, apart).double()
        wide, exact = states.double(), weights.double().T
        bound = _ROUNDING * (wide.abs() @ exact.abs())
        assert ((found - wide @ exact).abs() <= bound).all(), (name, count)


class _Driver:
    """What Triton asks of a driver before it compiles."""

    def __init__(self, capability: int):
        from triton.backends.compiler import GPUTarget

        self._capability = capability
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return self._capability  # what is compiled is remembered by it

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_all(capability: int, names: list[str]) -> Iterator[dict[str, Any]]:
    """Compile what a model in bfloat16 needs, as a launch would; tells what became of it."""
    from triton.runtime import driver

    driver.set_active(_Driver(capability))
    made: list[Any] = []

    def compile_only(
        kernel: Any, grid: Any, num_warps: int, arguments: Any, constant: dict[str, Any]
    ) -> None:
        options = {"num_warps": num_warps, "enable_fp_fusion": True}
        made.append(kernel.warmup(*arguments, **constant, **options, grid=grid))

    device_products._launch = compile_only
    for name in names or LAYOUTS:
        matrix = split(random_blocks(name, 13, 4096))
        states = torch.zeros((16, 4096), dtype=torch.bfloat16)
        for count in (1, 16, 5):
            began = time.perf_counter()
            device_products.multiplied(states[:count], matrix)
            yield _told(name, f"multiply {count}", made[-1], began)
        assert made[-1] is made[-2], "any number of rows above one is the same code"
        began = time.perf_counter()
        device_products.unpacked(matrix, torch.bfloat16)
        yield _told(name, "unpack", made[-1], began)


def _told(name: str, kernel: str, made: Any, began: float) -> dict[str, Any]:
    ptx = made.asm["ptx"]
    loads = re.findall(r"ld\.global\S*?((?:\.v\d)?\.[bu]\d+)", ptx)
    return {
        "kind": name,
        "kernel": kernel,
        "loads": {width: loads.count(width) for width in sorted(set(loads))},
        "local": len(re.findall(r"\b(?:ld|st)\.local", ptx)),
        "atomics": len(re.findall(r"\b(?:atom|red)\.", ptx)),
        "seconds": round(time.perf_counter() - began, 1),
        **_resources(made.asm["cubin"]),
    }


def _resources(cubin: bytes) -> dict[str, int]:
    """Registers of a thread, and bytes of it that lie in memory instead."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([tool, "-res-usage", file.name], capture_output=True, check=True)
    found = re.search(rb"REG:(\d+) STACK:(\d+)", done.stdout + done.stderr)
    assert found is not None
    return {"registers": int(found[1]), "stack": int(found[2])}


def time_all(names: list[str]) -> Iterator[dict[str, Any]]:
    """One token and 16 tokens times a matrix that no cache holds, in GB of packed weights per
    second; 16 also by way of unpacked weights. Beside it what a copy on the card reads."""
    card = torch.device("cuda")
    for name in names or LAYOUTS:
        some = random_blocks(name, 64, 4096)
        many = some.data.repeat(1024, 1).to(card)
        matrix = split(BlockMatrix(some.kind, many, some.num_columns))
        states = torch.randn((17, 4096), device=card).bfloat16()
        target = torch.empty_like(many)
        calls: dict[str, Callable[[], object]] = {
            "copy": lambda: target.copy_(many),  # noqa: B023
            "1": lambda: device_computing.product(states[:1], matrix),  # noqa: B023
            "16": lambda: device_computing.product(states[:16], matrix),  # noqa: B023
            "17, unpacked": lambda: device_computing.product(states, matrix),  # noqa: B023
        }
        speeds = {
            f"{what} GB/s": round(matrix.num_bytes / _seconds(call) / 1e9)
            for what, call in calls.items()
        }
        yield {"kind": name, **speeds}


def _seconds(call: Callable[[], object]) -> float:
    """The quickest of some runs."""
    times = []
    for _ in range(12):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1000)
    return min(times)


if __name__ == "__main__":
    mode, *words = sys.argv[1:]
    if mode == "run":
        run(words)
    elif mode == "time":
        for told in time_all(words):
            print(json.dumps(told))
    else:
        kinds = [word for word in words if word in LAYOUTS]
        for capability in (int(word) for word in words if word not in LAYOUTS):
            for told in compile_all(capability, kinds):
                print(json.dumps({"capability": capability, **told}))
