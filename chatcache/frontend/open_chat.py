"""The chat that is open, without a screen: what fork, undo, variant and the rest mean for it.

Owns which session is open (none until the first message of a new chat), the system prompt and the
name of one that has no row yet, and the sampling in force. Every method may block and is called by
one thread at a time; the session is exchanged in one step, so that it can be read from any thread.
Results say what to present; how they are presented is the front end's business.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from chatcache.backends.usage import Figures
from chatcache.chat import unstable
from chatcache.chat.bill import PriceList
from chatcache.chat.conversation import clean_name
from chatcache.chat.figures import decode
from chatcache.chat.views import ForkPoint, SessionSummary, TranscriptMessage
from chatcache.checks import typed_number
from chatcache.errors import NotFoundError, UsageError, did_you_mean
from chatcache.formatting import one_line, plural, shorten, size
from chatcache.frontend import accounts, exports, remembered, reports
from chatcache.frontend.changes import (
    MODE_WORDS,
    Forked,
    SystemChange,
    VariantChosen,
    as_history_mode,
    which_variant,
)
from chatcache.frontend.progress import Report
from chatcache.frontend.sampling import Sampling
from chatcache.personas import Persona

if TYPE_CHECKING:
    from chatcache.backends.base import ModelInfo, Role
    from chatcache.chat.branches import Branch, BranchTree, Removal
    from chatcache.chat.chat_turn import ChatTurn
    from chatcache.chat.service import ChatService


class OpenChat:
    """One chat at a time. `is_busy` tells whether an answer is being written: what would disturb it
    is refused with UsageError."""

    def __init__(
        self,
        service: ChatService,
        *,
        sampling: Sampling | None = None,
        personas: Mapping[str, Persona] | None = None,
        prices: PriceList | None = None,
        is_busy: Callable[[], bool] = lambda: False,
    ) -> None:
        self.service = service
        self.sampling = sampling or Sampling()
        self.personas = dict(personas or {})
        self.prices = prices or PriceList()
        self.session: SessionSummary | None = None
        self.system_prompt: str | None = None
        self.new_name: str | None = None
        self._is_busy = is_busy
        self._exchange = threading.Lock()

    # Which chat is open

    @property
    def name(self) -> str:
        return one_line(self.session.name) if self.session else "this chat"

    @property
    def session_id(self) -> str:
        """Empty while the chat has no row."""
        return self.session.session_id if self.session else ""

    def require_session(self) -> SessionSummary:
        if self.session is None:
            raise NotFoundError("This chat is empty.", "Say something first.")
        return self.session

    def require_id(self) -> str:
        return self.require_session().session_id

    @property
    def is_busy(self) -> bool:
        return self._is_busy()

    def require_idle(self) -> None:
        if self.is_busy:
            raise UsageError("An answer is being written.", "Esc stops it and keeps what is there.")

    def open(
        self, session: SessionSummary | None, system: str | None = None, name: str | None = None
    ) -> None:
        """Make this the open chat; None: a new one with this system prompt and this name."""
        with self._exchange:
            self.session, self.system_prompt, self.new_name = session, system, name

    def open_first(self, reference: str | None, noted_in: Path | None) -> SessionSummary | None:
        """At the start: the chat that was named, else the last one, else none."""
        if reference:
            self.open(self.service.find_session(reference))
        else:
            self.open(remembered.last_chat(self.service, noted_in))
        return self.session

    def note_left(self, noted_in: Path | None, at: float) -> None:
        """Write down that this chat was looked at last, for the next start. `at` is Unix time."""
        if self.session is not None:
            remembered.note_last_chat(noted_in, self.session.session_id, at)

    def switch(self, reference: str) -> SessionSummary:
        """Open a chat by its name or id."""
        self.require_idle()
        if not reference:
            raise UsageError("The name is missing.", "/sessions lists them.")
        session = self.service.find_session(reference)
        self.open(session)
        return session

    def start_new(self, name: str | None = None) -> None:
        """An empty chat with the same system prompt. It gets its row with its first message.

        Raises UsageError for a name that it could not get then."""
        self.require_idle()
        self.open(None, self.system(), None if name is None else clean_name(name))

    def ensure_session(self) -> SessionSummary:
        """The open chat; a new one gets its row now."""
        if self.session is None:
            self.session = self.service.create_session(self.new_name, self.system_prompt)
        return self.session

    def refresh(self) -> bool:
        """Take over the name and the length that the chat has now. False when it has been deleted:
        then the chat used last is open instead."""
        session = self.session
        if session is None:
            return True
        try:
            found = self.service.find_session(session.session_id)
        except NotFoundError:
            self.open(self.service.last_session())
            return False
        with self._exchange:
            if self.session_id == found.session_id:
                self.session = found
        return True

    def origin(self) -> str | None:
        """The name of the chat that this one was forked from."""
        origin = self.session.forked_from if self.session else None
        if origin is None:
            return None
        try:
            return self.service.find_session(origin).name
        except NotFoundError:
            return "a deleted chat"

    def rename(self, name: str) -> str:
        session = self.require_session()
        if not name:
            raise UsageError("The new name is missing.", "Say /rename NAME.")
        self.service.rename(session.session_id, name)
        self.refresh()
        return f"This chat is now called “{one_line(name)}”."

    def delete(self) -> SessionSummary | None:
        """Delete the chat; the one used last is open then, and is returned."""
        self.require_idle()
        self.service.delete(self.require_id())
        self.open(self.service.last_session())
        return self.session

    def export(self, name: str, report: Report) -> str:
        session = self.require_session()
        path, num_bytes = exports.export_chat(self.service, session, name, report)
        num_left = self.service.num_beside(session.session_id)
        left = f" Without {plural(num_left, 'message')} on other branches." if num_left else ""
        return f"Written to {path}, {size(num_bytes)}.{left}"

    def import_chat(self, name: str, report: Report) -> SessionSummary:
        self.require_idle()
        if not name:
            raise UsageError("The file is missing.", "Say /import PATH.")
        session = exports.import_chat(self.service, name, report)
        self.open(session)
        return session

    # Talking

    def send(self, text: str) -> ChatTurn:
        return self.service.send(self.ensure_session().session_id, text, self.sampling.options)

    def regenerate(self) -> ChatTurn:
        return self.service.regenerate(self.require_id(), self.sampling.options)

    def continue_answer(self) -> ChatTurn:
        return self.service.continue_answer(self.require_id(), self.sampling.options)

    def edit(self, turn: int, text: str) -> ChatTurn:
        return self.service.edit(self.require_id(), turn, text, self.sampling.options)

    # What was said

    def messages(self, last_turns: int | None = None) -> list[TranscriptMessage]:
        """From the beginning, or of the last turns; [] for an empty chat."""
        if self.session is None:
            return []
        return self.service.transcript(self.session.session_id, last_turns=last_turns)

    def question_to_edit(self) -> TranscriptMessage:
        self.require_idle()
        return self._last("user", "There is no message to edit yet.")

    def text_to_copy(self, argument: str = "") -> str:
        """The last answer; its last block of code for the word `code`."""
        answers = [message for message in self.messages() if message.role == "assistant"]
        if not answers:
            raise UsageError("There is no answer to copy yet.", "Say something first.")
        return copyable(answers[-1].text, is_code=argument == "code")

    def stats(self) -> str:
        return accounts.stats(accounts.gather(self.service, self.require_session(), self.prices))

    def figures_of(self, turn: int) -> Figures:
        """The figures of the answer of a turn; of several the first that has any."""
        self.require_session()
        results = (message.result_json for message in self.messages() if message.turn == turn)
        found = decode(next(filter(None, results), None))
        if found is None:
            raise NotFoundError(f"Turn {turn} has no figures.", "They come with the answer.")
        return found

    def _last(
        self, role: Role, absent: str, hint: str = "Say something first."
    ) -> TranscriptMessage:
        """The last message, or the answer to it. Raises UsageError saying `absent` without one."""
        found = [message for message in self.messages(1) if message.role == role]
        if not found:
            raise UsageError(absent, hint)
        return found[-1]

    # Other paths

    def fork_points(self) -> list[ForkPoint]:
        return self.service.fork_points(self.require_id())

    def fork(self, at_turn: int | None, text: str | None = None) -> Forked:
        """Go on after turn `at_turn` (None: the last one) in a new chat, which is open then."""
        self.require_idle()
        origin = self.require_session()
        result = self.service.fork(origin.session_id, at_turn=at_turn)
        session = self.service.find_session(result.session_id)
        self.open(session)
        return Forked(session, origin.name, result, text)

    def undo(self) -> Forked:
        """Go back before the last message, whether it was answered or not."""
        self.require_idle()
        question = self._last("user", "There is no turn to go back over.", "")
        return self.fork(question.turn - 1, question.text)

    def variant(self, word: str = "") -> VariantChosen:
        """Another answer to the last message: the next one, or the one with this number."""
        self.require_idle()
        session_id = self.require_id()
        answer = self._last("assistant", "There is no answer yet.")
        variants = self.service.variants(session_id, answer.node_id)
        here = variants.index(answer.node_id)
        return self._choose(variants, which_variant(word, here, len(variants)))

    def variant_beside(self, node_id: str, step: int) -> VariantChosen | None:
        """The message `step` places beside this one; None where there is none."""
        self.require_idle()
        variants = self.service.variants(self.require_id(), node_id)
        index = variants.index(node_id) + step if node_id in variants else -1
        if not 0 <= index < len(variants):
            return None
        return self._choose(variants, index)

    def _choose(self, variants: list[str], index: int) -> VariantChosen:
        self.service.switch_sibling(self.require_id(), variants[index])
        self.refresh()
        return VariantChosen(index + 1, len(variants))

    def branches(self) -> BranchTree:
        return self.service.tree.branches(self.require_id())

    def follow(self, branch: Branch) -> SessionSummary:
        """Open the chat that ends with a branch. Where branches part and no chat ends, the main
        line is followed to its end."""
        self.require_idle()
        while not branch.sessions and branch.children:
            branch = branch.children[0]
        session = self.service.find_session(self.service.tree.follow(branch))
        self.open(session)
        return session

    def plan_removal(self, node_id: str, *, is_path_kept: bool = False) -> Removal:
        """What goes with a message and all below it; with `is_path_kept` all but the path to it."""
        tree = self.service.tree
        plan = tree.plan_keep_only if is_path_kept else tree.plan_delete
        planned = plan(self.require_id(), node_id)
        if not planned.nodes:
            raise UsageError("There is nothing beside this path.", "")
        return planned

    def remove(self, node_id: str, *, is_path_kept: bool = False) -> Removal:
        """Do what was planned. When the open chat goes, one of the same tree is open then, else the
        one used last."""
        self.require_idle()
        session_id, tree = self.require_id(), self.service.tree
        branches = [row.branch for row in self.branches().rows()]
        family = [session for branch in branches for session in branch.sessions]
        done = (tree.keep_only if is_path_kept else tree.delete)(session_id, node_id)
        if session_id in done.deleted:
            staying = [session for session in family if session.session_id not in done.deleted]
            self.open(staying[0] if staying else self.service.last_session())
        self.refresh()
        return done

    # What the model is told beside the messages

    def system(self) -> str | None:
        if self.session is None:
            return self.system_prompt
        return next((message.text for message in self.messages() if message.role == "system"), None)

    def change_system(self, text: str | None) -> SystemChange:
        """Another system prompt for the whole chat (none for ""); a new chat takes it along."""
        self.require_idle()
        text = text or None
        warning = unstable.warning(text, datetime.now())
        if self.session is None:
            self.system_prompt = text
            words = "The next message begins the chat with this system prompt."
            return SystemChange(words, warning=warning)
        if text == self.system():
            return SystemChange("That is the system prompt already.", warning=warning)
        self.service.set_system(self.session.session_id, text)
        self.refresh()
        words = "System prompt changed. The next answer reads everything anew."
        return SystemChange(words, is_reread=True, warning=warning)

    def find_persona(self, name: str) -> Persona:
        if name not in self.personas:
            hint = did_you_mean(name, self.personas) or "/persona shows them all."
            raise NotFoundError(f"There is no persona {name!r}.", hint)
        return self.personas[name]

    def use_persona(self, persona: Persona) -> SystemChange:
        """Take over the sampling and the system prompt of a persona."""
        self.require_idle()
        self.sampling = self.sampling.with_persona(persona)
        if persona.system == self.system():
            return SystemChange(f"{persona.name} is the persona already.")
        return self.change_system(persona.system)

    def set_parameter(self, argument: str, info: ModelInfo | None = None) -> str:
        """Change the sampling, as in `seed 7` or `seed=7`. `info`: of the model that answers."""
        name, _, value = argument.replace("=", " ").partition(" ")
        self.sampling = self.sampling.changed(name, value.strip())
        words = f"{name}: {value.strip()}. The cache is not touched by it."
        return f"{words} {self.sampling.remark(info)}".strip() if name == "think" else words

    def history_mode(self, word: str = "") -> str:
        """The mode of the history in words, after changing it if one was named."""
        session = self.require_session()
        if word:
            self.service.set_history_mode(session.session_id, as_history_mode(word))
        self.refresh()
        return MODE_WORDS[self.require_session().history_mode]


def as_turn(word: str) -> int:
    """The number of a turn that somebody typed."""
    if (number := typed_number(word)) is None:
        raise UsageError(f"{shorten(word, 40)!r} is no turn.", "Say /fork 3, or /fork for a list.")
    return number


def copyable(text: str, *, is_code: bool = False) -> str:
    """A message, or its last block of code."""
    found = reports.last_code_block(text) if is_code else text
    if not found:
        raise UsageError("There is no code block in this answer.", "/copy takes all of it.")
    return found
