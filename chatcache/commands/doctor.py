"""`chatcache doctor`: runs the checks of `doctor/` on this installation."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial

from chatcache import compose
from chatcache.backends.local.engine.control import running_engines
from chatcache.cache.inspect import VerifyReport
from chatcache.commands import GROUPS, ShellCommand
from chatcache.commands.parser import Parser, options_of
from chatcache.commands.paths import paths_of
from chatcache.config import Config, Settings, load_settings
from chatcache.doctor import examination
from chatcache.doctor.finding import Finding, exit_code
from chatcache.formatting import one_line
from chatcache.frontend.progress import Report, unheard
from chatcache.frontend.shell_output import print_json, print_line

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
    code = exit_code(findings)
    if arguments.json:
        print_json({"ok": code == 0, "findings": [asdict(finding) for finding in findings]})
    return code


def examine(arguments: Namespace, report: Report = unheard) -> Iterator[Finding]:
    """All findings, for the options of a command. `report` hears how far the long ones are."""
    paths, origins = paths_of(arguments)
    # The stores are looked at even when config.toml is broken.
    settings = Settings(Config(), paths, origins)
    # The chat asks for the findings, too, and has no such option.
    fix: bool = getattr(arguments, "fix", False)

    def verify_words() -> Sequence[str]:
        with compose.opened_service(settings, has_engine=False) as service:
            return service.verify()

    def verify_cache() -> VerifyReport:
        inspector = compose.open_inspector(settings)
        inspector.check_access()
        stage = partial(report, "reading segments", is_bytes=True)
        return inspector.verify(fix=fix, tell=stage)

    load = partial(load_settings, options_of(arguments))
    engines = partial(running_engines, compose.engines_directory(paths))
    return examination.examine(paths, load, verify_words, verify_cache, engines, fix=fix)


def lines_of(finding: Finding) -> list[str]:
    """A finding as people read it, with what to do in a second line."""
    lines = [f"{SIGNS[finding.status]}  {finding.subject}: {one_line(finding.detail)}"]
    return lines + ([f"         {one_line(finding.advice)}"] if finding.advice else [])


COMMANDS = {"": ShellCommand(GROUPS["doctor"], configure, run)}
