"""`chatcache models` for the models of servers: rows of the list, what a profile says, a probe."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from typing import Any

from chatcache.config import Settings
from chatcache.formatting import duration, one_line, plural
from chatcache.frontend.server_shelf import ServerShelf
from chatcache.frontend.shell_output import Narrator, print_json, print_line
from chatcache.remotes import RemoteModel

MAX_SHOWN = 20


def rows(settings: Settings) -> Iterator[dict[str, Any]]:
    """One row of the list per profile. No server is asked."""
    servers = ServerShelf(settings.config.remotes, settings.config.model.offline)
    chosen = servers.find(settings.config.model.default)
    for profile in settings.config.remotes.values():
        is_default = chosen is not None and chosen.profile == profile
        remote = chosen if chosen and is_default else RemoteModel(profile, profile.model)
        yield {
            "model": remote.name,
            "path": profile.base_url,
            **dict.fromkeys(("architecture", "parameters", "bytes", "quantization")),
            "place": "server",
            "default": is_default,
            "problem": servers.row(remote).problem or None,
        }


def details(remote: RemoteModel, settings: Settings) -> dict[str, Any]:
    """What the profile of a model says; the key itself is never shown."""
    servers = ServerShelf(settings.config.remotes, settings.config.model.offline)
    profile = remote.profile
    return {
        "model": remote.name,
        "backend": "remote",
        **{name: value for name, value in profile.values() if name != "model"},
        "api_url": profile.api_url,
        "on_this_machine": profile.is_loopback,
        "encrypted": profile.is_encrypted,
        "problem": servers.row(remote).problem or None,
    }


def words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def probe(remote: RemoteModel, settings: Settings, arguments: Namespace) -> int:
    """Ask the server for its models: is it there, how far away, and does it have this one?"""
    from chatcache.backends.remote.ask import ask_server

    narrator = Narrator()
    narrator.progress(f"asking {remote.profile.host}")
    try:
        report = ask_server(remote, is_offline=settings.config.model.offline)
    finally:
        narrator.release()
    names = [model.name for model in report.models]
    found = next((model for model in report.models if model.name == remote.model), None)
    if arguments.json:
        print_json(
            {
                "model": remote.name,
                "backend": "remote",
                "base_url": remote.profile.base_url,
                "reachable": True,
                "connect_ms": round(report.connect_ms, 3),
                "round_trip_ms": round(report.round_trip_ms, 3),
                "offered": found is not None if names and remote.model else None,
                "max_context_tokens": (found.max_context_tokens or None) if found else None,
                "parameters": (found.num_parameters or None) if found else None,
                "models": names,
            }
        )
        return 0
    host = remote.profile.host
    print_line(
        f"{host} answers: {duration(report.connect_ms)} with the connection,"
        f" {duration(report.round_trip_ms)} after that."
    )
    print_line("\n".join(_findings(remote, names, found is not None)))
    if found is not None and found.max_context_tokens:
        print_line(f"Its context is {found.max_context_tokens:,} tokens.")
    return 0


def _findings(remote: RemoteModel, names: list[str], is_offered: bool) -> Iterator[str]:
    if not names:
        yield "It does not say which models it has."
        return
    if is_offered:
        yield f"It has {one_line(remote.model or '')}."
    elif remote.model is not None:
        yield f"It does not list {one_line(remote.model)}; it may know it by another name."
    yield f"{plural(len(names), 'model')}:"
    yield from (f"  {remote.profile.name}:{one_line(name)}" for name in names[:MAX_SHOWN])
    if len(names) > MAX_SHOWN:
        yield f"  and {len(names) - MAX_SHOWN:,} more (--json has them all)"
