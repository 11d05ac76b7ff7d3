"""GGUF files of the hub: which is meant, what a download fetches, and what is found afterwards."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from chatcache.backends.local.model import resolve, shelf
from chatcache.backends.local.model.hub_name import HubName, hub_name
from chatcache.errors import UnavailableError
from chatcache.frontend.model_choice import Download
from tests.gguf_files import small_header

COMMIT = "a" * 40
GGUF = small_header().file_bytes()
FILES = {
    "README.md": b"words",
    "config.json": b"{}",
    "tiny-Q4_K_M.gguf": GGUF,
    "tiny-Q8_0.gguf": GGUF + bytes(1000),
    "F16/tiny-F16-00001-of-00002.gguf": GGUF,
    "F16/tiny-F16-00002-of-00002.gguf": GGUF,
    "mmproj-F16.gguf": GGUF,
    "tiny-BF16-00001-of-00002.gguf": GGUF,
}


@dataclass
class GgufHub:
    """A hub on this machine. `requested` are the files that somebody asked for; `listed` are files
    that it says it has, and then does not give."""

    files: dict[str, bytes]
    requested: list[str] = field(default_factory=list)
    listed: dict[str, int] = field(default_factory=dict)
    architecture: str = "llama"
    url: str = ""


@pytest.fixture
def hub() -> Iterator[GgufHub]:
    served = GgufHub(dict(FILES))

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(has_body=False)

        def do_GET(self) -> None:
            self._answer(has_body=True)

        def _answer(self, *, has_body: bool) -> None:
            path = self.path.partition("?")[0]
            sizes = {name: len(content) for name, content in served.files.items()}
            entries = (served.listed | sizes).items()
            if path.startswith("/api/models/me/tiny-GGUF"):
                listing: Any = {
                    "id": "me/tiny-GGUF",
                    "sha": COMMIT,
                    "tags": [],
                    "gguf": {"total": 1, "architecture": served.architecture},
                    "siblings": [{"rfilename": name, "size": size} for name, size in entries],
                }
                if "/tree/" in path:
                    listing = [
                        {"type": "file", "path": name, "size": size, "oid": "0"}
                        for name, size in entries
                    ]
                body = json.dumps(listing).encode()
                self._send(body, {"Content-Type": "application/json"}, has_body=has_body)
                return
            name = path.partition(f"/resolve/{COMMIT}/")[2] or path.partition("/resolve/main/")[2]
            if name not in served.files:
                self.send_error(404)
                return
            content = served.files[name]
            etag = hashlib.sha1(content, usedforsecurity=False).hexdigest()
            headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}
            if has_body:
                served.requested.append(name)
            self._send(content, headers, has_body=has_body)

        def _send(self, body: bytes, headers: dict[str, str], *, has_body: bool) -> None:
            self.send_response(200)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if has_body:
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Tests are quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        served.url = f"http://127.0.0.1:{server.server_port}"
        yield served
        server.shutdown()


def models(hub: GgufHub, tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    return subprocess.run(
        [sys.executable, "-m", "chatcache", "models", *words],
        env=environment,
        capture_output=True,
        text=True,
    )


def download(hub: GgufHub, tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return models(hub, tmp_path, "download", *words)


def test_the_quantisation_that_was_named_is_fetched_alone(hub: GgufHub, tmp_path: Path) -> None:
    done = download(hub, tmp_path, "me/tiny-GGUF:q8_0", "--json")
    assert done.returncode == 0, done.stderr
    assert set(hub.requested) == {"tiny-Q8_0.gguf"}
    report = json.loads(done.stdout)
    assert report["downloaded"]
    assert report["bytes"] == len(FILES["tiny-Q8_0.gguf"])
    assert Path(report["path"]).name == "tiny-Q8_0.gguf"
    again = download(hub, tmp_path, "me/tiny-GGUF:Q8_0", "--json", "--offline")
    assert json.loads(again.stdout)["path"] == report["path"]
    # What is here is taken where no file is named, and nothing is fetched.
    unnamed = download(hub, tmp_path, "me/tiny-GGUF", "--json")
    assert json.loads(unnamed.stdout)["path"] == report["path"]


def test_without_a_name_a_sensible_file_is_fetched(hub: GgufHub, tmp_path: Path) -> None:
    done = download(hub, tmp_path, "me/tiny-GGUF", "--json")
    assert done.returncode == 0, done.stderr
    assert set(hub.requested) == {"tiny-Q4_K_M.gguf"}


def test_all_parts_are_fetched(hub: GgufHub, tmp_path: Path) -> None:
    hub.files["F16/tiny-F16-00002-of-00002.gguf"] = GGUF + bytes(64)
    done = download(hub, tmp_path, "me/tiny-GGUF:F16")
    assert set(hub.requested) == {
        "F16/tiny-F16-00001-of-00002.gguf",
        "F16/tiny-F16-00002-of-00002.gguf",
    }
    # These two are no real parts: each says that it is a whole model.
    assert done.returncode == 4
    assert "parts" in done.stderr


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("me/tiny-GGUF:Q9_Z", 3, ["has no 'Q9_Z'", "It has ", "Q4_K_M (1.1 kB)", "F16 (2.2 kB)"]),
        ("me/tiny-GGUF:BF16", 4, ["lacks parts", "tiny-BF16-00002-of-00002.gguf", "Q4_K_M"]),
    ],
)
def test_what_the_hub_has_not_is_said(
    hub: GgufHub, tmp_path: Path, name: str, code: int, words: list[str]
) -> None:
    done = download(hub, tmp_path, name)
    assert done.returncode == code, done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert not hub.requested


def test_what_could_not_be_loaded_is_not_fetched(hub: GgufHub, tmp_path: Path) -> None:
    hub.architecture = "rwkv7"
    done = download(hub, tmp_path, "me/tiny-GGUF:Q4_K_M")
    assert done.returncode == 4
    assert "architecture 'rwkv7', which is not read" in done.stderr
    assert not hub.requested


def test_two_files_of_one_quantisation_are_told_apart(hub: GgufHub, tmp_path: Path) -> None:
    hub.files["other-Q4_K_M.gguf"] = GGUF
    done = download(hub, tmp_path, "me/tiny-GGUF:Q4_K_M")
    assert done.returncode == 3
    assert "me/tiny-GGUF:other-Q4_K_M, me/tiny-GGUF:tiny-Q4_K_M" in done.stderr
    assert download(hub, tmp_path, "me/tiny-GGUF:other-q4_k_m").returncode == 0
    assert set(hub.requested) == {"other-Q4_K_M.gguf"}


def test_safetensors_are_taken_where_a_repository_has_both(hub: GgufHub, tmp_path: Path) -> None:
    hub.files["model.safetensors"] = b"no weights"
    done = download(hub, tmp_path, "me/tiny-GGUF")
    assert done.returncode == 4
    assert set(hub.requested) == {"config.json"}, done.stderr
    hub.requested.clear()
    assert download(hub, tmp_path, "me/tiny-GGUF:Q4_K_M").returncode == 0


def test_a_quantisation_of_a_repository_without_any(hub: GgufHub, tmp_path: Path) -> None:
    hub.files = {"config.json": b"{}", "model.safetensors": b""}
    done = download(hub, tmp_path, "me/tiny-GGUF:Q4_K_M")
    assert done.returncode == 3
    assert "has no GGUF files" in done.stderr


def test_a_download_that_was_called_off_goes_on_with_the_next_part(
    hub: GgufHub, tmp_path: Path
) -> None:
    first, second = sorted(name for name in FILES if name.startswith("F16/"))
    content = hub.files.pop(second) + bytes(64)
    hub.listed = {second: len(content)}
    assert download(hub, tmp_path, "me/tiny-GGUF:F16").returncode == 4
    assert first in hub.requested
    hub.requested.clear()
    hub.files[second] = content
    download(hub, tmp_path, "me/tiny-GGUF:F16")
    assert hub.requested == [second]


def test_a_probe_does_not_fetch_a_whole_file(hub: GgufHub, tmp_path: Path) -> None:
    done = models(hub, tmp_path, "probe", "me/tiny-GGUF")
    assert done.returncode == 4
    assert "`chatcache models download me/tiny-GGUF:Q4_K_M` fetches it (1.1 kB)." in done.stderr
    assert not hub.requested


# what is in the cache


def in_cache(home: Path, commit: str, *names: str, is_main: bool = True) -> Path:
    """A repository in the cache with these files in one snapshot."""
    folder = home / "hub" / "models--me--tiny-GGUF"
    snapshot = folder / "snapshots" / commit
    for name in names:
        blob = folder / "blobs" / hashlib.sha256(f"{commit}{name}".encode()).hexdigest()
        for path in (blob, snapshot / name):
            path.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(GGUF)
        (snapshot / name).symlink_to(blob)
    if is_main:
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / "main").write_text(commit)
    return snapshot


@pytest.fixture
def cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home / "hub"))
    return home


def test_files_of_older_snapshots_are_found_too(cache: Path) -> None:
    old = in_cache(cache, "b" * 40, "tiny-Q8_0.gguf", "tiny-Q4_0.gguf", is_main=False)
    new = in_cache(cache, "c" * 40, "tiny-Q4_0.gguf")
    assert resolve.resolve_model("me/tiny-GGUF:q4_0") == new / "tiny-Q4_0.gguf"
    assert resolve.resolve_model("me/tiny-GGUF:Q8_0") == old / "tiny-Q8_0.gguf"
    assert resolve.resolve_model("me/tiny-GGUF") == new / "tiny-Q4_0.gguf"
    found = {row.name: row for row in shelf.shelf() if row.place == "hub"}
    assert found.keys() == {"me/tiny-GGUF:Q4_0", "me/tiny-GGUF:Q8_0"}
    assert all(row.quantization == "Q4_0" and not row.problem for row in found.values())
    with pytest.raises(UnavailableError, match="not on this machine"):
        resolve.resolve_model("me/tiny-GGUF:Q2_K", is_offline=True)


def test_half_a_model_in_the_cache_is_not_taken(cache: Path) -> None:
    snapshot = in_cache(cache, "b" * 40, "tiny-Q4_0-00001-of-00002.gguf", "tiny-Q8_0.gguf")
    (snapshot / "tiny-Q8_0.gguf").resolve().unlink()
    for name in ("me/tiny-GGUF:Q4_0", "me/tiny-GGUF:Q8_0"):
        with pytest.raises(UnavailableError, match="not on this machine"):
            resolve.resolve_model(name, is_offline=True)
    found = {row.name: row.problem for row in shelf.shelf() if row.place == "hub"}
    assert "lacks tiny-Q4_0-00002-of-00002.gguf" in found["me/tiny-GGUF:Q4_0"]


def test_the_folder_of_a_repository_is_the_model_in_it(cache: Path) -> None:
    snapshot = in_cache(cache, "b" * 40, "tiny-Q4_0.gguf")
    folder = snapshot.parent.parent
    assert resolve.resolve_model(str(folder)) == snapshot / "tiny-Q4_0.gguf"
    assert resolve.resolve_model(str(snapshot)) == snapshot / "tiny-Q4_0.gguf"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("me/tiny", HubName("me/tiny")),
        ("me/tiny:Q4_K_M", HubName("me/tiny", "Q4_K_M")),
        ("me/tiny:a b.gguf", HubName("me/tiny", "a b.gguf")),
        ("me/tiny:", None),
        ("box:me/tiny", None),
        ("/me/tiny:Q4", None),
        ("tiny", None),
    ],
)
def test_names_of_the_hub(name: str, meant: HubName | None) -> None:
    assert hub_name(name) == meant


def test_the_question_before_a_download_names_the_others() -> None:
    from chatcache.backends.local.model.gguf.choice import models_among

    others = tuple(models_among([("a-Q8_0.gguf", 639_000_000), ("a-Q2_K.gguf", 200_000_000)]))
    asked = Download("me/tiny:Q4_K_M", 397_000_000, 10_000_000_000, others)
    assert asked.detail == (
        "397 MB from the hub; 10.0 GB are free. Others there: Q2_K (200 MB), Q8_0 (639 MB)."
    )
