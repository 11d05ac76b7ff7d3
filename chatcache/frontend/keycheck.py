"""Looks for keys that will not do what they should: in this terminal, or because of `[keys]`.

Owns what terminals and multiplexers do with keys. Pure but for the environment it is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from chatcache.frontend.registry import COMMANDS, KEYS, Scope, key_words, keys_of

# Terminals send the same byte for both of a pair.
SAME_BYTE = {
    "ctrl+i": "Tab",
    "ctrl+m": "Enter",
    "ctrl+h": "Backspace",
    "ctrl+left_square_bracket": "Esc",
}
# The prefix that a multiplexer keeps for itself, by the variable that it sets.
_PREFIXES = {
    "TMUX": ("ctrl+b", "tmux"),
    "STY": ("ctrl+a", "screen"),
    "ZELLIJ": ("ctrl+g", "zellij"),
}
_NEEDS_PROTOCOL = ("shift+enter", "alt+enter", "ctrl+home", "ctrl+end")
_ALWAYS: tuple[Scope, ...] = ("app", "chat")


def findings(keymap: Mapping[str, str], environ: Mapping[str, str]) -> list[str]:
    """One sentence per problem; none when every key can work."""
    return [
        *_same_byte(keymap),
        *_taken(keymap, environ),
        *_doubled(keymap),
        *_unreachable(keymap),
    ]


def _bindings(keymap: Mapping[str, str]) -> Iterator[tuple[str, Scope, list[str]]]:
    for command in COMMANDS:
        if keys := keys_of(command.id, keymap):
            yield command.id, "chat", keys
    for key in KEYS:
        yield key.id, key.scope, keys_of(key.id, keymap)


def _same_byte(keymap: Mapping[str, str]) -> Iterator[str]:
    for binding, _, keys in _bindings(keymap):
        for key in keys:
            if key in SAME_BYTE:
                yield f"{binding}: terminals send {_word(key)} as {SAME_BYTE[key]}."


def _taken(keymap: Mapping[str, str], environ: Mapping[str, str]) -> Iterator[str]:
    for variable, (prefix, name) in _PREFIXES.items():
        if not environ.get(variable):
            continue
        for binding, _, keys in _bindings(keymap):
            if prefix in keys:
                others = [
                    word
                    for key, word in zip(keys, key_words(binding, keymap), strict=True)
                    if key != prefix
                ]
                use = f"{' or '.join(others)} does the same" if others else "press it twice"
                yield f"{binding}: {name} keeps {_word(prefix)} for itself; {use}."


def _doubled(keymap: Mapping[str, str]) -> Iterator[str]:
    """Two actions on one key where both can be meant."""
    seen: dict[tuple[str, str], str] = {}
    for binding, scope, keys in _bindings(keymap):
        for key in keys:
            place = "everywhere" if scope in _ALWAYS else scope
            other = seen.setdefault((place, key), binding)
            if other != binding:
                yield f"{_word(key)} is bound twice: {other} and {binding}."


def _unreachable(keymap: Mapping[str, str]) -> Iterator[str]:
    for binding, _, keys in _bindings(keymap):
        if keys and all(key in _NEEDS_PROTOCOL for key in keys) and binding in keymap:
            yield f"{binding}: not every terminal sends {_word(keys[0])}; add another key."


def _word(key: str) -> str:
    return key_words("", {"": key})[0]
