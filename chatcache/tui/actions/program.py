"""The commands that show something of the program itself: figures, segments, keys, checks."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from textual.app import App

from chatcache.errors import ChatcacheError, UsageError, did_you_mean
from chatcache.formatting import plural
from chatcache.frontend import keycheck, servers
from chatcache.frontend.desk import required, spill
from chatcache.frontend.lens.source import LensSource
from chatcache.frontend.lens.spoken import opened
from chatcache.frontend.lint.finding import report
from chatcache.frontend.lint.look import look_at_open
from chatcache.frontend.progress import Report
from chatcache.tui.look import layout
from chatcache.tui.messages import PanelModeChosen
from chatcache.tui.parts.wiring import ChatParts
from chatcache.tui.screens.dialogs import ConfirmScreen
from chatcache.tui.screens.help import HelpScreen
from chatcache.tui.screens.lens import LensScreen
from chatcache.tui.screens.segments import SegmentsScreen
from chatcache.tui.screens.themes import ThemeScreen
from chatcache.tui.stage import Handler


class ProgramActions:
    def __init__(self, app: App[Any], parts: ChatParts) -> None:
        self._app, self._stage, self._chat = app, parts.stage, parts.chat
        self._panel, self._options = parts.panel, parts.options
        self._desk, self._work = parts.desk, parts.work
        self.handlers: dict[str, Handler] = {
            "panel": self._show_panel,
            "lint": self._lint,
            "stats": self._stats,
            "segments": self._segments,
            "lens": self._lens,
            "spill": self._spill,
            "theme": self._theme,
            "keys": self._keys,
            "doctor": self._doctor,
            "gc": self._gc,
            "help": self._help,
            "quit": self._quit,
        }

    async def _show_panel(self, argument: str) -> None:
        mode = layout.as_panel_mode(argument) if argument else None
        if argument and mode is None:
            raise UsageError(f"There is no panel mode {argument!r}.", "Say full, compact or off.")
        self._stage.post_message(PanelModeChosen(mode))

    async def _stats(self, argument: str) -> None:
        await self._stage.show_note(await self._stage.ask(self._chat.stats))

    @property
    def _is_remote(self) -> bool:
        return self._panel.info is not None and self._panel.info.backend == "remote"

    async def _lint(self, argument: str) -> None:
        found = await self._stage.ask(look_at_open, self._chat.service, self._chat.session)
        await self._stage.show_note("\n  ".join(report(found)))

    async def _segments(self, argument: str) -> None:
        snapshot = self._panel.snapshot
        rows = snapshot.segments if snapshot is not None else ()
        if self._is_remote:
            self._stage.toast(servers.NO_SEGMENTS)
        picker = SegmentsScreen(
            rows, self._desk, self._stage.now, partial(spill, self._chat.service)
        )
        await self._stage.push_screen_wait(picker)

    async def _lens(self, argument: str) -> None:
        self._chat.require_session()
        if self._is_remote:
            self._stage.toast(servers.NO_LENS)
        chat = self._chat
        source = LensSource(chat.service, chat.session_id, chat.prices)
        lens = await self._stage.ask(opened, source, argument.split())
        turn = await self._stage.push_screen_wait(LensScreen(lens, chat.name))
        if turn is not None:
            await self.inspect(turn)

    async def inspect(self, turn: int) -> None:
        """Show the figures of the answer of a turn in the panel."""
        self._panel.show(await self._stage.ask(self._chat.figures_of, turn), turn)
        self._stage.post_message(PanelModeChosen("full", is_kept=False))
        self._stage.refresh_panel()

    async def _spill(self, argument: str) -> None:
        done = await self._stage.ask(spill, self._chat.service)
        self._stage.toast(f"{done} The panel shows when.")

    async def _theme(self, argument: str) -> None:
        app, before = self._app, self._app.theme
        name: str | None = argument
        if not argument:
            name = await self._stage.push_screen_wait(ThemeScreen())
        if name is not None and name not in app.available_themes:
            hint = did_you_mean(name, app.available_themes) or "/theme shows them all."
            raise UsageError(f"There is no theme {name!r}.", hint)
        app.theme = name or before
        if name is not None and name != before:
            await self._keep_theme(name, before)

    async def _keep_theme(self, name: str, before: str) -> None:
        keep = self._options.keep_setting
        back = f"/theme {before} goes back."
        if keep is None:
            self._stage.toast(f"{name}, for this time. {back}")
            return
        try:
            await self._stage.ask(keep, "ui.theme", name)
        except ChatcacheError as error:
            self._stage.toast(
                f"{name}, for this time only: {error.message} {back}", is_warning=True
            )
        else:
            self._stage.toast(f"{name} is kept for the next start. {back}")

    async def _keys(self, argument: str) -> None:
        found = keycheck.findings(self._options.keys, os.environ)
        text = "\n  ".join(found) if found else "Every key can do what it should here."
        hint = "F1 lists all keys; [keys] in the config file changes them."
        await self._stage.show_note(text, hint)

    async def _doctor(self, argument: str) -> None:
        examine = self._options.examine
        if examine is None:
            raise UsageError("Nothing can be checked here.", "Run `chatcache doctor`.")
        found: list[str] = []

        def look(report: Report) -> None:
            for line in examine(report):
                found.append(line)
                report("checking the installation")

        await self._work.run("checking the installation", look)
        if found:
            await self._stage.show_note("\n  ".join(found))

    async def _gc(self, argument: str) -> None:
        desk = required(self._desk)
        garbage = await self._work.run("looking for what can be removed", desk.look_for_garbage)
        if garbage is None:
            return
        if not garbage.num_files:
            self._stage.toast(garbage.lines()[0])
            return
        question = f"Remove {plural(garbage.num_files, 'file')} that nothing can use any more?"
        dialog = ConfirmScreen(question, "\n".join(garbage.lines()), "Remove")
        if await self._stage.push_screen_wait(dialog):
            done = await self._work.run("removing", partial(desk.collect, garbage))
            if done is not None:
                self._stage.toast(done)

    async def _help(self, argument: str) -> None:
        await self._stage.push_screen_wait(HelpScreen(self._options.keys))

    async def _quit(self, argument: str) -> None:
        await self._app.action_quit()
