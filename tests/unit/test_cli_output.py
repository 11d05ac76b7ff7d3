"""What the shell writes on a terminal: progress in place, nothing that a terminal would obey."""

from __future__ import annotations

import io
import logging
import stat
import sys
from pathlib import Path

import pytest

from chatcache.formatting import duration, moment, percent, shorten, size, table, width
from chatcache.frontend.shell_output import CLEAR_LINE, AnswerStream, Narrator
from chatcache.logs import LOGGER, log_unexpected, send_log_to


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal_for_both(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Let stdout and stderr be one terminal. Not a fixture: pytest sets both after those."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    return terminal


def test_progress_is_replaced_by_what_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal_for_both(monkeypatch)
    narrator = Narrator()
    narrator.progress("reading 1 / 2")
    narrator.progress("reading 2 / 2")
    narrator.note("done")
    assert screen.getvalue() == (
        f"{CLEAR_LINE}reading 1 / 2{CLEAR_LINE}reading 2 / 2{CLEAR_LINE}done\n"
    )


def test_lines_wait_while_an_answer_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal_for_both(monkeypatch)
    narrator, stream = Narrator(), AnswerStream()
    narrator.progress("reading")
    narrator.hold()
    stream.write("an answer")
    narrator.progress("not now")
    narrator.warn("The disk is full.")
    stream.end()
    narrator.release()
    assert screen.getvalue() == (
        f"{CLEAR_LINE}reading{CLEAR_LINE}an answer\nchatcache: The disk is full.\n"
    )


def test_quiet_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal_for_both(monkeypatch)
    narrator = Narrator(is_quiet=True)
    narrator.progress("p")
    narrator.note("n")
    narrator.warn("w")
    assert screen.getvalue() == ""


def test_an_answer_cannot_command_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal_for_both(monkeypatch)
    stream = AnswerStream()
    stream.write("a\x1b]0;title\x07b\x9b31m\ttab\n")
    stream.end()
    assert screen.getvalue() == "a]0;titleb31m\ttab\n"


def test_a_pipe_gets_the_answer_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stdout", pipe)
    AnswerStream().write("a\x1b[31m\r\n")
    assert pipe.getvalue() == "a\x1b[31m\r\n"


def test_a_table_is_aligned_by_cells_and_has_one_line_per_row() -> None:
    drawn = table(("NAME", "N"), [("漢字", "1"), ("e\u0301\x1b[1m\nx", "20")], "N")
    assert drawn == "NAME     N\n漢字     1\ne\u0301[1m x  20"
    assert width("漢字") == 4
    assert shorten("漢字漢字", 5) == "漢字…"


def test_numbers_have_units_that_fit() -> None:
    assert [size(n) for n in (7, 5_100, 264_000_000, 1_940_000_000, 2 * 10**12)] == [
        "7 B",
        "5.1 kB",
        "264 MB",
        "1.9 GB",
        "2.0 TB",
    ]
    assert [duration(ms) for ms in (None, 0.2, 31.2, 214, 12_400, 125_000)] == [
        "–",
        "<1 ms",
        "31 ms",
        "0.21 s",
        "12.4 s",
        "2 min 05 s",
    ]
    assert [percent(part, 10_000) for part in (0, 1, 9_999, 10_000)] == [
        "0 %",
        "0.1 %",
        "99.9 %",
        "100 %",
    ]
    assert len(moment(0.0, 10.0)) == 5
    assert len(moment(0.0, 400 * 86_400.0)) == len("1970-01-01 00:00")


def test_the_log_is_private_and_has_the_traceback(home: Path) -> None:
    path = home / "logs" / "errors.log"
    send_log_to(path)
    assert not path.exists()
    assert log_unexpected(ValueError("odd"), home / "other.log") == path
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert "ValueError: odd" in path.read_text()


def test_a_large_log_of_errors_starts_anew(home: Path) -> None:
    path = home / "errors.log"
    path.write_bytes(b"x" * (6 << 20))
    assert log_unexpected(ValueError("odd"), path) == path
    assert "ValueError: odd" in path.read_text()
    assert (home / "errors.log.1").stat().st_size == 6 << 20


def test_a_log_that_cannot_be_written_is_told_and_harms_nothing(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    in_the_way = home / "file"
    in_the_way.write_text("")
    send_log_to(in_the_way / "errors.log")
    assert log_unexpected(ValueError("odd"), home / "other.log") is None
    logging.getLogger(LOGGER).error("again")
    assert capsys.readouterr() == ("", "")
