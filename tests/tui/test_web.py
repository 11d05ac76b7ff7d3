"""The chat in a browser: who may connect, what the page loads, and a look with Chromium."""

from __future__ import annotations

import asyncio
import importlib.util
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest

from chatcache.commands import serve_web
from chatcache.errors import UnavailableError

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
LIMIT_SECONDS = 60.0

needs_extra = pytest.mark.skipif(
    importlib.util.find_spec("textual_serve") is None, reason="needs the web extra"
)
SERVER = """
import sys
from chatcache.tui.web import ChatServer
ChatServer(sys.argv[1], "127.0.0.1", int(sys.argv[2])).serve()
"""


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A server whose pages run the chat on a fake backend."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    app = shlex.join([sys.executable, "-m", "tests.tui.terminal_app", str(tmp_path)])
    words = [sys.executable, "-c", SERVER, app, str(port)]
    with subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert str(port) in process.stderr.readline()
        address = f"http://127.0.0.1:{port}/"
        end = time.monotonic() + LIMIT_SECONDS
        while not _answers(address):
            assert time.monotonic() < end
            threading.Event().wait(0.05)
        yield address
        process.terminate()


def _answers(address: str) -> bool:
    try:
        return bool(urllib.request.urlopen(address).status)
    except urllib.error.URLError:
        return False


def _status(address: str, **headers: str) -> int:
    try:
        request = urllib.request.Request(address, headers=headers)
        return int(urllib.request.urlopen(request).status)
    except urllib.error.HTTPError as error:
        return error.code


@needs_extra
def test_only_this_machine_and_its_own_page_are_served(address: str) -> None:
    assert _status(address) == 200
    assert _status(address, Host="other.example") == 403
    assert _status(f"{address}ws", Origin="http://other.example") == 403


@needs_extra
def test_the_page_loads_nothing_from_elsewhere(address: str) -> None:
    with urllib.request.urlopen(address) as response:
        page = response.read().decode()
        policy = response.headers["Content-Security-Policy"]
    assert page.count("//") == page.count(address.removesuffix("/").partition(":")[2])
    assert "default-src 'self'" in policy


@needs_extra
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
async def test_the_chat_is_drawn_in_a_browser(address: str, tmp_path: Path) -> None:
    profile = tmp_path / "chromium"
    words = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--enable-unsafe-swiftshader",
        "--remote-debugging-port=0",
        f"--user-data-dir={profile}",
        address,
    ]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(words, stdout=quiet, stderr=quiet) as browser:
        try:
            await _until_drawn(profile / "DevToolsActivePort", address)
        finally:
            browser.terminate()


async def _until_drawn(port_file: Path, address: str) -> None:
    """Ask the page through Chromium's debugging port until the terminal in it was written to."""
    import aiohttp

    end = time.monotonic() + LIMIT_SECONDS
    question = {
        "id": 1,
        "method": "Runtime.evaluate",
        "params": {"expression": "document.body.classList.contains('-first-byte')"},
    }
    async with aiohttp.ClientSession() as client:
        while True:
            assert time.monotonic() < end
            await asyncio.sleep(0.1)
            if not port_file.exists() or not (port := port_file.read_text().partition("\n")[0]):
                continue
            async with client.get(f"http://127.0.0.1:{port}/json") as response:
                pages = await response.json()
            targets = [page for page in pages if page["url"] == address]
            if not targets:
                continue
            async with client.ws_connect(targets[0]["webSocketDebuggerUrl"]) as page:
                await page.send_json(question)
                answer = await page.receive_json()
            if answer["result"]["result"].get("value") is True:
                return


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError) as raised:
        serve_web.run(Namespace(host="127.0.0.1", port=1, public_url=None, session=None))
    assert "chatcache[web]" in raised.value.hint


def test_the_options_are_passed_on_to_each_page() -> None:
    arguments = Namespace(model="a b", offline=True, keep_alive=None, session="my chat")
    words = shlex.split(serve_web.command_line(arguments))
    assert words[1:] == ["-m", "chatcache", "--model", "a b", "--offline", "my chat"]
