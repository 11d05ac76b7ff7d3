"""The commands that show something of the program itself: figures, segments, keys, checks."""

from __future__ import annotations

import os

from chatcache.errors import NotFoundError, UsageError
from chatcache.frontend import figures, keycheck, reports
from chatcache.tui import layout
from chatcache.tui.actions_base import ActionGroup
from chatcache.tui.screens.help import HelpScreen
from chatcache.tui.screens.lens import LensScreen
from chatcache.tui.screens.segments import SegmentsScreen


class ViewActions(ActionGroup):
    async def _do_panel(self, argument: str) -> None:
        screen = self._screen
        mode = layout.as_panel_mode(argument) if argument else None
        if argument and mode is None:
            raise UsageError(f"There is no panel mode {argument!r}.", "Say full, compact or off.")
        screen.set_panel_mode(mode or layout.next_panel_mode(screen.shown_panel_mode))

    async def _do_stats(self, argument: str) -> None:
        screen = self._screen
        session = screen.chats.require_session()
        messages = await screen.ask(screen.service.transcript, session.session_id)
        stored = [figures.from_json(message.result_json) for message in messages]
        await screen.show_note(reports.totals([one for one in stored if one is not None]))

    async def _do_segments(self, argument: str) -> None:
        screen = self._screen
        snapshot = screen.panel_state.snapshot
        rows = snapshot.segments if snapshot is not None else ()
        picker = SegmentsScreen(rows, screen.options.desk, screen.now, screen.service.spill)
        await screen.app.push_screen_wait(picker)

    async def _do_lens(self, argument: str) -> None:
        screen = self._screen
        session = screen.chats.require_session()
        shown = screen.panel_state.figures
        info = screen.status.info
        picker = LensScreen(
            lambda: screen.service.fork_points(session.session_id),
            info.max_context_tokens if info else None,
            shown.diverged_at if shown and shown.cached_tokens else None,
        )
        turn = await screen.app.push_screen_wait(picker)
        if turn is not None:
            await self._inspect(turn)

    async def _inspect(self, turn: int) -> None:
        """Show the figures of the answer of a turn in the panel."""
        screen = self._screen
        session = screen.chats.require_session()
        path = await screen.ask(screen.service.transcript, session.session_id)
        kept = next((one.result_json for one in path if one.turn == turn and one.result_json), None)
        found = figures.from_json(kept)
        if found is None:
            raise NotFoundError(f"Turn {turn} has no figures.", "They come with the answer.")
        screen.panel_state.show(found, turn)
        if screen.shown_panel_mode != "full":
            screen.set_panel_mode("full")
        screen.refresh_panel()

    async def _do_spill(self, argument: str) -> None:
        screen = self._screen
        if not await screen.ask(screen.service.spill):
            raise UsageError("No model of this machine is loaded.", "Then nothing is in memory.")
        screen.toast("What is in memory alone is written to disk; the panel shows when.")

    async def _do_keys(self, argument: str) -> None:
        screen = self._screen
        found = keycheck.findings(screen.options.keys, os.environ)
        text = "\n  ".join(found) if found else "Every key can do what it should here."
        hint = "F1 lists all keys; [keys] in the config file changes them."
        await screen.show_note(text, hint)

    async def _do_doctor(self, argument: str) -> None:
        screen = self._screen
        examine = screen.options.examine
        if examine is None:
            raise UsageError("Nothing can be checked here.", "Run `chatcache doctor`.")
        screen.toast("Looking at the installation and the stores …")
        await screen.show_note("\n  ".join(await screen.ask(lambda: list(examine()))))

    async def _do_help(self, argument: str) -> None:
        await self._screen.app.push_screen_wait(HelpScreen(self._screen.options.keys))
