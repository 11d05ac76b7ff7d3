"""The sections of config.toml and their keys, each documented by the docstring below it.

Owns what can be set and the checks of single values. Where values come from is in `config.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from chatcache.checks import (
    byte_size,
    decimal,
    flag,
    keep_alive,
    one_of,
    setting,
    spill_mode,
    text,
    time_to_live,
    whole,
)

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "float32", "bfloat16", "float16")
EXACT_WEIGHTS = "none"
QUANTIZE = (EXACT_WEIGHTS, "4bit", "8bit")
PANELS = ("full", "compact", "off")
MAX_SEED = (1 << 64) - 1  # what torch takes
MAX_PRICE = 1e6
MAX_MULTIPLIER = 100.0
HOSTED_TTLS = ("5m", "1h")


@dataclass(frozen=True, slots=True)
class ModelSection:
    """Which model answers, and on what."""

    default: str = setting("builtin", text)
    """`builtin`, a directory with a model, a GGUF file, `ollama:NAME`, a Hugging Face id, or
    PROFILE:NAME for a server."""

    adapter: str | None = setting(None, text, example="/path/to/adapter")
    """A directory with a PEFT adapter to put on the model."""

    device: str = setting("auto", one_of(*DEVICES))
    """auto, cpu, cuda or mps. auto takes the fastest one that is there."""

    dtype: str = setting("auto", one_of(*DTYPES))
    """auto, float32, bfloat16 or float16. auto: float32 for a small model, else as the model was
    saved, if the device is quick with it."""

    max_context: int | None = setting(None, whole(256), example=8192)
    """The longest context, in tokens; a shorter one takes less memory. Left out: as long as the
    model was made for."""

    fit_check: bool = setting(True, flag)
    """Do not load a model that the memory has surely no room for. Off: try it all the same."""

    quantize: str = setting(EXACT_WEIGHTS, one_of(*QUANTIZE))
    """none, 4bit or 8bit: a model of safetensors is turned into that once, and kept so beside the
    cache. A quarter or half of the memory of bfloat16, and approximate. Also CHATCACHE_QUANTIZE."""

    offline: bool = setting(False, flag)
    """Never use the network: no download, no server but on this machine. Also HF_HUB_OFFLINE=1."""

    threads: int | None = setting(None, whole(1, 1024), example=2)
    """CPU threads of the engine. Left out: as many as torch takes by itself, and as
    the quota of the container allows."""


@dataclass(frozen=True, slots=True)
class EngineSection:
    """The process that holds the model. All chats of a model share one."""

    keep_alive: str = setting("5m", keep_alive)
    """How long the model stays loaded after its last chat was closed, so that the next one begins
    at once: "5m", "1h", "forever", or "0". "none": each chat has an engine of its own. Also
    CHATCACHE_KEEP_ALIVE."""


@dataclass(frozen=True, slots=True)
class CacheSection:
    """How much attention state is kept. Budgets are bytes, "2 GB", "2 GiB", or "25%"."""

    ram_budget: int | str = setting("25%", byte_size)
    """Memory for segments that are not in use: at most so much per engine, and less where the model
    leaves less. A percentage is of the memory that chatcache may use. Left out: 25%, but at least
    2 GiB (or half of what there is)."""

    vram_budget: int | str = setting("50%", byte_size)
    """Memory of the GPU for conversations that are not open, so that going back to one moves
    nothing over the bus. A percentage is of what is free there once the model is loaded."""

    disk_budget: int | str = setting("10%", byte_size)
    """Disk space for the segments of all models. A percentage is of the disk that the cache
    directory is on. Left out: 10%, but at least 8 GiB (or half of the disk) and at most 64 GiB."""

    disk_floor: int | str = setting("1 GB", byte_size)
    """Free space that is left on the disk whatever the budget says. A percentage is of the disk."""

    ram_ttl: str = setting("none", time_to_live)
    """How long a segment stays in memory unused: "5m", "1h", "24h", or "none" for ever."""

    disk_ttl: str = setting("none", time_to_live)
    """How long a segment stays on disk unused: "24h", "30d", or "none" for ever."""

    spill: str = setting("turn", spill_mode)
    """When segments are written to disk, so that the next start resumes without a prefill:
    turn (after each turn), exit (when the engine ends, and what memory has no room for),
    pressure (only what memory has no room for), or never. "int8" (or "exit, int8") keeps them
    as 8-bit integers, in memory too: half the bytes of bfloat16, and approximate."""

    idle_next_turn: bool = setting(True, flag)
    """After an answer, compute what the model's template will write differently next time."""

    idle_draft: bool = setting(True, flag)
    """While you type, compute the finished words. What is not sent is never written to disk."""

    idle_restore: bool = setting(True, flag)
    """Bring back a chat's attention state when it is opened, or highlighted in the list."""


@dataclass(frozen=True, slots=True)
class SamplingSection:
    """How the next token is chosen. What is left out is as the model's own settings say."""

    temperature: float | None = setting(None, decimal(0.0, 100.0), example=0.7)
    """0 always takes the most likely token; higher is more varied."""

    top_p: float | None = setting(None, decimal(0.0, 1.0, excludes_low=True), example=0.95)
    """Choose among the most likely tokens that make up this share of the probability."""

    top_k: int | None = setting(None, whole(0), example=40)
    """Choose among this many tokens; 0 is all of them."""

    min_p: float | None = setting(None, decimal(0.0, 1.0), example=0.05)
    """Leave out tokens less likely than this share of the most likely one."""

    repetition_penalty: float | None = setting(None, decimal(0.01, 100.0), example=1.1)
    """Above 1, tokens that were there before become less likely."""

    seed: int | None = setting(None, whole(0, MAX_SEED), example=7)
    """The same seed gives the same answer to the same conversation."""

    max_new_tokens: int | None = setting(None, whole(1), example=512)
    """The longest answer, in tokens. Left out: 4,096 for models of this machine."""

    think: bool | None = setting(None, flag, example=False)
    """Whether a model that can reason before it answers does so."""


@dataclass(frozen=True, slots=True)
class BillingSection:
    """What a hosted model would ask for the same turns: see the ledger of the lens."""

    input: float = setting(3.0, decimal(0.0, MAX_PRICE))
    """The price of a million prompt tokens. Prices of a [remote.NAME] go before this, for its
    own answers."""

    output: float = setting(15.0, decimal(0.0, MAX_PRICE))
    """The price of a million answer tokens."""

    currency: str = setting("USD", text)
    """What the prices are in: USD, EUR, ..."""

    cached_input_multiplier: float = setting(0.1, decimal(0.0, MAX_MULTIPLIER))
    """A prompt token that is read from the hosted cache costs so many times `input`."""

    write_multiplier_5m: float = setting(1.25, decimal(0.0, MAX_MULTIPLIER))
    """A prompt token that is written to the hosted cache for five minutes costs so many times
    `input`; 1 where writing costs nothing extra."""

    write_multiplier_1h: float = setting(2.0, decimal(0.0, MAX_MULTIPLIER))
    """The same, for an hour."""

    ttl: str = setting("5m", one_of(*HOSTED_TTLS))
    """5m or 1h: how long the hosted cache keeps what nobody reads. A turn that comes later writes
    its history once more."""

    def write_multiplier(self, ttl: str) -> float:
        return self.write_multiplier_1h if ttl == "1h" else self.write_multiplier_5m


@dataclass(frozen=True, slots=True)
class UiSection:
    """How the chat looks."""

    theme: str = setting("textual-dark", text)
    """The name of a Textual theme, e.g. textual-light, nord, gruvbox, tokyo-night."""

    panel: str = setting("full", one_of(*PANELS))
    """The cache panel at the start: full, compact or off."""

    motion: bool = setting(True, flag)
    """Off: nothing moves by itself. The cursor does not blink, and nothing slides or fades."""


SECTIONS: Mapping[str, type] = {
    "model": ModelSection,
    "engine": EngineSection,
    "cache": CacheSection,
    "sampling": SamplingSection,
    "billing": BillingSection,
    "ui": UiSection,
}
