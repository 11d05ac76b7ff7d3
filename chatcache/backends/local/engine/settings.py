"""What an engine process is started with. No torch: front ends build it, the engine reads it."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from chatcache import __version__
from chatcache.backends.local.model.resolve import one_name
from chatcache.cache.book.policy import TierPolicy

# What an engine takes from the environment. One that was started in another is another engine.
_ENVIRONMENT = (
    *("CUDA_", "HIP_", "ROCR_", "HF_", "HUGGINGFACE_", "TRANSFORMERS_"),
    *("TORCH", "PYTORCH_", "OMP_", "MKL_", "KMP_", "GOMP_", "THP_"),
)
# What may differ between the front ends of one engine.
_SHARED = (
    "ram_budget",
    "vram_budget",
    "disk_budget",
    "policy",
    "num_threads",
    "prefill_chunk_tokens",
    "max_context",
)


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Everything the engine process needs to know. Budgets are bytes; `vram_budget` may be a
    percentage of what is free on the GPU once the model is loaded."""

    model: str
    cache_dir: Path
    log_path: Path
    adapter: Path | None = None
    device: str = "auto"
    dtype: str = "auto"
    quantize: str = "none"
    is_offline: bool = False
    ram_budget: int = 2 << 30
    vram_budget: int | str = "50%"
    disk_budget: int = 16 << 30
    policy: TierPolicy = field(default_factory=TierPolicy)
    num_threads: int | None = None
    prefill_chunk_tokens: int | None = None  # None: what suits the device
    max_context: int | None = None  # tokens; None: as long as the model was made for
    is_fit_checked: bool = True  # a model without room in memory is refused
    engines_dir: Path | None = None  # where the other engines are found

    def key(self, environ: Mapping[str, str]) -> str:
        """Equal for front ends that can share an engine: the same model on the same device with
        the same cache directory, by the same installation of chatcache."""
        relevant = {name: environ[name] for name in environ if name.startswith(_ENVIRONMENT)}
        identity = [
            *(__version__, sys.executable, str(Path(__file__).parent)),
            *(one_name(self.model), str(self.adapter), self.device, self.dtype, self.quantize),
            os.path.realpath(self.cache_dir),
            sorted(relevant.items()),
        ]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]

    def differences(self, other: EngineSettings) -> list[str]:
        """The names of the settings, other than those of the key, in which two differ."""
        names = [name.name for name in fields(self) if name.name in _SHARED]
        return [name for name in names if getattr(self, name) != getattr(other, name)]
