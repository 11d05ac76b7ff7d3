"""Where the lens gets its facts: the chat database, and the engine where it can answer.

Everything here may block, so it is called in threads. What a model has not read, or another one,
is asked of no engine: its ids mean something else there.
"""

from __future__ import annotations

from collections.abc import Sequence

from chatcache.backends.base import ModelInfo
from chatcache.backends.questions import (
    Answer,
    DescribeModel,
    DescribeTokens,
    ModelShape,
    Question,
    TokenPiece,
    TokenPieces,
)
from chatcache.backends.usage import Figures
from chatcache.chat.bill import PriceList
from chatcache.chat.figures import decode
from chatcache.chat.readings import TurnReading
from chatcache.chat.service import ChatService
from chatcache.chat.views import ForkPoint, TranscriptMessage
from chatcache.errors import ChatcacheError, UnavailableError
from chatcache.frontend.accounts import LedgerFacts, gather
from chatcache.frontend.lens.compare_view import CompareFacts, questions
from chatcache.frontend.lens.studied import StudiedTurn, Told

NOT_LOADED = "No model is loaded"


class LensSource:
    """One chat, as it is when it is asked for."""

    def __init__(
        self, service: ChatService, session_id: str, prices: PriceList | None = None
    ) -> None:
        self.service, self.session_id = service, session_id
        self._prices = prices or PriceList()

    # From the database

    def points(self) -> list[ForkPoint]:
        return self.service.fork_points(self.session_id)

    def messages(self) -> Sequence[TranscriptMessage]:
        return self.service.look(self.session_id)

    def figures(self) -> dict[int, Figures]:
        """The figures of the answers on the path, by turn."""
        found = {}
        for message in self.messages():
            if (figures := decode(message.result_json, message.finish_reason)) is not None:
                found[message.turn] = figures
        return found

    def turns(self) -> list[int]:
        """The turns there are, oldest first."""
        return sorted({message.turn for message in self.messages() if message.turn > 0})

    def last_answered(self) -> int:
        """The last turn with an answer; 0 where there is none."""
        return max(self.figures(), default=0)

    def reading(self, turn: int | None) -> TurnReading:
        """What the model read and wrote in a turn; without one, in the last that was answered."""
        return self.service.reading(self.session_id, turn or self.last_answered() or None)

    def accounts(self) -> LedgerFacts:
        """The sums of this chat and of all."""
        session = self.service.find_session(self.session_id)
        return gather(self.service, session, self._prices)

    # From the engine

    @property
    def info(self) -> ModelInfo | None:
        """The model that can answer now; None: none is loaded, or a server has it."""
        backend = self.service.backend
        try:
            info = backend.wait_ready(0) if backend is not None else None
        except (TimeoutError, ChatcacheError):
            return None
        return info if info is not None and info.backend == "local" else None

    @property
    def can_load(self) -> bool:
        """Whether a model of this machine could be loaded, and is not."""
        backend = self.service.backend
        try:
            return backend is not None and backend.wait_ready(0) is None
        except (TimeoutError, ChatcacheError):
            return True

    def load(self) -> None:
        """Have the model loaded, and wait until it is. Raises UnavailableError."""
        backend = self.service.backend
        if backend is None:
            raise UnavailableError(f"{NOT_LOADED}.", "Run it without --no-load.")
        backend.start()
        backend.wait_ready()

    def can_read(self, tokenizer_id: str) -> bool:
        """Whether the model that is loaded, if any, means the same by these ids."""
        info = self.info
        return info is not None and info.tokenizer_id == tokenizer_id

    def pieces(self, tokenizer_id: str, question: DescribeTokens) -> TokenPieces | None:
        """What ids stand for; None where nobody can tell now: they are shown by number then."""
        answer = self._told(question) if self.can_read(tokenizer_id) else None
        return answer if isinstance(answer, TokenPieces) else None

    def texts(self, tokenizer_id: str, question: DescribeTokens) -> dict[int, TokenPiece]:
        """The same by id."""
        found = self.pieces(tokenizer_id, question)
        return {piece.token_id: piece for piece in found.pieces} if found else {}

    def comparison(self, text: str, tokenizer: str) -> CompareFacts:
        """A text as the tokens of the loaded model and of another one. Raises ChatcacheError where
        one of them cannot be had."""
        own, other = (self.study(each) for each in questions(text, tokenizer))
        if not isinstance(own, TokenPieces) or not isinstance(other, TokenPieces):
            raise UnavailableError("The engine did not tell the tokens.", "Try again.")
        return CompareFacts(text, own, other)

    def studied(
        self, reading: TurnReading, question: Question, kind: type[Told]
    ) -> StudiedTurn[Told]:
        """A turn with what the loaded model tells of it, as far as it can."""
        if reading.unknown or not self.can_read(reading.tokenizer_id):
            return StudiedTurn(reading)
        pieces = self.texts(reading.tokenizer_id, DescribeTokens(reading.ids))
        try:
            told = self.study(question)
        except UnavailableError as error:
            return StudiedTurn(reading, None, pieces, f"{error.message} {error.hint}".strip())
        return StudiedTurn(reading, told if isinstance(told, kind) else None, pieces)

    def shape(self, reading: TurnReading) -> ModelShape | None:
        """The numbers of the model that answered a turn; None unless it is the one that is
        loaded."""
        info = self.info
        is_same = info is not None and (
            info.namespace == reading.namespace_id or info.model == reading.model
        )
        answer = self._told(DescribeModel()) if is_same else None
        return answer if isinstance(answer, ModelShape) else None

    def _told(self, question: Question) -> Answer | None:
        """None where the engine cannot tell now: it has just ended, say."""
        try:
            return self.study(question)
        except UnavailableError:
            return None

    def study(self, question: Question) -> Answer:
        """Ask the engine. Raises UnavailableError where it cannot answer."""
        return self.service.study(question)
