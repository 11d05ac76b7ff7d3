"""Any order of actions against a dictionary of lists: paths, deletions, and nothing left over."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from chatcache.chat.service import ChatService
from chatcache.chat.store import SessionStore
from chatcache.config import DATABASE_NAME
from tests.fakes import FakeBackend

Line = tuple[str, str]

TEXTS = st.sampled_from(["a", "b", "long " * 20, "two\nlines", "Ünï 🦉", '"; DROP', "\x1b[2J"])
SYSTEMS = st.sampled_from([None, "Be kind.", "Be brief."])


class Conversations(RuleBasedStateMachine):
    """The model: for each session the lines of its path."""

    sessions: Bundle[str] = Bundle("sessions")

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.path = Path(self.directory.name) / DATABASE_NAME
        self.paths: dict[str, list[Line]] = {}
        self.numbers = itertools.count()
        self.last_answer = ""

    def _next_answer(self, _: object) -> str:
        self.last_answer = f"answer {next(self.numbers)}"
        return self.last_answer

    @initialize()
    def open(self) -> None:
        self.backend = FakeBackend(self._next_answer, starts_ready=True)
        self.backend.start()
        self.service = ChatService(SessionStore(self.path), self.backend)

    @rule()
    def reopen(self) -> None:
        self.service.close()
        self.service = ChatService(SessionStore(self.path), self.backend)

    @rule(target=sessions, system=SYSTEMS)
    def create(self, system: str | None) -> str:
        session_id = self.service.create_session(system=system).session_id
        self.paths[session_id] = [("system", system)] if system else []
        return session_id

    @rule(session=sessions, text=TEXTS)
    def send(self, session: str, text: str) -> None:
        list(self.service.send(session, text))
        self.paths[session] += [("user", text), ("assistant", self.last_answer)]

    @rule(session=sessions, text=TEXTS, point=st.sampled_from(["plan", "answer", "delta:1"]))
    def fail(self, session: str, text: str, point: str) -> None:
        self.backend.fail_at = point
        try:
            list(self.service.send(session, text))
        except type(self.backend.failure):
            pass
        else:
            raise AssertionError("the failure was swallowed")
        finally:
            self.backend.fail_at = None
        self.paths[session].append(("user", text))
        if point == "delta:1":
            self.paths[session].append(("assistant", "answer "))

    @rule(target=sessions, session=sessions, data=st.data())
    def fork(self, session: str, data: st.DataObject) -> str:
        path = self.paths[session]
        turn = data.draw(st.integers(0, num_turns(path)))
        fork = self.service.fork(session, at_turn=turn)
        self.paths[fork.session_id] = path[: first_after(path, turn)]
        return fork.session_id

    @rule(target=sessions, session=sessions, text=TEXTS, data=st.data())
    def edit(self, session: str, text: str, data: st.DataObject) -> str | MultipleResults[str]:
        path = self.paths[session]
        if not num_turns(path):
            return multiple()
        turn = data.draw(st.integers(1, num_turns(path)))
        known = set(self.paths)
        list(self.service.edit(session, turn, text))
        (old,) = {one.session_id for one in self.service.list_sessions()} - known
        self.paths[old] = path
        kept = path[: first_after(path, turn - 1)]
        self.paths[session] = [*kept, ("user", text), ("assistant", self.last_answer)]
        return old

    @rule(session=sessions)
    def regenerate(self, session: str) -> None:
        path = self.paths[session]
        if not num_turns(path):
            return
        list(self.service.regenerate(session))
        kept = path[:-1] if path[-1][0] == "assistant" else path
        self.paths[session] = [*kept, ("assistant", self.last_answer)]

    @rule(session=sessions, system=SYSTEMS)
    def set_system(self, session: str, system: str | None) -> None:
        self.service.set_system(session, system)
        kept = [line for line in self.paths[session] if line[0] != "system"]
        self.paths[session] = [("system", system), *kept] if system else kept

    @rule(session=sessions, data=st.data())
    def switch(self, session: str, data: st.DataObject) -> None:
        before = self.service.transcript(session)
        branching = [m for m in before if m.num_siblings > 1]
        if not branching:
            return
        message = data.draw(st.sampled_from(branching))
        variants = self.service.variants(session, message.node_id)
        assert variants[message.sibling_index] == message.node_id
        chosen = data.draw(st.sampled_from(variants))
        self.service.switch_sibling(session, chosen)
        after = self.service.transcript(session)
        index = before.index(message)
        assert [m.node_id for m in after[:index]] == [m.node_id for m in before[:index]]
        assert after[index].node_id == chosen
        self.paths[session] = [(m.role, m.text) for m in after]

    @rule(session=consumes(sessions))
    def delete(self, session: str) -> None:
        self.service.delete(session)
        del self.paths[session]

    @rule(session=sessions)
    def move(self, session: str) -> None:
        document = self.service.export_session(session)
        copy = self.service.import_session(document).session_id
        assert [(m.role, m.text) for m in self.service.transcript(copy)] == self.paths[session]
        self.service.delete(copy)

    @precondition(lambda self: hasattr(self, "service"))
    @invariant()
    def every_path_is_as_it_was_said(self) -> None:
        listed = {one.session_id: one for one in self.service.list_sessions()}
        assert set(listed) == set(self.paths)
        for session_id, path in self.paths.items():
            messages = self.service.transcript(session_id)
            assert [(m.role, m.text) for m in messages] == path
            assert listed[session_id].num_turns == num_turns(path)

    def teardown(self) -> None:
        assert self.service.verify() == []
        for session_id in self.paths:
            self.service.delete(session_id)
        with self.service.store.database.reading() as connection:
            assert connection.execute("SELECT count(*) FROM nodes").fetchone() == (0,)
        self.service.close()
        self.directory.cleanup()


def num_turns(path: list[Line]) -> int:
    return sum(role == "user" for role, _ in path)


def first_after(path: list[Line], turn: int) -> int:
    """Where turn + 1 begins."""
    users = [index for index, (role, _) in enumerate(path) if role == "user"]
    return users[turn] if turn < len(users) else len(path)


TestConversations = Conversations.TestCase
TestConversations.settings = settings(
    max_examples=25,
    stateful_step_count=20,
    suppress_health_check=[HealthCheck.too_slow],
)
