"""What goes wrong with a server, in words: who, what, and what to do. And where no key goes."""

from __future__ import annotations

import datetime
import logging
import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chatcache.backends.base import CacheEvent
from chatcache.backends.remote import client
from chatcache.backends.remote.backend import MAX_TRIES, RemoteBackend
from chatcache.backends.remote.explanation import explain
from chatcache.backends.remote.refusal import read_refusal
from chatcache.errors import ContextFullError, NotFoundError, UnavailableError
from chatcache.remotes import RemoteModel, RemoteProfile
from tests.fake_server import FakeServer, Status, Stream
from tests.unit.test_remote_backend import Remote, request

KEY = "sk-secret-0123456789"


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


@pytest.fixture
def remote(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Remote]:
    monkeypatch.setenv("SOME_KEY", KEY)
    remote = Remote(server, api_key_env="SOME_KEY")
    yield remote
    remote.backend.close()


# Statuses


def error(message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, **more}}


@pytest.mark.parametrize(
    ("status", "kind", "message", "hint"),
    [
        (Status(401, error(f"Incorrect key: {KEY}")), UnavailableError,
         "does not accept the key of $SOME_KEY. It says: Incorrect key: [key].", "Check it"),
        (Status(403, error("no")), UnavailableError,
         "does not allow the request (403). It says: no.", "The key of $SOME_KEY may not"),
        (Status(404, error("model 'tiny' not found")), NotFoundError,
         "does not answer with 'tiny'", "another"),
        (Status(404, "<html>not here</html>"), NotFoundError, "does not answer with 'tiny'.", ""),
        (Status(429, error("slow down")), UnavailableError,
         "takes no more requests for now (429). It says: slow down.", "Try again in a while"),
        (Status(429, error("quota"), {"Retry-After": "3600"}), UnavailableError, "(429)",
         "3,600 seconds"),
        (Status(500, "oh dear"), UnavailableError, "failed (500). It says: oh dear.", ""),
        (Status(502, "<html><body>Bad gateway</body></html>"), UnavailableError,
         "failed (502).", ""),
        (Status(503, {"detail": "busy"}), UnavailableError, "It says: busy.", ""),
        (Status(400, {"error": "plain words"}), UnavailableError,
         "refused the request (400). It says: plain words.", ""),
        (Status(418, "[1, 2]"), UnavailableError, "refused the request (418).", ""),
        (Status(400, error("This model's maximum context length is 4096 tokens. However, your"
                           " messages resulted in 5000 tokens.", code="context_length_exceeded")),
         ContextFullError, "has 5,000 tokens, the model at", "fork"),
        (Status(400, error("This model's maximum context length is 512 tokens. However, you"
                           " requested 600 tokens (500 in the messages, 100 in the completion).")),
         ContextFullError, "has 600 tokens", ""),
        (Status(400, error("the request exceeds the available context size", n_prompt_tokens=1407,
                           n_ctx=256, type="exceed_context_size_error")),
         ContextFullError, "has 1,407 tokens, the model at", ""),
        (Status(413, "too large"), ContextFullError, "too long for the model", "fork"),
        (Status(400, error("This model's maximum context length is 512 tokens. However, you"
                           " requested 600 tokens (500 in the messages, 100 in the completion).")),
         ContextFullError, "(500 are the conversation, 100 for the answer)",
         "/set max_new_tokens 12"),
        (Status(400, error("'max_tokens' or 'max_completion_tokens' is too large: 100000. This"
                           " model's maximum context length is 32768 tokens and your request has"
                           " 25 input tokens (100000 > 32768 - 25).")),
         UnavailableError, "refused max_new_tokens, the limit of the answer (400). It says:",
         "/set max_new_tokens N"),
        (Status(400, error("max_tokens is too large: 100000. This model supports at most 16384"
                           " completion tokens", param="max_tokens")),
         UnavailableError, "refused max_new_tokens", "/set max_new_tokens default"),
        (Status(422, {"detail": [{"loc": ["body", "max_tokens"],
                                  "msg": "Input should be less than or equal to 8192"}]}),
         UnavailableError, "refused max_new_tokens", ""),
        (Status(400, error("This model's maximum context length is 4096 tokens. However, you"
                           " requested 5000 tokens (4900 in the messages, 100 in max_tokens).")),
         ContextFullError, "has 5,000 tokens (4,900 are the conversation", "fork"),
        (Status(400, error("max_tokens must be at least 1, got -904.")),
         ContextFullError, "The conversation is too long", ""),
        (Status(403, "<html><head><title>Attention Required! | Firewall</title></head></html>"),
         UnavailableError, "does not let the request in (403). A web page came: Attention Required!"
         " | Firewall.", "a firewall or a proxy on the way"),
        (Status(401, "<html><h1>Unauthorized &amp; more</h1></html>"), UnavailableError,
         "does not accept the key of $SOME_KEY. A web page came: Unauthorized & more.", ""),
        (Status(407, "<html><title>Proxy</title></html>"), UnavailableError,
         "refused the request (407). A web page came: Proxy.", "A proxy on the way"),
        (Status(402, error("Insufficient Balance")), UnavailableError,
         "(402). It says: Insufficient Balance.", "no credit"),
        (Status(405, ""), UnavailableError, "refused the request (405).", "base_url"),
        (Status(413, "<html><title>413 Request Entity Too Large</title></html>"), UnavailableError,
         "(413). A web page came: 413 Request Entity Too Large.", "stands before the server"),
        (Status(429, error("You exceeded your current quota", type="insufficient_quota")),
         UnavailableError, "(429). It says: You exceeded", "look at the credit"),
        (Status(400, [{"error": {"message": "API key not valid"}}]), UnavailableError,
         "It says: API key not valid.", "the key of $SOME_KEY"),
    ],
)  # fmt: skip
def test_a_refusal_says_who_what_and_what_to_do(
    remote: Remote, status: Status, kind: type, message: str, hint: str
) -> None:
    remote.server.plan(status)
    failed = remote.failure()
    assert type(failed.error) is kind
    assert message in failed.error.message
    assert hint in failed.error.hint
    assert remote.profile.host in failed.error.message
    assert KEY not in f"{failed.error}"
    assert failed.partial is None
    assert remote.result().text == "You said: hello there"


def test_a_model_that_is_not_there_names_the_nearest(server: FakeServer) -> None:
    server.models = [{"id": "qwen3-0.6b"}, {"id": "llama-3"}]
    remote = Remote(server, model="qwen-0.6b")
    server.plan(Status(404, error("no such model")))
    failed = remote.failure()
    remote.backend.close()
    assert "has no model 'qwen-0.6b'" in failed.error.message  # type: ignore[attr-defined]
    assert failed.error.hint == "Did you mean 'qwen3-0.6b'?"  # type: ignore[attr-defined]


def test_what_a_server_writes_cannot_reach_the_terminal() -> None:
    profile = RemoteProfile("p", "http://h")
    body = b'{"error": {"message": "\\u001b[31mred\\u0007 ' + b"x" * 5000 + b'"}}'
    told = explain(read_refusal(500, {}, body), RemoteModel(profile, "m"), None)
    assert "\x1b" not in told.message
    assert len(told.message) < 300


def test_a_wait_may_be_told_as_a_date() -> None:
    at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=30)
    words = at.strftime("%a, %d %b %Y %H:%M:%S GMT")
    assert 20 < (read_refusal(429, {"retry-after": words}, b"").retry_after or 0) <= 30
    for word in ("soon", "inf", "nan", "-1", "1e300", "9" * 40):
        assert read_refusal(429, {"retry-after": word}, b"").retry_after is None


def test_a_refusal_without_a_key_says_what_was_said_first(server: FakeServer) -> None:
    remote = Remote(server)
    server.plan(Status(403, error("Country not supported")), Status(401, error("Missing key")))
    region, key = remote.failure().error, remote.failure().error
    remote.backend.close()
    assert "does not allow the request (403). It says: Country not supported." in str(region)
    assert "It may want a key: remote.p.api_key_env" in region.hint  # type: ignore[attr-defined]
    assert "wants a key, and the profile has none. It says: Missing key." in str(key)


# Second tries


def test_a_busy_server_is_asked_again_when_it_says_so(remote: Remote) -> None:
    remote.server.plan(
        Status(429, error("slow"), {"Retry-After": "0"}),
        Status(503, error("slow"), {"Retry-After": "0"}),
    )
    assert remote.result().text == "You said: hello there"
    assert len(remote.server.chats) == 3
    told = [event.text for event in remote.heard if isinstance(event, CacheEvent)]
    assert len(told) == 2
    assert "is busy; it is asked again" in told[0]


@pytest.mark.parametrize(
    ("status", "num_asked"),
    [
        (Status(429, "", {"Retry-After": "0"}), MAX_TRIES),
        (Status(429, ""), 1),
        (Status(429, "", {"Retry-After": "3600"}), 1),
        (Status(500, "", {"Retry-After": "0"}), 1),
    ],
)
def test_it_is_not_asked_for_ever(remote: Remote, status: Status, num_asked: int) -> None:
    remote.server.plan(*[status] * 5)
    assert isinstance(remote.failure().error, UnavailableError)
    assert len(remote.server.chats) == num_asked


def test_a_wait_for_a_busy_server_can_be_stopped(remote: Remote) -> None:
    remote.server.plan(Status(429, "", {"Retry-After": "50"}))
    waits = threading.Event()
    remote.backend.subscribe(lambda event: isinstance(event, CacheEvent) and waits.set())
    events = remote.backend.ask(request())
    events.get()
    assert waits.wait(20)
    events.stop()
    assert events.get().result.finish_reason == "stopped"  # type: ignore[union-attr]


def test_an_answer_that_has_begun_is_never_asked_for_again(remote: Remote) -> None:
    remote.server.plan(Stream("Half an", ends="close"))
    failed = remote.failure()
    assert len(remote.server.chats) == 1
    assert failed.partial is not None
    assert (failed.partial.text, failed.partial.finish_reason) == ("Half an", "stopped")


# In the middle of an answer


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (Stream("Half an", finish=None, ends="close"), "broke off"),
        (Stream("Half an", finish=None, ends="silent_end"), "ended in the middle of the answer"),
        (Stream(["Half an", b"data: {not json\n\n"]), "is no JSON"),
        (Stream(["Half an", b"data: [1]\n\n"]), "is no object"),
        (Stream(["Half an", {"error": {"message": "out of memory", "code": 500}}]),
         "broke the answer off with an error. It says: out of memory."),
        (Stream(["Half an", b'event: error\ndata: {"message": "gone"}\n\n']), "It says: gone."),
        (Stream(["Half an", b"data: " + b"x" * 2_000_000 + b"\n\n"]), "is far too long"),
    ],
)  # fmt: skip
def test_what_was_written_is_kept(
    remote: Remote, monkeypatch: pytest.MonkeyPatch, stream: Stream, message: str
) -> None:
    monkeypatch.setattr(client, "MAX_EVENT_BYTES", 1_000_000)
    remote.server.plan(stream)
    failed = remote.failure()
    assert message in failed.error.message  # type: ignore[attr-defined]
    assert failed.partial is not None
    assert failed.partial.text == "Half an"
    assert remote.result().text == "You said: hello there"


def test_a_stream_without_anything_is_said(remote: Remote) -> None:
    remote.server.plan(Stream([], finish=None, ends="silent_end"))
    failed = remote.failure()
    assert "ended without an answer" in f"{failed.error}"
    assert "too long" in failed.error.hint  # type: ignore[attr-defined]
    assert failed.partial is None


def test_a_long_line_is_no_failure(remote: Remote) -> None:
    remote.server.plan(Stream(["x" * 3_000_000]))
    assert len(remote.result().text) == 3_000_000


@pytest.mark.parametrize("status", [Status(200, "<html>hello</html>"), Status(200, {"a": 1})])
def test_a_page_of_something_else_is_said(remote: Remote, status: Status) -> None:
    remote.server.plan(status)
    failed = remote.failure()
    assert "does not speak as an OpenAI-compatible server: " in str(failed.error)
    assert ("has no choices" in str(failed.error)) is isinstance(status.body, dict)
    assert "base_url" in failed.error.hint  # type: ignore[attr-defined]


def test_a_server_that_falls_silent_is_left(server: FakeServer) -> None:
    gate = threading.Event()
    server.plan(Stream("An answer", gate=gate, gate_at=0))
    remote = Remote(server, timeout=1)
    failed = remote.failure()
    gate.set()
    remote.backend.close()
    assert "was silent for too long" in failed.error.message  # type: ignore[attr-defined]
    assert "remote.p.timeout (1 s)" in failed.error.hint  # type: ignore[attr-defined]


# The network


def start_failure(base_url: str, **profile: Any) -> UnavailableError:
    backend = RemoteBackend(RemoteModel(RemoteProfile("p", base_url, **profile), "tiny"))
    try:
        with pytest.raises(UnavailableError) as raised:
            backend.wait_ready()
    finally:
        backend.close()
    return raised.value


def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        told = start_failure(url)
    assert "Nothing listens at 127.0.0.1" in told.message
    assert url in told.hint


def test_there_is_no_such_host() -> None:
    told = start_failure("http://no-such-host.invalid:1/v1")
    assert "There is no host 'no-such-host.invalid', or no network." in told.message


def test_a_server_without_tls(server: FakeServer) -> None:
    told = start_failure(server.base_url.replace("http://", "https://"))
    assert "does not speak TLS" in told.message
    assert "http://" in told.hint


def test_a_server_that_is_no_http_server() -> None:
    class Rude(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(100)
            self.request.sendall(b"220 mail.example.com ESMTP\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Rude) as rude:
        rude.daemon_threads = True
        threading.Thread(target=rude.serve_forever, args=(0.02,), daemon=True).start()
        told = start_failure(f"http://127.0.0.1:{rude.server_address[1]}")
        rude.shutdown()
    assert "The connection to 127.0.0.1" in told.message


def test_a_certificate_of_ones_own_has_to_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem = tmp_path / "own.pem"
    if not _self_signed(pem):
        pytest.skip("openssl is not here")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    with FakeServer() as server:
        server._http.socket = context.wrap_socket(server._http.socket, server_side=True)
        url = server.base_url.replace("http://", "https://")
        told = start_failure(url)
        monkeypatch.setenv("SSL_CERT_FILE", str(pem))
        backend = RemoteBackend(RemoteModel(RemoteProfile("p", url), "tiny"))
        assert backend.wait_ready().model == "p:tiny"
        backend.close()
    assert "cannot be trusted" in told.message
    assert "SSL_CERT_FILE" in told.hint


def _self_signed(pem: Path) -> bool:
    import shutil
    import subprocess

    if shutil.which("openssl") is None:
        return False
    words = "req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost"
    words += f" -addext subjectAltName=IP:127.0.0.1 -keyout {pem} -out {pem}"
    done = subprocess.run(["openssl", *words.split()], capture_output=True, check=False)
    return done.returncode == 0 and b"CERTIFICATE" in pem.read_bytes()


# The key


def test_the_key_goes_to_the_server_and_nowhere_else(
    remote: Remote, server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with FakeServer() as elsewhere:
        for code in (301, 302, 307, 308):
            server.plan(Status(code, "", {"Location": f"{elsewhere.base_url}/chat/completions"}))
            failed = remote.failure()
            assert "sends its callers on to" in failed.error.message  # type: ignore[attr-defined]
            assert elsewhere.base_url in failed.error.message  # type: ignore[attr-defined]
        assert elsewhere.asked == []
    assert {one.headers.get("Authorization") for one in server.asked} == {f"Bearer {KEY}"}
    assert KEY not in caplog.text
    assert KEY not in repr(remote.profile)


def test_without_a_variable_no_key_is_sent(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine 127.0.0.1 login me password {KEY}\n")
    monkeypatch.setenv("NETRC", str(netrc))
    remote = Remote(server)
    remote.result()
    remote.backend.close()
    assert all("Authorization" not in one.headers for one in server.asked)


def test_a_proxy_is_not_asked_for_this_machine(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    remote = Remote(server)
    assert remote.result().text == "You said: hello there"
    remote.backend.close()


def test_a_missing_key_is_said_before_anything_is_sent(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    told = start_failure(server.base_url, api_key_env="SOME_KEY")
    assert "$SOME_KEY is not set" in told.message
    assert server.asked == []


# Answers that are none


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("content_filter", "gave no answer: its content filter ended it."),
        ("tool_calls", "gave no answer: its model asked for a tool"),
        (None, "ended without an answer."),
    ],
)
def test_an_answer_without_a_word_says_why(remote: Remote, reason: str | None, words: str) -> None:
    chunk = {"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": reason}]}
    remote.server.plan(Stream([chunk, {"choices": []}], finish=None, has_usage=False))
    failed = remote.failure()
    assert words in str(failed.error)
    assert failed.partial is None


def test_an_answer_that_a_filter_ended_is_kept_and_it_is_said(remote: Remote) -> None:
    remote.server.plan(Stream("So it", finish="content_filter"))
    assert remote.result().text == "So it"
    told = [event.text for event in remote.heard if isinstance(event, CacheEvent)]
    assert [words for words in told if "content filter" in words]


@pytest.mark.parametrize(
    ("thoughts", "finish", "words"),
    [("hm", "stop", "thoughts only"), ("hm", "length", "still thinking"), ("", "stop", "nothing")],
)
def test_an_answer_without_words_is_remarked_on(
    remote: Remote, thoughts: str, finish: str, words: str
) -> None:
    remote.server.plan(Stream("", reasoning=thoughts, finish=finish))
    assert remote.result().text == ""
    (told,) = (event.text for event in remote.heard if isinstance(event, CacheEvent))
    assert words in told


def test_what_a_filter_refuses_is_not_for_the_servers_log(remote: Remote) -> None:
    refused = error("Rejected by our safety system.", code="content_policy_violation")
    remote.server.plan(Status(400, refused))
    assert "in other words" in (remote.failure().error.hint or "")


def test_a_field_that_a_server_misses_is_named(remote: Remote) -> None:
    complaint = {"loc": ["body", "zebra"], "msg": "Field required", "type": "missing"}
    remote.server.plan(Status(422, {"detail": [complaint]}))
    assert "It says: zebra: Field required." in str(remote.failure().error)
