"""The rules for requests that follow each other, as a program logs them: one per line. Pure.

A server reuses what a request has in common with an earlier one from the beginning on: first the
tools, then the messages.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from chatcache.frontend.lint.finding import LintFinding, TokenScale, excerpt
from chatcache.frontend.lint.orders import MIN_TOKENS, common_length
from chatcache.frontend.lint.talks import SYSTEM_ROLES, LintMessage


@dataclass(frozen=True, slots=True)
class LintRequest:
    """The messages of a request, and its tools as they are written. `name` is what to call it."""

    name: str
    messages: tuple[LintMessage, ...]
    tools: tuple[Any, ...] = ()

    @property
    def num_chars(self) -> int:
        return sum(len(message.text) for message in self.messages)


def request_findings(requests: Sequence[LintRequest], scale: TokenScale) -> Iterator[LintFinding]:
    """What of one request to the next keeps a server from reusing what it has read."""
    yield from _tool_findings(requests, scale)
    yield from _rewritten(requests, scale)


def _tool_findings(requests: Sequence[LintRequest], scale: TokenScale) -> Iterator[LintFinding]:
    """Tools stand in front of everything: another order of the same ones costs all of it."""
    for before, request in pairwise(requests):
        if not before.tools or before.tools == request.tools:
            continue
        texts, sorted_texts = [], []
        for tools in (before.tools, request.tools):
            written = [json.dumps(tool, ensure_ascii=False) for tool in tools]
            texts.append("".join(written))
            sorted_texts.append(sorted(json.dumps(tool, sort_keys=True) for tool in tools))
        is_order = sorted_texts[0] == sorted_texts[1]
        goes_on = _first(before) == _first(request) is not None
        if not is_order and (texts[1].startswith(texts[0]) or not goes_on):
            continue  # another program's request, with tools of its own
        at = common_length(*texts)
        cost = scale.tokens(len(texts[1]) - at + request.num_chars)
        yield LintFinding(
            rule="tools_differ",
            place=f"{request.name}, tools",
            what="the same tools are written in another order than before."
            if is_order
            else "the tools are others than before, and stand in front of all messages.",
            advice="Write the same tools in the same order each time, sorted by name."
            if is_order
            else "Send all tools in every request, in one order, new ones last.",
            found=excerpt(texts[1][at:]),
            token=scale.tokens(at),
            cost_tokens=cost,
            cost_per="request",
        )
        return  # what comes again and again is said once


def _first(request: LintRequest) -> str | None:
    return request.messages[0].text if request.messages else None


def _rewritten(requests: Sequence[LintRequest], scale: TokenScale) -> Iterator[LintFinding]:
    """A request that goes on with an earlier one, but leaves out or changes what stands early."""
    for before, request in pairwise(requests):
        old = [(message.role, message.text) for message in before.messages]
        new = [(message.role, message.text) for message in request.messages]
        shared = _num_shared(old, new)
        later = set(old[shared + 1 :]) & set(new[shared:])
        num_later = sum(len(text) for role, text in later if role not in SYSTEM_ROLES)
        if shared == len(old) or not later or scale.tokens(num_later) < MIN_TOKENS:
            continue
        changed = request.messages[min(shared, len(new) - 1)]
        rest = sum(len(text) for _, text in new[shared:])
        is_left_out = old[shared] not in new and new[shared] in old
        what = "leaves out an earlier message" if is_left_out else "changes an earlier message"
        yield LintFinding(
            rule="history_rewritten",
            place=changed.place,
            what=f"{request.name} {what} of {before.name}, and keeps what came after it.",
            advice="Let the history grow at its end only; shorten it seldom, and by much at once.",
            found=excerpt(changed.text),
            token=scale.tokens(sum(len(text) for _, text in new[:shared])),
            cost_tokens=scale.tokens(rest),
            cost_per="request",
        )
        return


def _num_shared(old: Sequence[object], new: Sequence[object]) -> int:
    number = 0
    while number < min(len(old), len(new)) and old[number] == new[number]:
        number += 1
    return number
