"""The bindings of the registry's commands and keys, as Textual takes them."""

from __future__ import annotations

from textual.binding import Binding, BindingType

from chatcache.frontend import registry
from chatcache.frontend.registry import COMMANDS, KEYS, Scope


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
    quit_command = registry.command("quit")
    return Binding(
        quit_command.keys, "quit", quit_command.summary, show=False, priority=True, id="quit"
    )
