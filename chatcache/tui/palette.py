"""The commands of the registry in Textual's command palette."""

from __future__ import annotations

from functools import partial

from textual.command import DiscoveryHit, Hit, Hits, Provider

from chatcache.frontend.registry import COMMANDS
from chatcache.tui.messages import CommandChosen


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
