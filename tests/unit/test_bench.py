"""The bench runs on a tiny shape; what it measures is not asserted, what it says is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chatcache.bench import main
from chatcache.errors import UsageError

ROWS = {
    "cold", "live", "ram", "disk", "warm", "fork", "switch", "decode", "short", "keep", "spill",
}  # fmt: skip


def test_the_last_line_is_one_json_object(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["--shape", "tiny", "--tokens", "70", "--runs", "2", "--dtype", "float32"]
    directory = tmp_path / "measured"
    directory.mkdir()
    assert main([*arguments, "--directory", str(directory)]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert set(result["rows"]) == ROWS
    assert result["conditions"]["tokens"] == 70
    assert result["bytes_written"] >= 70 * 2 * 2 * 2 * 16 * 4
    for name in ("cold", "decode", "short"):
        row = result["rows"][name]
        median = row["transformers"]["median_ms"] / row["chatcache"]["median_ms"]
        assert row["ratio"] == pytest.approx(median)
        assert row["chatcache"]["min_ms"] <= row["chatcache"]["max_ms"]
    assert "resume from disk" in err
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [["--shape", "unknown"], ["--tokens", "0"], ["--tokens", "x"], ["--against", "nothing"], ["?"]],
)
def test_wrong_options_are_wrong_use(arguments: list[str]) -> None:
    with pytest.raises(UsageError):
        main(arguments)
