"""gRPC client streams, one after the other, over one HTTP/2 connection.

gRPC's own Python library takes two thread switches for a message, and an OAP wants a message per
HTTP call: that would be most of what the forwarder costs. On the wire a client stream is simple: a
request whose body is messages, each after its length, and a response whose trailers hold the
status. So the body goes out in full DATA frames, through a protocol library without I/O and a
plain socket.

Source: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
"""

from __future__ import annotations

import random
import select
import socket
import ssl
import time
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from h2.config import H2Configuration
from h2.connection import ConnectionState, H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from h2.events import Event

__all__ = ["CODES", "CallFailed", "Connection"]

CODES: Final = (
    "ok",
    "cancelled",
    "unknown",
    "invalid_argument",
    "deadline_exceeded",
    "not_found",
    "already_exists",
    "permission_denied",
    "resource_exhausted",
    "failed_precondition",
    "aborted",
    "out_of_range",
    "unimplemented",
    "internal",
    "unavailable",
    "data_loss",
    "unauthenticated",
)
"""gRPC's status codes by number."""

_RECEIVE: Final = 64 * 1024
_CONNECT_S: Final = 5.0
_ANSWER_S: Final = 10.0
_LAST_STREAM: Final = 1 << 30
_FRAME_HEAD: Final = 9
_HTTP_STATUS: Final = {
    "400": "internal",
    "401": "unauthenticated",
    "403": "permission_denied",
    "404": "unimplemented",
    "429": "unavailable",
    "502": "unavailable",
    "503": "unavailable",
    "504": "unavailable",
}
_RESET: Final = {
    ErrorCodes.REFUSED_STREAM: "unavailable",
    ErrorCodes.CANCEL: "cancelled",
    ErrorCodes.ENHANCE_YOUR_CALM: "resource_exhausted",
    ErrorCodes.INADEQUATE_SECURITY: "permission_denied",
}


class CallFailed(Exception):
    """A call did not end with OK after all of it was sent.

    Attributes:
        code: Of `CODES`, or ``early_answer``.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class Connection:
    """A connection to a server; after a failed call it is of no further use.

    Args:
        address: ``host:port``. Of several addresses behind the name one is taken at random.
        context: For TLS; None without.
        server_name: Name in the server's certificate; else the host.
        keepalive_s: Ask for a sign of life when nothing came for so long during a call.

    Raises:
        CallFailed: If it cannot be made.
    """

    def __init__(
        self, address: str, context: ssl.SSLContext | None, server_name: str, keepalive_s: float
    ) -> None:
        self._address = address
        self._keepalive_s = keepalive_s
        self._scheme = "http" if context is None else "https"
        self._aborted = False
        self._going_away = False
        self._unread = bytearray()
        self._h2 = H2Connection(
            H2Configuration(
                client_side=True,
                header_encoding="utf-8",
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        try:
            self._socket = _connected(address)
        except OSError as error:
            raise CallFailed("unavailable", str(error)) from error
        try:
            if context is not None:
                self._socket = _secured(self._socket, context, server_name or _host(address))
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._h2.initiate_connection()
            self._socket.sendall(self._h2.data_to_send())
        except OSError as error:
            self._socket.close()
            raise CallFailed("unavailable", str(error)) from error
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)

    def is_usable(self) -> bool:
        """Whether another call may begin: the server may have closed it in the meantime."""
        try:
            self._read_waiting(_Call(time.monotonic() + _ANSWER_S))
        except (OSError, ProtocolError):
            return False
        used_up = self._h2.highest_outbound_stream_id >= _LAST_STREAM
        return not (self._going_away or self._aborted or used_up)

    def abort(self) -> None:
        """End the connection under a call; may be called from another thread."""
        self._aborted = True
        # Past the TLS layer, which another thread may be in.
        try:
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
        except OSError:
            return

    def close(self) -> None:
        """End the connection."""
        self._socket.close()

    def call(
        self,
        path: str,
        messages: Iterable[bytes],
        timeout_s: float,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Send the messages, say that this was all, and wait for the status.

        Raises:
            CallFailed: Unless the status is OK and came after the last message.
        """
        call = _Call(time.monotonic() + timeout_s)
        try:
            call.stream = self._h2.get_next_available_stream_id()
            self._h2.send_headers(
                call.stream,
                [
                    (":method", "POST"),
                    (":scheme", self._scheme),
                    (":path", path),
                    (":authority", self._address),
                    ("te", "trailers"),
                    ("content-type", "application/grpc"),
                    ("user-agent", "podwire"),
                    ("grpc-timeout", f"{max(round(timeout_s * 1000), 1)}m"),
                    *metadata,
                ],
            )
            self._send_body(call, messages)
            if not call.ended:
                self._h2.end_stream(call.stream)
                self._flush(call)
                call.complete = True
            while not call.ended:
                self._receive(call)
        except ProtocolError as error:
            code = "unavailable" if self._going_away else "internal"
            raise CallFailed(code, str(error)) from error
        except TimeoutError as error:
            raise CallFailed("deadline_exceeded", "no answer in time") from error
        except OSError as error:
            code = "cancelled" if self._aborted else "unavailable"
            raise CallFailed(code, str(error)) from error
        call.check()

    def _send_body(self, call: _Call, messages: Iterable[bytes]) -> None:
        pending = bytearray()
        for message in messages:
            pending += b"\0" + len(message).to_bytes(4, "big")
            pending += message
            if len(pending) >= self._h2.max_outbound_frame_size:
                self._send_data(call, pending, self._h2.max_outbound_frame_size)
                if call.ended:
                    return
        self._send_data(call, pending, 1)

    def _send_data(self, call: _Call, pending: bytearray, least: int) -> None:
        # Sends until fewer bytes than that are left, as the server's window allows.
        at = 0
        while len(pending) - at >= least and not call.ended:
            window = self._h2.local_flow_control_window(call.stream)
            size = min(window, self._h2.max_outbound_frame_size, len(pending) - at)
            if size <= 0:
                self._flush(call)
                self._receive(call)
                continue
            self._h2.send_data(call.stream, bytes(memoryview(pending)[at : at + size]))
            at += size
        self._flush(call)
        self._read_waiting(call)
        del pending[:at]

    def _flush(self, call: _Call) -> None:
        data = self._h2.data_to_send()
        if data:
            self._socket.settimeout(call.left())
            self._socket.sendall(data)

    def _read_waiting(self, call: _Call) -> None:
        # What has come already, without waiting for more.
        while not call.ended and (self._pending() or self._poll.poll(0)):
            self._receive(call)

    def _pending(self) -> int:
        return self._socket.pending() if isinstance(self._socket, ssl.SSLSocket) else 0

    def _receive(self, call: _Call) -> None:
        left = call.left()
        # One question per call: servers hang up on those who ask more often than they like.
        patience = _ANSWER_S if call.asked else left if call.answered else self._keepalive_s
        self._socket.settimeout(min(left, patience))
        try:
            data = self._socket.recv(_RECEIVE)
        except TimeoutError:
            if left <= patience:
                raise
            if call.asked:
                raise ConnectionError("no sign of life") from None
            call.asked = True
            self._h2.ping(b"podwire?")
            self._flush(call)
            return
        if not data:
            raise ConnectionError("the server closed the connection")
        call.answered, call.asked = call.answered or call.asked, False
        self._unread += data
        # Frame by frame, because of what `_note` does about the end of a connection.
        while len(self._unread) >= _FRAME_HEAD:
            size = _FRAME_HEAD + int.from_bytes(self._unread[:3], "big")
            if len(self._unread) < size <= _FRAME_HEAD + self._h2.max_inbound_frame_size:
                break
            frame = bytes(self._unread[:size])
            del self._unread[:size]
            for event in self._h2.receive_data(frame):
                self._note(call, event)
        self._flush(call)

    def _note(self, call: _Call, event: Event) -> None:
        if isinstance(event, ConnectionTerminated):
            self._going_away = True
            if call.stream and (event.last_stream_id or 0) < call.stream:
                call.fail("unavailable", "the server goes away")
            # For h2 the connection is over now, but the server still serves what it has begun:
            # RFC 9113, 6.8.
            self._h2.state_machine.state = ConnectionState.CLIENT_OPEN
            return
        if isinstance(event, DataReceived):
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        if getattr(event, "stream_id", None) != call.stream or not call.stream:
            return
        if isinstance(event, ResponseReceived | TrailersReceived):
            call.headers.update((str(name), str(value)) for name, value in event.headers)
        elif isinstance(event, StreamEnded):
            call.ended = True
        elif isinstance(event, StreamReset) and not call.ended:
            code = _RESET.get(event.error_code, "internal")  # type: ignore[call-overload]
            call.fail(code, f"the server reset the stream: {event.error_code!r}")


class _Call:
    # What is known of the answer so far.
    def __init__(self, deadline: float) -> None:
        self.stream = 0
        self.headers: dict[str, str] = {}
        self.ended = False
        self.complete = False
        self.asked = False
        self.answered = False
        self._deadline = deadline
        self._failure: CallFailed | None = None

    def left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def fail(self, code: str, detail: str) -> None:
        self._failure = CallFailed(code, detail)
        self.ended = True

    def check(self) -> None:
        if self._failure is not None:
            raise self._failure
        number = self.headers.get("grpc-status", "")
        if number.isdigit():
            code = CODES[int(number)] if int(number) < len(CODES) else "unknown"
        else:
            code = _HTTP_STATUS.get(self.headers.get(":status", ""), "unknown")
        if code != "ok":
            raise CallFailed(code, unquote(self.headers.get("grpc-message", "")))
        if not self.complete:
            raise CallFailed("early_answer", "not all had been sent")


def _host(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")


def _connected(address: str) -> socket.socket:
    port = int(address.rpartition(":")[2])
    found = socket.getaddrinfo(_host(address), port, type=socket.SOCK_STREAM)
    random.shuffle(found)
    failure = OSError(f"{address}: no address")
    for family, kind, protocol, _, place in found:
        made = socket.socket(family, kind, protocol)
        made.settimeout(_CONNECT_S)
        try:
            made.connect(place)
        except OSError as error:
            made.close()
            failure = error
        else:
            return made
    raise failure


def _secured(plain: socket.socket, context: ssl.SSLContext, name: str) -> ssl.SSLSocket:
    # The plain socket's descriptor goes over to the new one, or is closed with it.
    secured = context.wrap_socket(plain, server_hostname=name)
    # Some servers speak HTTP/2 without saying so.
    if secured.selected_alpn_protocol() not in ("h2", None):
        secured.close()
        raise ConnectionError("the server does not speak HTTP/2")
    return secured
