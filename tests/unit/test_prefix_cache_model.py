"""Random lives of a prefix cache against a set of token tuples.

`said` is every prefix that was ever committed: a match may never be longer than that. A prefix
that no eviction, damage or end of time can have touched (`sure`), and one that is pinned and was
on disk then (`pinned`), must be matched whole. Time is told by hand.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from chatcache.cache.book.policy import SpillMode, TierPolicy
from chatcache.cache.files.pins import PinBook
from chatcache.cache.prefix import PrefixCache
from tests.kvfakes import BYTES_PER_TOKEN, ByteBlock, ByteSink, ids_of

words = st.text("ab", min_size=1, max_size=6)
modes = st.sampled_from(["turn", "turn", "pressure", "exit"])
HOUR = 3600.0


class PrefixCacheLife(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="chatcache-test-"))
        self.said: set[str] = set()
        self.sure: set[str] = set()
        self.pinned: set[str] = set()
        self.doubtful: set[str] = set()
        self.now = 1_000_000_000.0

    @initialize(
        ram_tokens=st.sampled_from([8, 40, 10_000]),
        disk=st.sampled_from([4_000, 1 << 30]),
        mode=modes,
        ram_ttl=st.sampled_from([None, 60.0]),
        disk_ttl=st.sampled_from([None, HOUR]),
    )
    def open(
        self,
        ram_tokens: int,
        disk: int,
        mode: SpillMode,
        ram_ttl: float | None,
        disk_ttl: float | None,
    ) -> None:
        self.ram_budget = ram_tokens * BYTES_PER_TOKEN
        self.disk_budget = disk
        self.policy = TierPolicy(mode, ram_ttl, disk_ttl)
        self.cache = self._new_cache()

    def _new_cache(self) -> PrefixCache:
        cache = PrefixCache(
            self.directory,
            "ns",
            ram_budget=self.ram_budget,
            disk_budget=self.disk_budget,
            policy=self.policy,
            clock=lambda: self.now,
        )
        cache.open({})
        return cache

    @rule(history=st.lists(words, min_size=1, max_size=3), answer=words)
    def turn(self, history: list[str], answer: str) -> None:
        text = "".join([*history, answer])
        ids, prompt = ids_of(text), len(text) - len(answer)
        sink = ByteSink()
        with self.cache.acquire(ids, prompt - 1) as lease:
            restored = self.cache.restore(lease, sink, 0)
            assert sink.is_true_to(ids)
            assert restored.num_tokens == sink.num_tokens
            assert sink.came_as(restored.runs)
        known = max((n for n in range(prompt) if text[:n] in self.said or n == 0), default=0)
        assert restored.num_tokens <= known
        if text[: prompt - 1] in self.sure | self.pinned:
            assert restored.num_tokens == prompt - 1
        ends = [prompt, len(text)]
        self.cache.commit(ids, ends, lambda start, stop: ByteBlock(ids, start, stop))
        self.said.update(text[: n + 1] for n in range(len(text)))
        prefixes = {text[: n + 1] for n in range(len(text))}
        if self.disk_budget > 1 << 20 and not prefixes & self.doubtful:
            self.sure.update(prefixes)

    @rule()
    def reopen(self) -> None:
        self.cache.close()
        if self.policy.spill == "pressure":
            self.sure.clear()  # what memory had room for is forgotten
        self.cache = self._new_cache()

    @rule()
    def killed(self) -> None:
        """The process ends without a word: what is in RAM alone is lost."""
        self.cache.drain(10)
        if self.policy.spill != "turn":
            self.sure.clear()
        self.cache = self._new_cache()

    @rule(seconds=st.sampled_from([30.0, 90.0, 2 * HOUR]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        if self.policy.ram_ttl or self.policy.disk_ttl:
            self.sure.clear()

    @precondition(lambda self: self.sure)
    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        text = data.draw(st.sampled_from(sorted(self.sure)))
        self.cache.drain(10)
        lookup = self.cache.lookup(ids_of(text))
        rows = {row.segment_id: row for row in self.cache.rows()}
        path = [rows[span.segment_id] for span in lookup.spans]
        self._pins().add(row.segment_id for row in path)
        if all(row.on_disk for row in path):
            self.pinned.add(text)

    @rule()
    def unpin_all(self) -> None:
        self._pins().remove(self._pins().read())
        self.pinned.clear()

    def _pins(self) -> PinBook:
        return PinBook(self.directory / "segments" / "ns")

    @rule()
    def drain(self) -> None:
        assert self.cache.drain(10)
        disk = self.cache.use()[1]
        assert disk.num_bytes <= disk.budget_bytes or self._pins().read()

    @rule()
    def second_process(self) -> None:
        """Another process looks at the same directory while this one runs."""
        self.cache.drain(10)
        other = self._new_cache()
        found = sorted(self.sure)[:3] if self.policy.spill == "turn" else []
        for text in [*found, *self.pinned]:
            assert other.lookup(ids_of(text)).num_tokens == len(text)
        other.close()

    @rule(
        number=st.integers(0, 99),
        at=st.floats(0, 1, exclude_max=True),
        harm=st.sampled_from(["delete", "truncate", "flip"]),
    )
    def harm(self, number: int, at: float, harm: str) -> None:
        self.cache.drain(10)
        files = self._files()
        if not files:
            return
        path = files[number % len(files)]
        content = bytearray(path.read_bytes())
        if harm == "delete":
            path.unlink()
        elif harm == "truncate":
            path.write_bytes(content[: len(content) // 2])
        else:
            content[int(at * len(content))] ^= 1
            path.write_bytes(content)
        self.sure.clear()
        self.pinned.clear()
        self.doubtful = set(self.said)  # harm is noticed when it is read, not before

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
TestPrefixCacheLife.settings = settings(max_examples=40, stateful_step_count=20)
