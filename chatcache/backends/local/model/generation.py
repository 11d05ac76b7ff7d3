"""What a loaded model says of how it is to be used: its context, what ends an answer, its sampling.

Such files are written by people: what makes no sense in them is passed over.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from chatcache.backends.base import SamplingParams
from chatcache.backends.local.prompt.template import ChatTemplate
from chatcache.config import find_key

log = logging.getLogger(__name__)

_NO_LIMIT = 10**9  # tokenizers without a limit claim 10**30


def context_limit(config: Any, tokenizer: Any, wanted: int | None = None) -> int:
    """The longest context of a model, in tokens; not more than `wanted`."""
    limit = getattr(config, "max_position_embeddings", None)
    if not limit:
        limit = min(int(getattr(tokenizer, "model_max_length", _NO_LIMIT)), _NO_LIMIT)
    return min(int(limit), wanted or _NO_LIMIT)


def generation_config(path: Path, config: Any) -> Any:
    """What a model directory says of generating; what its config says, where it says nothing."""
    from transformers.generation.configuration_utils import GenerationConfig

    if (path / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(path, local_files_only=True)
    return GenerationConfig.from_model_config(config)


def end_token_ids(generation: Any, config: Any, tokenizer: Any) -> frozenset[int]:
    """What ends an answer: by the generation config, the tokenizer, and the chat template."""
    ends: set[Any] = set(ChatTemplate(tokenizer).turn_end_ids())
    declared = (
        getattr(generation, "eos_token_id", None),
        getattr(config.get_text_config(), "eos_token_id", None),
        tokenizer.eos_token_id,
    )
    for entry in declared:
        ends.update(entry if isinstance(entry, (list, tuple)) else [entry])
    return frozenset(token_id for token_id in ends if isinstance(token_id, int))


def sampling_defaults(generation: Any) -> SamplingParams:
    """How the model's publisher samples; greedy unless they say to sample. What cannot be is left
    out."""
    names = ["repetition_penalty", "max_new_tokens"]
    is_sampling = bool(getattr(generation, "do_sample", None))
    if is_sampling:
        names += ["temperature", "top_p", "top_k", "min_p"]
    values = {name: _checked(name, getattr(generation, name, None)) for name in names}
    return SamplingParams(**values) if is_sampling else SamplingParams(temperature=0.0, **values)


def _checked(name: str, value: Any) -> Any:
    """A value that could be a setting; None for one that could not."""
    if value is None:
        return None
    try:
        return find_key("sampling", name).metadata["check"](value)
    except ValueError as error:
        log.warning("the generation config says %s = %r, which %s", name, value, error)
        return None
