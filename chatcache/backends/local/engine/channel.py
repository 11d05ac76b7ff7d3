"""One end of a stream socket that carries messages.

Owns framing (four bytes of length, big-endian, then the message) and locking. What a message is,
its codec knows.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections import deque
from typing import Any

from chatcache.backends.local.engine.codec import Codec, ProtocolError

log = logging.getLogger(__name__)

LENGTH_BYTES = 4
MAX_FRAME_BYTES = 256 << 20
MAX_BACKLOG_BYTES = 64 << 20


class ChannelClosedError(Exception):
    """The other process is gone, closed its end, or talks nonsense."""


class Channel:
    """Any thread may send; one thread receives."""

    def __init__(self, connection: socket.socket, codec: Codec) -> None:
        self.socket = connection
        self._codec = codec
        self._file = connection.makefile("rb", buffering=1 << 16)
        self._send_lock = threading.Lock()

    def send(self, message: object) -> None:
        """Returns once the message is on its way. Raises ChannelClosedError if nobody is there."""
        frame = self._frame(message)
        with self._send_lock:
            try:
                self.socket.sendall(frame)
            except OSError as error:
                raise ChannelClosedError from error

    def receive(self) -> Any:
        """Block for the next message. Raises ChannelClosedError at the end."""
        try:
            length = int.from_bytes(self._read(LENGTH_BYTES), "big")
            if length > MAX_FRAME_BYTES:
                raise ProtocolError(f"a message of {length:,} bytes")
            return self._codec.decode(self._read(length))
        except ProtocolError as error:
            log.warning("the connection is closed: %s", error)
            raise self._ended() from error
        except (OSError, ValueError) as error:  # the latter: it has been closed here
            raise self._ended() from error

    def close(self) -> None:
        """May be called again, and wakes the thread that receives."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()  # the descriptor goes with the file, when nobody reads it any more

    def _frame(self, message: object) -> bytes:
        body = self._codec.encode(message)
        return len(body).to_bytes(LENGTH_BYTES, "big") + body

    def _read(self, num_bytes: int) -> bytes:
        content: bytes = self._file.read(num_bytes)
        if len(content) < num_bytes:
            raise self._ended()
        return content

    def _ended(self) -> ChannelClosedError:
        """In the thread that reads: nothing will be read any more."""
        with contextlib.suppress(OSError):
            self._file.close()
        self.close()
        return ChannelClosedError()


class PatientChannel(Channel):
    """Sending never waits for the peer: what it does not take yet is kept for it, and a peer that
    lets too much lie is taken for gone."""

    def __init__(self, connection: socket.socket, codec: Codec) -> None:
        super().__init__(connection, codec)
        self._backlog: deque[bytes] = deque()
        self._num_waiting = 0
        self._is_flushing = False
        self._changed = threading.Condition(self._send_lock)

    def send(self, message: object) -> None:
        frame = self._frame(message)
        with self._changed:
            if not self._is_flushing:
                frame = frame[self._sent_at_once(frame) :]
            if not frame:
                return
            self._backlog.append(frame)
            self._num_waiting += len(frame)
            if self._num_waiting > MAX_BACKLOG_BYTES:
                log.warning("a front end takes nothing any more: its connection is closed")
                self.close()
                raise ChannelClosedError
            if not self._is_flushing:
                self._is_flushing = True
                threading.Thread(target=self._flush, name="flush", daemon=True).start()

    def flush(self, timeout: float) -> None:
        """Wait until the peer has taken everything."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_flushing, timeout)

    def _sent_at_once(self, frame: bytes) -> int:
        try:
            return self.socket.send(frame, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise ChannelClosedError from error

    def _flush(self) -> None:
        while True:
            with self._changed:
                if not self._backlog:
                    self._is_flushing = False
                    self._changed.notify_all()
                    return
                frame = self._backlog.popleft()
            try:
                self.socket.sendall(frame)
            except OSError:  # it is gone; whoever reads from it notices
                with self._changed:
                    self._backlog.clear()
                    self._num_waiting = 0
            with self._changed:
                self._num_waiting = max(0, self._num_waiting - len(frame))
