"""What the slash commands do in plain mode: the same names as on the screen, answers as lines."""

from __future__ import annotations

import os
from collections.abc import Callable

from chatcache.backends.base import CostEstimate, SegmentRow
from chatcache.chat.branches import Branch, TreeRow
from chatcache.chat.figures import decode
from chatcache.checks import typed_number
from chatcache.errors import NotFoundError, UsageError
from chatcache.formatting import (
    duration,
    model_name,
    moment,
    one_line,
    plural,
    shorten,
    size,
    span,
    table,
)
from chatcache.frontend import desk, figures, files, keycheck, servers
from chatcache.frontend.changes import SystemChange
from chatcache.frontend.editor import edit_text
from chatcache.frontend.lens.source import LensSource
from chatcache.frontend.lens.spoken import said
from chatcache.frontend.lint.finding import report
from chatcache.frontend.lint.look import look_at_open
from chatcache.frontend.open_chat import as_turn
from chatcache.frontend.progress import unheard
from chatcache.frontend.registry import COMMANDS, Command
from chatcache.plain.reading import Reader
from chatcache.plain.speech import say
from chatcache.plain.talk import Talk

_WIDTH = 60
_MAX_ROWS = 30


class PlainActions:
    """One method per command, named `_do_ID`; each gets the words behind the command."""

    def __init__(self, talk: Talk, reader: Reader) -> None:
        self._talk, self._reader = talk, reader
        self._chat = talk.chat
        self.is_leaving = False

    def run(self, command: Command, argument: str) -> None:
        handler: Callable[[str], None] = getattr(self, f"_do_{command.id}")
        handler(argument)

    # Talking

    def _do_stop(self, argument: str) -> None:
        say("Nothing is being answered. Ctrl+C stops an answer.")

    def _do_continue(self, argument: str) -> None:
        self._chat.require_session()
        self._talk.answer(self._chat.continue_answer)

    def _do_regenerate(self, argument: str) -> None:
        self._chat.require_session()
        self._talk.answer(self._chat.regenerate)

    def _do_edit(self, argument: str) -> None:
        question = self._chat.question_to_edit()
        if not argument:
            raise UsageError("The new text is missing.", "Say /edit TEXT.")
        self._talk.answer(lambda: self._chat.edit(question.turn, argument))

    def _do_undo(self, argument: str) -> None:
        forked = self._chat.undo()
        self._talk.show()
        say(forked.words)
        self._talk.undone(forked.text or "")

    def _do_fork(self, argument: str) -> None:
        if argument:
            forked = self._chat.fork(as_turn(argument))
            self._talk.show()
            say(forked.words)
            return
        for point in self._chat.fork_points()[:_MAX_ROWS]:
            said = shorten(point.user_text or "the beginning", _WIDTH)
            say(f"Turn {point.turn}: {said}. Going on: {figures.cost(point.cost)}.")
        say("Say /fork TURN.")

    def _do_system(self, argument: str) -> None:
        if argument:
            self._say_change(self._chat.change_system(argument))
        else:
            say(f"System prompt: {self._chat.system() or 'none'}")

    def _do_persona(self, argument: str) -> None:
        if argument:
            self._say_change(self._chat.use_persona(self._chat.find_persona(argument)))
            return
        personas = self._chat.personas
        for persona in personas.values():
            say(f"{persona.name}: {shorten(persona.system, _WIDTH)}")
        say("Say /persona NAME." if personas else "There are none yet.")

    def _say_change(self, change: SystemChange) -> None:
        say(change.words)
        if change.warning:
            self._talk.lines.warn(change.warning)

    def _do_mode(self, argument: str) -> None:
        say(self._chat.history_mode(argument))

    def _do_params(self, argument: str) -> None:
        say(self._chat.sampling.report().replace("\n  ", "\n"))

    def _do_set(self, argument: str) -> None:
        if argument:
            say(self._chat.set_parameter(argument, self._talk.model_info()))
        else:
            self._do_params("")

    def _do_copy(self, argument: str) -> None:
        say(self._chat.text_to_copy(argument))

    def _do_attach(self, argument: str) -> None:
        if not argument:
            raise UsageError("The file is missing.", "Say /attach PATH.")
        attachment = files.read_attachment(argument)
        self._talk.attached.append(attachment.quoted)
        say(f"{attachment.placeholder} goes with the next message.")

    def _do_editor(self, argument: str) -> None:
        with self._reader.lent():
            text = edit_text("").strip()
        if text:
            self._talk.send(text)

    def _do_history(self, argument: str) -> None:
        words = argument.casefold().split()
        found = [
            text
            for text in self._talk.service.recall.user_messages()
            if all(word in text.casefold() for word in words)
        ]
        for text in found[:_MAX_ROWS]:
            say(shorten(text, _WIDTH))
        say(plural(len(found), "message") + " found.")

    # Chats

    def _do_new(self, argument: str) -> None:
        self._chat.start_new(argument or None)
        self._talk.show_another()

    def _do_sessions(self, argument: str) -> None:
        now = self._talk.options.clock()
        rows = [
            (shorten(session.name, 44), f"{session.num_turns:,}", moment(session.updated_at, now))
            for session in self._talk.service.list_sessions()[:_MAX_ROWS]
        ]
        say(table(("NAME", "TURNS", "USED"), rows, "TURNS") if rows else "None yet.")
        say("Say /switch NAME to open one.")

    def _do_find(self, argument: str) -> None:
        for hit in self._talk.service.search(argument)[:_MAX_ROWS]:
            where = f", turn {hit.turn}" if hit.turn else ""
            say(f"{one_line(hit.session_name)}{where}: {one_line(hit.snippet)}")

    def _do_switch(self, argument: str) -> None:
        self._chat.switch(argument)
        self._talk.show_another()

    def _do_rename(self, argument: str) -> None:
        say(self._chat.rename(argument))

    def _do_delete(self, argument: str) -> None:
        session = self._chat.require_session()
        question = f"Delete “{self._chat.name}”, {plural(session.num_turns, 'turn')}?"
        if self._reader.ask(f"{question} Type yes:") == "yes":
            self._chat.delete()
            self._talk.show_another()

    def _do_export(self, argument: str) -> None:
        say(self._chat.export(argument, unheard))

    def _do_import(self, argument: str) -> None:
        self._chat.import_chat(argument, unheard)
        self._talk.show_another()

    # Branches

    def _do_tree(self, argument: str) -> None:
        """Without words: the rows. Else `switch|delete|keep ROW`."""
        tree = self._chat.branches()
        rows = tree.rows()
        if argument:
            self._on_branch(argument.split(), rows)
            return
        costs = self._talk.service.tree.costs([row.branch for row in rows])
        for number, (row, cost) in enumerate(zip(rows, costs, strict=True), 1):
            self._say_branch(number, row, cost, tree.main_id)
        say("Say /tree switch ROW, or delete, keep (only the path to it).")

    def _say_branch(
        self, number: int, row: TreeRow, cost: CostEstimate | None, main_id: str | None
    ) -> None:
        branch = row.branch
        names = ", ".join(
            one_line(session.name)
            + (" (main)" if session.session_id == main_id else "")
            + (" (open)" if session.session_id == self._chat.session_id else "")
            for session in branch.sessions
        )
        level = f"branch {row.depth}, " if row.depth else ""
        turns = f"turn {branch.first_turn}"
        if branch.last_turn != branch.first_turn:
            turns = f"turns {branch.first_turn} to {branch.last_turn}"
        ends = f" Ends {names}." if names else ""
        said = shorten(branch.text, _WIDTH)
        say(f"Row {number}, {level}{turns}: “{said}”. Going on: {figures.cost(cost)}.{ends}")

    def _on_branch(self, words: list[str], rows: list[TreeRow]) -> None:
        number = (typed_number(words[1]) if len(words) == 2 else None) or 0
        if words[0] not in ("switch", "delete", "keep") or not 1 <= number <= len(rows):
            raise UsageError("No branch is meant by that.", "/tree lists them with their rows.")
        branch = rows[number - 1].branch
        if words[0] == "switch":
            self._chat.follow(branch)
            self._talk.show_another()
        else:
            self._remove(branch, is_path_kept=words[0] == "keep")

    def _remove(self, branch: Branch, *, is_path_kept: bool) -> None:
        node_id = branch.node_id if is_path_kept else branch.first_id
        planned = self._chat.plan_removal(node_id, is_path_kept=is_path_kept)
        gone = f" and {plural(len(planned.deleted), 'chat')}" if planned.deleted else ""
        question = f"Delete {plural(len(planned.nodes), 'message')}{gone}, for good?"
        if self._reader.ask(f"{question} Type yes:") == "yes":
            self._chat.remove(node_id, is_path_kept=is_path_kept)
            self._talk.show()

    def _do_variant(self, argument: str) -> None:
        say(self._chat.variant(argument).words)
        self._talk.show()

    def _do_lens(self, argument: str) -> None:
        source = LensSource(self._talk.service, self._chat.require_id(), self._chat.prices)
        info = self._talk.model_info()
        if info is not None and info.backend == "remote":
            say(servers.NO_LENS)
        for sentence in said(source, argument.split()):
            say(sentence)

    # The cache

    def _do_panel(self, argument: str) -> None:
        self._chat.require_session()
        path = self._chat.messages(last_turns=1)
        last = decode(path[-1].result_json) if path else None
        if last is not None and last.is_remote:
            say(f"{figures.footer(last)}. {last.cache.detail}.")
        elif last is not None:
            cache, ttft = last.cache, duration(last.timings.ttft_ms)
            say(f"{cache.outcome}: {figures.reason_words(cache.reason)}. {cache.detail}")
            say(
                f"{last.prompt_tokens:,} prompt tokens, {last.cached_tokens:,} reused,"
                f" {last.computed_tokens:,} computed, first token after {ttft}."
            )
        if (snapshot := self._talk.snapshot) is not None:
            for name, use in (("RAM", snapshot.ram), ("disk", snapshot.disk)):
                say(f"{name}: {size(use.num_bytes)} of {size(use.budget_bytes)}.")

    def _do_segments(self, argument: str) -> None:
        """Without words: the list. Else `inspect|pin|verify|spill|drop ID`, or `verify`."""
        rows = self._talk.snapshot.segments if self._talk.snapshot is not None else ()
        info = self._talk.model_info()
        if info is not None and info.backend == "remote":
            say(servers.NO_SEGMENTS)
        if argument == "verify":
            self._verify_all()
        elif argument:
            say(self._on_segment(argument.split(), rows))
        else:
            for row in rows[:_MAX_ROWS]:
                places = (("VRAM", row.in_vram), ("RAM", row.in_ram), ("disk", row.on_disk))
                tiers = [name for name, is_in in places if is_in]
                held = f"{size(row.num_bytes)} {' and '.join(tiers) or 'live'}"
                say(f"{row.segment_id[:12]}: tokens {span(row.start, row.stop)}, {held}.")
            say("Say /segments inspect ID, or pin, verify, spill, drop.")
            say("/segments verify looks at all files.")

    def _verify_all(self) -> None:
        segments = self._talk.desk
        steps = list(segments.verify_all()) if segments is not None else []
        say(steps[-1].words if steps else "Nothing is on disk yet.")

    def _on_segment(self, words: list[str], rows: tuple[SegmentRow, ...]) -> str:
        segments = self._talk.desk
        found = [row for row in rows if len(words) == 2 and row.segment_id.startswith(words[1])]
        if segments is None or len(found) != 1:
            raise NotFoundError("No segment is meant by that.", "/segments lists them.")
        acts: dict[str, Callable[[SegmentRow], str]] = {
            "inspect": lambda row: "\n".join(segments.inspect(row)),
            "pin": segments.toggle_pin,
            "verify": segments.verify,
            "spill": lambda row: desk.spill(self._talk.service, row),
            "drop": segments.drop,
        }
        if words[0] not in acts:
            raise UsageError(f"A segment cannot be {words[0]!r}.", f"There are {', '.join(acts)}.")
        return acts[words[0]](found[0])

    def _do_spill(self, argument: str) -> None:
        say(desk.spill(self._talk.service))

    def _do_gc(self, argument: str) -> None:
        segments = desk.required(self._talk.desk)
        garbage = segments.look_for_garbage(unheard)
        for line in garbage.lines():
            say(line)
        if garbage.num_files and argument == "yes":
            say(segments.collect(garbage, unheard))
        elif garbage.num_files:
            say("Say /gc yes to remove it.")

    def _do_stats(self, argument: str) -> None:
        say(self._chat.stats())

    def _do_lint(self, argument: str) -> None:
        say("\n".join(report(look_at_open(self._talk.service, self._chat.session))))

    # The program

    def _do_model(self, argument: str) -> None:
        models = self._talk.models
        if argument:
            models.must_download(argument)  # raises what speaks against it
            session = self._chat.session
            consequence = models.consequence(session.num_tokens if session else 0)
            models.switch(argument)
            say(f"{model_name(argument)} answers from now on. {consequence}".rstrip())
            return
        for model in models.at_hand():
            num_bytes = size(model.num_bytes) if model.num_bytes else ""
            words = (model.architecture, model.quantization, num_bytes)
            held = model.problem or ", ".join(filter(None, words))
            say(f"{one_line(model.name)}: {model.place}, {one_line(held)}.")
        say("Say /model NAME; a name of the hub is downloaded.")

    def _do_theme(self, argument: str) -> None:
        say("Plain mode has no colours.")

    def _do_keys(self, argument: str) -> None:
        found = keycheck.findings({}, os.environ)
        say("\n".join(found) or "Ctrl+C stops an answer; twice, it quits. Ctrl+D quits.")

    def _do_doctor(self, argument: str) -> None:
        if self._talk.options.examine is None:
            raise UsageError("Nothing can be checked here.", "Run `chatcache doctor`.")
        for line in self._talk.options.examine(unheard):
            say(line)

    def _do_help(self, argument: str) -> None:
        for command in COMMANDS:
            say(f"{command.plain_usage}: {command.summary}")
        say("A line that ends with a backslash goes on in the next one; Ctrl+J makes one, too.")
        say("What is pasted stays one message. Up and Down bring back earlier ones.")

    def _do_quit(self, argument: str) -> None:
        self.is_leaving = True
