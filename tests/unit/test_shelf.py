"""The models at hand, and a download from a hub: a small one, on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from chatcache.assets import pocket_dir
from chatcache.backends.local.model import shelf

COMMIT = "a" * 40
NAMES = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")


def test_the_builtin_model_and_directories_are_described(tmp_path: Path) -> None:
    there, broken = tmp_path / "there", tmp_path / "broken"
    shutil.copytree(pocket_dir(), there)
    shutil.copytree(pocket_dir(), broken)
    (broken / "model.safetensors").unlink()
    found = shelf.shelf([str(there), str(broken), str(there), str(tmp_path / "gone"), "some/hub"])
    assert [(one.name, one.place) for one in found] == [
        ("builtin", "built in"),
        (str(there), "directory"),
        (str(broken), "directory"),
    ]
    builtin, same, problem = found
    assert builtin.num_parameters == same.num_parameters > 0
    assert builtin.num_bytes > builtin.num_parameters
    assert "any token" in builtin.reuse
    assert "model.safetensors is missing" in problem.problem


@pytest.mark.parametrize(
    "nonsense",
    [
        {"rope_parameters": "none"},
        {"layer_types": 7},
        {"text_config": [3]},
        {"max_position_embeddings": "long", "rope_parameters": {"rope_type": "dynamic"}},
    ],
)
def test_a_config_that_means_nothing_hides_no_other_model(
    tmp_path: Path, nonsense: dict[str, object]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(pocket_dir(), broken)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, **nonsense}))
    builtin, problem = shelf.shelf([str(broken)])
    assert not builtin.problem
    assert "config.json makes no sense" in problem.problem


def test_names_of_the_hub_are_told_from_paths() -> None:
    assert shelf.is_hub_id("Qwen/Qwen3-0.6B")
    assert not shelf.is_hub_id("/home/me/model")
    assert shelf.at_hand("no/such-model").problem


class Hub(BaseHTTPRequestHandler):
    """Says what huggingface_hub asks for, from the files of one directory."""

    directory: Path

    def do_HEAD(self) -> None:
        self._answer(has_body=False)

    def do_GET(self) -> None:
        self._answer(has_body=True)

    def _answer(self, *, has_body: bool) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/me/tiny"):
            files = [(self.directory / name) for name in NAMES]
            siblings = [{"rfilename": one.name, "size": one.stat().st_size} for one in files]
            siblings.append({"rfilename": "pytorch_model.bin", "size": 1 << 40})
            if "/tree/" in path:
                content = json.dumps(
                    [
                        {"type": "file", "path": one.name, "size": one.stat().st_size, "oid": "0"}
                        for one in files
                    ]
                ).encode()
            else:
                info = {"id": "me/tiny", "sha": COMMIT, "siblings": siblings, "tags": []}
                content = json.dumps(info).encode()
            self._send(content, {"Content-Type": "application/json"}, has_body=has_body)
        elif path.startswith("/me/tiny/resolve/"):
            content = (self.directory / path.rpartition("/")[2]).read_bytes()
            etag = hashlib.sha1(content, usedforsecurity=False).hexdigest()
            headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}
            self._send(content, headers, has_body=has_body)
        else:
            self.send_error(404)

    def _send(self, content: bytes, headers: dict[str, str], *, has_body: bool) -> None:
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if has_body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Tests are quiet."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    Hub.directory = tmp_path / "served"
    shutil.copytree(pocket_dir(), Hub.directory)
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


PROGRAM = """
import json
from chatcache.backends.local.model.hub_files import model_on_hub
from chatcache.backends.local.model.progress import download
told = []
size = model_on_hub("me/tiny").num_bytes
path = download("me/tiny", lambda event: told.append((event.stage, event.done, event.total)))
print(json.dumps({"size": size, "path": str(path), "told": told}))
"""


def reaching(hub: str, tmp_path: Path) -> dict[str, str]:
    """The environment of a process that has this hub and an empty cache."""
    return {
        **os.environ,
        "HF_ENDPOINT": hub,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


def test_a_download_tells_its_size_and_its_progress_in_bytes(hub: str, tmp_path: Path) -> None:
    environment = reaching(hub, tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    expected = sum((pocket_dir() / name).stat().st_size for name in NAMES)
    assert report["size"] == expected
    stage, fetched, total = report["told"][-1]
    assert (stage, fetched, total) == ("downloading me/tiny", expected, expected)
    assert (Path(report["path"]) / "model.safetensors").is_file()


def test_a_model_is_downloaded_once_by_a_command(hub: str, tmp_path: Path) -> None:
    environment = reaching(hub, tmp_path)

    def download(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "chatcache", "models", "download", "me/tiny", *options],
            env=environment,
            capture_output=True,
            text=True,
        )

    refused = download("--offline")
    assert (refused.returncode, refused.stdout) == (4, "")
    assert "not on this machine" in refused.stderr
    done = download("--json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report["downloaded"]
    assert report["bytes"] == (Path(report["path"]) / "model.safetensors").stat().st_size
    again = download("--json", "--offline")
    assert json.loads(again.stdout) == {**report, "downloaded": False}


def test_what_cannot_be_loaded_is_not_downloaded(hub: str, tmp_path: Path) -> None:
    """What describes a model comes first; its gigabytes would be fetched for nothing."""
    config = Hub.directory / "config.json"
    packed = {**json.loads(config.read_text()), "quantization_config": {"quant_method": "hqq"}}
    config.write_text(json.dumps(packed))
    done = subprocess.run(
        [sys.executable, "-m", "chatcache", "models", "download", "me/tiny"],
        env=reaching(hub, tmp_path),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 4
    assert "quantised with hqq" in done.stderr
    assert list((tmp_path / "hf").rglob("snapshots/*/config.json"))
    assert not list((tmp_path / "hf").rglob("*.safetensors"))


def test_what_could_never_be_loaded_is_not_downloaded(hub: str, tmp_path: Path) -> None:
    """The machine is too small for it, whatever is done to it."""
    program = (
        "from chatcache.backends.local.model.loader import load_model\n"
        "from chatcache.backends.local.model.memory_check import MemoryCheck\n"
        "from chatcache.machine import MemoryLimit\n"
        "check = MemoryCheck(limits=lambda: [MemoryLimit('this machine', 1_000_000, 900_000)])\n"
        "try:\n    load_model('me/tiny', memory=check)\n"
        "except Exception as error:\n    print(type(error).__name__, error.message, error.hint)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=reaching(hub, tmp_path),
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("NoRoomError me/tiny would be a download of"), done.stderr
    assert "of this machine" in done.stdout
    assert "--no-fit-check" in done.stdout
    assert not list((tmp_path / "hf").rglob("*.safetensors"))
