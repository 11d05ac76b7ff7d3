"""Plain mode: the branches of a chat, the answers beside an answer, and what was read."""

from __future__ import annotations

from chatcache.backends.base import CostEstimate
from chatcache.chat.branches import Branch, TreeRow
from chatcache.errors import UsageError
from chatcache.formatting import one_line, plural, shorten
from chatcache.frontend import figures, servers
from chatcache.frontend.lens import heading, lens
from chatcache.plain.speech import ask, say
from chatcache.plain.talk import Talk

WIDTH = 60


class TreeActions:
    """A part of the actions of plain mode; each gets the words behind the command."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self._chat = talk.chat

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
        said = shorten(branch.text, WIDTH)
        say(f"Row {number}, {level}{turns}: “{said}”. Going on: {figures.cost(cost)}.{ends}")

    def _on_branch(self, words: list[str], rows: list[TreeRow]) -> None:
        is_row = len(words) == 2 and words[1].isdecimal() and 1 <= int(words[1]) <= len(rows)
        if words[0] not in ("switch", "delete", "keep") or not is_row:
            raise UsageError("No branch is meant by that.", "/tree lists them with their rows.")
        branch = rows[int(words[1]) - 1].branch
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
        if ask(f"{question} Type yes:") == "yes":
            self._chat.remove(node_id, is_path_kept=is_path_kept)
            self._talk.show()

    def _do_variant(self, argument: str) -> None:
        say(self._chat.variant(argument).words)
        self._talk.show()

    def _do_lens(self, argument: str) -> None:
        rows = lens(self._chat.fork_points())
        info = self._talk.model_info()
        if info is not None and info.backend == "remote":
            say(servers.NO_LENS)
        say(heading(rows, info.max_context_tokens if info else None) + ".")
        for row in rows:
            say(f"Turn {row.turn}, “{shorten(row.user_text, WIDTH)}”: {row.detail}.")
