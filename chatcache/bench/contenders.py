"""The contenders, each reduced to what the rows ask of it: a first token, and steps.

`Chatcache` runs on the same live context as a turn does, and on a model tuned like a turn's.
`Transformers` is what a program gets that calls the library as documented: one forward over the
whole prompt, a `DynamicCache`, sdpa.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import DynamicCache

from chatcache.backends.local.run.any_token import AnyTokenContext
from chatcache.backends.local.run.assemble import get_ready_on_device, link_to
from chatcache.backends.local.run.chunk_choice import ChunkChoice
from chatcache.backends.local.run.forward import Forward
from chatcache.backends.local.run.live_context import LivePath, Reuse
from chatcache.backends.local.run.threads import threads_for
from chatcache.bench.clock import settled_at
from chatcache.bench.limits import drop_page_cache
from chatcache.bench.setup import BenchModel
from chatcache.cache.book.rates import RateBook
from chatcache.cache.prefix import PrefixCache
from chatcache.cache.tensors.blocks import TensorBlock
from chatcache.cache.tensors.device_kv import DeviceKV
from chatcache.cache.tensors.live_kv import LiveKV
from chatcache.cache.tensors.slabs import SLAB_BYTES
from chatcache.token_ids import TokenIds

_BUDGET = 1 << 40
_SLAB_BYTES = SLAB_BYTES


class Transformers:
    """Plain transformers: nothing survives between two calls. `rest` is called before each: the
    contender before it lets go of the cores."""

    def __init__(self, loaded: BenchModel, rest: Callable[[], None] = lambda: None):
        self._loaded, self._rest = loaded, rest
        self._cache = DynamicCache(config=loaded.model.config)

    @torch.inference_mode()
    def cold(self, ids: Sequence[int]) -> float:
        """Seconds from the prompt to its first token, everything computed."""
        self._rest()
        began = settled_at(self._loaded.device)
        self._cache = DynamicCache(config=self._loaded.model.config)
        self._append(ids)
        return settled_at(self._loaded.device) - began

    @torch.inference_mode()
    def decode(self, num_tokens: int) -> float:
        """Seconds per token of greedy decoding behind the last prompt."""
        self._rest()
        token = 1
        began = settled_at(self._loaded.device)
        for _ in range(num_tokens):
            token = self._append([token])
        return (settled_at(self._loaded.device) - began) / num_tokens

    def _append(self, ids: Sequence[int]) -> int:
        output = self._loaded.model(
            input_ids=torch.tensor([list(ids)], device=self._loaded.device),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return int(output.logits[0, -1].argmax())


class CountingKV(LiveKV):
    """The live K and V of a turn, and how many bytes were brought into them."""

    bytes_moved = 0

    def load(self, block: TensorBlock, at: int, start: int, stop: int) -> None:
        num_tokens = next(iter(block.tensors.values())).shape[1]
        self.bytes_moved += block.num_bytes * (stop - start) // num_tokens
        super().load(block, at, start, stop)

    def writable(
        self, name: str, dtype: str, shape: tuple[int, ...], start: int
    ) -> list[memoryview]:
        pieces = super().writable(name, dtype, shape, start)
        self.bytes_moved += sum(piece.nbytes for piece in pieces)
        return pieces


class CountingDeviceKV(CountingKV, DeviceKV):
    """The same on a device with memory of its own."""


class Chatcache:
    """A cache directory and the live context of one engine on it. `choice`: of another one on the
    same model, so that nothing is measured anew."""

    def __init__(self, loaded: BenchModel, directory: Path, choice: ChunkChoice | None = None):
        self._loaded = loaded
        self._directory = directory
        self.link = link_to(loaded.device)
        self._threads = threads_for(loaded.model, loaded.device)
        self._forward = Forward(loaded.model, loaded.device, self._threads)
        self.choice = choice or ChunkChoice(loaded, directory)
        self._open(RateBook())

    def rest(self) -> None:
        """Let go of the cores, for another contender in this process."""
        if self._threads is not None:
            self._threads.rest()

    def reopen(self, rates: RateBook | None = None) -> None:
        """As a new process would find it: nothing live, nothing in RAM, segments on disk.

        `rates`: what is known of this machine; left out, nothing is.
        """
        self.close()
        self._open(rates or RateBook())

    def close(self) -> None:
        self.prefixes.close()

    def files(self) -> list[Path]:
        return sorted((self._directory / "segments" / "bench").glob("*.safetensors"))

    def drop_page_cache(self) -> None:
        for path in self.files():
            drop_page_cache(path)

    @property
    def num_captured(self) -> int:
        """How many steps were captured for a GPU so far."""
        static = self._forward.static
        return 0 if static is None else static.num_captured

    def forget_live(self) -> None:
        """As after switching to other conversations: the segments are in RAM, nothing is live, nor
        left on a device."""
        self._context.path.forget()
        self.prefixes.vram.give_up()

    def cold(self, ids: Sequence[int]) -> float:
        """Seconds from the prompt to its first token, everything computed."""
        began = self._now()
        self._context.start_cold()
        self._prefill(TokenIds(ids), 0)
        return self._now() - began

    def first_token(self, ids: Sequence[int]) -> tuple[float, Reuse]:
        """Seconds from the prompt to its first token, and what was reused."""
        began = self._now()
        prompt = TokenIds(ids)
        reuse = self._context.reuse(prompt, len(prompt) - 1)
        self._prefill(prompt, reuse.num_tokens)
        return self._now() - began, reuse

    def decode(self, num_tokens: int) -> float:
        """Seconds per token of greedy decoding behind the last prompt."""
        began = self._now()
        self._decode(num_tokens)
        return (self._now() - began) / num_tokens

    def commit(self, ends: Sequence[int] = ()) -> tuple[float, float, int]:
        """Keep the last prompt, as two turns unless `ends` says where: seconds until in RAM and
        until on disk, and bytes."""
        began = self._now()
        ends = ends or [len(self._ids) // 2, len(self._ids)]
        num_bytes = self._context.commit(TokenIds(self._ids), ends)
        if isinstance(self.live, DeviceKV):
            self.live.wait_for_exports()
        in_ram = self._now() - began
        self.prefixes.drain()
        on_disk = self._now() - began
        while self._forward.look_ahead(self.live):  # as between two turns
            pass
        return in_ram, on_disk, num_bytes

    def turn(self, ids: Sequence[int], num_answer: int) -> int:
        """Answer a prompt and keep it, as a turn does; returns the bytes of the new files."""
        before = {path: path.stat().st_size for path in self.files()}
        self.first_token(ids)
        self._ids += self._decode(num_answer)
        self.commit([len(ids), len(self._ids)])
        return sum(path.stat().st_size for path in self.files() if path not in before)

    def decode_while_spilling(self, directory: Path, num_steps: int) -> list[float]:
        """Decode while the last prompt is written below `directory`; seconds of each step that
        began before the end, of `num_steps` at most."""
        prefixes = self._opened(directory)
        steps: list[float] = []
        try:
            ids = self._ids
            prefixes.commit(TokenIds(ids), [len(ids)], self.live.export)
            with prefixes.computing():
                while len(steps) < num_steps and not prefixes.drain(0):
                    began = self._now()
                    self._decode(1)
                    steps.append(self._now() - began)
        finally:
            prefixes.close()
        return steps

    def _open(self, rates: RateBook) -> None:
        self.prefixes = self._opened(self._directory)
        shape = (self._loaded.num_layers, self._loaded.dtype, self._loaded.device)
        self.live = (
            CountingKV(*shape)
            if self.link is None
            else CountingDeviceKV(
                *shape, link=self.link, slab_budget=_BUDGET, slab_bytes=_SLAB_BYTES
            )
        )
        if isinstance(self.live, DeviceKV):
            self.live.get_ready().result()  # as in an engine, which does it beside all else
        path = LivePath(self._forward, self.live)
        path.give_way = self.prefixes.vram.give_up
        get_ready_on_device(path, self.choice, self._directory)
        self._context = AnyTokenContext(path, self.prefixes, rates, self.choice.num_tokens)
        self._ids: list[int] = []

    def _prefill(self, ids: TokenIds, start: int) -> None:
        for step in self._context.prefill(ids, start):
            logits = step.logits
        int(logits.argmax())
        self._ids = list(ids)

    def _decode(self, num_tokens: int) -> list[int]:
        """Run tokens behind the last prompt, greedily; returns those that were run."""
        self.live.truncate(len(self._ids))
        token, position, run = 1, len(self._ids), []
        for offset in range(num_tokens):
            run.append(token)
            token = int(self._context.step(token, position + offset).argmax())
        return run

    def _now(self) -> float:
        return settled_at(self._loaded.device)

    def _opened(self, directory: Path) -> PrefixCache:
        vram_budget = 0 if self.link is None else self.link.num_free_bytes() // 2
        prefixes = PrefixCache(
            directory,
            "bench",
            ram_budget=_BUDGET,
            disk_budget=_BUDGET,
            vram_budget=vram_budget,
        )
        prefixes.open({})
        return prefixes
