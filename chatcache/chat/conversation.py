"""The conversation tree: immutable messages, named by their content, that know their parent.

Owns how a message gets its id, how turns are counted along a path, where a path can be forked, and
how the token ids of a path (its journal) are put together. Everything is a pure function of its
arguments; it knows nothing of SQLite, of sessions as rows, or of a model.

Content addressing as in a version-control system: the id of a node covers its parent's id, so an
id stands for a whole path, and two databases give the same words the same name.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from chatcache.backends.base import ChatMessage, FinishReason, Role
from chatcache.errors import NotFoundError, UsageError

ID_PREFIX = "b2:"
AUTO_NAME_LENGTH = 40
MAX_NAME_LENGTH = 200

# C0 and C1 controls, line and paragraph separators, and what reorders or hides text. Not U+200C and
# U+200D: scripts and emoji are joined with them.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]+")
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Message:
    """What a node says. `created_ms` is Unix time in milliseconds."""

    role: Role
    text: str
    reasoning: str | None = None
    model: str | None = None
    finish_reason: FinishReason | None = None
    created_ms: int = 0


@dataclass(frozen=True, slots=True)
class Node:
    """A message in its place. Turn 0 is the system prompt; an answer has its question's turn."""

    node_id: str
    parent_id: str | None
    turn: int
    message: Message

    @property
    def role(self) -> Role:
        return self.message.role

    @property
    def text(self) -> str:
        return self.message.text


def node_id_of(parent_id: str | None, message: Message) -> str:
    """The id: BLAKE2b-256 over the parent's id and the message as canonical JSON."""
    canonical = json.dumps(
        {
            "parent": parent_id,
            "role": message.role,
            "text": message.text,
            "reasoning": message.reasoning,
            "model": message.model,
            "finish_reason": message.finish_reason,
            "created_ms": message.created_ms,
        },
        ensure_ascii=False,
        sort_keys=True,
        separators=(",", ":"),
    )
    return ID_PREFIX + hashlib.blake2b(canonical.encode(), digest_size=32).hexdigest()


def turn_after(parent_turn: int | None, role: Role) -> int:
    """The turn number of a child: each user message opens a turn, all else belongs to it."""
    before = parent_turn or 0
    return before + 1 if role == "user" else before


def child_of(parent: Node | None, message: Message) -> Node:
    """The node that `message` becomes below `parent` (None: at the root)."""
    parent_id = parent.node_id if parent else None
    turn = turn_after(parent.turn if parent else None, message.role)
    return Node(node_id_of(parent_id, message), parent_id, turn, message)


def order_problem(parent_role: Role | None, role: Role) -> str | None:
    """Why a message of `role` cannot follow one of `parent_role`, or None when it can."""
    if role == "system" and parent_role is not None:
        return "a system prompt can only be the first message"
    if role == "assistant" and parent_role != "user":
        return "an answer must follow a user message"
    return None


def grow(parent: Node | None, messages: Iterable[Message]) -> list[Node]:
    """The nodes of `messages`, one below the other, below `parent`."""
    nodes: list[Node] = []
    for message in messages:
        parent = child_of(parent, message)
        nodes.append(parent)
    return nodes


def with_system(path: Sequence[Node], system: Message | None) -> list[Node]:
    """The path with another system prompt (None: without one): all of its nodes are new."""
    kept = [node.message for node in path if node.role != "system"]
    return grow(None, [system, *kept] if system else kept)


def check_turn(turn: int, num_turns: int, *, first: int = 0) -> None:
    """Raise NotFoundError with the valid range unless first <= turn <= num_turns."""
    if first <= turn <= num_turns:
        return
    if num_turns < first:
        raise NotFoundError(
            f"There is no turn {turn}: the conversation has no turns yet.", "Send a message first."
        )
    raise NotFoundError(
        f"There is no turn {turn}: the conversation has turns {first} to {num_turns}.",
        f"Choose a turn from {first} to {num_turns}.",
    )


def messages_for_model(path: Iterable[Node]) -> tuple[ChatMessage, ...]:
    """The path as a chat template takes it: user messages without an answer are joined."""
    messages: list[ChatMessage] = []
    for node in path:
        last = messages[-1] if messages else None
        if last is not None and last.role == node.role == "user":
            messages[-1] = ChatMessage("user", f"{last.text}\n\n{node.text}")
        else:
            messages.append(ChatMessage(node.role, node.text, node.message.reasoning))
    return tuple(messages)


def clean_text(text: str) -> str:
    """User text as it is stored: NUL and lone surrogates become U+FFFD, all else is kept.

    Raises UsageError when there is nothing but white space.
    """
    if not text.strip():
        raise UsageError("The message is empty.", "Type something first.")
    return replace_unstorable(text)


def replace_unstorable(text: str) -> str:
    """What neither SQLite nor UTF-8 can hold becomes U+FFFD."""
    return _SURROGATE.sub("\ufffd", text.replace("\x00", "\ufffd"))


def clean_name(name: str) -> str:
    """A session name as it is stored: one line without control characters.

    Raises UsageError when nothing is left, or far too much.
    """
    cleaned = one_line(name)
    if not cleaned:
        raise UsageError("The session name is empty.", "Give a name with visible characters.")
    if len(cleaned) > MAX_NAME_LENGTH:
        raise UsageError(
            f"The session name has {len(cleaned)} characters.",
            f"Use at most {MAX_NAME_LENGTH}.",
        )
    return cleaned


def one_line(text: str, limit: int | None = None) -> str:
    """White space and control characters folded to single spaces, cut at `limit` characters."""
    if limit is not None:
        # A preview of a 2 MB message must not fold all of it.
        text = text[: limit * 8]
    folded = " ".join(_CONTROL.sub(" ", _SURROGATE.sub("\ufffd", text)).split())
    if limit is None or len(folded) <= limit:
        return folded
    return folded[: limit - 1].rstrip() + "…"


def name_from(text: str) -> str:
    """A session name from the first words of its first message; "" when it has no visible ones."""
    folded = one_line(text[:1000])
    if len(folded) <= AUTO_NAME_LENGTH:
        return folded
    cut = folded[: AUTO_NAME_LENGTH - 1]
    words = cut.rsplit(" ", 1)[0] if " " in cut else cut
    return words.rstrip(" ,.;:-") + "…"
