"""The browser as a terminal: Textual's driver for it, with the reading of the terminal's driver."""

from __future__ import annotations

import contextlib
import time
from codecs import getincrementaldecoder

from textual.drivers._byte_stream import ByteStream
from textual.drivers.web_driver import WebDriver, _ExitInput

from chatcache.terminal.sequences import Sequences, Token
from chatcache.tui.reports import Reports


class BrowserDriver(WebDriver):
    """Each packet of the browser is either what was typed at once, or about the window."""

    def run_input_thread(self) -> None:
        with contextlib.closing(self._input_reader), contextlib.suppress(_ExitInput):
            self._read_packets()

    def _read_packets(self) -> None:
        sequences, reports, packets = Sequences(), Reports(), ByteStream()
        decode = getincrementaldecoder("utf-8")("replace").decode
        for data in self._input_reader:
            tokens: list[Token] = []
            for kind, payload in packets.feed(data) if data else ():
                if kind != "D":
                    self._on_meta(kind, payload)
                elif text := decode(payload):
                    tokens += sequences.feed(text, time.monotonic())
            tokens += sequences.tick(time.monotonic())
            for message in reports.read(tokens):
                self.process_message(message)
