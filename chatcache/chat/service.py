"""Everything that a front end can do with conversations: the one thing it calls.

Owns what each action means (send, regenerate, edit, continue, fork) in terms of the tree, and what
this front end has last seen of each session. Knows neither SQL nor what a front end looks like. It
does not start the backend.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from chatcache.backends.base import Backend, HistoryMode
from chatcache.backends.questions import Answer, Question, TreeShape
from chatcache.chat import transfer, verify
from chatcache.chat.chat_turn import ChatTurn, RunningTurns
from chatcache.chat.conversation import check_turn, clean_text
from chatcache.chat.costs import CostBook, OfflineCost
from chatcache.chat.forget import Doomed, ForgetKV
from chatcache.chat.idle import ALL_IDLE_WORK, IdleOptions, TurnPreparer
from chatcache.chat.node_table import StoredNode
from chatcache.chat.readings import TurnReading, read_turn
from chatcache.chat.recall import Recall
from chatcache.chat.search import search
from chatcache.chat.store import SessionStore
from chatcache.chat.tasks import (
    TurnOptions,
    TurnTask,
    answer_task,
    system_message,
    unsaved_task,
    user_message,
)
from chatcache.chat.transcripts import fork_points, transcript, variants_of
from chatcache.chat.treekeeper import TreeKeeper
from chatcache.chat.views import (
    ForkPoint,
    ForkResult,
    SearchHit,
    SessionJournal,
    SessionSummary,
    TranscriptMessage,
)
from chatcache.errors import NotFoundError, UnavailableError, UsageError

DEFAULT_OPTIONS = TurnOptions()
OfflineTree = Callable[[str], TreeShape | None]
CLOSE_SECONDS = 5.0


class ChatService:
    """Conversations on a store, answered by a backend (None: only what needs no model)."""

    def __init__(
        self,
        store: SessionStore,
        backend: Backend | None,
        *,
        offline_cost: OfflineCost | None = None,
        offline_tree: OfflineTree | None = None,
        forget_kv: ForgetKV | None = None,
        idle: IdleOptions = ALL_IDLE_WORK,
    ) -> None:
        self._store = store
        self._backend = backend
        self._costs = CostBook(store, backend, offline_cost)
        self._offline_tree = offline_tree
        self._forget_kv = forget_kv
        self._seen: dict[str, int | None] = {}
        self.tree = TreeKeeper(store, self._costs, forget_kv, self._seen)
        self.recall = Recall(store.database)
        self._turns = RunningTurns(self._seen)
        self.idle = TurnPreparer(store, backend, self._seen_tip, idle)

    @property
    def backend(self) -> Backend | None:
        return self._backend

    @property
    def store(self) -> SessionStore:
        return self._store

    def __enter__(self) -> ChatService:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop what is being answered, let the backend write out its state, close the store."""
        self.stop()
        # A thread that is stuck with its turn loses nothing but the last second of its answer.
        self._turns.wait(CLOSE_SECONDS)
        if self._backend is not None:
            self._backend.close()
        self._store.close()

    # Sessions

    def list_sessions(self) -> list[SessionSummary]:
        """All sessions, most recently used first."""
        return self._store.list()

    def find_session(self, ref: str) -> SessionSummary:
        """By name, id, or unique id prefix. Raises NotFoundError naming the nearest names."""
        return self._store.find(ref)

    def last_session(self) -> SessionSummary | None:
        """The session used last; None when there is none."""
        return next(iter(self._store.sessions.list(limit=1)), None)

    def create_session(self, name: str | None = None, system: str | None = None) -> SessionSummary:
        """A new, empty session. Without a name, its first message will name it."""
        row = self._store.create(name, system_message(system))
        self._seen[row.session_id] = row.tip
        return self._store.sessions.summary(row.session_id)

    def rename(self, session_id: str, name: str) -> None:
        self._store.sessions.rename(session_id, name)

    def set_pinned(self, session_id: str, is_pinned: bool) -> None:
        """Keep a session at the top of lists, or no longer."""
        self._store.sessions.set_pinned(session_id, is_pinned)

    def delete(self, session_id: str) -> None:
        """Delete a session, and all words and all K and V that no other session reaches."""
        doomed = Doomed(self._store, session_id)
        self._store.delete(session_id)
        if self._forget_kv is not None:
            doomed.forget(self._forget_kv)
        self._seen.pop(session_id, None)

    def set_history_mode(self, session_id: str, mode: HistoryMode) -> None:
        """From the next turn on: what was read stays as it is, or follows the template again."""
        self._store.sessions.set_history_mode(session_id, mode)

    def set_system(self, session_id: str, system: str | None) -> None:
        """Another system prompt (None: none) for the whole path; the old path stays stored."""
        message = system_message(system)
        tip = self._seen_tip(session_id)
        path = self._store.nodes.path(tip)
        old = path[0].node.text if path and path[0].node.role == "system" else None
        if old == (message.text if message else None):
            return
        self._store.set_system(session_id, message, tip)
        self._see(session_id)

    def transcript(
        self, session_id: str, *, last_turns: int | None = None
    ) -> list[TranscriptMessage]:
        """The messages from root to tip; only those of the last turns, if that is asked for."""
        return transcript(self._store, self._see(session_id), last_turns)

    def look(self, session_id: str) -> list[TranscriptMessage]:
        """The same messages for somebody who only looks: what is sent next still follows what the
        last `transcript` has shown."""
        return transcript(self._store, self._store.sessions.tip(session_id), None)

    def search(self, text: str) -> list[SearchHit]:
        """Sessions by name and messages by text: all words must occur, the last may be a prefix."""
        return search(self._store.database, text)

    def verify(self) -> list[str]:
        """What is damaged among the words; [] when nothing is."""
        return verify.problems(self._store.database)

    def export_session(self, session_id: str, *, is_whole: bool = False) -> dict[str, object]:
        """The path of a session as one JSON document, token ids included; whole: all branches."""
        found = self._store.find(session_id).session_id
        return transfer.export_session(self._store, found, is_whole=is_whole)

    def num_beside(self, session_id: str) -> int:
        """How many messages of a session are on other branches than its path."""
        tip = self._store.sessions.tip(session_id)
        return len(self._store.nodes.beside(session_id, tip))

    def is_here(self, document: object) -> bool:
        """Whether an exported session is here already, word for word."""
        return transfer.is_here(self._store, document)

    def import_session(
        self, document: object, tell: Callable[[int, int], None] | None = None
    ) -> SessionSummary:
        """A session from an exported document. Raises UsageError, or DamageError if altered. `tell`
        hears the steps done of all; what it raises ends the import, and nothing is kept."""
        session_id = transfer.import_session(self._store, document, tell)
        return self._store.sessions.summary(session_id)

    # The tree

    def fork(
        self, session_id: str, *, at_turn: int | None = None, name: str | None = None
    ) -> ForkResult:
        """A new session that keeps turns 1..at_turn (0: the system prompt alone; None: all)."""
        started = time.perf_counter()
        source = self._store.sessions.row(session_id)
        num_turns = self._num_turns(source.tip)
        if at_turn is None:
            at_turn, tip = num_turns, source.tip
        else:
            check_turn(at_turn, num_turns)
            tip = self._store.nodes.at_turn(source.tip, at_turn)
        forked = self._store.fork(source, tip, name)
        elapsed_ms = (time.perf_counter() - started) * 1000.0
        self._seen[forked.session_id] = tip
        return ForkResult(
            session_id=forked.session_id,
            name=forked.name,
            forked_from=session_id,
            at_turn=at_turn,
            shared_tokens=self._store.nodes.get(tip).num_tokens if tip is not None else 0,
            elapsed_ms=elapsed_ms,
            cost=self._costs.of_tip(tip),
        )

    def fork_points(self, session_id: str) -> list[ForkPoint]:
        """Where the session can be forked, newest first, with what each place would cost."""
        return fork_points(self._store, self._store.sessions.tip(session_id), self._costs)

    def variants(self, session_id: str, node_id: str) -> list[str]:
        """The ids of the messages beside this one and itself, oldest first."""
        self._store.sessions.row(session_id)
        return variants_of(self._store, node_id)

    def switch_sibling(self, session_id: str, node_id: str) -> None:
        """Follow another variant: the tip moves to the newest message below `node_id`.

        Raises NotFoundError unless it is beside a message of the session's path.
        """
        tip = self._seen_tip(session_id)
        chosen = self._store.nodes.find(node_id)
        beside = self._store.nodes.siblings(chosen) if chosen else []
        if chosen is None or not any(
            self._store.nodes.is_on_path(sibling.seq, tip) for sibling in beside
        ):
            raise NotFoundError(
                f"Message {node_id} is not a variant of one in this conversation.",
                "Look at the tree for the variants there are.",
            )
        if not self._store.nodes.is_on_path(chosen.seq, tip):
            leaf = self._store.nodes.newest_leaf(chosen.seq)
            self._store.sessions.move_tip(session_id, tip, leaf)
        self._see(session_id)

    def session_journal(self, session_id: str) -> SessionJournal | None:
        """The token ids of a session's path; None when no model has read it."""
        return self._costs.journal(self._store.sessions.tip(session_id))

    def reading(self, session_id: str, turn: int | None = None) -> TurnReading:
        """What was read and written in a turn (None: the last), with the ids of the model that
        answered it. Raises NotFoundError for a turn that is not there."""
        return read_turn(self._store, session_id, self._store.sessions.tip(session_id), turn)

    def study(self, question: Question, timeout: float | None = None) -> Answer:
        """What the model or its cache has to say; see `Backend.study`."""
        return self._need_backend().study(question, timeout)

    def tree_on_disk(self, namespace_id: str) -> TreeShape | None:
        """The tree of a namespace as far as it is on disk; None where nobody can look."""
        return None if self._offline_tree is None else self._offline_tree(namespace_id)

    # Turns

    def send(
        self,
        session_id: str,
        text: str,
        options: TurnOptions = DEFAULT_OPTIONS,
        *,
        save: bool = True,
        system: str | None = None,
    ) -> ChatTurn:
        """Say something and have it answered.

        Without `save` nothing is kept, and `session_id` may be "" for a turn without a history
        (`system` is then its system prompt). Raises UsageError for an empty text, at once.
        """
        backend, text = self._need_backend(), clean_text(text)
        if not save:
            tip = self._store.sessions.tip(session_id) if session_id else None
            task = unsaved_task(self._store, session_id, tip, text, options, system)
            return self._turn(backend, lambda: task)
        self._store.sessions.row(session_id)

        def begin() -> TurnTask:
            seen = self._seen_tip(session_id)
            parent = self._store.nodes.get(seen) if seen is not None else None
            question = self._store.add_user(session_id, parent, user_message(text), seen)
            return self._task(session_id, question, question.seq, options)

        return self._turn(backend, begin)

    def regenerate(self, session_id: str, options: TurnOptions = DEFAULT_OPTIONS) -> ChatTurn:
        """Another answer to the last user message, beside the one it has (if it has one)."""
        backend = self._need_backend()
        tip, question = self._last_question(session_id)
        return self._turn(backend, lambda: self._task(session_id, question, tip.seq, options))

    def continue_answer(self, session_id: str, options: TurnOptions = DEFAULT_OPTIONS) -> ChatTurn:
        """Go on with an answer that was stopped or reached its limit; the longer one is new.

        A question that has no answer at all is answered.
        """
        backend = self._need_backend()
        tip, question = self._last_question(session_id)
        continued = tip if tip.seq != question.seq else None
        if continued is not None and continued.node.message.finish_reason == "stop":
            raise UsageError(
                "The last answer is complete.", "Send a message, or regenerate the answer."
            )
        return self._turn(
            backend, lambda: self._task(session_id, question, tip.seq, options, continued)
        )

    def edit(
        self, session_id: str, turn: int, text: str, options: TurnOptions = DEFAULT_OPTIONS
    ) -> ChatTurn:
        """Say something else in turn `turn`; what followed becomes "NAME (before edit)"."""
        backend, text = self._need_backend(), clean_text(text)
        check_turn(turn, self._num_turns(self._seen_tip(session_id)), first=1)

        def begin() -> TurnTask:
            tip = self._seen_tip(session_id)
            if tip is None:
                raise NotFoundError(f"There is no turn {turn}.", "Send a message first.")
            old = self._store.nodes.question(tip, turn)
            question = self._store.add_edited(session_id, old, user_message(text), tip)
            return self._task(session_id, question, question.seq, options)

        return self._turn(backend, begin)

    def stop(self) -> None:
        """End the turns in progress and those that wait; partial answers are kept."""
        self._turns.stop()

    def _turn(self, backend: Backend, begin: Callable[[], TurnTask]) -> ChatTurn:
        return ChatTurn(self._store, backend, begin, self._turns)

    def _task(
        self,
        session_id: str,
        question: StoredNode,
        seen: int,
        options: TurnOptions,
        continued: StoredNode | None = None,
    ) -> TurnTask:
        """To have a question answered that is on disk."""
        self._seen[session_id] = seen
        return answer_task(self._store, session_id, question, seen, options, continued)

    def spill(self, segment_id: str | None = None) -> bool:
        """Have KV of memory written to disk: all, or one segment and what is before it."""
        return self._backend is not None and self._backend.spill(segment_id)

    def _last_question(self, session_id: str) -> tuple[StoredNode, StoredNode]:
        """(tip, user message of the last turn)."""
        tip = self._seen_tip(session_id)
        num_turns = self._num_turns(tip)
        if tip is None or num_turns == 0:
            raise UsageError("There is nothing to answer yet.", "Send a message first.")
        return self._store.nodes.get(tip), self._store.nodes.question(tip, num_turns)

    def _num_turns(self, tip: int | None) -> int:
        return self._store.nodes.get(tip).node.turn if tip is not None else 0

    def _see(self, session_id: str) -> int | None:
        """Read where the session points now: from here on that is what the person has seen."""
        tip = self._store.sessions.tip(session_id)
        self._seen[session_id] = tip
        return tip

    def _seen_tip(self, session_id: str) -> int | None:
        """Where this front end last saw the session; another process may have moved it since."""
        seen = self._seen.get(session_id)
        if seen is not None and self._store.nodes.exists(seen):
            self._store.sessions.row(session_id)
            return seen
        return self._see(session_id)

    def _need_backend(self) -> Backend:
        if self._backend is None:
            raise UnavailableError(
                "No model is attached, so nothing can be answered.", "Run it with a model."
            )
        return self._backend
