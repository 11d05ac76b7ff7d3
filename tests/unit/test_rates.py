"""What was timed is believed, and decides: for any machine, and out of any error."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from chatcache.cache.book.prefill_rate import MIN_MEASURED_TOKENS
from chatcache.cache.book.rates import CLEARLY_DEARER, MIN_DECLINED_BYTES, RateBook
from chatcache.cache.book.transfer_rate import MIN_TELLING_BYTES
from chatcache.cache.views import Held

NOISE = 2.0  # a belief has few numbers: what explains no more than that is left out


@dataclass(frozen=True)
class Machine:
    """How fast one really is, in seconds."""

    latency: float
    per_byte: float
    overhead: float
    per_token: float
    per_pair: float

    def read(self, num_bytes: int) -> float:
        return self.latency + num_bytes * self.per_byte

    def compute(self, start: int, stop: int) -> float:
        num, middle = stop - start, (start + stop) / 2
        return self.overhead + num * (self.per_token + self.per_pair * middle)


@dataclass(frozen=True)
class Chat:
    """`num_held` tokens are on disk and `num_new` follow, at every turn anew."""

    num_held: int
    num_new: int
    bytes_per_token: int

    @property
    def total(self) -> int:
        return self.num_held + self.num_new

    @property
    def held(self) -> list[Held]:
        return [Held(self.num_held, "disk", self.num_held * self.bytes_per_token)]

    def is_read(self, book: RateBook) -> bool:
        return book.best_stop(self.held, 0, self.total) == self.num_held

    def turn(self, book: RateBook, machine: Machine, *, slower: float = 1.0) -> bool:
        """One turn as a context takes it; whether it read."""
        stop = book.best_stop(self.held, 0, self.total)
        if stop < self.num_held:
            stop = book.trial_stop(self.held, stop) or stop
        if stop:
            (held,) = self.held
            book.note_restore(held.num_bytes, slower * machine.read(held.num_bytes))
        else:
            book.note_declined(["disk"])
        seconds = slower * machine.compute(stop, self.total)
        book.note_prefill(self.total - stop, seconds, stop)
        return stop > 0

    def right_choice(self, machine: Machine, doubt: float = 1.0) -> bool | None:
        """Whether to read; None where it hardly matters, or cannot be known so exactly."""
        compute = machine.compute(0, self.total) - machine.compute(self.num_held, self.total)
        ratio = machine.read(self.held[0].num_bytes) / compute
        if ratio < CLEARLY_DEARER / NOISE:
            return True
        return False if ratio > NOISE * CLEARLY_DEARER * doubt else None


def log(low: int, high: int) -> st.SearchStrategy[float]:
    return st.floats(low, high).map(lambda exponent: 10.0**exponent)


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    """A pass over the weights takes as long as up to 300 tokens, and attention as long as all else
    from position 500 on, or later, or never."""
    per_token = draw(log(-6, -1))  # a million tokens per second to ten
    return Machine(
        latency=draw(log(-5, -2)),  # 10 us to 10 ms
        per_byte=draw(log(-10, -6)),  # 10 GB/s to 1 MB/s
        overhead=per_token * draw(st.floats(0, 300)),
        per_token=per_token,
        per_pair=per_token * draw(st.floats(0, 0.002)),
    )


MACHINES = machines()
# A read of these is always telling.
CHATS = st.builds(
    Chat,
    num_held=st.integers(2_000, 30_000),
    num_new=st.integers(MIN_MEASURED_TOKENS, 2_000),
    bytes_per_token=st.integers(10_000, 200_000),
)
FACTORS = log(-3, 3).filter(lambda factor: not 0.4 < factor < 2.5)


def learned(machine: Machine, chat: Chat) -> RateBook:
    """What is known after some turns of either kind."""
    book = RateBook()
    for _ in range(3):
        for start in (0, chat.num_held):
            seconds = machine.compute(start, chat.total)
            book.note_prefill(chat.total - start, seconds, start)
        (held,) = chat.held
        book.note_restore(held.num_bytes, machine.read(held.num_bytes))
    return book


@given(MACHINES, CHATS)
def test_what_was_seen_is_decided_rightly(machine: Machine, chat: Chat) -> None:
    right = chat.right_choice(machine)
    assume(right is not None)
    assert chat.is_read(learned(machine, chat)) == right


@given(MACHINES, CHATS, FACTORS, FACTORS, st.integers(1, 5))
def test_a_wrong_belief_of_the_disk_is_right_after_two_turns(
    machine: Machine, chat: Chat, latency: float, per_byte: float, num_lies: int
) -> None:
    right = chat.right_choice(machine)
    assume(right is not None)
    book = RateBook()
    for start in (0, chat.num_held):
        book.note_prefill(chat.total - start, machine.compute(start, chat.total), start)
    wrong = Machine(latency * machine.latency, per_byte * machine.per_byte, 1, 1, 1)
    for number in range(num_lies):
        for num_bytes in (100_000 * (number + 1), 20_000_000 * (number + 1)):
            book.note_restore(num_bytes, wrong.read(num_bytes))
    chat.turn(book, machine)
    chat.turn(book, machine)
    assert chat.is_read(book) == right


@given(MACHINES, CHATS, FACTORS)
def test_a_wrong_belief_of_the_model_is_right_after_two_turns(
    machine: Machine, chat: Chat, factor: float
) -> None:
    """Where only the ends of prompts are computed, what a long one takes is known from above."""
    seen = machine.compute(chat.num_held, chat.total) / chat.num_new
    whole = machine.compute(0, chat.total) / chat.total
    right = chat.right_choice(machine, doubt=max(1.0, 1.2 * seen / whole))
    assume(right is not None)
    book = RateBook()
    for start in (0, chat.num_held):
        lie = factor * machine.compute(start, chat.total)
        book.note_prefill(chat.total - start, lie, start)
    (held,) = chat.held
    book.note_restore(held.num_bytes, machine.read(held.num_bytes))
    chat.turn(book, machine)
    chat.turn(book, machine)
    assert chat.is_read(book) == right


@given(MACHINES, CHATS, log(-2, 2))
def test_one_odd_turn_is_forgotten_within_two(machine: Machine, chat: Chat, factor: float) -> None:
    """A busy machine, a cold or a warm page cache."""
    right = chat.right_choice(machine)
    assume(right is not None)
    book = learned(machine, chat)
    chat.turn(book, machine, slower=factor)
    chat.turn(book, machine)
    chat.turn(book, machine)
    assert chat.is_read(book) == right


@given(
    st.lists(st.tuples(st.integers(1, MIN_TELLING_BYTES - 1), log(-4, 2)), max_size=8),
    CHATS,
    log(-6, 0),
)
def test_small_reads_never_decide_about_large_ones(
    samples: list[tuple[int, float]], chat: Chat, per_token: float
) -> None:
    book = RateBook()
    book.note_prefill(1_000, 1_000 * per_token)
    for num_bytes, seconds in samples:
        book.note_restore(num_bytes, seconds)
    assert chat.is_read(book)
    # Nor by much where the bandwidth is known.
    size = chat.held[0].num_bytes
    book.note_restore(size, 1.0)
    assert 900 <= (book.restore_ms(chat.held) or 0) <= 2_000


def test_a_file_of_one_megabyte_does_not_keep_a_long_chat_from_being_read() -> None:
    book = RateBook()
    book.note_prefill(4_096, 0.041)
    book.note_restore(1_260_000, 0.012)
    assert book.best_stop([Held(30_000, "disk", 3_400_000_000)], 0, 30_016) == 30_000


def test_latency_counts_for_every_segment() -> None:
    book = RateBook()
    book.note_restore(1_000_000_000, 1.0)
    book.note_restore(1_000, 0.010)
    assert book.restore_ms([Held(1, "disk", 100_000_000)]) == pytest.approx(110, rel=0.02)
    many = [Held(at + 1, "disk", 1_000_000) for at in range(100)]
    assert book.restore_ms(many) == pytest.approx(200, rel=0.02)  # at most twice the bytes
    few = [Held(at + 1, "disk", 1_000_000) for at in range(5)]
    assert book.restore_ms(few) == pytest.approx(55, rel=0.02)


def test_each_tier_has_its_own_rate_and_a_cut_is_where_the_tier_changes() -> None:
    book = RateBook()
    book.note_prefill(1_000, 0.1)
    for tier, seconds in (("vram", 0.001), ("ram", 0.01), ("disk", 10.0)):
        book.note_restore(1_000_000_000, seconds, tier)  # type: ignore[arg-type]
    size = 50_000_000
    held = [Held(1_000, "vram", size), Held(2_000, "ram", size), Held(3_000, "disk", size)]
    assert book.best_stop(held, 0, 3_010) == 2_000
    behind = [*held, Held(4_000, "ram", size), Held(5_000, "ram", size)]
    assert book.best_stop(behind, 0, 5_010) == 2_000
    assert book.best_stop(held[:2], 0, 2_010) == 2_000
    assert book.best_stop(held, 2_990, 3_010) == 2_990
    assert book.best_stop([], 7, 10) == 7


def test_little_is_always_read() -> None:
    book = RateBook()
    book.note_prefill(100_000, 0.001)
    book.note_restore(MIN_TELLING_BYTES, 1_000.0)
    assert book.best_stop([Held(50, "disk", MIN_DECLINED_BYTES - 1)], 0, 60) == 50
    assert book.best_stop([Held(50, "disk", MIN_DECLINED_BYTES)], 0, 60) == 0


def test_a_slow_disk_is_tried_again_less_and_less_often() -> None:
    machine = Machine(0.0, 1e-6, 0.0, 1e-5, 0.0)
    chat = Chat(10_000, 100, 20_000)
    book = learned(machine, chat)
    turns = "".join("R" if chat.turn(book, machine) else "-" for _ in range(30))
    assert turns.startswith("-R--R----R--------R--------R")


def test_a_trial_ends_as_soon_as_it_tells_something() -> None:
    book = RateBook()
    book.note_prefill(100_000, 0.001)
    book.note_restore(MIN_TELLING_BYTES, 1_000.0)
    book.note_declined(["disk"])
    held = [Held(stop, "disk", MIN_TELLING_BYTES // 2) for stop in range(100, 1_000, 100)]
    assert book.trial_stop(held, 0) == 200
    assert book.trial_stop(held, 500) == 700
    assert book.trial_stop(held[:1], 0) == 100
    assert RateBook().trial_stop(held, 0) is None


@given(MACHINES, CHATS, st.booleans())
def test_a_belief_survives_on_disk(
    tmp_path_factory: pytest.TempPathFactory, machine: Machine, chat: Chat, has_declined: bool
) -> None:
    path = tmp_path_factory.mktemp("rates") / "rates.json"
    book = RateBook(path, "cpu")
    for start in (0, chat.num_held):
        book.note_prefill(chat.total - start, machine.compute(start, chat.total), start)
    (held,) = chat.held
    book.note_restore(held.num_bytes, machine.read(held.num_bytes))
    book.note_restore(1_000, machine.read(1_000), "ram")
    if has_declined:
        book.note_declined(["disk"])
    book.step_seconds = {2: 0.5}
    book.save()
    for device in ("cpu", ""):
        again = RateBook(path, device)
        assert again.estimate(chat.held, 0, chat.total) == book.estimate(chat.held, 0, chat.total)
        assert again.trial_stop(chat.held, 0) == book.trial_stop(chat.held, 0)
        assert again.step_seconds == {2: 0.5}


def test_devices_are_kept_apart_and_whoever_only_looks_sees_the_last(tmp_path: Path) -> None:
    path = tmp_path / "rates.json"
    slow, quick = RateBook(path, "cpu"), RateBook(path, "H200")
    slow.note_prefill(512, 5.12)
    slow.save()
    assert RateBook(path, "H200").prefill_tokens_per_second is None
    quick = RateBook(path, "H200")
    quick.note_prefill(512, 0.00512)
    quick.save()
    found = {name: RateBook(path, name).prefill_tokens_per_second for name in ("cpu", "H200", "")}
    assert found == {name: pytest.approx(rate) for name, rate in
                     {"cpu": 100, "H200": 100_000, "": 100_000}.items()}  # fmt: skip


def test_of_the_first_version_the_model_counts_and_the_disk_does_not(tmp_path: Path) -> None:
    path = tmp_path / "rates.json"
    old = {"prefill_tokens_per_second": 50.0, "restore_bytes_per_second": 1e3}
    path.write_text(json.dumps({**old, "is_measured": True, "step_seconds": {"2": 0.1}}))
    book = RateBook(path, "cpu")
    assert (book.is_measured, book.prefill_tokens_per_second) == (True, pytest.approx(50))
    assert (book.restore_bytes_per_second, book.step_seconds) == (None, {2: 0.1})
    path.write_text(json.dumps({**old, "is_measured": False}))
    assert not RateBook(path).is_measured
    assert RateBook(path).prefill_tokens_per_second == pytest.approx(50)


DAMAGE = [
    "",
    "[]",
    "7",
    '{"version": 3}',
    '{"version": 2}',
    '{"version": 2, "last_device": "cpu", "devices": []}',
    '{"version": 2, "last_device": "cpu", "devices": {"cpu": 7}}',
    '{"prefill_tokens_per_second": -1, "is_measured": true}',
    '{"prefill_tokens_per_second": "x", "is_measured": true}',
    '{"prefill_tokens_per_second": 1e999, "is_measured": true}',
]


@pytest.mark.parametrize("text", DAMAGE)
def test_what_cannot_be_read_is_measured_again(text: str, tmp_path: Path) -> None:
    path = tmp_path / "rates.json"
    path.write_text(text)
    book = RateBook(path, "cpu")
    assert book.prefill_tokens_per_second is None
    book.note_prefill(512, 1.0)
    book.save()
    assert RateBook(path).prefill_tokens_per_second == pytest.approx(512)


@pytest.mark.parametrize(
    "prefill", ["[0, 1, 0]", "[5, 0, 0]", "[5, -1, 0]", "[5, 1e999, 0]", "[5, 1, -1]", "[5]", "5"]
)
def test_numbers_that_nobody_measured_are_not_believed(prefill: str, tmp_path: Path) -> None:
    path = tmp_path / "rates.json"
    own = f'{{"prefills": [{prefill}], "doubt": null, "tiers": {{}}}}'
    path.write_text(f'{{"version": 2, "last_device": "cpu", "devices": {{"cpu": {own}}}}}')
    assert RateBook(path).prefill_tokens_per_second is None


def test_the_rise_with_the_position_is_learned() -> None:
    machine = Machine(0, 0, 0.01, 0.0003, 6e-7)
    book = RateBook()
    for start, num_tokens in ((0, 64), (0, 512), (0, 8_000), (7_500, 20), (3_900, 100)):
        book.note_prefill(num_tokens, machine.compute(start, start + num_tokens), start)
    for start, num_tokens in ((0, 4_096), (7_000, 64), (2_000, 2_000)):
        true = 1000 * machine.compute(start, start + num_tokens)
        assert book.prefill_ms(num_tokens, start) == pytest.approx(true, rel=0.02)
    assert book.tokens_within(0.1, 0) > 4 * book.tokens_within(0.1, 8_000) > 0


def test_until_a_large_prefill_was_seen_the_quickest_small_one_counts() -> None:
    book = RateBook()
    book.note_prefill(10, 1.0)
    book.note_prefill(10, 0.1)
    book.note_prefill(10, 2.0)
    assert (book.is_measured, book.prefill_ms(100)) == (False, pytest.approx(1_000))
    book.note_prefill(100, 0.5)
    assert book.is_measured
    for _ in range(9):
        book.note_prefill(10, 5.0)  # slow small ones say nothing of large ones
    assert book.prefill_ms(1_000, 0) == pytest.approx(5_000, rel=0.1)


@given(MACHINES, CHATS)
def test_an_estimate_is_the_sum_of_what_is_done(machine: Machine, chat: Chat) -> None:
    book = learned(machine, chat)
    found = book.estimate(chat.held, 0, chat.total)
    assert found.ram_tokens + found.disk_tokens + found.recompute_tokens == chat.total
    assert (found.disk_tokens > 0) == chat.is_read(book)
    assert found.estimated_ms is not None
    is_read = found.disk_tokens > 0
    true = machine.compute(chat.num_held if is_read else 0, chat.total)
    true += machine.read(chat.held[0].num_bytes) if is_read else 0.0
    assert found.estimated_ms == pytest.approx(1000 * true, rel=0.5)
