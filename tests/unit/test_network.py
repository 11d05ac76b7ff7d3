"""Proxies, certificates and near hosts: what the environment says, and what is wrong is named."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from chatcache import network
from chatcache.errors import UnavailableError
from tests.fake_server import FakeServer, Status
from tests.unit.test_remote_backend import Remote, request
from tests.unit.test_remote_errors import start_failure

VARIABLES = [
    *(f"{name}_PROXY" for name in ("HTTP", "HTTPS", "ALL", "NO")),
    *(f"{name}_proxy" for name in ("http", "https", "all", "no")),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE", "HF_ENDPOINT"),
]
FAR = "http://far.example.invalid/v1"


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


@pytest.mark.parametrize(
    ("hostname", "near"),
    [
        *(
            (name, True)
            for name in ("localhost", "127.0.0.1", "::1", "box", "box.local", "nas.lan")
        ),
        *((name, True) for name in ("192.168.1.5", "10.0.0.1", "172.16.3.4", "100.64.0.9")),
        *((name, True) for name in ("169.254.1.1", "fd00::1", "fe80::1%eth0", "nas.lan")),
        *((name, False) for name in ("example.com", "8.8.8.8", "2001:4860:4860::8888", "")),
        *((name, False) for name in ("172.32.0.1", "192.169.0.1", "local.example.com")),
    ],
)
def test_which_hosts_are_near(hostname: str, near: bool) -> None:
    assert network.is_near(hostname) is near


@pytest.mark.parametrize(
    ("environ", "url", "proxy"),
    [
        ({"HTTP_PROXY": "http://p:1"}, "http://a.com", "http://p:1"),
        ({"HTTP_PROXY": "http://p:1"}, "https://a.com", None),
        ({"HTTPS_PROXY": "p:1"}, "https://a.com", "http://p:1"),
        ({"http_proxy": "http://q:1", "HTTP_PROXY": "http://p:1"}, "http://a.com", "http://q:1"),
        ({"ALL_PROXY": "socks5://p:1"}, "https://a.com", "socks5://p:1"),
        ({"all_proxy": "socks://p:1/"}, "http://a.com", "socks5://p:1/"),
        ({"ALL_PROXY": "SOCKS5H://p:1"}, "http://a.com", "SOCKS5H://p:1"),
        ({"ALL_PROXY": " "}, "http://a.com", None),
        ({"HTTP_PROXY": "http://p:1"}, "http://192.168.1.5:8080", None),
        ({"HTTP_PROXY": "http://p:1"}, "http://box:8080", None),
        *(
            ({"ALL_PROXY": "http://p:1", "NO_PROXY": named}, "http://api.a.com:8080", proxy)
            for named, proxy in [
                ("*", None), ("a.com", None), (".a.com", None), ("*.a.com", None),
                ("b.com, a.com", None),
                ("API.A.COM", None), ("api.a.com:8080", None), ("api.a.com:80", "http://p:1"),
                ("i.a.com", "http://p:1"), ("com.a", "http://p:1"), ("", "http://p:1"),
                (",", "http://p:1"),
            ]
        ),
        ({"ALL_PROXY": "http://p:1", "no_proxy": "8.8.0.0/16"}, "http://8.8.8.8", None),
        ({"ALL_PROXY": "http://p:1", "no_proxy": "8.8.0.0/99"}, "http://8.8.8.8", "http://p:1"),
        ({"ALL_PROXY": "http://p:1", "no_proxy": "2001:db8::/32"}, "http://[2001:db8::1]:8", None),
    ],
)  # fmt: skip
def test_by_which_proxy_a_host_is_asked(
    environ: dict[str, str], url: str, proxy: str | None
) -> None:
    found = network.proxy_for(url, environ)
    assert (found and found.url) == proxy
    if found is not None:
        assert found.origin[1:] in environ


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("HTTP_PROXY", "socks4://p:1", "of the kind socks4://"),
        ("ALL_PROXY", "ftp://p", "of the kind ftp://"),
        ("http_proxy", "http://[", "is no address of a proxy"),
        ("HTTP_PROXY", "http://p:port", "is no address of a proxy"),
        ("HTTP_PROXY", "http://", "is no address of a proxy"),
        ("HTTP_PROXY", "//", "is no address of a proxy"),
    ],
)
def test_a_proxy_that_cannot_be_is_named(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str
) -> None:
    monkeypatch.setenv(variable, value)
    told = start_failure(FAR)
    assert f"${variable}" in told.message
    assert says in told.message
    assert "unset it" in told.hint


def test_what_libraries_read_is_mended() -> None:
    environ = {"all_proxy": "socks://p:1", "HTTP_PROXY": "p:2", "HF_ENDPOINT": "http://127.0.0.1:9"}
    network.mend_environment(environ)
    assert (environ["all_proxy"], environ["HTTP_PROXY"]) == ("socks5://p:1", "http://p:2")
    assert environ["NO_PROXY"] == environ["no_proxy"] == "127.0.0.1"
    network.mend_environment(environ)
    assert environ["NO_PROXY"] == "127.0.0.1"
    network.mend_environment(plain := {"NO_PROXY": "a.com"})
    assert plain == {"NO_PROXY": "a.com"}


@pytest.mark.parametrize(
    ("variable", "content", "says"),
    [
        ("SSL_CERT_FILE", None, "No such file"),
        ("SSL_CERT_FILE", "no certificate", "there is no certificate in it"),
        ("SSL_CERT_DIR", None, "no such directory"),
        ("SSLKEYLOGFILE", None, "No such file"),
    ],
)
def test_certificates_that_cannot_be_read_are_named(
    server: FakeServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    variable: str,
    content: str | None,
    says: str,
) -> None:
    path = tmp_path / "no" / "such.pem"
    if content is not None:
        path.parent.mkdir()
        path.write_text(content)
    monkeypatch.setenv(variable, str(path))
    told = start_failure(FAR.replace("http://", "https://"))
    assert f"${variable} names {path}, which cannot be used" in told.message
    assert says in told.message
    remote = Remote(server)  # which needs none
    assert remote.result().text == "You said: hello there"
    remote.backend.close()


# Proxies that speak for real


class Socks(socketserver.StreamRequestHandler):
    """A SOCKS 5 proxy that leads every host to one port of this machine."""

    def handle(self) -> None:
        server: SocksServer = self.server  # type: ignore[assignment]
        self.rfile.read(self.rfile.read(2)[1])
        self.wfile.write(b"\x05\x00")
        self.rfile.read(4)
        server.asked.append(self.rfile.read(self.rfile.read(1)[0]).decode())
        self.rfile.read(2)
        self.wfile.write(b"\x05\x00\x00\x01" + bytes(6))
        with socketserver.socket.create_connection(("127.0.0.1", server.leads_to)) as there:  # type: ignore[attr-defined]
            forward = threading.Thread(target=self._pump, args=(there,), daemon=True)
            forward.start()
            while data := there.recv(4096):
                self.wfile.write(data)

    def _pump(self, there: object) -> None:
        while data := self.connection.recv(4096):
            there.sendall(data)  # type: ignore[attr-defined]


class SocksServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, leads_to: int) -> None:
        super().__init__(("127.0.0.1", 0), Socks)
        self.leads_to = leads_to
        self.asked: list[str] = []

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has left is no failure."""


@pytest.mark.parametrize("scheme", ["socks5", "socks5h", "socks"])
def test_a_server_is_asked_by_way_of_a_socks_proxy(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    with SocksServer(server.port) as socks:
        threading.Thread(target=socks.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setenv("ALL_PROXY", f"{scheme}://127.0.0.1:{socks.server_address[1]}")
        remote = Remote(server, base_url=FAR)
        assert remote.result().text == "You said: hello there"
        remote.backend.close()
        socks.shutdown()
    assert set(socks.asked) == {"far.example.invalid"}


def test_a_server_is_asked_by_way_of_a_proxy(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{server.port}")
    remote = Remote(server, base_url=FAR)
    assert remote.result().text == "You said: hello there"
    assert all(asked.path.startswith(FAR) for asked in server.asked)
    told = remote.backend.wait_ready().description
    assert "far.example.invalid by way of the proxy of $HTTP_PROXY, each time" in told
    page = "<html><head><title>Blocked by the firewall</title></head></html>"
    server.plan(Status(407, ""), Status(403, page))
    assert "The proxy of $HTTP_PROXY" in str(remote.failure().error)
    assert "by way of the proxy of $HTTP_PROXY: Blocked by the firewall." in str(
        remote.failure().error
    )
    remote.backend.close()


@pytest.mark.parametrize("url", [FAR, FAR.replace("http://", "https://")])
@pytest.mark.parametrize("scheme", ["http", "socks5"])
def test_a_proxy_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch, url: str, scheme: str
) -> None:
    monkeypatch.setenv("ALL_PROXY", f"{scheme}://me:secret@127.0.0.1:9")
    told = start_failure(url)
    assert told.message == (
        "The proxy of $ALL_PROXY (127.0.0.1:9) cannot be reached: nothing listens there."
    )
    assert "NO_PROXY name far.example.invalid" in told.hint


@pytest.mark.parametrize(
    ("status", "says"),
    [(407, "wants a user and a password (407)"), (502, "does not lead to far.example.invalid")],
)
def test_a_proxy_that_refuses_is_named(
    monkeypatch: pytest.MonkeyPatch, status: int, says: str
) -> None:
    class Refusing(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while self.rfile.readline().strip():
                pass
            self.wfile.write(b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % status)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Refusing) as proxy:
        proxy.daemon_threads = True
        threading.Thread(target=proxy.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.server_address[1]}")
        told = start_failure(FAR.replace("http://", "https://"))
        proxy.shutdown()
    assert "The proxy of $HTTPS_PROXY" in told.message
    assert says in told.message


def test_a_near_host_is_asked_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    told = start_failure("http://no-such-box:1/v1")
    assert "There is no host 'no-such-box'" in told.message


def test_a_bad_variable_does_not_keep_this_machine_from_answering(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "socks4://[")
    remote = Remote(server)
    assert remote.result(request()).text == "You said: hello there"
    remote.backend.close()


def test_every_failure_has_words() -> None:
    assert network.connection_words(ValueError("a b\nc")) == "a b c"
    assert network.connection_words(ValueError()) == "ValueError"
    assert network.connection_words(ConnectionRefusedError(111, "no")) == "nothing listens there"
    with pytest.raises(UnavailableError, match="ALL_PROXY"):
        network.check_environment({"ALL_PROXY": "x://y"})
