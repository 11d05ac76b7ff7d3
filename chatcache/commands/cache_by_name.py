"""`chatcache cache pin`, `unpin`, `spill` and `drop`: what is kept or deleted by name, without a
model.

A name is that of a session (its whole path is meant) or the id of a segment (with all before it
to pin, with all after it to drop). Owns which of the two is meant, and what is said afterwards.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass

from chatcache import compose
from chatcache.cache.inspect import CacheInspector
from chatcache.cache.retention import Keeper
from chatcache.cache.views import SegmentRow
from chatcache.commands.parser import Parser
from chatcache.config import Settings
from chatcache.errors import NotFoundError, UsageError
from chatcache.formatting import plural, size
from chatcache.frontend.shell_output import Narrator, print_result
from chatcache.token_ids import NO_IDS, TokenIds


@dataclass(frozen=True, slots=True)
class Target:
    """What a name stands for. `others`: the journals of the other sessions of the model."""

    name: str
    keeper: Keeper
    segment_id: str | None
    journal: TokenIds = NO_IDS
    others: Sequence[TokenIds] = ()

    @property
    def path(self) -> set[str]:
        if self.segment_id is not None:
            return self.keeper.path(self.segment_id)
        return self.keeper.paths([self.journal])

    @property
    def doomed(self) -> set[str]:
        """What a drop is about: of a session, what no other one uses."""
        if self.segment_id is not None:
            return self.keeper.subtree([self.segment_id])
        return self.keeper.subtree(self.path - self.keeper.paths(self.others))


def find_target(settings: Settings, inspector: CacheInspector, reference: str) -> Target:
    """A session by name, id or beginning of its id, else a segment. Raises NotFoundError."""
    if (found := _find_session(settings, inspector, reference)) is not None:
        return found
    row = find_row(inspector.rows(), reference, "no session and no segment")
    return Target(row.segment_id, Keeper(inspector, row.namespace), row.segment_id)


def _find_session(settings: Settings, inspector: CacheInspector, reference: str) -> Target | None:
    if not settings.paths.database.exists():
        return None
    with compose.opened_service(settings, has_engine=False) as service:
        try:
            session = service.find_session(reference)
        except NotFoundError:
            return None
        journal = service.session_journal(session.session_id)
        if journal is None:
            raise NotFoundError(
                f"No model has read {session.name!r} yet.", "Ask something in it first."
            )
        found = [
            service.session_journal(other.session_id)
            for other in service.list_sessions()
            if other.session_id != session.session_id
        ]
    others = [other.ids for other in found if other and other.namespace_id == journal.namespace_id]
    keeper = Keeper(inspector, journal.namespace_id)
    return Target(session.name, keeper, None, journal.ids, others)


def find_row(rows: list[SegmentRow], reference: str, what: str = "no segment") -> SegmentRow:
    """A segment by its id or the beginning of it. Raises NotFoundError."""
    found = [row for row in rows if reference and row.segment_id.startswith(reference)]
    if len(found) == 1:
        return found[0]
    if found:
        raise NotFoundError(
            f"{reference!r} is the beginning of {plural(len(found), 'segment')}.",
            "Give more of the id.",
        )
    raise NotFoundError(f"There is {what} {reference!r}.", "`chatcache cache list` shows them.")


def configure(parser: Parser) -> None:
    parser.add_argument("name", metavar="S", help="a session, or the beginning of a segment's id")
    parser.add_json()


def configure_drop(parser: Parser) -> None:
    parser.description = (
        "Delete segments from disk: of a session what no other session uses, of a segment also\n"
        "what builds on it. No word is lost; what is needed again is computed again."
    )
    configure(parser)
    parser.add_argument("--force", action="store_true", help="also what is pinned")


def pin(target: Target, arguments: Namespace) -> int:
    path = target.path
    if not path:
        raise NotFoundError(
            f"Nothing of {target.name!r} is on disk.", "Pin it once it has been written there."
        )
    num_new = target.keeper.pin(path)
    rows = target.keeper.rows_of(path)
    num_bytes = sum(row.num_bytes for row in rows)
    figures = {"segments": len(rows), "newly_pinned": num_new, "bytes": num_bytes}
    text = f"Pinned {plural(len(rows), 'segment')}, {size(num_bytes)}; {num_new:,} were not before."
    return _print(target, figures, text, arguments)


def unpin(target: Target, arguments: Namespace) -> int:
    done = target.keeper.unpin(target.path)
    figures = {"unpinned": done.num_unpinned, "still_pinned": done.num_still_pinned}
    text = f"Unpinned {plural(done.num_unpinned, 'segment')}."
    if done.num_still_pinned:
        text += f" {done.num_still_pinned:,} stay pinned: other pinned segments build on them."
    return _print(target, figures, text, arguments)


def configure_spill(parser: Parser) -> None:
    parser.description = (
        "Say whether all of a session is on disk; exits with 4 when it is not. What is in memory\n"
        "belongs to the chatcache that runs: there, /spill writes all of it at once."
    )
    configure(parser)


def spill(target: Target, arguments: Namespace) -> int:
    num_tokens = len(target.journal)
    on_disk = target.keeper.num_held(target.journal)
    figures = {"tokens": num_tokens, "disk_tokens": on_disk}
    if on_disk == num_tokens:
        text = f"All {plural(num_tokens, 'token')} of {target.name!r} are on disk."
        return _print(target, figures, text if num_tokens else "It is on disk.", arguments)
    text = f"{on_disk:,} of {plural(num_tokens, 'token')} of {target.name!r} are on disk."
    _print(target, figures, text, arguments)
    Narrator().note(
        "The rest is in the memory of a chatcache that runs, if it is anywhere: type /spill there,"
        ' or set cache.spill to "turn".'
    )
    return 4


def drop(target: Target, arguments: Namespace) -> int:
    doomed = target.doomed
    pinned = target.keeper.pinned(doomed)
    if pinned and not arguments.force:
        raise UsageError(
            f"{len(pinned):,} of {plural(len(doomed), 'segment')} to drop are pinned.",
            "Unpin them first, or add --force.",
        )
    num_shared = 0 if target.segment_id else len(target.path - doomed)
    removed = target.keeper.drop(doomed)
    figures = {"dropped": removed.num_files, "bytes": removed.num_bytes, "shared": num_shared}
    text = f"Dropped {plural(removed.num_files, 'segment')}, {size(removed.num_bytes)}."
    if num_shared:
        text += f" {num_shared:,} stay: other sessions use them."
    return _print(target, figures, text, arguments)


def _print(target: Target, figures: dict[str, int], text: str, arguments: Namespace) -> int:
    key = "session" if target.segment_id is None else "segment_id"
    return print_result({key: target.name, **figures}, text, as_json=arguments.json)
