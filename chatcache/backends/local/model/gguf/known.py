"""Which GGUF files hold a model that can be talked to; and what the others are.

Owns the architectures, and the sentences on what is none of them. Torch-free, so that lists of
models, downloads and the loading itself ask here, and say the same.
"""

from __future__ import annotations

from chatcache.backends.local.model.gguf.header import GgufHeader
from chatcache.errors import ModelLoadError

# Architectures whose matrices are those of transformers, at most with their rows in another order:
# by the name in a file, that of transformers.
_DENSE = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "phi3": "phi3",
    "starcoder2": "starcoder2",
}
# The same with a mixture of experts.
_WITH_EXPERTS = {
    "llama": "mixtral",
    "qwen2moe": "qwen2_moe",
    "qwen3moe": "qwen3_moe",
    "olmoe": "olmoe",
    "granitemoe": "granitemoe",
    "gpt-oss": "gpt_oss",
}
ARCHITECTURES = _DENSE.keys() | _WITH_EXPERTS.keys()

_OTHER_KINDS = {
    "adapter": "is an adapter for a model, not a whole model",
    "mmproj": "is the part of a model that reads images or sound, not the model itself",
    "imatrix": "holds measurements for quantising a model, not the model itself",
    "vocab": "holds a vocabulary only, without weights",
    "diffusion": "is a model that makes images",
}
_ANOTHER = "Choose the model's own file: a GGUF with a language model."


def family_of(header: GgufHeader) -> str:
    """The family of transformers; for an architecture that is not known its own name."""
    families = _WITH_EXPERTS if has_experts(header) else _DENSE
    return families.get(header.architecture, header.architecture)


def has_experts(header: GgufHeader) -> bool:
    return bool(header.integer(header.of_model("expert_count")))


def check_known(header: GgufHeader) -> None:
    """Raises ModelLoadError for a file whose model is not run here, and says what it is."""
    kind, architecture = header.kind, header.architecture
    if kind != "model":
        what = _OTHER_KINDS.get(kind, f"is of the kind {kind!r:.40}, not a model")
        raise ModelLoadError(f"{header.path} {what}.", _ANOTHER)
    if not architecture:
        raise ModelLoadError(f"{header.path} does not say which architecture it has.", _ANOTHER)
    if architecture not in ARCHITECTURES:
        raise ModelLoadError(
            f"{header.path} has a model of the architecture {architecture!r:.60}, which is not "
            "read from GGUF files.",
            "Choose a copy of the model as safetensors, or another model; "
            f"these are read: {', '.join(sorted(ARCHITECTURES))}.",
        )
    if architecture not in (_WITH_EXPERTS if has_experts(header) else _DENSE):
        which = "a mixture of experts" if has_experts(header) else "no experts"
        raise ModelLoadError(
            f"{header.path} has {which} in the architecture {architecture!r}, which is not read "
            "from GGUF files.",
            "Choose a copy of the model as safetensors, or another model.",
        )
