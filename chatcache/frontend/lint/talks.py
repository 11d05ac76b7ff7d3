"""The rules for what is said: system prompts, attached files, and requests that follow each other.

Pure functions of the messages of a conversation, wherever they came from: a chat, a file with a
request, a text that is to become a system prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from chatcache.chat.unstable import UnstablePart, unstable_parts
from chatcache.formatting import one_line, plural, shorten
from chatcache.frontend.lint.attachments import QuotedFile, quoted_files
from chatcache.frontend.lint.finding import (
    LintFinding,
    TokenScale,
    line_and_column,
    quoted,
)
from chatcache.frontend.lint.orders import MIN_TOKENS

SYSTEM_ROLES = ("system", "developer")
# The same words so long afterwards do not change by themselves.
STABLE_AFTER = {
    "date": timedelta(days=1),
    "time": timedelta(minutes=10),
    "timestamp": timedelta(minutes=10),
}
TELL = "Say it in a message instead: what stands before the message is kept."
ADVICE = {
    "date": f"Take it out of the system prompt. {TELL}",
    "time": f"Take it out of the system prompt. {TELL}",
    "timestamp": f"Leave it out, if the model does not need it. {TELL}",
    "random_id": "Leave it out, or put it into the last message; a model has no use for most ids.",
    "placeholder": f"Fill it in at the very end, or not at all. {TELL}",
}
KIND_WORDS = {
    "date": "the date",
    "time": "the time",
    "timestamp": "a timestamp",
    "random_id": "a random id",
    "placeholder": "a placeholder for something that changes",
}


@dataclass(frozen=True, slots=True)
class LintMessage:
    """One message; `place` is what to call it. `written` is when, where that is known."""

    role: str
    text: str
    place: str
    written: datetime | None = None


@dataclass(frozen=True, slots=True)
class KnownPrompt:
    """A system prompt of another conversation: `name` is that of its chat or request."""

    text: str
    name: str
    written: datetime | None = None


def unstable_findings(
    messages: Sequence[LintMessage],
    moments: Sequence[datetime],
    scale: TokenScale,
    known: Sequence[KnownPrompt] = (),
    *,
    num_tokens: int = 0,
    is_template: bool = False,
) -> Iterator[LintFinding]:
    """What changes by itself in the system prompt: all behind it is read again when it does.

    `scale` is that of the system prompt; `num_tokens` are in the whole, where that was counted.
    """
    num_tokens = num_tokens or scale.tokens(sum(len(message.text) for message in messages))
    is_alone = all(message.role in SYSTEM_ROLES for message in messages)
    behind = ", and with it all that will be said behind it" if is_alone else ""
    before = 0
    for message in messages:
        if message.role not in SYSTEM_ROLES:
            return  # what was said later stays as it was said
        then = [message.written] if message.written is not None else []
        for part in unstable_parts(message.text, [*then, *moments], is_template=is_template):
            if _is_known_as_stable(part, message, known):
                continue
            line, column = line_and_column(message.text, part.start)
            token = scale.tokens(before + part.start)
            yield LintFinding(
                rule=part.kind,
                place=message.place,
                what=f"{KIND_WORDS[part.kind]}, {quoted(part.text)}, changes by itself{behind}.",
                advice=ADVICE[part.kind],
                found=part.text,
                line=line,
                column=column,
                token=token,
                cost_tokens=max(0, num_tokens - token),
            )
        before += len(message.text)


def _is_known_as_stable(
    part: UnstablePart, message: LintMessage, known: Sequence[KnownPrompt]
) -> bool:
    """Another conversation of another time has the same words."""
    for prompt in known:
        if part.text not in prompt.text:
            continue
        if part.kind == "random_id":
            return True
        if message.written is None or prompt.written is None or part.kind == "placeholder":
            continue
        if abs(message.written - prompt.written) > STABLE_AFTER[part.kind]:
            return True
    return False


# Files


def file_findings(messages: Sequence[LintMessage], scale: TokenScale) -> Iterator[LintFinding]:
    """Files in front of what stays, and files that are attached again."""
    for message in messages:
        if message.role in SYSTEM_ROLES:
            yield from _files_first(message, scale)
    said: dict[str, list[tuple[LintMessage, QuotedFile]]] = {}
    for message in messages:
        if message.role == "user":
            for file in quoted_files(message.text):
                said.setdefault(file.name, []).append((message, file))
    for name, uses in said.items():
        if len(uses) > 1:
            yield _attached_again(name, uses, scale)


def _files_first(message: LintMessage, scale: TokenScale) -> Iterator[LintFinding]:
    files = quoted_files(message.text)
    if not files:
        return
    first = files[0]
    behind = message.text[first.start :]
    for file in reversed(files):
        behind = behind[: file.start - first.start] + behind[file.stop - first.start :]
    if scale.tokens(len(behind.strip())) < MIN_TOKENS:
        return
    line, column = line_and_column(message.text, first.start)
    yield LintFinding(
        rule="attachment_first",
        place=message.place,
        what=f"the file {quoted(first.name)} stands before instructions that stay: once the file"
        " changes, they are read again with it.",
        advice="Put the instructions first and the file behind them, or into a message.",
        found=first.name,
        line=line,
        column=column,
        token=scale.tokens(first.start),
        cost_tokens=scale.tokens(len(behind.strip())),
        saves_tokens=scale.tokens(len(behind.strip())),
    )


def _attached_again(
    name: str, uses: Sequence[tuple[LintMessage, QuotedFile]], scale: TokenScale
) -> LintFinding:
    """A file in several messages: each copy is read, whether it changed or not."""
    num_texts = len({file.text for _, file in uses})
    again = [len(file.text) for _, file in uses[1:]]
    what, advice = "and says the same", "Attach it once: it stays in front of the model."
    if num_texts > 1:
        what = "and is not the same" if num_texts < len(uses) else "and is another text each time"
        advice = "Attach only what changed, or fork before it was attached and attach the new one."
    message, file = uses[-1]
    line, column = line_and_column(message.text, file.start)
    return LintFinding(
        rule="attachment_repeated",
        place=message.place,
        what=f"the file {quoted(name)} is attached for the {ordinal(len(uses))} time {what}.",
        advice=advice,
        found=name,
        line=line,
        column=column,
        cost_tokens=scale.tokens(sum(again) // len(again)),
        cost_per="turn",
    )


def ordinal(number: int) -> str:
    """`second`, `4th`, `21st`."""
    if number <= 3:
        return ("first", "second", "third")[number - 1]
    is_teen = number // 10 % 10 == 1
    return f"{number}{'th' if is_teen else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"


def shared_instruction_finding(
    message: LintMessage, others: Sequence[KnownPrompt], scale: TokenScale
) -> LintFinding | None:
    """That the first message begins with a file, and ends with words that other chats end theirs
    with, behind other files."""
    tail = _behind_files(message.text)
    if tail is None or scale.tokens(len(tail)) < MIN_TOKENS:
        return None
    same = [
        other
        for other in others
        if other.text != message.text and _behind_files(other.text) == tail
    ]
    if not same:
        return None
    line, column = line_and_column(message.text, message.text.rfind(tail))
    return LintFinding(
        rule="attachment_first",
        place=message.place,
        what=f"{quoted(tail)} stands behind a file, and behind other files in"
        f" {plural(len(same), 'other chat')} ({shorten(one_line(same[0].name), 40)}).",
        advice="Put the words that stay into the system prompt, or before the file.",
        found=tail,
        line=line,
        column=column,
        cost_tokens=scale.tokens(len(tail)),
        cost_per="chat",
        saves_tokens=scale.tokens(len(tail)),
    )


def _behind_files(text: str) -> str | None:
    """What stands behind the files that a message begins with; None: it does not begin so."""
    files = quoted_files(text)
    stop = 0
    for file in files:
        if text[stop : file.start].strip():
            break
        stop = file.stop
    return text[stop:].strip() if stop else None


def named(
    findings: Iterable[LintFinding], subject: str, session_id: str | None = None
) -> list[LintFinding]:
    """The findings with what they are about."""
    return [replace(finding, subject=subject, session_id=session_id) for finding in findings]
