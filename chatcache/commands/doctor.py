"""`chatcache doctor`: runs the checks of `doctor.py` on this installation."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict

from chatcache import compose, doctor
from chatcache.commands import Command
from chatcache.commands.output import print_json, print_line
from chatcache.commands.parser import Parser, options_of
from chatcache.commands.paths import paths_of
from chatcache.config import Config, Settings, load_settings
from chatcache.formatting import one_line

SIGNS = {"ok": "ok     ", "note": "note   ", "problem": "PROBLEM", "damage": "DAMAGE "}


def configure(parser: Parser) -> None:
    parser.add_engine()
    parser.add_json()


def run(arguments: Namespace) -> int:
    paths, origins = paths_of(arguments)
    # The stores are looked at even when config.toml is broken.
    settings = Settings(Config(), paths, origins)
    findings = []
    for finding in doctor.examine(
        paths,
        load_config=lambda: load_settings(options_of(arguments)),
        verify_words=lambda: _verify_words(settings),
        verify_cache=lambda: _verify_cache(settings),
    ):
        findings.append(finding)
        if not arguments.json:
            print_line(f"{SIGNS[finding.status]}  {finding.subject}: {one_line(finding.detail)}")
            if finding.advice:
                print_line(f"         {one_line(finding.advice)}")
    code = doctor.exit_code(findings)
    if arguments.json:
        print_json({"ok": code == 0, "findings": [asdict(finding) for finding in findings]})
    return code


def _verify_words(settings: Settings) -> Sequence[str]:
    with compose.opened_service(settings, has_engine=False) as service:
        return service.verify()


def _verify_cache(settings: Settings) -> tuple[int, Sequence[str]]:
    report = compose.open_inspector(settings).verify()
    return report.num_checked, [f"{one}: {problem}" for one, problem in report.damaged]


COMMANDS = {"": Command("check the installation, the directories and the stores", configure, run)}
