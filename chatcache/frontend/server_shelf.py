"""The models of servers, for a list of models: what the profiles name, and what servers tell.

Owns what can be said without asking, and the one question to a server. Knows no widgets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from chatcache.backends.local.model.shelf import ShelfModel
from chatcache.errors import ChatcacheError
from chatcache.remotes import RemoteModel, RemoteProfile, Remotes, check_reach, remote_model

# So long a list waits for a server; a turn waits as long as the profile says.
ASK_SECONDS = 5.0
REUSE = "the server keeps its own cache, and gets your messages"


@dataclass(frozen=True, slots=True)
class ServerShelf:
    """The servers of the settings."""

    remotes: Remotes = field(default_factory=dict)
    is_offline: bool = False

    def models(self, used_before: Iterable[str] = ()) -> list[ShelfModel]:
        """One model per profile, and those used before. Nobody is asked."""
        used = [remote for name in used_before if (remote := self.find(name)) is not None]
        rows: dict[str, ShelfModel] = {}
        for profile in self.remotes.values():
            of_profile = [remote for remote in used if remote.profile == profile]
            for remote in (RemoteModel(profile, profile.model), *of_profile):
                rows[remote.name] = self.row(remote)
        return list(rows.values())

    def find(self, name: str) -> RemoteModel | None:
        """The model of a server that a name means; None when it means none, or is wrong."""
        try:
            return remote_model(name, self.remotes)
        except ChatcacheError:
            return None

    def row(self, remote: RemoteModel) -> ShelfModel:
        """A model as the list shows it; `problem` when its server cannot be asked."""
        profile = remote.profile
        try:
            check_reach(profile, is_offline=self.is_offline)
        except ChatcacheError as error:
            return ShelfModel(remote.name, "server", profile.host, problem=error.message)
        return ShelfModel(remote.name, "server", profile.host, reuse=REUSE)

    def ask(self, profile: RemoteProfile) -> list[ShelfModel]:
        """What a server offers. Takes up to ASK_SECONDS; raises ChatcacheError."""
        from chatcache.backends.remote.ask import ask_server

        report = ask_server(
            RemoteModel(profile, None), is_offline=self.is_offline, limit_seconds=ASK_SECONDS
        )
        return [
            ShelfModel(
                name=RemoteModel(profile, model.name).name,
                place="server",
                architecture=profile.host,
                num_parameters=model.num_parameters,
                num_bytes=model.num_bytes,
                reuse=REUSE,
            )
            for model in report.models
        ]


def merged(
    known: Sequence[ShelfModel], profile: RemoteProfile, offered: Sequence[ShelfModel]
) -> list[ShelfModel]:
    """The list with what a server told, in the place where its profile stands.

    `PROFILE:` alone, for the only model of a server, goes once the models have names.
    """
    if not offered:
        return list(known)
    nameless = f"{profile.name}:"
    gone = {nameless, *(model.name for model in offered)}
    rows: list[ShelfModel] = []
    is_placed = False
    for model in known:
        if model.name.startswith(nameless) and not is_placed:
            rows += offered
            is_placed = True
        if model.name not in gone:
            rows.append(model)
    return rows if is_placed else [*rows, *offered]


def unreachable(
    known: Sequence[ShelfModel], profile: RemoteProfile, problem: str
) -> list[ShelfModel]:
    """The list with what is wrong with a server beside each of its models."""
    return [
        replace(model, problem=problem) if model.name.startswith(f"{profile.name}:") else model
        for model in known
    ]
