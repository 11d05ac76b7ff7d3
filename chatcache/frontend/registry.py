"""The one list of commands and keys; popup, palette, F1, bindings and plain mode are made of it.

Owns ids, slash names, default keys and one-line summaries. What a command does is each front end's
own business.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from chatcache.errors import did_you_mean

Scope = Literal[
    "app",
    "chat",
    "composer",
    "message",
    "list",
    "sessions",
    "tree",
    "ask",
    "system",
    "confirm",
    "help",
    "segments",
    "models",
    "lens",
]


@dataclass(frozen=True, slots=True)
class Command:
    """Something to ask for. `keys` are Textual key names; `id` is also the binding's id, and the
    word behind the slash if there is no other `word`. Plain mode takes a `plain_argument`, where
    the screen has a list to choose from."""

    id: str
    summary: str
    group: str
    keys: str = ""
    argument: str = ""
    word: str = ""
    plain_argument: str = ""

    @property
    def slash(self) -> str:
        return self.word or self.id

    @property
    def usage(self) -> str:
        return f"/{self.slash} {self.argument}".rstrip()

    @property
    def plain_usage(self) -> str:
        return f"/{self.slash} {self.plain_argument or self.argument}".rstrip()

    @property
    def needs_argument(self) -> bool:
        return bool(self.argument) and not self.argument.startswith("[")

    @property
    def takes_lines(self) -> bool:
        """Whether the argument is a text; a name, a number or a path is on one line."""
        return self.argument.strip("[]") == "TEXT"


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
    Command("stop", "stop the answer; what was written is kept", TALK),
    Command("continue", "go on with a stopped answer", TALK),
    Command(
        "regenerate", "answer your last message once more, beside the first", TALK, word="regen"
    ),
    Command("edit", "edit your last message; the original stays", TALK, argument="[TEXT]"),
    Command("undo", "go back before your last message; the original stays", TALK),
    Command("fork", "go on from an earlier turn, in a new chat", TALK, "f4,ctrl+f", "[TURN]"),
    Command("system", "show or change the system prompt", TALK, argument="[TEXT]"),
    Command("persona", "a system prompt and sampling by name", TALK, argument="[NAME]"),
    Command(
        "mode", "append: keep all that was read; canonical", TALK, argument="[append|canonical]"
    ),
    Command("params", "the sampling in force, and who set it", TALK),
    Command("set", "sampling: temperature, top_p, seed, think ...", TALK, argument="[NAME VALUE]"),
    Command("variant", "another answer to your last message", TALK, argument="[NUMBER]"),
    Command("copy", "copy the last answer, or its last code block", TALK, argument="[code]"),
    Command("attach", "put a file's text into the message; also @", TALK, argument="PATH"),
    Command("editor", "write the message in $EDITOR", TALK, "ctrl+g"),
    Command("history", "pick an earlier message, of all chats", TALK, "ctrl+r", "[WORDS]"),
    Command("new", "new chat, same system prompt", CHATS, "ctrl+n", "[NAME]"),
    Command("sessions", "all chats: open, rename, delete", CHATS, "ctrl+s"),
    Command(
        "tree",
        "the forks of this chat as a tree",
        CHATS,
        "f3,ctrl+t",
        plain_argument="[switch|delete|keep ROW]",
    ),
    Command("switch", "open a chat by its name", CHATS, argument="NAME"),
    Command("rename", "give this chat another name", CHATS, argument="NAME"),
    Command("delete", "delete this chat", CHATS),
    Command("find", "search in all chats", CHATS, argument="TEXT"),
    Command("export", "write this chat to a file: .md, or .json", CHATS, argument="[FILE]"),
    Command("import", "open a chat from a .json export", CHATS, argument="PATH"),
    Command("panel", "cache panel: full, one line, off", VIEW, "f2,ctrl+b", "[MODE]", word="cache"),
    Command(
        "segments",
        "the segments: inspect, pin, verify, spill, drop",
        VIEW,
        "f7",
        plain_argument="[inspect|pin|verify|spill|drop ID]",
    ),
    Command("gc", "remove from disk what nothing can use any more", VIEW, plain_argument="[yes]"),
    Command("spill", "write what is in memory to disk now", VIEW),
    Command(
        "lens",
        "what a cache is, seen in this chat: turns, tokens, attention ...",
        VIEW,
        "f6",
        "[VIEW]",
        plain_argument="[VIEW] [TURN] [token N] [layer N] [head N] [beside MODEL]",
    ),
    Command("lint", "what makes this chat's beginning change", VIEW),
    Command("stats", "what the cache did for this chat", VIEW),
    Command("model", "pick another model, or download one", VIEW, "f5", "[NAME]"),
    Command("theme", "pick the colours", VIEW, argument="[NAME]"),
    Command("keys", "keys that clash with the terminal or each other", VIEW),
    Command("doctor", "check the installation and the stores", VIEW),
    Command("help", "keys and commands", VIEW, "f1"),
    Command("quit", "leave; everything is on disk already", VIEW, "ctrl+q"),
)

KEYS: tuple[Key, ...] = (
    Key("app.interrupt", "ctrl+c", "interrupt", "copy, clear, stop; twice to quit", "app", True),
    Key("app.palette", "ctrl+p", "command_palette", "command palette", "app", True),
    Key("composer.send", "enter", "submit", "send", "composer"),
    Key("composer.newline", "ctrl+j,shift+enter,alt+enter", "newline", "new line", "composer"),
    Key("composer.complete", "tab", "complete", "complete a /command or an @file", "composer"),
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
    Key("message.delete", "x", "act('delete')", "delete from here on", "message"),
    Key("message.fold", "space", "act('fold')", "fold, unfold", "message"),
    Key("list.close", "escape", "leave", "close", "list"),
    Key("list.up", "up", "move(-1)", "one row up", "list", True),
    Key("list.down", "down", "move(1)", "one row down", "list", True),
    Key("list.page_up", "pageup", "move(-10)", "ten rows up", "list", True),
    Key("list.page_down", "pagedown", "move(10)", "ten rows down", "list", True),
    Key("sessions.rename", "f2,ctrl+r", "rename", "rename the chat", "sessions", True),
    Key("sessions.delete", "f8,ctrl+x", "delete", "delete the chat", "sessions", True),
    Key("sessions.undo", "ctrl+z", "undo", "bring it back", "sessions", True),
    Key("sessions.pin", "f6", "pin", "keep it at the top, or not", "sessions", True),
    Key("sessions.sort", "f7", "sort", "by use, name, or length", "sessions", True),
    Key("tree.rename", "f2,ctrl+r", "rename", "rename the chat", "tree", True),
    Key("tree.fork", "f4,ctrl+f", "fork", "fork behind this branch", "tree", True),
    Key("tree.keep_only", "f6,ctrl+k", "keep_only", "keep only this path", "tree", True),
    Key("tree.delete", "f8,ctrl+x", "delete", "delete the branch", "tree", True),
    Key("tree.close", "f3", "leave", "close", "tree", True),
    Key("segments.pin", "f6", "pin", "pin or unpin", "segments", True),
    Key("segments.verify", "f7", "verify", "verify its checksums", "segments", True),
    Key("segments.verify_all", "f5", "verify_all", "verify all on disk", "segments", True),
    Key("segments.spill", "f9", "spill", "write it to disk now", "segments", True),
    Key("segments.drop", "f8,ctrl+x", "drop", "drop it", "segments", True),
    Key("models.default", "f6", "default", "load it at every start", "models", True),
    Key("models.form", "f7", "form", "load it in 4 or 8 bits", "models", True),
    Key("lens.next", "tab", "step(1)", "next view", "lens", True),
    Key("lens.previous", "shift+tab", "step(-1)", "previous view", "lens", True),
    Key("lens.left", "left", "go('left')", "to the left: a token, a step back", "lens"),
    Key("lens.right", "right", "go('right')", "to the right: a token, a step on", "lens"),
    Key("lens.up", "up", "go('up')", "one row up", "lens"),
    Key("lens.down", "down", "go('down')", "one row down", "lens"),
    Key("lens.first", "home", "go('home')", "to the first one", "lens"),
    Key("lens.last", "end", "go('end')", "to the last one", "lens"),
    Key("lens.page_up", "pageup", "go('page_up')", "further up", "lens"),
    Key("lens.page_down", "pagedown", "go('page_down')", "further down", "lens"),
    Key("lens.turn_back", "left_square_bracket", "turn(-1)", "previous turn", "lens"),
    Key("lens.turn", "right_square_bracket", "turn(1)", "next turn", "lens"),
    Key("lens.layer", "l", "go('layer')", "next layer", "lens"),
    Key("lens.layer_back", "L,shift+l", "go('layer_back')", "previous layer", "lens"),
    Key("lens.head", "h", "go('head')", "next head", "lens"),
    Key("lens.head_back", "H,shift+h", "go('head_back')", "previous head", "lens"),
    Key("lens.more", "plus,equals_sign", "go('more')", "more of it", "lens"),
    Key("lens.less", "minus", "go('less')", "less of it", "lens"),
    Key("lens.ids", "i", "go('ids')", "ids of the tokens, or not", "lens"),
    Key("lens.mode", "f,m", "go('mode')", "fold, or another way to show it", "lens"),
    Key("lens.cut", "c", "go('cut')", "to where reuse ended", "lens"),
    Key("lens.enter", "enter", "enter", "load the model; the figures of a turn", "lens"),
    Key("lens.export", "e", "export", "write the page to a file", "lens"),
    Key("lens.close", "escape,f6", "leave", "close", "lens"),
    Key("ask.close", "escape", "dismiss", "close", "ask"),
    Key("system.save", "ctrl+s", "save", "save", "system", True),
    Key("system.close", "escape", "dismiss", "leave it as it was", "system"),
    Key("confirm.no", "escape,n", "answer(False)", "no", "confirm"),
    Key("confirm.yes", "y", "answer(True)", "yes", "confirm"),
    Key("confirm.other", "left,right", "app.focus_next", "other button", "confirm"),
    Key("help.close", "escape,q,f1", "dismiss", "close", "help", True),
)

SCOPE_TITLES: dict[Scope, str] = {
    "app": "Anywhere",
    "chat": "Reading",
    "composer": "Writing",
    "message": "On a message (Alt+Up)",
    "list": "In a list",
    "sessions": "In the list of chats",
    "tree": "In the tree",
    "segments": "In the list of segments",
    "models": "In the list of models",
    "lens": "In the lens",
    "ask": "In a question for a text",
    "system": "In the system prompt",
    "confirm": "In a question",
    "help": "In this help",
}
_KEY_NAMES = {
    "escape": "Esc",
    "pageup": "PgUp",
    "pagedown": "PgDn",
    "left_square_bracket": "[",
    "right_square_bracket": "]",
}
_ESCAPED = re.compile(r"//[A-Za-z]")
_COMMAND = re.compile(r"/([A-Za-z]+)(?=\s|\Z)")
_SENT_AS_IT_IS = "Two slashes send the text as it is."
_TYPING_ERROR = 0.75  # "frok" is like "fork"; "sys" is not like "system"
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
    """What was typed looks like a command and is none, or one with words that it does not take."""

    message: str
    hint: str


def parse(
    text: str, expand: Callable[[str], str] = str, *, is_typed: bool = True, is_plain: bool = False
) -> Prompt | Call | Unknown:
    """What the user means: what was typed decides, before `expand` puts pastes and files in.

    A command is a known word behind a slash, and then a space or the end. Anything else is a
    message, but for a word that is probably a typing error. What came as a whole (not `is_typed`)
    is a message. A text that is to begin like a command is typed with two slashes.
    """
    stripped = text.lstrip()
    if not is_typed or not stripped.startswith("/"):
        return Prompt(expand(text))
    if _ESCAPED.match(stripped):
        return Prompt(expand(stripped[1:]))
    match = _COMMAND.match(stripped)
    if match is None:
        return Prompt(expand(text))
    word, behind = match[1].casefold(), stripped[match.end() :].rstrip()
    argument = behind.strip()
    if (found := _BY_SLASH.get(word)) is None:
        return _unknown(word, behind) or Prompt(expand(text))
    takes = found.argument or (is_plain and found.plain_argument)
    if "\n" in behind and not found.takes_lines:
        return Prompt(expand(text))
    if argument and not takes:
        return Unknown(f"/{word} takes no words.", _SENT_AS_IT_IS)
    argument = expand(argument)
    if "\n" in argument and not found.takes_lines:
        return Unknown(f"/{word} takes one line, and this is more.", _SENT_AS_IT_IS)
    return Call(found, argument)


def _unknown(word: str, behind: str) -> Unknown | None:
    """A word alone, or one much like a command with a line behind it; None for anything else."""
    similar = difflib.get_close_matches(word, _BY_SLASH, n=1, cutoff=_TYPING_ERROR)
    if behind and ("\n" in behind or not similar):
        return None
    suggestion = re.sub(r"'(\w+)'", r"/\1", did_you_mean(word, _BY_SLASH))
    return Unknown(f"There is no command /{word}.", f"{suggestion} {_SENT_AS_IT_IS}".strip())


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


def binding_ids() -> Iterator[str]:
    """Every id that `[keys]` may name."""
    yield from (key.id for key in KEYS)
    yield from (command.id for command in COMMANDS if command.keys)


def keys_of(binding_id: str, keymap: Mapping[str, str]) -> list[str]:
    """The keys of a binding as Textual names them."""
    keys = keymap.get(binding_id) or _DEFAULT_KEYS.get(binding_id, "")
    return [key.strip() for key in keys.split(",") if key.strip()]


def key_words(binding_id: str, keymap: Mapping[str, str]) -> list[str]:
    """The keys of a binding as people write them: `F4`, `Ctrl+F`."""
    return [_key_word(key) for key in keys_of(binding_id, keymap)]


def _key_word(key: str) -> str:
    *modifiers, last = key.split("+")
    last = _KEY_NAMES.get(last, last)
    last = last.upper() if len(last) == 1 and modifiers else last
    last = last[0].upper() + last[1:] if len(last) > 1 else last
    return "+".join([*(modifier.capitalize() for modifier in modifiers), last])
