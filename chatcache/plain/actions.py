"""What the slash commands do in plain mode: the same names as on the screen, answers as lines."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from chatcache.backends.base import CacheSnapshot, SegmentRow
from chatcache.errors import NotFoundError, UsageError, did_you_mean
from chatcache.formatting import duration, moment, one_line, plural, shorten, size, table
from chatcache.frontend import exports, figures, files, keycheck, reports, servers
from chatcache.frontend.editor import edit_text
from chatcache.frontend.progress import unheard
from chatcache.frontend.registry import COMMANDS, Command
from chatcache.plain.tree import TreeActions

if TYPE_CHECKING:
    from chatcache.plain.chat import PlainChat

_WIDTH = 60
_MAX_ROWS = 30


class PlainActions(TreeActions):
    """One method per command, named `_do_ID`; each gets the words behind the command."""

    def __init__(self, chat: PlainChat) -> None:
        super().__init__(chat)
        self._snapshot: CacheSnapshot | None = None
        if chat.service.backend is not None:
            chat.service.backend.subscribe(self._note)

    def _note(self, event: object) -> None:
        if isinstance(event, CacheSnapshot):
            self._snapshot = event

    def run(self, command: Command, argument: str) -> None:
        handler: Callable[[str], None] | None = getattr(self, f"_do_{command.id}", None)
        if handler is None:
            raise UsageError(f"/{command.slash} needs the screen.", "Start without --plain.")
        handler(argument)

    # Talking

    def _do_stop(self, argument: str) -> None:
        self._chat.say("Nothing is being answered. Ctrl+C stops an answer.")

    def _do_continue(self, argument: str) -> None:
        service, session = self._chat.service, self._chat.require_session()
        self._chat.answer(service.continue_answer(session.session_id, self._chat.sampling.options))

    def _do_regenerate(self, argument: str) -> None:
        service, session = self._chat.service, self._chat.require_session()
        self._chat.answer(service.regenerate(session.session_id, self._chat.sampling.options))

    def _do_edit(self, argument: str) -> None:
        service, session = self._chat.service, self._chat.require_session()
        if not argument:
            raise UsageError("The new text is missing.", "Say /edit TEXT.")
        options = self._chat.sampling.options
        self._chat.answer(service.edit(session.session_id, session.num_turns, argument, options))

    def _do_undo(self, argument: str) -> None:
        session = self._chat.require_session()
        text = self._last("user")
        self._fork(session.num_turns - 1)
        self._chat.say(f"Your message was: {text}")

    def _do_fork(self, argument: str) -> None:
        if argument:
            if not argument.isdecimal():
                raise UsageError(f"{argument!r} is no turn.", "Say /fork 3, or /fork for a list.")
            self._fork(int(argument))
            return
        points = self._chat.service.fork_points(self._chat.require_session().session_id)
        for point in points[:_MAX_ROWS]:
            said = shorten(point.user_text or "the beginning", _WIDTH)
            self._chat.say(f"Turn {point.turn}: {said}. Going on: {figures.cost(point.cost)}.")
        self._chat.say("Say /fork TURN.")

    def _fork(self, turn: int) -> None:
        service, session = self._chat.service, self._chat.require_session()
        result = service.fork(session.session_id, at_turn=turn)
        self._chat.open(service.find_session(result.session_id))
        self._chat.say(f"“{one_line(session.name)}” is as it was.")

    def _do_system(self, argument: str) -> None:
        chat = self._chat
        if not argument:
            chat.say(f"System prompt: {self._system() or 'none'}")
        elif chat.session is None:
            chat.system_prompt = argument
            chat.say("The next message begins the chat with this system prompt.")
        else:
            chat.service.set_system(chat.session.session_id, argument)
            chat.reload()
            chat.say("System prompt changed. The next answer reads everything anew.")

    def _system(self) -> str | None:
        if self._chat.session is None:
            return self._chat.system_prompt
        path = self._chat.service.transcript(self._chat.session.session_id)
        return next((message.text for message in path if message.role == "system"), None)

    def _do_persona(self, argument: str) -> None:
        personas = self._chat.options.personas
        if not argument:
            for persona in personas.values():
                self._chat.say(f"{persona.name}: {shorten(persona.system, _WIDTH)}")
            self._chat.say("Say /persona NAME." if personas else "There are none yet.")
            return
        if argument not in personas:
            hint = did_you_mean(argument, personas) or "/persona shows them all."
            raise NotFoundError(f"There is no persona {argument!r}.", hint)
        self._chat.sampling = self._chat.sampling.with_persona(personas[argument])
        self._do_system(personas[argument].system)

    def _do_params(self, argument: str) -> None:
        self._chat.say(self._chat.sampling.report().replace("\n  ", "\n"))

    def _do_set(self, argument: str) -> None:
        if not argument:
            self._do_params("")
            return
        name, _, value = argument.replace("=", " ").partition(" ")
        self._chat.sampling = self._chat.sampling.changed(name, value.strip())
        self._chat.say(f"{name}: {value.strip()}. The cache is not touched by it.")

    def _do_copy(self, argument: str) -> None:
        answer = self._last("assistant")
        self._chat.say(reports.last_code_block(answer) if argument == "code" else answer)

    def _do_attach(self, argument: str) -> None:
        if not argument:
            raise UsageError("The file is missing.", "Say /attach PATH.")
        attachment = files.read_attachment(argument)
        self._chat.attached.append(attachment.quoted)
        self._chat.say(f"{attachment.placeholder} goes with the next message.")

    def _do_editor(self, argument: str) -> None:
        if text := edit_text("").strip():
            self._chat.send(text)

    def _do_history(self, argument: str) -> None:
        words = argument.casefold().split()
        said = self._chat.service.recall.user_messages()
        found = [one for one in said if all(word in one.casefold() for word in words)]
        for text in found[:_MAX_ROWS]:
            self._chat.say(shorten(text, _WIDTH))
        self._chat.say(plural(len(found), "message") + " found.")

    def _last(self, role: str) -> str:
        session = self._chat.require_session()
        path = self._chat.service.transcript(session.session_id, last_turns=1)
        found = [message.text for message in path if message.role == role]
        if not found:
            raise NotFoundError("There is none yet.", "Say something first.")
        return found[-1]

    # Chats

    def _do_new(self, argument: str) -> None:
        system = self._system()
        self._chat.open(None)
        self._chat.system_prompt, self._chat.new_name = system, argument or None

    def _do_sessions(self, argument: str) -> None:
        now = time.time()
        sessions = self._chat.service.list_sessions()
        rows = [
            (shorten(one.name, 44), f"{one.num_turns:,}", moment(one.updated_at, now))
            for one in sessions[:_MAX_ROWS]
        ]
        self._chat.say(table(("NAME", "TURNS", "USED"), rows, "TURNS") if rows else "None yet.")
        self._chat.say("Say /switch NAME to open one.")

    def _do_find(self, argument: str) -> None:
        for hit in self._chat.service.search(argument)[:_MAX_ROWS]:
            where = f", turn {hit.turn}" if hit.turn else ""
            self._chat.say(f"{one_line(hit.session_name)}{where}: {one_line(hit.snippet)}")

    def _do_switch(self, argument: str) -> None:
        if not argument:
            raise UsageError("The name is missing.", "/sessions lists them.")
        self._chat.open(self._chat.service.find_session(argument))

    def _do_rename(self, argument: str) -> None:
        if not argument:
            raise UsageError("The new name is missing.", "Say /rename NAME.")
        self._chat.service.rename(self._chat.require_session().session_id, argument)
        self._chat.reload()
        self._chat.say(f"This chat is now called “{one_line(argument)}”.")

    def _do_delete(self, argument: str) -> None:
        session = self._chat.require_session()
        question = f"Delete “{one_line(session.name)}”, {plural(session.num_turns, 'turn')}?"
        if self._chat.ask(f"{question} Type yes:") == "yes":
            self._chat.service.delete(session.session_id)
            self._chat.open(self._chat.service.last_session())

    def _do_export(self, argument: str) -> None:
        session = self._chat.require_session()
        path, num_bytes = exports.export_chat(self._chat.service, session, argument, unheard)
        self._chat.say(f"Written to {path}, {size(num_bytes)}.")

    def _do_import(self, argument: str) -> None:
        if not argument:
            raise UsageError("The file is missing.", "Say /import PATH.")
        self._chat.open(exports.import_chat(self._chat.service, argument, unheard))

    # The program

    def _do_panel(self, argument: str) -> None:
        session = self._chat.require_session()
        path = self._chat.service.transcript(session.session_id, last_turns=1)
        last = figures.from_json(path[-1].result_json) if path else None
        if last is not None and last.is_remote:
            self._chat.say(f"{figures.footer(last)}. {last.detail}.")
        elif last is not None:
            self._chat.say(f"{last.outcome}: {figures.reason_words(last.reason)}. {last.detail}")
            self._chat.say(
                f"{last.prompt_tokens:,} prompt tokens, {last.cached_tokens:,} reused,"
                f" {last.computed_tokens:,} computed, first token after {duration(last.ttft_ms)}."
            )
        if self._snapshot is not None:
            for name, use in (("RAM", self._snapshot.ram), ("disk", self._snapshot.disk)):
                self._chat.say(f"{name}: {size(use.num_bytes)} of {size(use.budget_bytes)}.")

    def _do_segments(self, argument: str) -> None:
        """Without words: the list. Else `inspect|pin|verify|spill|drop ID`, or `verify`."""
        rows = self._snapshot.segments if self._snapshot is not None else ()
        info = self._chat.model_info()
        if info is not None and info.backend == "remote":
            self._chat.say(servers.NO_SEGMENTS)
        if not argument:
            for row in rows[:_MAX_ROWS]:
                tiers = " and ".join(
                    name for name, is_in in (("RAM", row.in_ram), ("disk", row.on_disk)) if is_in
                )
                held = f"{size(row.num_bytes)} {tiers or 'live'}"
                self._chat.say(
                    f"{row.segment_id[:12]}: tokens {row.start:,} to {row.stop:,}, {held}."
                )
            self._chat.say("Say /segments inspect ID, or pin, verify, spill, drop.")
            self._chat.say("/segments verify looks at all files.")
            return
        if argument == "verify":
            self._verify_all()
        else:
            self._chat.say(self._on_segment(argument.split(), rows))

    def _verify_all(self) -> None:
        desk, last, num_damaged = self._chat.options.desk, None, 0
        for last in desk.verify_all() if desk is not None else ():
            num_damaged += last.problem is not None
        if last is None:
            self._chat.say("Nothing is on disk yet.")
        else:
            found = f"{num_damaged:,} damaged" if num_damaged else "all sound"
            self._chat.say(f"Verified {plural(last.total, 'segment')}: {found}.")

    def _on_segment(self, words: list[str], rows: tuple[SegmentRow, ...]) -> str:
        desk = self._chat.options.desk
        found = [row for row in rows if len(words) == 2 and row.segment_id.startswith(words[1])]
        if desk is None or len(found) != 1:
            raise NotFoundError("No segment is meant by that.", "/segments lists them.")
        acts: dict[str, Callable[[SegmentRow], str]] = {
            "inspect": lambda row: "\n".join(desk.inspect(row)),
            "pin": desk.toggle_pin,
            "verify": desk.verify,
            "spill": self._spill,
            "drop": desk.drop,
        }
        if words[0] not in acts:
            raise UsageError(f"A segment cannot be {words[0]!r}.", f"There are {', '.join(acts)}.")
        return acts[words[0]](found[0])

    def _spill(self, row: SegmentRow) -> str:
        if row.on_disk:
            return "It is on disk already."
        if not self._chat.service.spill(row.segment_id):
            raise UsageError("No model of this machine is loaded.", "Then nothing is in memory.")
        return "It is being written, with all before it."

    def _do_spill(self, argument: str) -> None:
        if not self._chat.service.spill():
            raise UsageError("No model of this machine is loaded.", "Then nothing is in memory.")
        self._chat.say("What is in memory alone is being written to disk.")

    def _do_stats(self, argument: str) -> None:
        path = self._chat.service.transcript(self._chat.require_session().session_id)
        stored = [figures.from_json(message.result_json) for message in path]
        self._chat.say(reports.totals([one for one in stored if one is not None]))

    def _do_model(self, argument: str) -> None:
        from chatcache.backends.local.model.resolve import resolve_model
        from chatcache.backends.local.model.shelf import shelf
        from chatcache.backends.switching import SwitchingBackend
        from chatcache.remotes import check_reach, remote_model

        chat, backend = self._chat, self._chat.service.backend
        remotes = chat.options.remotes
        if argument and isinstance(backend, SwitchingBackend):
            remote = remote_model(argument, remotes)
            if remote is not None:
                check_reach(remote.profile, is_offline=chat.options.is_offline)
            else:
                resolve_model(argument, is_offline=chat.options.is_offline)
            before = backend.model
            backend.switch(argument)
            chat.say(f"{one_line(argument)} answers from now on; this chat is read anew once.")
            if remote_model(before, remotes) is None:
                chat.say(f"The K and V of {one_line(before)} stay for when you switch back.")
            return
        for model in shelf(chat.service.recall.models_used()):
            held = model.problem or f"{model.architecture}, {size(model.num_bytes)}"
            chat.say(f"{one_line(model.name)}: {model.place}, {one_line(held)}.")
        for profile in remotes.values():
            name = f"{profile.name}:{profile.model or 'NAME'}"
            chat.say(f"{one_line(name)}: server, {profile.base_url}.")
        chat.say("Say /model NAME; a name of the hub is downloaded.")

    def _do_theme(self, argument: str) -> None:
        self._chat.say("Plain mode has no colours.")

    def _do_keys(self, argument: str) -> None:
        found = keycheck.findings({}, os.environ)
        self._chat.say("\n".join(found) or "Ctrl+C stops an answer; twice, it quits. Ctrl+D quits.")

    def _do_gc(self, argument: str) -> None:
        desk = self._chat.options.desk
        if desk is None:
            raise UsageError("The cache of this backend is not on this machine.", "")
        garbage = desk.look_for_garbage(unheard)
        if not garbage.num_files:
            self._chat.say("Nothing to remove: every segment on disk can be used.")
            return
        for line in garbage.lines():
            self._chat.say(line)
        if argument == "yes":
            self._chat.say(desk.collect(garbage, unheard))
        else:
            self._chat.say("Say /gc yes to remove it.")

    def _do_doctor(self, argument: str) -> None:
        if self._chat.options.examine is None:
            raise UsageError("Nothing can be checked here.", "Run `chatcache doctor`.")
        for line in self._chat.options.examine():
            self._chat.say(line)

    def _do_help(self, argument: str) -> None:
        for command in COMMANDS:
            if hasattr(self, f"_do_{command.id}"):
                self._chat.say(f"{command.usage}: {command.summary}")
        self._chat.say("A line that ends with a backslash goes on in the next one.")

    def _do_quit(self, argument: str) -> None:
        self._chat.is_over = True
