"""`chatcache doctor`: runs the checks of `doctor.py` on this installation."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from chatcache import compose, doctor
from chatcache.commands import ShellCommand
from chatcache.commands.parser import Parser, options_of
from chatcache.commands.paths import paths_of
from chatcache.config import Config, Settings, load_settings
from chatcache.errors import ChatcacheError
from chatcache.formatting import one_line
from chatcache.frontend.progress import Report, unheard
from chatcache.frontend.shell_output import print_json, print_line
from chatcache.remotes import remote_model

SIGNS = {"ok": "ok     ", "note": "note   ", "problem": "PROBLEM", "damage": "DAMAGE "}


def configure(parser: Parser) -> None:
    parser.add_argument(
        "--fix", action="store_true", help="set damaged segments aside, close directories to others"
    )
    parser.add_engine()
    parser.add_json()


def run(arguments: Namespace) -> int:
    findings = []
    for finding in examine(arguments):
        findings.append(finding)
        if not arguments.json:
            print_line("\n".join(lines_of(finding)))
    code = doctor.exit_code(findings)
    if arguments.json:
        print_json({"ok": code == 0, "findings": [asdict(finding) for finding in findings]})
    return code


def examine(arguments: Namespace, report: Report = unheard) -> Iterator[doctor.Finding]:
    """All findings, for the options of a command. `report` hears how far the long ones are."""
    paths, origins = paths_of(arguments)
    # The stores are looked at even when config.toml is broken.
    settings = Settings(Config(), paths, origins)
    return doctor.examine(
        paths,
        load_config=lambda: load_settings(options_of(arguments)),
        verify_words=lambda: _verify_words(settings),
        verify_cache=lambda: _verify_cache(settings, arguments, report),
        look_at_template=lambda: _look_at_template(arguments),
        list_remotes=lambda: tuple(load_settings(options_of(arguments)).config.remotes.values()),
        fix=_is_fixing(arguments),
    )


def _is_fixing(arguments: Namespace) -> bool:
    """The chat asks for the findings, too, and has no such option."""
    return getattr(arguments, "fix", False)


def lines_of(finding: doctor.Finding) -> list[str]:
    """A finding as people read it, with what to do in a second line."""
    lines = [f"{SIGNS[finding.status]}  {finding.subject}: {one_line(finding.detail)}"]
    return lines + ([f"         {one_line(finding.advice)}"] if finding.advice else [])


def _verify_words(settings: Settings) -> Sequence[str]:
    with compose.opened_service(settings, has_engine=False) as service:
        return service.verify()


def _look_at_template(arguments: Namespace) -> tuple[str, str | None] | None:
    """The model in use, and what its template writes that changes by itself; None: a server's."""
    from chatcache.backends.local.model.resolve import (
        changes_by_itself,
        read_template,
        resolve_model,
    )

    config = load_settings(options_of(arguments)).config
    model = config.model
    if remote_model(model.default, config.remotes) is not None:
        return None
    found = resolve_model(model.default, is_offline=model.offline)
    source = read_template(found) if isinstance(found, Path) else None
    return model.default, changes_by_itself(source) if source else None


def _verify_cache(settings: Settings, arguments: Namespace, report: Report) -> doctor.SegmentsFound:
    inspector = compose.open_inspector(settings)
    inspector.check_access()
    found = inspector.verify(
        fix=_is_fixing(arguments),
        tell=lambda done, total: report("reading segments", done, total, is_bytes=True),
    )
    return doctor.SegmentsFound(
        found.num_checked,
        [f"{segment_id}: {problem}" for segment_id, problem in found.damaged],
        found.num_fixed,
        _is_approximate(arguments),
    )


def _is_approximate(arguments: Namespace) -> bool:
    try:
        return compose.tier_policy(load_settings(options_of(arguments))).precision != "exact"
    except ChatcacheError:
        return False  # the settings have a finding of their own


COMMANDS = {
    "": ShellCommand("check the installation, the directories and the stores", configure, run)
}
