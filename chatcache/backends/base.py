"""What chatcache asks of a backend: requests, events and figures. Text, ids and numbers only.

A backend answers turns. It knows nothing of sessions or of the conversation database: a request
carries the messages of one path and the journal (the token ids that the model really read and
produced on that path), and the events tell what became of it. Everything here is immutable,
picklable, and free of torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from chatcache.backends.engine_status import EngineStatus as EngineStatus
from chatcache.backends.engine_status import EngineUse as EngineUse
from chatcache.backends.questions import Answer, Question
from chatcache.backends.stream import EventStream
from chatcache.backends.usage import CacheReport as CacheReport
from chatcache.backends.usage import FinishReason as FinishReason
from chatcache.backends.usage import Outcome as Outcome
from chatcache.backends.usage import Reason as Reason
from chatcache.backends.usage import Timings as Timings
from chatcache.backends.usage import TurnPrice as TurnPrice
from chatcache.backends.usage import Usage as Usage
from chatcache.cache.views import CostEstimate as CostEstimate
from chatcache.cache.views import SegmentRow as SegmentRow
from chatcache.cache.views import TierUse as TierUse
from chatcache.token_ids import NO_IDS, TokenIds

Role = Literal["system", "user", "assistant"]
# "canonical": a prompt is what the template writes for the whole conversation. "append": what was
# read stays as it was read, and the template writes only what is new.
HistoryMode = Literal["canonical", "append"]
# What a model's template can be told of thinking: on and off; more and less; nothing. "": unknown.
ThinkSwitch = Literal["flag", "effort", "none", ""]


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a path, as the template sees it."""

    role: Role
    text: str
    reasoning: str | None = None


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen. None: what the model's generation config says, else greedy.

    None of these touches the cache: the K and V of a token do not depend on how it was chosen.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    max_new_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class PreviousTurn:
    """What the last turn of the session ran on. Used only to explain a miss, never to match.

    `namespace` holds the fields of that turn's namespace. `cause` and `journal` are given when
    the caller replaced part of the path itself: the journal is the one that was left behind.
    """

    namespace: Mapping[str, str]
    cause: Literal["system_prompt_changed", "turn_edited"] | None = None
    journal: TokenIds = NO_IDS


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """One turn to answer.

    `messages` run from the root to the new user message (or, with `continue_answer`, to a partial
    answer that is to be continued). `journal` are the ids read and produced on the path up to and
    including the message before the last one that the journal knows; () when there is none for
    this backend's tokenizer. In append mode the journal ends with an answer, and `num_read` is the
    number of leading messages that it covers. `num_answered` leading ids of the journal belong to
    turns that were answered; a question behind them may not have been read to its end.
    """

    turn_id: str
    messages: tuple[ChatMessage, ...]
    journal: TokenIds = NO_IDS
    sampling: SamplingParams = field(default_factory=SamplingParams)
    think: bool | None = None
    use_cache: bool = True
    continue_answer: bool = False
    previous: PreviousTurn | None = None
    history_mode: HistoryMode = "canonical"
    num_read: int = 0
    num_answered: int | None = None


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The model that a backend serves, once it is ready. Of a server's, 0 and "" are unknown.

    `stored_dtype` is the one that it was saved in. `remarks` are sentences that somebody should
    read before it answers. `quantization` is the word for how its weights are packed, such as
    Q4_K_M; "" for weights as they were trained."""

    model: str
    backend: Literal["local", "remote"]
    architecture: str
    num_parameters: int
    dtype: str
    device: str
    num_layers: int
    kv_bytes_per_token: int
    max_context_tokens: int
    cut: Literal["any_token", "turn_boundary", "none"]
    cut_detail: str
    tokenizer_id: str
    namespace: str
    namespace_fields: Mapping[str, str]
    description: str = ""
    load_ms: float = 0.0
    stored_dtype: str = ""
    remarks: tuple[str, ...] = ()
    think_switch: ThinkSwitch = ""
    quantization: str = ""


@dataclass(frozen=True, slots=True)
class TurnResult:
    """A finished (or stopped) turn. `answer_ids` are the ids produced, end token included."""

    text: str
    reasoning: str | None
    finish_reason: FinishReason
    answer_ids: TokenIds
    usage: Usage
    timings: Timings
    cache: CacheReport
    price: TurnPrice | None = None


# Idle work: what a backend does ahead of a turn, while nobody waits for it.

IdleKind = Literal["next_turn", "draft", "restore"]


@dataclass(frozen=True, slots=True)
class Prepare:
    """Get ready for a turn that will probably be asked.

    `turn` is that turn as far as it is known: its last message is the user's, "" before anything
    was written. "next_turn": compute what the template renders differently from how it was read,
    and keep it. "draft": compute what is written so far, live, and keep nothing of it. "restore":
    bring back what is held of the conversation, and compute nothing.
    """

    prepare_id: str
    kind: IdleKind
    turn: TurnRequest


@dataclass(frozen=True, slots=True)
class Prepared:
    """What came of a `Prepare`. `tokens_restored` were moved into the live KV, from RAM or disk."""

    prepare_id: str
    kind: IdleKind
    tokens_prefilled: int = 0
    tokens_restored: int = 0
    seconds: float = 0.0
    was_cancelled: bool = False


# Events of one turn, in this order: TurnWaiting*, TurnPlanned, PrefillProgress*, TextDelta*, then
# one of TurnFinished and TurnFailed.


@dataclass(frozen=True, slots=True)
class TurnWaiting:
    """`num_ahead` turns of other chats are answered before this one; `front_end` is where the one
    that is answered now was asked. 0: it is this one's turn."""

    turn_id: str
    num_ahead: int
    front_end: str = ""


@dataclass(frozen=True, slots=True)
class TurnPlanned:
    """The prompt is known. The journal of the user message is `journal[:keep] + new_ids`."""

    turn_id: str
    keep: int
    new_ids: TokenIds
    cached_ram_tokens: int
    cached_disk_tokens: int
    prompt_tokens: int
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class PrefillProgress:
    """`done` of `total` prompt tokens are in the KV; `cached` of them were restored."""

    turn_id: str
    done: int
    total: int
    cached: int


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of the answer (or of the reasoning), whole characters only.

    `num_tokens` are those produced so far; 0: a server does not count them on the way."""

    turn_id: str
    text: str
    is_reasoning: bool
    num_tokens: int


@dataclass(frozen=True, slots=True)
class TurnFinished:
    turn_id: str
    result: TurnResult


def nothing_said() -> TurnResult:
    """The result of a turn that was stopped before the model began."""
    return TurnResult(
        text="",
        reasoning=None,
        finish_reason="stopped",
        answer_ids=NO_IDS,
        usage=Usage(0, 0, 0, 0),
        timings=Timings(None, None, None, None, None, None),
        cache=CacheReport("off", "disabled", 0, "Stopped before the model began."),
    )


@dataclass(frozen=True, slots=True)
class TurnFailed:
    """The turn was not answered; `partial` is what had been produced, if anything."""

    turn_id: str
    error: Exception
    partial: TurnResult | None = None


TurnEvent = TurnWaiting | TurnPlanned | PrefillProgress | TextDelta | TurnFinished | TurnFailed
TurnStream = EventStream[TurnEvent]


# Events of the backend itself.


@dataclass(frozen=True, slots=True)
class ModelLoading:
    """`stage` is a short sentence for people; total 0 means that no end is known."""

    stage: str
    done: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True)
class ModelReady:
    info: ModelInfo


@dataclass(frozen=True, slots=True)
class BackendFailed:
    """The model could not be loaded, or the engine died; `will_restart` says what comes next."""

    error: Exception
    will_restart: bool = False


@dataclass(frozen=True, slots=True)
class CacheSnapshot:
    """The state of the tiers after a change; `segments` lists the most recently used first.

    `vram` are paths that are not live and stay on a GPU; None: there is no such tier. Of RAM
    `pinned_bytes` are locked for copies to the GPU and back; None: there is no GPU."""

    ram: TierUse
    disk: TierUse
    live_tokens: int
    segments: tuple[SegmentRow, ...] = ()
    vram: TierUse | None = None
    pinned_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class CacheEvent:
    """Something the cache did: spilled, restored, evicted, quarantined. `at` is Unix time."""

    at: float
    kind: Literal["spilled", "restored", "evicted", "quarantined", "warning"]
    text: str


@dataclass(frozen=True, slots=True)
class RestoreBegan:
    """K and V are being read from disk. TurnPlanned or Prepared, which waited for them, ends it."""

    num_tokens: int
    num_bytes: int


BackendEvent = (
    ModelLoading
    | ModelReady
    | BackendFailed
    | CacheSnapshot
    | CacheEvent
    | RestoreBegan
    | Prepared
    | EngineStatus
)


class Backend(Protocol):
    """Answers turns, one at a time. All methods may be called from any thread."""

    def start(self) -> None:
        """Begin to load; returns at once. Progress arrives at the listeners."""

    def subscribe(self, listener: Callable[[BackendEvent], None]) -> Callable[[], None]:
        """Call `listener` (in a thread of the backend) for each event; returns the undo.

        A new listener is told the latest ModelLoading or ModelReady and CacheSnapshot at once.
        """

    def wait_ready(self, timeout: float | None = None) -> ModelInfo:
        """Block until the model is loaded. Raises what made loading fail.

        While it is still loading (or being restarted) when `timeout` seconds have passed:
        TimeoutError. `wait_ready(0)` asks without waiting.
        """

    def ask(self, request: TurnRequest) -> TurnStream:
        """Begin a turn: its events, the last of them TurnFinished or TurnFailed; never raises.

        It starts the backend if nobody did, and waits for the model and for the turns before it.
        A stop ends it within one decode step or one prefill chunk.
        """

    def estimate(self, journals: Sequence[TokenIds]) -> list[CostEstimate]:
        """The cost of continuing each journal, without changing anything."""

    def study(self, question: Question, timeout: float | None = None) -> Answer:
        """What the model or its cache has to say to a question; see `questions.py`. Blocks: one
        that needs computing waits for the turns that are there, and gives way to those that come.

        Raises UnavailableError where it cannot be answered, or has not been after `timeout` seconds
        (it is given up then); UsageError where it makes no sense."""

    def prepare(self, request: Prepare) -> bool:
        """Begin idle work and return at once; a `Prepared` event ends it. Takes the place of any
        idle work before it; a turn ends it within one small prefill chunk.

        False, and nothing is done: a turn runs, the model is not ready, or it is not ours.
        """

    def cancel_prepare(self) -> None:
        """End idle work, if there is any."""

    def spill(self, segment_id: str | None = None) -> bool:
        """Have everything written to disk that is in memory alone, or one segment with all before
        it; events tell what came of it.

        Returns at once. False, and nothing is done: the model is not ready, or it is not ours."""

    def engine_use(self) -> EngineUse | None:
        """How it came to its engine; None where there is none, or none yet."""

    def close(self) -> None:
        """Leave: what is still to be spilled is written out, here or by an engine that stays."""
