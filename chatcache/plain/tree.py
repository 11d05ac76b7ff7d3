"""Plain mode: the branches of a chat, the answers beside an answer, and what was read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chatcache.backends.base import CostEstimate
from chatcache.chat.branches import TreeRow
from chatcache.errors import NotFoundError, UsageError
from chatcache.formatting import one_line, plural, shorten
from chatcache.frontend import figures, servers
from chatcache.frontend.lens import heading, lens
from chatcache.frontend.variants import which_variant

if TYPE_CHECKING:
    from chatcache.chat.views import SessionSummary
    from chatcache.plain.chat import PlainChat

_WIDTH = 60


class TreeActions:
    """A part of the actions of plain mode; each gets the words behind the command."""

    def __init__(self, chat: PlainChat) -> None:
        self._chat = chat

    def _do_tree(self, argument: str) -> None:
        """Without words: the rows. Else `switch|delete|keep ROW`."""
        chat = self._chat
        session = chat.require_session()
        tree = chat.service.tree.branches(session.session_id)
        rows = tree.rows()
        if argument:
            self._on_branch(argument.split(), rows)
            return
        costs = chat.service.tree.costs([row.branch for row in rows])
        for number, (row, cost) in enumerate(zip(rows, costs, strict=True), 1):
            self._say_branch(number, row, cost, tree.main_id)
        chat.say("Say /tree switch ROW, or delete, keep (only the path to it).")

    def _say_branch(
        self, number: int, row: TreeRow, cost: CostEstimate | None, main_id: str | None
    ) -> None:
        branch = row.branch
        session = self._chat.require_session()
        names = ", ".join(
            one_line(one.name)
            + (" (main)" if one.session_id == main_id else "")
            + (" (open)" if one.session_id == session.session_id else "")
            for one in branch.sessions
        )
        level = f"branch {row.depth}, " if row.depth else ""
        turns = f"turn {branch.first_turn}"
        if branch.last_turn != branch.first_turn:
            turns = f"turns {branch.first_turn} to {branch.last_turn}"
        ends = f" Ends {names}." if names else ""
        said = shorten(branch.text, _WIDTH)
        self._chat.say(
            f"Row {number}, {level}{turns}: “{said}”. Going on: {figures.cost(cost)}.{ends}"
        )

    def _on_branch(self, words: list[str], rows: list[TreeRow]) -> None:
        is_row = len(words) == 2 and words[1].isdecimal() and 1 <= int(words[1]) <= len(rows)
        if words[0] not in ("switch", "delete", "keep") or not is_row:
            raise UsageError("No branch is meant by that.", "/tree lists them with their rows.")
        chat, keeper = self._chat, self._chat.service.tree
        branch = rows[int(words[1]) - 1].branch
        if words[0] == "switch":
            while not branch.sessions and branch.children:
                branch = branch.children[0]
            chat.open(chat.service.find_session(keeper.follow(branch)))
            return
        session_id = chat.require_session().session_id
        is_delete = words[0] == "delete"
        plan, act = (
            (keeper.plan_delete, keeper.delete)
            if is_delete
            else (keeper.plan_keep_only, keeper.keep_only)
        )
        node_id = branch.first_id if is_delete else branch.node_id
        planned = plan(session_id, node_id)
        if not planned.nodes:
            raise UsageError("There is nothing beside this path.", "")
        gone = f" and {plural(len(planned.deleted), 'chat')}" if planned.deleted else ""
        question = f"Delete {plural(len(planned.nodes), 'message')}{gone}, for good?"
        if chat.ask(f"{question} Type yes:") == "yes":
            done = act(session_id, node_id)
            stays = session_id not in done.deleted
            chat.open(chat.service.find_session(session_id) if stays else self._another())

    def _another(self) -> SessionSummary | None:
        return self._chat.service.last_session()

    def _do_variant(self, argument: str) -> None:
        chat = self._chat
        session = chat.require_session()
        path = chat.service.transcript(session.session_id, last_turns=1)
        answers = [message for message in path if message.role == "assistant"]
        if not answers:
            raise NotFoundError("There is no answer yet.", "Say something first.")
        variants = chat.service.variants(session.session_id, answers[-1].node_id)
        here = variants.index(answers[-1].node_id)
        wanted = which_variant(argument, here, len(variants))
        chat.service.switch_sibling(session.session_id, variants[wanted])
        chat.say(f"Answer {wanted + 1} of {len(variants)}.")
        chat.open(chat.service.find_session(session.session_id))

    def _do_lens(self, argument: str) -> None:
        chat = self._chat
        rows = lens(chat.service.fork_points(chat.require_session().session_id))
        info = chat.model_info()
        if info is not None and info.backend == "remote":
            chat.say(servers.NO_LENS)
        chat.say(heading(rows, info.max_context_tokens if info else None) + ".")
        for row in rows:
            chat.say(f"Turn {row.turn}, “{shorten(row.user_text, _WIDTH)}”: {row.detail}.")
