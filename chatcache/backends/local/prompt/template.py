"""Hands messages to a model's chat template and gets marked text back.

Owns: what a template is told (roles, texts, reasoning), that the text of a message stays text, and
what becomes of a system prompt that a template does not know. Knows nothing of journals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, tzinfo
from functools import cached_property
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError

from chatcache.backends.base import ChatMessage, ThinkSwitch
from chatcache.backends.local.prompt.reasoning import ReasoningFormat, reasoning_format
from chatcache.backends.local.prompt.symbols import SymbolCodec, any_of, break_controls, breaker
from chatcache.backends.local.prompt.thinking import Thinking, Variables, find_switch
from chatcache.errors import ModelLoadError, UnavailableError

# For models that were never taught a chat format. Models begin an answer with a space.
PLAIN_TEMPLATE = (
    "{%- if bos_token is defined and bos_token %}{{- bos_token }}{%- endif %}"
    "{%- for message in messages %}"
    "{%- if message['role'] == 'system' %}{{- message['content'] + '\\n\\n' }}"
    "{%- elif message['role'] == 'user' %}{{- 'User: ' + message['content'] + '\\n' }}"
    "{%- else %}{{- 'Assistant:' + ('' if message['content'].startswith(' ') else ' ') }}"
    "{{- message['content'] + '\\n' }}{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- 'Assistant:' }}{%- endif %}"
)

Entry = dict[str, Any]  # a message as templates know it

# What stands for an answer where only its surroundings are wanted.
_PLACEHOLDERS = ("xqzvk", "vkxqz", "qzkvx", "kxvzq")
_PRIVATE_USE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))


@dataclass(frozen=True, slots=True)
class Render:
    """Messages as the template writes them, in symbols (marked text)."""

    text: str
    marker: str
    contents: tuple[str, ...]  # of the user messages, marked, in order


class ChatTemplate:
    """The chat template of one tokenizer, or PLAIN_TEMPLATE when it has none.

    `clock`: what the template takes for the present time; None: the time it is.
    """

    def __init__(self, tokenizer: Any, clock: Callable[[], datetime] | None = None) -> None:
        self._tokenizer = tokenizer
        self._clock = clock
        self.source = template_source(tokenizer)
        self.codec = SymbolCodec(tokenizer, self.source)
        self.reasoning: ReasoningFormat = reasoning_format(self.codec.controls, self.source)
        # Tokens such as <tool_call> are produced by the model and shown: whole in answers.
        never_text = self.codec.specials | {
            tag for tag in self.reasoning.tags if tag in self.codec.controls
        }
        self._answer_patterns = any_of(never_text), breaker(never_text)
        self.folds_system = False

    def render(
        self,
        messages: Sequence[ChatMessage],
        *,
        think: bool | None = None,
        add_generation_prompt: bool = True,
    ) -> Render:
        """What the template writes for `messages`, with control strings in their texts broken."""
        texts = [text for message in messages for text in (message.text, message.reasoning) if text]
        marker = free_marker([*texts, self.source])
        marked = [self.marked(message, marker) for message in messages]
        if marked and marked[0].role == "system":
            marked, text = self._apply_with_system(marked, think, add_generation_prompt)
        else:
            text = self._apply(marked, think, add_generation_prompt)
        contents = tuple(message.text for message in marked if message.role == "user")
        return Render(text, marker, contents)

    def now(self) -> datetime:
        """The present time, as the template is told it."""
        return self._clock() if self._clock else datetime.now()

    def render_after_answer(
        self, messages: Sequence[ChatMessage], *, think: bool | None = None
    ) -> Render | None:
        """What the template writes behind an answer that `messages` follow; None: it cannot be
        told. A system message in front is for templates that follow it in the later turns; one
        that the template would repeat in each turn is left out.
        """
        system = [message for message in messages[:1] if message.role == "system"]
        rest = list(messages[len(system) :])
        taken = [text for message in messages for text in (message.text, message.reasoning) if text]
        word = next(
            (word for word in _PLACEHOLDERS if not any(word in text for text in taken)), None
        )
        if word is None:
            return None
        before = [ChatMessage("user", word[:2]), ChatMessage("assistant", word)]
        render = self.render([*system, *before, *rest], think=think)
        tail = render.text.partition(word)[2]
        if system and _is_repeated(system[0].text.strip(), tail.replace(render.marker, ""), rest):
            return self.render_after_answer(rest, think=think)
        return replace(render, text=tail, contents=render.contents[1:]) if tail else None

    def turn_end_ids(self) -> frozenset[int]:
        """The control token that the template writes right behind an answer: an end mark or, if it
        has none, the beginning of the next turn."""
        probe = _PLACEHOLDERS[0]
        try:
            text = self.render(
                [ChatMessage("user", "u"), ChatMessage("assistant", probe)],
                add_generation_prompt=False,
            ).text
            rest = text.rpartition(probe)[2].strip() if probe in text else ""
            if not rest:
                tail = self.render_after_answer([ChatMessage("user", "u")])
                rest = "" if tail is None else tail.text.strip()
        except UnavailableError:
            return frozenset()
        first = next(self.codec.segments(rest), None)
        if first is None or first.token_id is None or first.text in self.reasoning.tags:
            return frozenset()
        return frozenset({first.token_id})

    def _apply_with_system(
        self, messages: list[ChatMessage], think: bool | None, add: bool
    ) -> tuple[list[ChatMessage], str]:
        """The messages as they were rendered, and the text; folds a system prompt if it must."""
        is_alone = len(messages) == 1
        if not self.folds_system or is_alone:
            try:
                text = self._apply(messages, think, add)
            except UnavailableError:
                if is_alone:
                    raise
            else:
                if is_alone or messages[0].text.strip() in text:
                    return messages, text
        folded = _fold_system(messages)
        text = self._apply(folded, think, add)
        self.folds_system = True
        return folded, text

    def _apply(self, messages: Sequence[ChatMessage], think: bool | None, add: bool) -> str:
        return self._write(messages, self._thinking.variables(think), add)

    @property
    def think_switch(self) -> ThinkSwitch:
        """Whether the template reads what it is told of thinking."""
        return self._thinking.switch

    @cached_property
    def _thinking(self) -> Thinking:
        asked = [ChatMessage("user", "u")]
        return find_switch(self.source, lambda variables: self._write(asked, variables, add=True))

    def _write(self, messages: Sequence[ChatMessage], variables: Variables, add: bool) -> str:
        """Run the template. It is code of the model's publisher: anything may come out of it."""
        conversation = [_as_dict(message) for message in messages]
        if self._takes_parts:
            conversation = [_in_parts(entry) for entry in conversation]
        return self._run(conversation, variables, add)

    @cached_property
    def _takes_parts(self) -> bool:
        """Whether the template, of a model that also sees, writes no text that is not a part."""
        word = _PLACEHOLDERS[0]
        if "content" not in self.source or "type" not in self.source:
            return False
        entry: Entry = {"role": "user", "content": word}
        for form in (entry, _in_parts(entry)):
            with suppress(UnavailableError):
                if word in self._run([form], {}, add=True):
                    return form is not entry
        return False

    def _run(self, conversation: list[Entry], variables: Variables, add: bool) -> str:
        try:
            with _template_time(self._clock):
                return str(
                    self._tokenizer.apply_chat_template(
                        conversation,
                        chat_template=self.source,
                        tokenize=False,
                        add_generation_prompt=add,
                        **variables,
                    )
                )
        except TemplateSyntaxError as error:
            raise ModelLoadError(
                f"The chat template in {self._tokenizer.name_or_path} is broken, line "
                f"{error.lineno}: {str(error.message).rstrip('.')}.",
                "Download the model again, or choose another with --model.",
            ) from error
        except Exception as error:
            raise UnavailableError(
                f"The model's chat template does not accept this conversation: "
                f"{str(error).rstrip('.')}.",
                # Only what a template raises on purpose is about the conversation.
                "Edit the message it complains about, or choose another model."
                if type(error) is TemplateError
                else "It wants what it is not given here, or is broken: choose another model.",
            ) from error

    def marked(self, message: ChatMessage, marker: str) -> ChatMessage:
        """`message` with the control strings that are text in it broken."""
        if message.role != "assistant":
            return replace(message, text=self.codec.mark(message.text, marker))
        pattern, breaker_pattern = self._answer_patterns
        reasoning = message.reasoning
        return replace(
            message,
            text=break_controls(message.text, marker, pattern, breaker_pattern),
            reasoning=reasoning and break_controls(reasoning, marker, pattern, breaker_pattern),
        )


@contextmanager
def _template_time(clock: Callable[[], datetime] | None) -> Iterator[None]:
    """Let templates that ask transformers for the present time be told that of `clock`."""
    if clock is None:
        yield
        return
    from transformers.utils import chat_template_utils

    tell = clock

    class TemplateTime(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return tell()

    scope = vars(chat_template_utils)
    before, scope["datetime"] = scope["datetime"], TemplateTime
    try:
        yield
    finally:
        scope["datetime"] = before


def template_source(tokenizer: Any) -> str:
    """The Jinja source of a tokenizer's chat template; PLAIN_TEMPLATE if it has none."""
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):
        template = template.get("default") or next(iter(template.values()), None)
    return str(template) if template else PLAIN_TEMPLATE


def _is_repeated(system: str, tail: str, messages: Sequence[ChatMessage]) -> bool:
    """Whether the template writes the system prompt behind an answer once more."""
    said = sum(message.text.count(system) for message in messages)
    return bool(system) and tail.count(system) > said


def _in_parts(entry: Entry) -> Entry:
    return {**entry, "content": [{"type": "text", "text": entry["content"]}]}


def _as_dict(message: ChatMessage) -> Entry:
    entry: Entry = {"role": message.role, "content": message.text}
    if message.reasoning is not None:
        entry["reasoning_content"] = message.reasoning
    return entry


def _fold_system(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """The system text in front of the first user message, for templates without the role."""
    system, *rest = messages
    at = next((at for at, message in enumerate(rest) if message.role == "user"), None)
    if at is None:
        return rest
    rest[at] = replace(rest[at], text=f"{system.text}\n\n{rest[at].text}")
    return rest


def common_length(left: str, right: str) -> int:
    """How many leading characters are equal."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(left), len(right)))


def free_marker(texts: Sequence[str]) -> str:
    """A private-use character that occurs in none of `texts`."""
    for block in _PRIVATE_USE:
        for code in block:
            character = chr(code)
            if not any(character in text for text in texts):
                return character
    raise UnavailableError(
        "The conversation uses every private-use character of Unicode.",
        "Remove some of them from the last message.",
    )
