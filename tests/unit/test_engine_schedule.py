"""What an engine does next, for any number of front ends that ask in any order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from chatcache.backends.base import ChatMessage, Prepare, TurnRequest
from chatcache.backends.local.engine.schedule import (
    Chore,
    End,
    Idle,
    Left,
    Question,
    Schedule,
    Study,
    Turn,
)
from chatcache.backends.questions import AskAttention
from chatcache.token_ids import NO_IDS

CLIENTS = st.integers(1, 4)


def turn(client: int, name: str) -> Turn:
    return Turn(client, TurnRequest(name, (ChatMessage("user", name),)))


def idle(name: str) -> Prepare:
    return Prepare(name, "draft", TurnRequest(name, (ChatMessage("user", name),)))


def answered(schedule: Schedule) -> list[tuple[int, str]]:
    """Who is answered what, in order, until nothing is to be done."""
    found = []
    while isinstance(step := schedule.next(0), Turn):
        found.append((step.client, step.request.turn_id))
    return found


@given(st.lists(CLIENTS, max_size=12))
def test_every_turn_is_answered_once_and_each_front_ends_own_in_order(clients: list[int]) -> None:
    schedule = Schedule()
    for number, client in enumerate(clients):
        schedule.add_turn(turn(client, str(number)))
    found = answered(schedule)
    assert sorted(found) == sorted((client, str(number)) for number, client in enumerate(clients))
    for client in set(clients):
        own = [int(name) for whose, name in found if whose == client]
        assert own == sorted(own)


@given(st.lists(CLIENTS, min_size=1, max_size=12))
def test_nobody_waits_for_more_than_one_turn_of_each_other(clients: list[int]) -> None:
    schedule = Schedule()
    for number, client in enumerate(clients):
        schedule.add_turn(turn(client, str(number)))
    found = [client for client, _ in answered(schedule)]
    for client in set(clients):
        before = found[: found.index(client)]
        assert len(before) == len(set(before))


@given(st.lists(CLIENTS, min_size=1, max_size=8))
def test_who_waits_is_told_the_number_of_turns_that_really_come_before(clients: list[int]) -> None:
    schedule = Schedule()
    schedule.add_turn(turn(9, "running"))
    running = schedule.next(0)
    for number, client in enumerate(clients):
        schedule.add_turn(turn(client, str(number)))
    told = {waiting.request.turn_id: ahead for waiting, _, ahead in schedule.waiting()}
    assert {first for _, first, _ in schedule.waiting()} == {running}
    found = answered(schedule)
    for position, (client, name) in enumerate(found):
        others = sum(whose != client for whose, _ in found[:position])
        assert told[name] == others + 1  # and the one that is answered now


def test_nobody_waits_for_a_turn_that_has_its_answer() -> None:
    schedule = Schedule()
    schedule.add_turn(turn(1, "first"))
    schedule.next(0)
    assert schedule.is_answering
    schedule.answered()
    assert not schedule.is_answering
    second = turn(2, "second")
    schedule.add_turn(second)
    assert schedule.waiting() == [(second, None, 0)]


def test_questions_come_first_and_chores_between_turns() -> None:
    schedule = Schedule()
    schedule.add_turn(turn(1, "first"))
    schedule.add_chore(Chore("tidy up"))
    schedule.add_question(Question(2, "how much?"))
    kinds = [type(schedule.next(0)) for _ in range(4)]
    assert kinds == [Question, Chore, Turn, type(None)]
    schedule.add_question(Question(2, "in the middle of a turn?"))
    schedule.add_chore(Chore("not in the middle"))
    assert [question.message for question in schedule.questions()] == ["in the middle of a turn?"]


def test_idle_work_ends_with_any_turn_and_with_what_its_front_end_wants_instead() -> None:
    schedule = Schedule()
    assert schedule.want(1, idle("old")) is None
    assert schedule.want(1, idle("new")) == idle("old")
    step = schedule.next(0)
    assert step == Idle(1, idle("new"))
    assert isinstance(step, Idle)
    assert schedule.is_wanted(step)
    schedule.add_turn(turn(2, "of another"))
    assert not schedule.is_wanted(step)
    assert isinstance(schedule.next(0), Turn)


def test_a_turn_takes_the_place_of_what_was_prepared_for_it() -> None:
    schedule = Schedule()
    schedule.want(1, idle("draft"))
    schedule.want(2, idle("of another"))
    assert schedule.add_turn(turn(1, "sent")) == idle("draft")
    assert isinstance(schedule.next(0), Turn)
    assert schedule.next(0) == Idle(2, idle("of another"))
    assert schedule.next(0) is None


def test_who_leaves_is_let_go_after_its_turn_and_its_others_are_not_begun() -> None:
    schedule = Schedule()
    running, waiting = turn(1, "running"), turn(1, "waiting")
    schedule.add_turn(running)
    assert schedule.next(0) is running
    schedule.add_turn(waiting)
    assert schedule.leave(1) == [waiting]
    assert running.stop.is_set()
    assert schedule.next(0) == Left(1)
    assert schedule.next(0) is None


def test_at_the_end_nothing_is_begun_but_what_was_asked_is_answered() -> None:
    schedule = Schedule()
    running = turn(1, "running")
    schedule.add_turn(running)
    schedule.next(0)
    schedule.add_turn(turn(2, "waiting"))
    schedule.end("enough")
    schedule.end("once more")
    schedule.add_question(Question(3, "and I?"))
    assert running.stop.is_set()
    assert isinstance(schedule.next(0), Question)
    assert schedule.next(0) == End("enough")


def test_a_stop_ends_the_turn_that_runs_and_removes_one_that_waits() -> None:
    schedule = Schedule()
    running, waiting = turn(1, "a"), turn(1, "b")
    schedule.add_turn(running)
    schedule.next(0)
    schedule.add_turn(waiting)
    assert schedule.stop_turn(2, "a") is None
    assert not running.stop.is_set()
    assert schedule.stop_turn(1, "a") is None
    assert running.stop.is_set()
    assert schedule.stop_turn(1, "b") is waiting
    assert schedule.next(0) is None


def study(client: int, call_id: int = 0) -> Study:
    return Study(client, call_id, AskAttention(NO_IDS, 0, 0))


def test_studies_come_after_turns_and_before_idle_work() -> None:
    schedule = Schedule()
    schedule.want(1, idle("ahead"))
    schedule.add_study(study(1))
    schedule.add_turn(turn(2, "of another"))
    kinds = [type(schedule.next(0)) for _ in range(4)]
    assert kinds == [Turn, Study, Idle, type(None)]


def test_a_study_gives_way_to_a_turn_and_begins_anew_after_it() -> None:
    schedule = Schedule()
    first, second = study(1, 1), study(2, 2)
    schedule.add_study(first)
    schedule.add_study(second)
    assert schedule.next(0) is first
    assert schedule.may_study(first)
    schedule.add_turn(turn(3, "now"))
    assert not schedule.may_study(first)
    assert schedule.put_back(first)
    assert isinstance(schedule.next(0), Turn)
    assert schedule.next(0) is first
    assert schedule.next(0) is second


def test_a_study_that_nobody_wants_any_more_ends_and_is_not_begun_again() -> None:
    schedule = Schedule()
    running, waiting, other = study(1, 1), study(1, 2), study(2, 1)
    for wanted in (running, waiting, other):
        schedule.add_study(wanted)
    assert schedule.next(0) is running
    schedule.stop_study(1, 2)
    assert schedule.may_study(running)
    schedule.leave(1)
    assert not schedule.may_study(running)
    assert not schedule.put_back(running)
    assert schedule.next(0) == Left(1)
    assert schedule.next(0) is other


def test_idle_work_that_a_study_broke_off_is_done_later_unless_a_turn_comes() -> None:
    schedule = Schedule()
    schedule.want(1, idle("ahead"))
    step = schedule.next(0)
    assert isinstance(step, Idle)
    schedule.add_study(study(2))
    assert not schedule.is_wanted(step)
    assert schedule.put_back(step)
    assert isinstance(schedule.next(0), Study)
    assert schedule.next(0) == step
    schedule.add_study(study(2))
    schedule.add_turn(turn(2, "sent"))
    assert not schedule.put_back(step)


def test_at_the_end_no_study_is_begun() -> None:
    schedule = Schedule()
    running = study(1)
    schedule.add_study(running)
    schedule.next(0)
    schedule.add_study(study(1))
    schedule.end("enough")
    assert not schedule.may_study(running)
    assert schedule.next(0) == End("enough")
