"""What a config says of weights that were saved in few bits, and whether they can be read here.

Owns which ways of packing are known. No torch: lists and downloads ask too. The unpacking itself is
in `few_bits`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_PLACES = ("quantization_config", "quantization", "compression_config")
MLX = "MLX"
# Read by transformers, which makes ordinary weights of them as they are loaded.
MXFP4 = "mxfp4"
_BITS = {"gptq": (2, 4, 8), "awq": (4,), MLX: (2, 3, 4, 5, 6, 8)}
_FORMATS = {
    "gptq": ("", "gptq", "gptq_v2"),
    "awq": ("", "gemm"),
    MLX: ("", "affine"),
    "compressed-tensors": (
        *("", "dense", "pack-quantized", "int-quantized", "naive-quantized"),
        *("float-quantized", "nvfp4-pack-quantized"),
        *("mxfp4-pack-quantized", "mxfp8-quantized"),
    ),
}
_UNPACKED = frozenset(
    {"gptq", "awq", "bitsandbytes", "fp8", "fbgemm_fp8", "compressed-tensors", "modelopt", MLX}
)

# By the name of a way to pack weights: what transformers needs to read it, beside itself.
PACKAGES: Mapping[str, tuple[str, ...]] = {
    "awq": ("gptqmodel", "accelerate"),
    "gptq": ("gptqmodel", "optimum"),
    "bitsandbytes": ("bitsandbytes", "accelerate"),
    "fp8": ("accelerate",),
    "mxfp8": ("accelerate",),
    "compressed-tensors": ("compressed_tensors",),
    "torchao": ("torchao", "accelerate"),
    "bitnet": ("accelerate",),
    "fbgemm_fp8": ("fbgemm_gpu", "accelerate"),
    "hqq": ("hqq",),
    "quanto": ("optimum.quanto",),
    "aqlm": ("aqlm", "accelerate"),
    "eetq": ("eetq", "accelerate"),
    "auto-round": ("auto_round",),
}


@dataclass(frozen=True, slots=True)
class Quantization:
    """How weights were packed: the `method` by its own name, and all that the config says of it."""

    method: str
    settings: Mapping[str, Any]

    @property
    def format(self) -> str:
        """The variant of a method; "" where a config names none."""
        names = {"gptq": "checkpoint_format", "awq": "version", MLX: "mode"}
        return str(self.settings.get(names.get(self.method, "format")) or "").lower()

    @property
    def bits(self) -> int:
        """Bits of a weight; 0 where the config does not say."""
        places = (self.settings, self.group)
        found = (place.get(name) for place in places for name in ("bits", "w_bit", "num_bits"))
        return next((n for n in found if isinstance(n, int) and not isinstance(n, bool)), 0)

    @property
    def group(self) -> Mapping[str, Any]:
        """What compressed-tensors says of the weights of its first group of layers."""
        groups = self.settings.get("config_groups")
        found: Any = next(iter(groups.values()), {}) if isinstance(groups, dict) else {}
        weights = found.get("weights") if isinstance(found, dict) else None
        return weights if isinstance(weights, dict) else {}

    @property
    def is_by_transformers(self) -> bool:
        """Whether transformers reads it without help."""
        return self.method == MXFP4

    @property
    def is_unpacked_here(self) -> bool:
        """Whether `few_bits` makes ordinary weights of it."""
        if self.method not in _UNPACKED:
            return False
        formats, bits = _FORMATS.get(self.method), _BITS.get(self.method)
        if formats is not None and self.format not in formats:
            return False
        return bits is None or self.bits in bits or (self.method == "awq" and not self.bits)

    @property
    def words(self) -> str:
        """For a sentence: `gptq`, `gptq (3 bits)`, `awq (gemv)`."""
        parts = [self.format, f"{self.bits} bits" if self.bits else ""]
        told = ", ".join(part for part in parts if part and part != self.method)
        return f"{self.method} ({told})" if told else self.method


def quantization_of(config: Mapping[str, Any]) -> Quantization | None:
    """None: the weights are ordinary ones."""
    text = config.get("text_config")
    places = (config, text if isinstance(text, dict) else {})
    found = next((place[key] for place in places for key in _PLACES if place.get(key)), None)
    if found is None:
        return None
    if not isinstance(found, dict):
        return Quantization(str(found), {})
    return Quantization(str(found.get("quant_method") or MLX), found)
