"""What a model read and wrote in one turn: the exact token ids, and whose message each of them is.

Puts together what the journals and the figures of an answer tell. Knows neither SQL nor what an id
stands for; nothing is asked of a model. What is not known is said, never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from chatcache.backends.base import Role
from chatcache.backends.usage import Figures
from chatcache.chat.conversation import check_turn
from chatcache.chat.figures import decode
from chatcache.chat.node_table import StoredNode
from chatcache.chat.store import SessionStore
from chatcache.errors import NotFoundError
from chatcache.token_ids import NO_IDS, TokenIds

# Reasons of a turn that begins anew beside what was said before.
LEFT_LINE = ("system_prompt_changed", "turn_edited")
NOTHING_BEFORE = "It is the first turn: nothing was read before it."
OTHER_TOKENIZER = "What came before was read by no model with this tokenizer."
LINE_GONE = "The line that was left is deleted, or was read with another tokenizer."
NOT_READ = "No model has read this turn yet."
OF_SERVER = "A server read this turn: its tokens are not known here."
NOT_KEPT = (
    "The token ids of this turn are not kept on this path: the system prompt was changed after it,"
    " or they were lost."
)


@dataclass(frozen=True, slots=True)
class MessageRun:
    """Tokens `start` to `stop`: messages with what the template writes around them.

    `roles` are those of the messages with their turns. More than one: where the one ends and the
    next begins was not recorded, because the template wrote them anew."""

    start: int
    stop: int
    roles: tuple[tuple[int, Role], ...]


@dataclass(frozen=True, slots=True)
class TurnReading:
    """One turn of a session, as the model that answered it saw it, in the namespace that it did so.

    `prompt_ids` are what it read, `answer_ids` what it wrote; both are empty, and `unknown` says
    why, where nobody can tell. `history_ids` were read and written before the turn, on the line
    that it went on from or that was left for it; `no_history` says why they are not known.
    `figures` is None for a turn without an answer."""

    session_id: str
    session_name: str
    turn: int
    num_turns: int
    question: str
    model: str = ""
    tokenizer_id: str = ""
    namespace_id: str = ""
    figures: Figures | None = None
    prompt_ids: TokenIds = NO_IDS
    answer_ids: TokenIds = NO_IDS
    messages: tuple[MessageRun, ...] = ()
    history_ids: TokenIds = NO_IDS
    unknown: str = ""
    no_history: str = ""

    @property
    def ids(self) -> TokenIds:
        return self.prompt_ids + self.answer_ids


def read_turn(
    store: SessionStore, session_id: str, tip: int | None, turn: int | None = None
) -> TurnReading:
    """A turn on the path to `tip`; None: the last one. Raises NotFoundError for one that is not."""
    whole = store.nodes.path(tip)
    num_turns = whole[-1].node.turn if whole else 0
    if turn is None and not num_turns:
        raise NotFoundError("Nothing has been said in this chat yet.", "Send a message first.")
    turn = num_turns if turn is None else turn
    check_turn(turn, num_turns, first=1)
    path = [stored for stored in whole if stored.node.turn <= turn]
    question = next(stored for stored in path if stored.node.turn == turn)
    answer = path[-1] if path[-1].node.role == "assistant" else None
    found = store.answers.along(answer.seq, above_turn=turn - 1) if answer else {}
    figures = decode(found[answer.seq].result_json) if answer and answer.seq in found else None
    reading = TurnReading(
        session_id=session_id,
        session_name=store.sessions.row(session_id).name,
        turn=turn,
        num_turns=num_turns,
        question=question.node.text,
        model=(answer.node.message.model or "") if answer else "",
        namespace_id=(found[answer.seq].namespace_id or "") if answer and figures else "",
        figures=figures,
    )
    if figures is not None and figures.is_remote:
        return replace(reading, unknown=OF_SERVER)
    namespace = store.answers.last_namespace(path[-1].seq)
    tokenizer_id = namespace.tokenizer_id if namespace else ""
    if figures is None:  # the question alone was read, perhaps by another model
        readers = store.journals.entries([question.seq]).get(question.seq, {})
        tokenizer_id = tokenizer_id if tokenizer_id in readers else next(iter(readers), "")
    if not tokenizer_id:
        return replace(reading, unknown=NOT_READ)
    reading = replace(reading, tokenizer_id=tokenizer_id)
    return _with_history(store, _with_ids(store, reading, path, question), path, question)


def _with_ids(
    store: SessionStore, reading: TurnReading, path: Sequence[StoredNode], question: StoredNode
) -> TurnReading:
    """The ids of the turn, and which messages they are."""
    journal = store.journals.along(path[-1].seq, reading.tokenizer_id)
    figures = reading.figures
    if figures is None:
        ids = journal.up_to(question.seq) if question.seq in journal.lengths else NO_IDS
        num_prompt = len(ids)
    else:
        ids = journal.ids if path[-1].seq in journal.lengths else NO_IDS
        num_prompt = figures.prompt_tokens
    if not 0 < num_prompt <= len(ids):
        return replace(reading, unknown=NOT_KEPT)
    system_tokens = figures.cache.system_tokens if figures else 0
    return replace(
        reading,
        prompt_ids=ids[:num_prompt],
        answer_ids=ids[num_prompt:],
        messages=message_runs(path, journal.kept(), system_tokens, num_prompt, len(ids)),
    )


def message_runs(
    path: Sequence[StoredNode],
    kept: Mapping[int, int],
    system_tokens: int,
    num_prompt: int,
    num_all: int,
) -> tuple[MessageRun, ...]:
    """The messages of a path by the tokens that they end at; `kept` as `PathJournal.kept` tells."""
    runs: list[MessageRun] = []
    roles: list[tuple[int, Role]] = []
    start = 0

    def end(stop: int) -> None:
        nonlocal start
        if stop > start and roles:
            runs.append(MessageRun(start, stop, tuple(roles)))
            start = stop
            roles.clear()

    for stored in path:
        node = stored.node
        if node.role == "assistant" and node.turn == path[-1].node.turn:
            if roles:
                end(num_prompt)
            elif start < num_prompt:  # an answer goes on that was cut off: it is read again
                roles.append((node.turn, node.role))
                end(num_prompt)
        roles.append((node.turn, node.role))
        if node.role == "system":
            end(system_tokens)
        elif (stop := kept.get(stored.seq)) is not None and stop <= num_prompt:
            end(stop)
    end(num_all)
    return tuple(runs)


def _with_history(
    store: SessionStore, reading: TurnReading, path: Sequence[StoredNode], question: StoredNode
) -> TurnReading:
    """What the turn could have gone on from."""
    tokenizer_id, figures = reading.tokenizer_id, reading.figures
    history = store.journals.journal(question.parent_seq, tokenizer_id)
    reason = figures.cache.reason if figures else None
    if reason in LEFT_LINE:
        top = path[0] if reason == "system_prompt_changed" else question
        left = store.journals.newest_beside(top.seq, reading.session_id, tokenizer_id)
        history = store.journals.journal(left, tokenizer_id) if left is not None else NO_IDS
    if history:
        return replace(reading, history_ids=history)
    if reason in LEFT_LINE:
        return replace(reading, no_history=LINE_GONE)
    return replace(reading, no_history=NOTHING_BEFORE if reading.turn == 1 else OTHER_TOKENIZER)
