"""The commands and keys of the registry as Textual takes them: bindings and the command palette."""

from __future__ import annotations

from functools import partial

from textual.binding import Binding, BindingType
from textual.command import DiscoveryHit, Hit, Hits, Provider

from chatcache.frontend.registry import COMMANDS, KEYS, Scope
from chatcache.tui.messages import CommandChosen


def bindings(scope: Scope) -> list[BindingType]:
    """The bindings of a scope, each with the id by which it can be remapped."""
    made: list[BindingType] = [
        Binding(key.keys, key.action, key.summary, show=False, priority=key.priority, id=key.id)
        for key in KEYS
        if key.scope == scope
    ]
    for command in COMMANDS:
        is_quit = command.id == "quit"  # works above every dialog, so it is the application's
        if command.keys and scope == ("app" if is_quit else "chat"):
            action = "quit" if is_quit else f"command('{command.id}')"
            made.append(
                Binding(
                    command.keys, action, command.summary, show=False, priority=True, id=command.id
                )
            )
    return made


class CommandProvider(Provider):
    """Finds by slash name and by summary."""

    async def discover(self) -> Hits:
        for command in COMMANDS:
            yield DiscoveryHit(
                f"/{command.slash}", partial(self._choose, command.id), help=command.summary
            )

    async def search(self, query: str) -> Hits:
        matcher = self.matcher(query)
        for command in COMMANDS:
            text = f"/{command.slash}  {command.summary}"
            if (score := matcher.match(text)) > 0:
                yield Hit(score, matcher.highlight(text), partial(self._choose, command.id))

    def _choose(self, command_id: str) -> None:
        self.screen.post_message(CommandChosen(command_id))
