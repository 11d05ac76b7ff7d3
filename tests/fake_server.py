"""A server with an OpenAI-compatible API, on loopback, that does what a test tells it.

It speaks HTTP for real, in threads of its own. Without a script it echoes the last message. It has
a prefix cache of its own, in words: what a prompt shares with an earlier one counts as cached.

    with FakeServer(style="llama") as server:
        server.plan(Status(429, {"error": {"message": "slow"}}, {"Retry-After": "0"}), Stream("Hi"))
"""

from __future__ import annotations

import contextlib
import json
import ssl
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Style = Literal["openai", "vllm", "llama", "bare"]
OWNERS = {"openai": "system", "vllm": "vllm", "llama": "llamacpp", "bare": "somebody"}
LIMIT_SECONDS = 20.0


@dataclass(frozen=True)
class Asked:
    """One request as it came."""

    path: str
    headers: Mapping[str, str]
    raw: bytes
    client: int = 0

    @property
    def body(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.raw)
        return content


@dataclass(frozen=True)
class Status:
    """An answer that is none. `body` is JSON, or text as it is."""

    code: int
    body: Any = ""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Stream:
    """An answer in pieces. `pieces` may be text, or whole chunks (dicts), or raw lines (bytes).

    `gate`: waited for before the piece number `gate_at`. `ends`: how it ends.
    """

    pieces: Sequence[str | dict[str, Any] | bytes] | str
    reasoning: str = ""
    finish: str | None = "stop"
    ends: Literal["done", "close", "silent_end"] = "done"
    gate: threading.Event | None = None
    gate_at: int = 1
    has_usage: bool = True


@dataclass
class Whole:
    """A server that does not stream."""

    text: str


@dataclass
class Raw:
    """An answer as bytes, whatever they are. `kind`: its content type; None: it has none."""

    parts: Sequence[bytes]
    kind: str | None = "text/event-stream"


Reply = Status | Stream | Whole | Raw
Judge = Callable[[Mapping[str, Any]], "Reply | None"]


class FakeServer:
    """Listens from `start` (or `with`) on; `base_url` is where."""

    def __init__(
        self, style: Style = "openai", models: Sequence[Mapping[str, Any]] | Status | None = None
    ) -> None:
        self.style = style
        self.asked: list[Asked] = []
        self.models = [{"id": "tiny", "owned_by": OWNERS[style]}] if models is None else models
        self.models_gate: threading.Event | None = None
        self.arrived = threading.Event()
        self.broken_off = threading.Event()
        # Looks at each request, and may answer it; None: it does not mind.
        self.judge: Judge = lambda body: None
        self._replies: deque[Reply] = deque()
        self._prompts: list[list[str]] = []
        self._gates: list[threading.Event] = []
        self._http = _Listener(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)

    @property
    def port(self) -> int:
        return int(self._http.server_address[1])

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def chats(self) -> list[Asked]:
        """The requests for an answer."""
        return [one for one in self.asked if one.path.endswith("/chat/completions")]

    def plan(self, *replies: Reply) -> None:
        """What the next requests for an answer get; after them it echoes again."""
        self._replies += replies
        self._gates += [one.gate for one in replies if isinstance(one, Stream) and one.gate]

    def __enter__(self) -> FakeServer:
        self._thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        for gate in self._gates:
            gate.set()  # nothing waits for a test that is over
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    # What the handler asks

    def reply_to(self, body: Mapping[str, Any]) -> Reply:
        if (judged := self.judge(body)) is not None:
            return judged
        if self._replies:
            return self._replies.popleft()
        return Stream(f"You said: {body['messages'][-1]['content']}")

    def count(self, body: Mapping[str, Any]) -> tuple[int, int]:
        """(words of the prompt, how many of them were seen before)."""
        messages = body["messages"]
        words = " ".join(f"{said['role']} {said['content']}" for said in messages).split()
        if body.get("cache_prompt") is False:
            return len(words), 0
        cached = max((_common(words, other) for other in self._prompts), default=0)
        self._prompts.append(words)
        return len(words), min(cached, len(words) - 1)


class _Listener(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has left is no failure; everything else is."""
        if not isinstance(sys.exc_info()[1], ConnectionError | ssl.SSLError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


def _common(left: Sequence[str], right: Sequence[str]) -> int:
    pairs = enumerate(zip(left, right, strict=False))
    return next((n for n, (one, other) in pairs if one != other), min(len(left), len(right)))


def _handler(server: FakeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, format: str, *args: object) -> None:
            """Nothing on stderr."""

        def do_GET(self) -> None:
            server.asked.append(Asked(self.path, dict(self.headers), b"", self.client_address[1]))
            if server.models_gate is not None:
                assert server.models_gate.wait(LIMIT_SECONDS)
            if isinstance(server.models, Status):
                self._status(server.models)
            else:
                self._status(Status(200, {"object": "list", "data": list(server.models)}))

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked = Asked(self.path, dict(self.headers), raw, self.client_address[1])
            server.asked.append(asked)
            server.arrived.set()
            reply = server.reply_to(asked.body)
            if isinstance(reply, Status):
                self._status(reply)
            elif isinstance(reply, Whole):
                message = {"role": "assistant", "content": reply.text}
                choice = {"index": 0, "message": message, "finish_reason": "stop"}
                self._status(Status(200, {"choices": [choice], **_usage(server, asked, 2)}))
            elif isinstance(reply, Raw):
                self._raw(reply)
            else:
                self._stream(reply, asked)

        def _status(self, status: Status) -> None:
            is_text = isinstance(status.body, str)
            content = status.body.encode() if is_text else json.dumps(status.body).encode()
            self.send_response(status.code)
            headers = {"Content-Type": "text/html" if is_text else "application/json"}
            for name, value in {**headers, **status.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _raw(self, reply: Raw) -> None:
            self.send_response(200)
            if reply.kind is not None:
                self.send_header("Content-Type", reply.kind)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for part in filter(None, reply.parts):
                self._send(part)
            self.wfile.write(b"0\r\n\r\n")

        def _stream(self, reply: Stream, asked: Asked) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                for number, piece in enumerate(_chunks(server, reply, asked)):
                    if reply.gate is not None and number == reply.gate_at:
                        assert reply.gate.wait(LIMIT_SECONDS)
                    self._send(piece)
                if reply.ends == "done":
                    self._send(b"data: [DONE]\n\n")
            except (BrokenPipeError, ConnectionResetError):
                server.broken_off.set()
                self.close_connection = True
                return
            if reply.ends == "close":
                self.close_connection = True
                return
            self.wfile.write(b"0\r\n\r\n")

        def _send(self, content: bytes) -> None:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(content), content))
            self.wfile.flush()

        def finish(self) -> None:
            with contextlib.suppress(OSError):
                super().finish()

    return Handler


def _chunks(server: FakeServer, reply: Stream, asked: Asked) -> Iterator[bytes]:
    prompt, cached = server.count(asked.body)
    if server.style == "llama" and asked.body.get("return_progress"):
        progress = {"total": prompt, "cache": cached, "processed": prompt, "time_ms": 3}
        yield _line({"choices": [_choice({"role": "assistant"})], "prompt_progress": progress})
    key = "reasoning" if server.style == "vllm" else "reasoning_content"
    for word in _words(reply.reasoning):
        yield _line({"choices": [_choice({key: word})]})
    pieces = _words(reply.pieces) if isinstance(reply.pieces, str) else list(reply.pieces)
    for piece in pieces:
        if isinstance(piece, bytes):
            yield piece
        else:
            is_text = isinstance(piece, str)
            yield _line({"choices": [_choice({"content": piece})]} if is_text else piece)
    if reply.finish is not None:
        last: dict[str, Any] = {"choices": [_choice({}, reply.finish)]}
        if server.style == "llama":
            last["timings"] = {
                "cache_n": cached, "prompt_n": prompt - cached, "prompt_ms": 12.5,
                "prompt_per_second": 80.0, "predicted_n": len(pieces), "predicted_ms": 30.0,
            }  # fmt: skip
        yield _line(last)
    wants_usage = asked.body.get("stream_options", {}).get("include_usage")
    if wants_usage and reply.has_usage and server.style in ("openai", "vllm"):
        counted = _usage(server, asked, len(pieces), (prompt, cached))
        yield _line({"choices": [], **counted})


def _usage(
    server: FakeServer, asked: Asked, completion: int, counts: tuple[int, int] | None = None
) -> dict[str, Any]:
    prompt, cached = counts or server.count(asked.body)
    usage: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    if server.style == "openai":
        usage["prompt_tokens_details"] = {"cached_tokens": cached}
    return {"usage": usage}


def _choice(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": finish}


def _line(chunk: Mapping[str, Any]) -> bytes:
    return f"data: {json.dumps(chunk)}\n\n".encode()


def _words(text: str) -> list[str]:
    words = text.split(" ")
    return [word if last else f"{word} " for word, last in _with_last(words)] if text else []


def _with_last(words: Sequence[str]) -> Iterator[tuple[str, bool]]:
    for number, word in enumerate(words, 1):
        yield word, number == len(words)
