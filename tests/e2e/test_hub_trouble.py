"""The hub of models, by command: a wrong token, mirror, proxy or certificate is named."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

PAGE = b"<html><title>Blocked</title></html>"


class Mirror:
    """A hub on loopback that gives one answer to everything."""

    def __init__(self) -> None:
        self.status, self.body, self.headers = 200, b"", dict[str, str]()
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                """Nothing on stderr."""

            def do_GET(self) -> None:
                self.send_response(mirror.status)
                for name, value in mirror.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(mirror.body)))
                self.end_headers()
                self.wfile.write(b"" if self.command == "HEAD" else mirror.body)

            do_HEAD = do_GET  # noqa: N815

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    mirror = Mirror()
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", mirror.url)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    yield mirror
    mirror.close()


def download(code: int) -> str:
    command = [sys.executable, "-m", "chatcache", "models", "download", "some/model"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("status", "body", "headers", "code", "says"),
    [
        (200, b'{"hello": 1}', {}, 4, "does not answer as a hub of models"),
        (200, b"null", {}, 4, "does not answer as a hub of models"),
        (200, PAGE, {"Content-Type": "text/html"}, 4, "does not answer as a hub of models"),
        (403, PAGE, {"Content-Type": "text/html"}, 4, "(403) with a web page"),
        (401, b"{}", {"X-Error-Message": "Invalid username or password."}, 4, "wants a token"),
        (404, b"{}", {"X-Error-Code": "RepoNotFound"}, 3, "has no model 'some/model'"),
    ],
)  # fmt: skip
def test_a_mirror_that_does_not_answer_as_it_should_is_named(
    mirror: Mirror, status: int, body: bytes, headers: dict[str, str], code: int, says: str
) -> None:
    mirror.status, mirror.body, mirror.headers = status, body, headers
    told = download(code)
    assert says in told
    assert ("$HF_ENDPOINT" in told) is (code == 4)
    assert "unset HF_ENDPOINT" in told or code == 3


@pytest.mark.parametrize("words", ["Invalid credentials in Authorization header", "Invalid token"])
def test_a_token_that_is_refused_is_named(
    mirror: Mirror, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    mirror.status, mirror.body = 401, json.dumps({"error": words}).encode()
    mirror.headers = {"X-Error-Message": words}
    told = download(4)
    assert "does not accept the token of $HF_TOKEN (401)" in told
    assert "hf_of_somebody_else" not in told


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("HF_ENDPOINT", "http://127.0.0.1:9", "cannot be reached: nothing listens there"),
        ("HF_ENDPOINT", "mirror", "$HF_ENDPOINT is no address of a hub"),
        ("HF_TOKEN", "hf_pa\u00dfwort", "$HF_TOKEN holds characters that no token has"),
        ("SSL_CERT_FILE", "/no/such.pem", "$SSL_CERT_FILE names /no/such.pem"),
        ("ALL_PROXY", "socks4://127.0.0.1:9", "$ALL_PROXY names a proxy of the kind socks4://"),
    ],
)
def test_what_is_wrong_on_the_way_to_the_hub_is_named(
    mirror: Mirror, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str
) -> None:
    monkeypatch.setenv(variable, value)
    assert says in download(4)


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "http://127.0.0.1:9"])
def test_a_proxy_that_is_not_there_is_named_and_not_asked_for_this_machine(
    mirror: Mirror, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    mirror.body = b"null"
    assert "does not answer as a hub of models" in download(4)
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example.invalid")
    assert "The proxy of $ALL_PROXY (127.0.0.1:9) does not lead to the hub" in download(4)
