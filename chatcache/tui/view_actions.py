"""The commands that show something of the program itself: figures, segments, keys, checks."""

from __future__ import annotations

import os
from functools import partial

from chatcache.errors import ChatcacheError, NotFoundError, UsageError, did_you_mean
from chatcache.formatting import plural
from chatcache.frontend import figures, keycheck, reports, servers
from chatcache.frontend.progress import Report
from chatcache.tui import layout
from chatcache.tui.actions_base import ActionGroup
from chatcache.tui.screens.confirm import ConfirmScreen
from chatcache.tui.screens.help import HelpScreen
from chatcache.tui.screens.lens import LensScreen
from chatcache.tui.screens.segments import SegmentsScreen
from chatcache.tui.screens.themes import ThemeScreen


class ViewActions(ActionGroup):
    async def _do_panel(self, argument: str) -> None:
        screen = self._screen
        mode = layout.as_panel_mode(argument) if argument else None
        if argument and mode is None:
            raise UsageError(f"There is no panel mode {argument!r}.", "Say full, compact or off.")
        wanted = mode or layout.next_panel_mode(screen.shown_panel_mode)
        screen.keep_panel_mode(wanted, is_named=mode is not None)

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
        info = screen.status.info
        if info is not None and info.backend == "remote":
            screen.toast(servers.NO_SEGMENTS)
        picker = SegmentsScreen(rows, screen.backstage.desk, screen.now, screen.service.spill)
        await screen.app.push_screen_wait(picker)

    async def _do_lens(self, argument: str) -> None:
        screen = self._screen
        session = screen.chats.require_session()
        shown = screen.panel_state.figures
        info = screen.status.info
        if info is not None and info.backend == "remote":
            screen.toast(servers.NO_LENS)
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

    async def _do_theme(self, argument: str) -> None:
        screen = self._screen
        app, before = screen.app, screen.app.theme
        name: str | None = argument
        if not argument:
            name = await app.push_screen_wait(ThemeScreen())
        if name is not None and name not in app.available_themes:
            hint = did_you_mean(name, app.available_themes) or "/theme shows them all."
            raise UsageError(f"There is no theme {name!r}.", hint)
        app.theme = name or before
        if name is not None and name != before:
            await self._keep_theme(name, before)

    async def _keep_theme(self, name: str, before: str) -> None:
        screen, keep = self._screen, self._screen.options.keep_setting
        back = f"/theme {before} goes back."
        if keep is None:
            screen.toast(f"{name}, for this time. {back}")
            return
        try:
            await screen.ask(keep, "ui.theme", name)
        except ChatcacheError as error:
            screen.toast(f"{name}, for this time only: {error.message} {back}", is_warning=True)
        else:
            screen.toast(f"{name} is kept for the next start. {back}")

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
        found: list[str] = []

        def look(report: Report) -> None:
            for line in examine(report):
                found.append(line)
                report("checking the installation")

        await screen.work.run("checking the installation", look)
        if found:
            await screen.show_note("\n  ".join(found))

    async def _do_gc(self, argument: str) -> None:
        screen, desk = self._screen, self._screen.backstage.desk
        if desk is None:
            raise UsageError("The cache of this backend is not on this machine.", "")
        garbage = await screen.work.run("looking for what can be removed", desk.look_for_garbage)
        if garbage is None:
            return
        if not garbage.num_files:
            screen.toast("Nothing to remove: every segment on disk can be used.")
            return
        question = f"Remove {plural(garbage.num_files, 'file')} that nothing can use any more?"
        dialog = ConfirmScreen(question, "\n".join(garbage.lines()), "Remove")
        if await screen.app.push_screen_wait(dialog):
            done = await screen.work.run("removing", partial(desk.collect, garbage))
            if done is not None:
                screen.toast(done)

    async def _do_help(self, argument: str) -> None:
        await self._screen.app.push_screen_wait(HelpScreen(self._screen.options.keys))
