"""What forks, turns and short prefixes cost: the rows in which deltas and sharing show."""

from __future__ import annotations

import random
import statistics

from chatcache.backends.local.run.live_context import Reuse
from chatcache.bench.contenders import Chatcache
from chatcache.bench.report import CHATCACHE, CHOSEN, COMPUTED, FROM_DISK, Figure, Row
from chatcache.bench.rows import MESSAGE_TOKENS, TELLING_BYTES, Bench
from chatcache.cache.book.rates import RateBook
from chatcache.chat.conversation import Message
from chatcache.chat.journal_table import Namespace
from chatcache.chat.service import ChatService
from chatcache.chat.store import Origin, SessionStore
from chatcache.token_ids import TokenIds

FORK_TOKENS = 100
ANSWER_TOKENS = 24
SHORT_PREFIXES = (64, 128, 256, 512)
_SPILL_ROUNDS = 3
_SPILL_STEPS = 60
_FORKS = 9
_SEGMENT_OVERHEAD = 64 * 1024


class SharingBench:
    """Runs on the history that `bench` has kept."""

    def __init__(self, bench: Bench, runs: int):
        self._bench = bench
        self._runs = runs
        self._draw = random.Random(1)
        self.rows: dict[str, Row] = {}
        self.figures: list[Figure] = []

    def run(self) -> None:
        self._fork_session()
        self._switch_between_forks()
        self._turn_bytes()
        self._spill_cost()
        for num_tokens in SHORT_PREFIXES:
            self._load_or_recompute(num_tokens)

    def _row(self, name: str, title: str, bound_by: str) -> Row:
        self.rows[name] = row = Row(name, title, "sharing", bound_by)
        return row

    def _ids(self, count: int) -> list[int]:
        return self._bench.tuned.random_ids(self._draw, count)

    def _fork_session(self) -> None:
        """Forking writes a row in the conversations; no K and V are copied or written."""
        row = self._row("fork_session", "fork a chat", "one row in SQLite")
        directory = self._bench.directory / "words"
        directory.mkdir()
        with ChatService(SessionStore(directory / "chats.sqlite3"), None) as service:
            session_id = _stored_session(service, self._bench.history)
            for _ in range(_FORKS):
                row.add(CHATCACHE, service.fork(session_id).elapsed_ms / 1000)

    def _switch_between_forks(self) -> None:
        """Two forks of the history with tokens of their own each, visited in turn from RAM."""
        ours, shared = self._bench.ours, self._bench.history
        forks = [shared + self._ids(FORK_TOKENS) for _ in range(2)]
        for ids in forks:
            ours.first_token(ids)
            ours.commit([len(shared), len(ids)])
        row = self._row("switch_forks", "switch between two forks", "one pass over weights")
        moved = 0
        for visit in range(2 * self._runs):
            ids = forks[visit % 2]
            before = ours.live.bytes_moved
            seconds, reuse = ours.first_token(ids + self._bench.message())
            if reuse.num_tokens < len(ids):
                raise RuntimeError(f"only {reuse.num_tokens} of {len(ids)} tokens were reused")
            row.add(CHATCACHE, seconds)
            moved = ours.live.bytes_moved - before
        per_token = self._bytes_per_token()
        note = f"of {len(forks[0]):,} tokens, {len(shared):,} shared"
        self.figures += [
            Figure("switch_tokens", "switch: tokens moved", moved / per_token, "tokens",
                   FORK_TOKENS, note),
            Figure("switch_bytes", "switch: bytes moved", moved, "bytes", FORK_TOKENS * per_token),
        ]  # fmt: skip

    def _turn_bytes(self) -> None:
        """What a turn adds on disk, against 1.02 times its tokens and 64 KiB."""
        ours, history = self._bench.ours, self._bench.history
        new_tokens = MESSAGE_TOKENS + ANSWER_TOKENS
        num_bytes = ours.turn(history + self._bench.message(), ANSWER_TOKENS)
        bound = 1.02 * new_tokens * self._bytes_per_token() + _SEGMENT_OVERHEAD
        note = f"{new_tokens} new tokens behind {len(history):,}"
        self.figures.append(
            Figure("turn_bytes", "written by a turn", num_bytes, "bytes", bound, note)
        )

    def _spill_cost(self) -> None:
        """The same steps with the writer idle and while it writes the whole history."""
        ours, history = self._bench.ours, self._bench.history
        ours.first_token(history + self._bench.message())
        idle: list[float] = []
        busy: list[float] = []
        for number in range(_SPILL_ROUNDS):
            directory = self._bench.directory / f"spill-{number}"
            idle += [ours.decode(1) for _ in range(_SPILL_STEPS // _SPILL_ROUNDS)]
            busy += ours.decode_while_spilling(directory, _SPILL_STEPS - len(busy))
            for path in directory.rglob("*.safetensors"):
                path.unlink()
            if len(busy) >= _SPILL_STEPS:
                break
        idle += [ours.decode(1) for _ in range(_SPILL_STEPS // _SPILL_ROUNDS)]
        if not busy or self._bench.bytes_written < TELLING_BYTES:
            return
        slower = 100 * (statistics.median(busy) / statistics.median(idle) - 1)
        note = f"while all {len(history):,} tokens are written; {len(busy)} steps"
        self.figures.append(
            Figure("spill_cost", "spill: slower decode", slower, "percent", 3, note)
        )

    def _load_or_recompute(self, num_tokens: int) -> None:
        """A short prefix, restored from a cold disk, computed anew, and as a chat would choose."""
        row = Row(f"prefix_{num_tokens}", f"{num_tokens} tokens", "prefix", "disk, or matrix rate")
        self.rows[row.name] = row
        prefix = self._ids(num_tokens)
        directory = self._bench.directory / row.name
        short = Chatcache(self._bench.tuned, directory, self._bench.ours.choice)
        short.cold(prefix)
        short.commit([num_tokens])
        known = RateBook()
        for num_bytes, seconds in self._bench.restores:
            known.note_restore(num_bytes, seconds)
        for _ in range(self._runs):
            prompt = prefix + self._bench.message()
            seconds, reuse = self._from_cold_disk(short, prompt, RateBook())
            if reuse.num_tokens == num_tokens:
                row.add(FROM_DISK, seconds)
                known.note_restore(reuse.bytes_read, reuse.seconds)
            seconds = short.cold(prompt)
            row.add(COMPUTED, seconds)
            known.note_prefill(len(prompt), seconds)
            row.add(CHOSEN, self._from_cold_disk(short, prompt, known)[0])
        short.close()

    def _from_cold_disk(
        self, contender: Chatcache, prompt: list[int], rates: RateBook
    ) -> tuple[float, Reuse]:
        contender.reopen(rates)
        contender.drop_page_cache()
        return contender.first_token(prompt)

    def _bytes_per_token(self) -> int:
        live = self._bench.ours.live
        return live.num_bytes // live.num_tokens


def _stored_session(service: ChatService, ids: list[int]) -> str:
    """A conversation of one turn whose journal is `ids`."""
    store, path = service.store, TokenIds(ids)
    row = store.create("bench")
    question = store.add_user(row.session_id, None, Message("user", "A question."), None)
    origin = Origin(Namespace("bench", "bench", {}), "local", "{}", path[:-1], path[-1:])
    answer = Message("assistant", "An answer.", finish_reason="stop")
    store.add_answer(row.session_id, question, answer, question.seq, origin)
    return row.session_id
