"""The one list of commands and keys; popup, palette, F1 and bindings are made of it.

Owns ids, slash names, default keys and one-line summaries. What a command does is in `actions`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from textual.binding import Binding, BindingType

from chatcache.errors import did_you_mean

Scope = Literal["app", "chat", "composer", "message"]


@dataclass(frozen=True, slots=True)
class Command:
    """Something to ask for. `keys` are Textual key names; `id` is also the binding's id."""

    id: str
    slash: str
    summary: str
    group: str
    keys: str = ""
    argument: str = ""

    @property
    def usage(self) -> str:
        return f"/{self.slash} {self.argument}".rstrip()

    @property
    def needs_argument(self) -> bool:
        return bool(self.argument) and not self.argument.startswith("[")


@dataclass(frozen=True, slots=True)
class Key:
    """A key that is no command: editing, moving, acting on a message."""

    id: str
    keys: str
    action: str
    summary: str
    scope: Scope
    priority: bool = False


TALK, CHATS, VIEW = "Conversation", "Chats", "View"

COMMANDS: tuple[Command, ...] = (
    Command("stop", "stop", "stop the answer; what was written is kept", TALK),
    Command("continue", "continue", "go on with a stopped answer", TALK),
    Command("regenerate", "regen", "answer your last message once more, beside the first", TALK),
    Command("edit", "edit", "edit your last message; the original stays", TALK, argument="[TEXT]"),
    Command("undo", "undo", "go back before your last message; the original stays", TALK),
    Command(
        "fork", "fork", "go on from an earlier turn, in a new chat", TALK, "f4,ctrl+f", "[TURN]"
    ),
    Command("system", "system", "show or change the system prompt", TALK, argument="[TEXT]"),
    Command(
        "set", "set", "sampling: temperature, top_p, seed, think ...", TALK, "", "[NAME VALUE]"
    ),
    Command(
        "copy", "copy", "copy the last answer, or its last code block", TALK, argument="[code]"
    ),
    Command("editor", "editor", "write the message in $EDITOR", TALK, "ctrl+g"),
    Command("history", "history", "pick one of your earlier messages", TALK, "ctrl+r"),
    Command("new", "new", "new chat, same system prompt", CHATS, "ctrl+n", "[NAME]"),
    Command("sessions", "sessions", "all chats: open, rename, delete", CHATS, "ctrl+s"),
    Command("tree", "tree", "the forks of this chat as a tree", CHATS, "f3,ctrl+t"),
    Command("switch", "switch", "open a chat by its name", CHATS, argument="NAME"),
    Command("rename", "rename", "give this chat another name", CHATS, argument="NAME"),
    Command("delete", "delete", "delete this chat", CHATS),
    Command("find", "find", "search in all chats", CHATS, argument="TEXT"),
    Command("export", "export", "write this chat to a Markdown file", CHATS, argument="[FILE]"),
    Command("panel", "cache", "cache panel: full, one line, off", VIEW, "f2,ctrl+b", "[MODE]"),
    Command("stats", "stats", "what the cache did for this chat", VIEW),
    Command("model", "model", "what the model is and how it can be reused", VIEW),
    Command("theme", "theme", "pick the colours", VIEW, argument="[NAME]"),
    Command("help", "help", "keys and commands", VIEW, "f1"),
    Command("quit", "quit", "leave; everything is on disk already", VIEW, "ctrl+q"),
)

KEYS: tuple[Key, ...] = (
    Key("app.interrupt", "ctrl+c", "interrupt", "copy, clear, stop; twice to quit", "app", True),
    Key("app.palette", "ctrl+p", "command_palette", "command palette", "app", True),
    Key("composer.send", "enter", "submit", "send", "composer"),
    Key("composer.newline", "ctrl+j,shift+enter,alt+enter", "newline", "new line", "composer"),
    Key("composer.complete", "tab", "complete", "complete a /command", "composer"),
    Key("composer.previous", "ctrl+up", "previous", "earlier message (Up in line 1)", "composer"),
    Key("composer.next", "ctrl+down", "next", "later message (Down at the end)", "composer"),
    Key("chat.escape", "escape", "escape", "close, stop; twice: fork", "chat"),
    Key("chat.page_up", "pageup", "page_up", "scroll up", "chat", True),
    Key("chat.page_down", "pagedown", "page_down", "scroll down", "chat", True),
    Key("chat.top", "ctrl+home", "top", "first message, earlier turns", "chat", True),
    Key("chat.follow", "ctrl+end", "follow", "follow the answer", "chat", True),
    Key("chat.walk_up", "alt+up", "walk(-1)", "walk to the previous message", "chat", True),
    Key("chat.walk_down", "alt+down", "walk(1)", "walk to the next message", "chat", True),
    Key("message.edit", "e", "act('edit')", "edit (forks)", "message"),
    Key("message.regenerate", "r", "act('regenerate')", "answer once more", "message"),
    Key("message.fork", "f", "act('fork')", "fork here", "message"),
    Key("message.copy", "y", "act('copy')", "copy", "message"),
    Key("message.copy_code", "c", "act('copy_code')", "copy the code block", "message"),
    Key("message.inspect", "i", "act('inspect')", "its figures in the panel", "message"),
    Key("message.older", "left_square_bracket", "act('older')", "previous sibling", "message"),
    Key("message.newer", "right_square_bracket", "act('newer')", "next sibling", "message"),
    Key("message.fold", "space", "act('fold')", "fold, unfold", "message"),
)

SCOPE_TITLES: dict[Scope, str] = {
    "app": "Anywhere",
    "chat": "Reading",
    "composer": "Writing",
    "message": "On a message (Alt+Up)",
}
_KEY_NAMES = {
    "escape": "Esc",
    "pageup": "PgUp",
    "pagedown": "PgDn",
    "left_square_bracket": "[",
    "right_square_bracket": "]",
}
_BY_ID = {command.id: command for command in COMMANDS}
_BY_SLASH = {command.slash: command for command in COMMANDS}
_DEFAULT_KEYS = {
    **{key.id: key.keys for key in KEYS},
    **{command.id: command.keys for command in COMMANDS},
}


@dataclass(frozen=True, slots=True)
class Prompt:
    """What was typed is meant for the model."""

    text: str


@dataclass(frozen=True, slots=True)
class Call:
    """What was typed is a command."""

    command: Command
    argument: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """What was typed looks like a command and is none."""

    word: str
    hint: str


def command(command_id: str) -> Command:
    return _BY_ID[command_id]


def parse(text: str) -> Prompt | Call | Unknown:
    """What the user means. A text that is to begin with a slash is typed with two of them."""
    stripped = text.lstrip()
    if stripped.startswith("//"):
        return Prompt(stripped[1:])
    if not stripped.startswith("/"):
        return Prompt(text)
    head, _, argument = stripped[1:].partition("\n" if "\n" in stripped.split(" ")[0] else " ")
    word = head.strip().casefold()
    if found := _BY_SLASH.get(word):
        return Call(found, argument.strip())
    suggestion = did_you_mean(word, _BY_SLASH)
    if suggestion:
        suggestion = suggestion.replace("'", "/", 1).replace("'", "", 1)
    return Unknown(word, f"{suggestion} Two slashes send the text as it is.".strip())


def matching(word: str) -> list[Command]:
    """The commands for the popup: those that begin with `word`, then those that contain it."""
    word = word.casefold()
    starts = [command for command in COMMANDS if command.slash.startswith(word)]
    rest = [
        command
        for command in COMMANDS
        if command not in starts
        and (word in command.slash or (len(word) > 2 and word in command.summary))
    ]
    return starts + rest


def bindings(scope: Scope) -> list[BindingType]:
    """The bindings of a scope, each with the id by which it can be remapped."""
    made: list[BindingType] = [
        Binding(key.keys, key.action, key.summary, show=False, priority=key.priority, id=key.id)
        for key in KEYS
        if key.scope == scope
    ]
    if scope == "chat":
        made += [
            Binding(
                command.keys,
                f"command('{command.id}')",
                command.summary,
                show=False,
                priority=True,
                id=command.id,
            )
            for command in COMMANDS
            if command.keys and command.id != "quit"
        ]
    return made


def quit_binding() -> Binding:
    """Works above every dialog, so it belongs to the application."""
    quit_command = _BY_ID["quit"]
    return Binding(
        quit_command.keys, "quit", quit_command.summary, show=False, priority=True, id="quit"
    )


def binding_ids() -> Iterator[str]:
    """Every id that `[keys]` may name."""
    yield from (key.id for key in KEYS)
    yield from (command.id for command in COMMANDS if command.keys)


def key_words(binding_id: str, keymap: Mapping[str, str]) -> list[str]:
    """The keys of a binding as people write them: `F4`, `Ctrl+F`."""
    keys = keymap.get(binding_id) or _DEFAULT_KEYS.get(binding_id, "")
    return [_key_word(key.strip()) for key in keys.split(",") if key.strip()]


def _key_word(key: str) -> str:
    *modifiers, last = key.split("+")
    last = _KEY_NAMES.get(last, last)
    last = last.upper() if len(last) == 1 and modifiers else last
    last = last[0].upper() + last[1:] if len(last) > 1 else last
    return "+".join([*(modifier.capitalize() for modifier in modifiers), last])
