"""The look at the memory before the weights of a model are read, in the engine process.

Owns measuring what is free, on the machine and on a GPU, and the refusal. The verdict and its words
are in `fit`, what a model needs in `needs`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from chatcache.backends.local.model import fit, needs
from chatcache.errors import NoRoomError
from chatcache.formatting import size
from chatcache.machine import MemoryLimit, memory_limits

# Of the bytes of a file: weights of 16 bits take so much in the fewest bits that there are here.
_LEAST_SHARE = 4.5 / 16

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MemoryCheck:
    """How to look. Without `is_refusing` a model without room is loaded all the same. `others` says
    what else of ours holds memory; `limits` tells what there is."""

    is_refusing: bool = True
    others: Callable[[], str] = lambda: ""
    limits: Callable[[], list[MemoryLimit]] = memory_limits

    def look(
        self,
        name: str,
        path: Path,
        chosen: torch.dtype | str,
        device: torch.device,
        quantize: str | None = None,
    ) -> fit.Fit:
        """Whether the model in `path` has room, with its weights in 4 or 8 bits if `quantize` says
        so. Raises NoRoomError if surely not."""
        dtype = _name(chosen)
        ways = needs.ways_out(path, dtype, can_quantize=device.type == "cpu")
        if quantize is not None:
            needed = needs.quantized_needs(path, quantize)
            if device.type == "cuda":
                on_gpu = replace(needed, held=needed.weights, mapped=0)
                self.judge(name, needed, self.limits(), [])
                return self.judge(name, on_gpu, _gpu_limits(device), [], "--device cpu")
            return self.judge(name, needed, self.limits(), ways[-1:] if quantize == "8bit" else [])
        if device.type == "cuda":
            on_gpu = needs.device_needs(path, dtype)
            found = self.judge(name, on_gpu, _gpu_limits(device), ways, "--device cpu")
            host = replace(needs.directory_needs(path, dtype, "cuda"), bytes_per_token=0)
            self.judge(name, host, self.limits(), ways)
            return found
        return self.judge(
            name, needs.directory_needs(path, dtype, device.type), self.limits(), ways
        )

    def before_download(self, name: str, num_bytes: int, is_packed: bool) -> None:
        """Raises NoRoomError for a model of which nothing could ever be loaded here."""
        for limit in self.limits() if self.is_refusing else ():
            least = num_bytes if is_packed else int(num_bytes * _LEAST_SHARE)
            if least > limit.total:
                raise NoRoomError(
                    f"{name} would be a download of {size(num_bytes)}, and needs at least "
                    f"{size(least)} of memory, more than the {size(limit.total)} of {limit.where}.",
                    "Choose a smaller model. --no-fit-check fetches it all the same.",
                )

    def judge_on(self, name: str, needed: fit.Needs, device: torch.device) -> fit.Fit:
        """The verdict on what is `needed` on a device. Raises NoRoomError if there is no room."""
        limits = _gpu_limits(device) if device.type == "cuda" else self.limits()
        return self.judge(name, needed, limits, ())

    def has_room_on(self, needed: fit.Needs, device: torch.device) -> bool:
        """Whether a GPU has room for what is `needed`."""
        return fit.fit(needed, _gpu_limits(device)).verdict == "fits"

    def judge(
        self,
        name: str,
        needed: fit.Needs,
        limits: Sequence[MemoryLimit],
        ways: Sequence[fit.WayOut],
        elsewhere: str = "",
    ) -> fit.Fit:
        """The verdict on what is `needed` within `limits`. Raises NoRoomError if there is no room;
        `elsewhere` is an option that avoids these limits."""
        found = fit.fit(needed, limits)
        log.info("memory for %s: %s", name, found)
        if found.verdict == "too large" and self.is_refusing:
            others = self.others()
            if elsewhere:
                others = f"{elsewhere} does without it. {others}".strip()
            raise NoRoomError(fit.problem(name, found), fit.advice(found, ways, limits, others))
        return found

    def dtype_with_room(
        self, path: Path, dtype: torch.dtype | str, stored: torch.dtype, device: torch.device
    ) -> torch.dtype | str:
        """`dtype`, unless it could never have room here and the one that was `stored` could."""
        if dtype in (stored, "auto") or device.type == "cuda":
            return dtype
        limits = self.limits()

        def has_room(candidate: torch.dtype | str) -> bool:
            needed = needs.directory_needs(path, _name(candidate), device.type)
            return fit.largest(needed, limits).verdict != "too large"

        return stored if not has_room(dtype) and has_room(stored) else dtype


LOOK = MemoryCheck()


def _name(dtype: torch.dtype | str) -> str:
    return str(dtype).removeprefix("torch.")


def _gpu_limits(device: torch.device) -> list[MemoryLimit]:
    free, total = torch.cuda.mem_get_info(device)
    name = torch.cuda.get_device_name(device)
    return [MemoryLimit(f"the GPU ({name})", total, free)]
