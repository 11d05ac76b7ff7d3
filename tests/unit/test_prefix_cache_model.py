"""Random lives of a prefix cache against a set of token tuples.

`said` is every prefix that was ever committed: a match may never be longer than that. A prefix
that no eviction or damage can have touched must be matched whole.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from chatcache.cache.prefix import PrefixCache
from tests.kvfakes import BYTES_PER_TOKEN, ByteBlock, ByteSink, ids_of

words = st.text("ab", min_size=1, max_size=6)


class PrefixCacheLife(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="chatcache-test-"))
        self.said: set[str] = set()
        self.sure: set[str] = set()

    @initialize(ram_tokens=st.sampled_from([8, 40, 10_000]), disk=st.sampled_from([4_000, 1 << 30]))
    def open(self, ram_tokens: int, disk: int) -> None:
        self.ram_budget = ram_tokens * BYTES_PER_TOKEN
        self.disk_budget = disk
        self.cache = self._new_cache()

    def _new_cache(self) -> PrefixCache:
        cache = PrefixCache(
            self.directory, "ns", ram_budget=self.ram_budget, disk_budget=self.disk_budget
        )
        cache.open({})
        return cache

    @rule(history=st.lists(words, min_size=1, max_size=3), answer=words)
    def turn(self, history: list[str], answer: str) -> None:
        text = "".join([*history, answer])
        packed, prompt = ids_of(text), len(text) - len(answer)
        sink = ByteSink()
        with self.cache.acquire(packed, prompt - 1) as lease:
            restored = self.cache.restore(lease, sink, 0)
            assert sink.is_true_to(packed)
            assert restored.num_tokens == sink.num_tokens
        known = max((n for n in range(prompt) if text[:n] in self.said or n == 0), default=0)
        assert restored.num_tokens <= known
        if text[: prompt - 1] in self.sure:
            assert restored.num_tokens == prompt - 1
        ends = [prompt, len(text)]
        self.cache.commit(packed, ends, lambda start, stop: ByteBlock(packed, start, stop))
        self.said.update(text[: n + 1] for n in range(len(text)))
        if self.disk_budget > 1 << 20:
            self.sure.update(text[: n + 1] for n in range(len(text)))

    @rule()
    def reopen(self) -> None:
        self.cache.close()
        self.cache = self._new_cache()

    @rule()
    def drain(self) -> None:
        assert self.cache.drain(10)

    @rule()
    def second_process(self) -> None:
        """Another process looks at the same directory while this one runs."""
        self.cache.drain(10)
        other = self._new_cache()
        for text in sorted(self.sure)[:3]:
            assert other.lookup(ids_of(text)).num_tokens == len(text)
        other.close()

    @precondition(lambda self: self._files())
    @rule(data=st.data(), harm=st.sampled_from(["delete", "truncate", "flip"]))
    def harm(self, data: st.DataObject, harm: str) -> None:
        path = data.draw(st.sampled_from(self._files()))
        content = bytearray(path.read_bytes())
        if harm == "delete":
            path.unlink()
        elif harm == "truncate":
            path.write_bytes(content[: len(content) // 2])
        else:
            content[data.draw(st.integers(0, len(content) - 1))] ^= 1
            path.write_bytes(content)
        self.sure.clear()

    def _files(self) -> list[Path]:
        return sorted(self.directory.glob("segments/ns/*.safetensors"))

    @invariant()
    def sound(self) -> None:
        if hasattr(self, "cache"):
            assert self.cache.check() == []

    def teardown(self) -> None:
        if hasattr(self, "cache"):
            self.cache.close()
        shutil.rmtree(self.directory)


TestPrefixCacheLife = PrefixCacheLife.TestCase
TestPrefixCacheLife.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
