"""How many tokens of a prompt are given to the model at once.

On a CPU it is always the same. On a GPU it is as many as the card reads in less than the half
second that a stop may take, and as its memory has room for. Which bits come out depends on it, so
it is chosen once per namespace and card, and kept beside the segments.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

from chatcache.backends.local.model import device_attention
from chatcache.backends.local.run.card_notes import CardNotes, card_name

FILE_NAME = "chunk.json"
CHUNK_TOKENS = 512  # on a CPU, and the least on a GPU
_MAX_STOCK_TOKENS = 1024  # masks and scores of the stock kernels grow with the chunk
_MAX_TOKENS = 8192
_MAX_SECONDS = 0.42  # behind a long prefix a chunk takes longer
_SHARE_OF_FREE = 4  # the rest is for K and V
_MEASURE_TIMES = 2  # the first run is that of kernels being loaded


class ChunkedModel(Protocol):
    """What has to be known of a model."""

    @property
    def model(self) -> Any: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def max_context_tokens(self) -> int: ...


class ChunkChoice:
    """The chunk of one namespace; `path` is where it is kept, by the name of the card."""

    def __init__(self, loaded: ChunkedModel, directory: Path):
        self._loaded = loaded
        self._notes = CardNotes(directory / FILE_NAME)

    @property
    def is_open(self) -> bool:
        """Whether it is still to be measured."""
        return self._loaded.device.type != "cpu" and self._kept() is None

    @property
    def num_tokens(self) -> int:
        """What was chosen, as far as there is memory for it now."""
        if self._loaded.device.type == "cpu":
            return CHUNK_TOKENS
        return min(self._kept() or CHUNK_TOKENS, longest_chunk(self._most()))

    def measure(self, seconds_of: Callable[[int], float]) -> None:
        """Choose, by how long the model reads a number of tokens. Twice as many take at most about
        twice as long, and on a fast card much less: so each length is tried."""
        most = longest_chunk(self._most())
        chunk = min(CHUNK_TOKENS, most)
        while 2 * chunk <= most:
            if 2 * min(seconds_of(chunk) for _ in range(_MEASURE_TIMES)) > _MAX_SECONDS:
                break
            chunk *= 2
        self._notes.write(card_name(self._loaded.device), chunk)

    def _most(self) -> int:
        loaded = self._loaded
        config = loaded.model.config.get_text_config()
        is_ours = config._attn_implementation == device_attention.NAME
        most = min(_MAX_TOKENS if is_ours else _MAX_STOCK_TOKENS, loaded.max_context_tokens)
        free = _free_bytes(loaded.device)
        if free is None:
            return most
        return min(most, free // _SHARE_OF_FREE // bytes_per_token(config, loaded.dtype.itemsize))

    def _kept(self) -> int | None:
        found = self._notes.read(card_name(self._loaded.device))
        return found if isinstance(found, int) and found > 0 else None


def longest_chunk(most: int) -> int:
    """CHUNK_TOKENS times a power of two, at most `most`; what is less than that is taken whole. So
    a little more or less memory makes no other plan."""
    chunk = CHUNK_TOKENS
    while 2 * chunk <= most:
        chunk *= 2
    return max(1, min(chunk, most))


def bytes_per_token(config: Any, itemsize: int) -> int:
    """About how much memory the states of one token take while a layer computes them."""
    hidden = int(config.hidden_size)
    inner = int(getattr(config, "intermediate_size", None) or 4 * hidden)
    experts = int(getattr(config, "num_experts_per_tok", None) or 1)
    heads = int(config.num_attention_heads)
    queries = heads * int(getattr(config, "head_dim", None) or hidden // heads)
    in_float32 = 2 * 4 * hidden  # where norms are computed
    return itemsize * (4 * hidden + 3 * inner * experts + 4 * queries) + in_float32


def _free_bytes(device: torch.device) -> int | None:
    """What the card has left; None where it does not tell."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
