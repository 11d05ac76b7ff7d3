"""The nine steps of a radix tree of K and V, played with a real model and a budget that is short.

After figure 3 of RadixAttention (Zheng et al., arXiv 2312.07104): two chats with one system prompt,
a few-shot request, its variations and four answers to one of them. Owns the texts, the order of the
steps and what is read off after each. Knows neither the streams nor how a tree is drawn.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from chatcache.backends.base import SamplingParams
from chatcache.backends.questions import (
    AskTree,
    TokenPiece,
    TokenPieces,
    TreeEvent,
    TreeShape,
)
from chatcache.chat.chat_turn import ChatTurn
from chatcache.chat.service import ChatService
from chatcache.chat.tasks import TurnOptions
from chatcache.chat.views import AnswerSaved
from chatcache.errors import UnavailableError
from chatcache.frontend.lens import tree_view

# Bytes in RAM for segments: 460 tokens of the built-in model, 5,120 bytes each. The texts are
# as long as it takes for the leaves of the figure to be those that go.
RAM_BUDGET = 460 * 5120
NUM_STEPS = 9
ANSWER_TOKENS = 8
LONG_ANSWER_TOKENS = 40
SETTLE_SECONDS = 20.0
QUIET_SECONDS = 0.03  # the writer has nothing more to do

SYSTEM = "You are a helpful assistant."
HELLO = "Hello!"
PROBLEM = (
    "Solve this problem. A library has three rooms. In the first room there are twelve shelves, and"
    " on each shelf there are thirty books. In the second room there are nine shelves with forty"
    " books each. In the third room there are only two shelves, but each of them holds a hundred"
    " small books. On Monday people take forty books home from the first room and bring sixty back"
    " to the second one. On Tuesday nobody comes, because of the snow. On Wednesday a class of"
    " twenty children comes, and every child takes one small book from the third room. How many"
    " books are there in each room on Wednesday evening, and how many are there in all?"
)
SKILLS = "What can you do?"
STORY = (
    "Write a short story for me. It is about a lighthouse on a small island, and about the woman"
    " who lives there with her old dog. Every evening she climbs the stairs and lights the lamp,"
    " and every morning she writes in a book which ships went by in the night. One night in winter"
    " the lamp goes out in a storm, and she has no more oil. She hears a ship that comes nearer and"
    " nearer. The dog begins to bark, and she has an idea: she opens the door, and takes all the"
    " mirrors of the house up the stairs. Tell it in the words of the dog, in simple sentences, and"
    " let it end well. Do not say at the end what one can learn from it. Let every ship that goes"
    " by have a name. It should be as long as a page of a book for children, and it should begin"
    " with the sea."
)
EXAMPLES = (
    "Say whether each animal can fly. A sparrow: yes. A dog: no. A bee: yes. A horse: no. A duck:"
    " yes. A fish: no. An owl: yes. A mouse: no. A bat: yes. A cow: no. An eagle: yes. A snake: no."
    " And now this one. "
)
QUERIES = ("A swan:", "The penguin:", "Some cats:")
MORE = "Thank you. Say it again, please."


@dataclass(frozen=True, slots=True)
class DemoTurn:
    """What was asked and what became of it; counts are those of the turn's usage."""

    chat: str
    prompt: str
    answer: str
    prompt_tokens: int
    ram_tokens: int
    disk_tokens: int
    computed_tokens: int
    answer_tokens: int
    seconds: float

    @property
    def reused_tokens(self) -> int:
        return self.ram_tokens + self.disk_tokens


@dataclass(frozen=True, slots=True)
class DemoStep:
    """One of the nine, with the tree behind it and the changes that led there."""

    number: int
    title: str
    expected: str
    turns: tuple[DemoTurn, ...]
    shape: TreeShape
    events: tuple[TreeEvent, ...]
    pieces: Mapping[int, TokenPiece]
    at: float

    @property
    def ram_bytes(self) -> int:
        """What segments take in RAM."""
        return _ram_bytes(self.shape)


class RadixDemo:
    """Plays the steps on a service whose budgets are those of `settings`."""

    def __init__(self, service: ChatService, *, has_disk: bool):
        self._service = service
        self._has_disk = has_disk
        self._chats: dict[str, str] = {}
        self._pieces: dict[int, TokenPiece] = {}
        self._last_event = 0

    def session_id(self, chat: str) -> str:
        return self._chats[chat]

    def steps(self) -> Iterator[DemoStep]:
        """Each is played when it is asked for. Raises what a turn raises."""
        if self._service.backend is not None:
            self._service.backend.wait_ready()
        gone = "goes to disk" if self._has_disk else "is evicted"
        siblings = "Four leaves beside each other" + (
            "." if self._has_disk else "; what is older is evicted."
        )
        history = "all of its history" if self._has_disk else "its history as far as it is held"
        yield self._step(1, "The tree is empty", "Nothing is known.")
        yield self._step(
            2, "Chat A: a system prompt and a first turn", "R 0. All of it joins the tree.",
            self._say("A", HELLO, SYSTEM),
        )  # fmt: skip
        yield self._step(
            3, "Chat A goes on", "R = all of step 2. The new turn hangs below it.",
            self._say("A", PROBLEM),
        )  # fmt: skip
        yield self._step(
            4, "Chat B: the same system prompt, another question",
            "R = the system prompt alone. The tree is split where the chats part.",
            self._say("B", SKILLS, SYSTEM),
        )  # fmt: skip
        yield self._step(
            5, "Chat B goes on while memory is short",
            f"R = all of its history. What was used least recently, the turn of step 3, {gone}.",
            self._say("B", STORY),
        )  # fmt: skip
        first, *others = QUERIES
        yield self._step(
            6, "A few-shot request, which has nothing in common with the chats",
            "R 0. A new branch, behind the one token with which every prompt begins.",
            self._say("few-shot 1", EXAMPLES + first),
        )  # fmt: skip
        yield self._step(
            7, "Two more queries on the same examples",
            "R = the examples. Their edge is split, and leaves fan out.",
            *(self._say(f"few-shot {n}", EXAMPLES + query) for n, query in enumerate(others, 2)),
        )  # fmt: skip
        yield self._step(
            8, "Chat A gets a new message",
            f"R = {history}. What chat B alone has, now used least recently, {gone}.",
            self._say("A", MORE),
        )  # fmt: skip
        yield self._step(
            9, "The few-shot request of step 6 four times more, for four answers",
            "R = the whole request, but for its last token, which is always computed."
            f" {siblings}",
            *(self._again("few-shot 1", seed) for seed in range(1, 5)),
        )  # fmt: skip

    def _step(self, number: int, title: str, expected: str, *turns: DemoTurn) -> DemoStep:
        shape = self._settled()
        events = tuple(event for event in shape.events if event.number > self._last_event)
        if shape.events:
            self._last_event = shape.events[-1].number
        answer = self._service.study(tree_view.question(shape))
        if isinstance(answer, TokenPieces):
            self._pieces |= {piece.token_id: piece for piece in answer.pieces}
        return DemoStep(number, title, expected, turns, shape, events, self._pieces, time.time())

    def _say(self, chat: str, text: str, system: str | None = None) -> DemoTurn:
        if chat not in self._chats:
            self._chats[chat] = self._service.create_session(chat, system).session_id
        options = _options(ANSWER_TOKENS, temperature=0.0)
        return self._played(chat, text, self._service.send(self._chats[chat], text, options))

    def _again(self, chat: str, seed: int) -> DemoTurn:
        options = _options(LONG_ANSWER_TOKENS, temperature=1.0, seed=seed)
        turn = self._service.regenerate(self._chats[chat], options)
        return self._played(chat, EXAMPLES + QUERIES[0], turn)

    def _played(self, chat: str, prompt: str, turn: ChatTurn) -> DemoTurn:
        began = time.perf_counter()
        *_, saved = turn
        if not isinstance(saved, AnswerSaved):
            raise UnavailableError("The turn was not answered.", "Try it again.")
        self._settled()
        usage = saved.result.usage
        return DemoTurn(
            chat=chat,
            prompt=prompt,
            answer=saved.result.text,
            prompt_tokens=usage.prompt_tokens or 0,
            ram_tokens=usage.cached_ram_tokens or 0,
            disk_tokens=usage.cached_disk_tokens or 0,
            computed_tokens=usage.computed_tokens or 0,
            answer_tokens=usage.completion_tokens or 0,
            seconds=time.perf_counter() - began,
        )

    def _settled(self) -> TreeShape:
        """The tree, once what has no room in RAM is on disk and out of RAM, and all is quiet."""
        give_up_at = time.monotonic() + SETTLE_SECONDS
        shape = self._tree()
        while time.monotonic() < give_up_at:
            if self._has_disk:
                time.sleep(QUIET_SECONDS)
            before, shape = shape, self._tree()
            if _ram_bytes(shape) <= RAM_BUDGET and shape.events == before.events:
                break
        return shape

    def _tree(self) -> TreeShape:
        shape = self._service.study(AskTree(num_events=256))
        if not isinstance(shape, TreeShape):
            raise UnavailableError("The engine does not tell its tree.", "Update chatcache.")
        return shape


def _ram_bytes(shape: TreeShape) -> int:
    return sum(segment.num_bytes for segment in shape.segments if "ram" in segment.tiers)


def settings_options(directory: str, *, has_disk: bool) -> dict[str, Any]:
    """The settings of the demo, whose words and segments are below `directory`, by their names."""
    return {
        "paths.data_dir": f"{directory}/data",
        "paths.cache_dir": f"{directory}/cache",
        "paths.config_file": f"{directory}/config.toml",
        "model.default": "builtin",
        "model.device": "cpu",
        "model.quantize": "none",
        "engine.keep_alive": "none",
        "cache.ram_budget": RAM_BUDGET,
        "cache.disk_floor": 0,
        "cache.spill": "pressure" if has_disk else "never",
        "cache.idle_next_turn": False,
        "cache.idle_draft": False,
        "cache.idle_restore": False,
    }


def _options(max_new_tokens: int, *, temperature: float, seed: int | None = None) -> TurnOptions:
    sampling = SamplingParams(
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        min_p=0.0,
        repetition_penalty=1.0,
        seed=seed,
        max_new_tokens=max_new_tokens,
    )
    return TurnOptions(sampling=sampling)
